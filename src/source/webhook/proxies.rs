//! Proxies of ours (`webhooks.trusted_proxies`): whose word counts for where a request came from. Nobody's by default:
//! whoever connects could write any address into `X-Forwarded-For`.

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::HeaderMap;

/// Addresses of a network: `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| ())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), |prefix| prefix.parse().map_err(|_| ()))?;
        if prefix > longest {
            return Err(());
        }
        Ok(Self { address, prefix })
    }
}

impl Network {
    fn holds(&self, address: IpAddr) -> bool {
        let differs = |one: u128, other: u128, bits: u32| {
            let shift = bits - u32::from(self.prefix);
            one.checked_shr(shift).unwrap_or(0) != other.checked_shr(shift).unwrap_or(0)
        };
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(one)) => !differs(net.to_bits().into(), one.to_bits().into(), 32),
            (IpAddr::V6(net), IpAddr::V6(one)) => !differs(net.to_bits(), one.to_bits(), 128),
            _ => false,
        }
    }
}

/// The proxies whose word counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    /// These.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    /// Whether this is one of them.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.holds(address))
    }

    /// The client of a request that `peer` sent: itself, or whom a proxy of ours names, the last who is none of ours.
    /// Nobody where a proxy names none.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.trusts(peer) {
            return Some(peer);
        }
        let values = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let named: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
        for name in named.into_iter().rev() {
            // What stands before a word that is no address was not written by a proxy of ours.
            let address = address(name)?;
            if !self.trusts(address) {
                return Some(address);
            }
        }
        None
    }
}

/// An address, as proxies write it: bare, in brackets, with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(address, _)| address);
    let bare =
        bare.or_else(|| text.split_once(':').filter(|(_, port)| !port.contains(':')).map(|(address, _)| address));
    bare.unwrap_or(text).parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_client_is_whom_a_proxy_of_ours_names_and_nobody_else_s_word_counts() {
        let proxies = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::1".parse().unwrap()]);
        for (peer, forwarded, client) in [
            ("192.0.2.1", "203.0.113.9", Some("192.0.2.1")),
            ("10.1.2.3", "203.0.113.9", Some("203.0.113.9")),
            ("::ffff:10.1.2.3", "203.0.113.9", Some("203.0.113.9")),
            ("fd00::1", "spoofed, 203.0.113.9, 10.0.0.7", Some("203.0.113.9")),
            ("10.1.2.3", "198.51.100.1, 203.0.113.9:4711", Some("203.0.113.9")),
            ("10.1.2.3", "[2001:db8::1]:80", Some("2001:db8::1")),
            ("10.1.2.3", "203.0.113.9, unknown", None),
            ("10.1.2.3", "10.0.0.9", None),
            ("10.1.2.3", "", None),
            ("fd00::2", "203.0.113.9", Some("fd00::2")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
            let expected = client.map(|client| client.parse::<IpAddr>().unwrap());
            assert_eq!(proxies.client(peer.parse().unwrap(), &headers), expected, "{peer} {forwarded}");
        }
        assert!(!TrustedProxies::default().trusts("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn networks_are_read_as_they_are_written() {
        for (text, within, without) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
            ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
            ("::/0", "::1", "127.0.0.1"),
        ] {
            let network: Network = text.parse().unwrap();
            assert!(network.holds(within.parse().unwrap()), "{text} {within}");
            assert!(!network.holds(without.parse().unwrap()), "{text} {without}");
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "proxy.example", "10.0.0.0/", "10.0.0.0/-1", "::/129"] {
            assert_eq!(wrong.parse::<Network>(), Err(()), "{wrong}");
        }
    }
}
