//! Trusted proxies (`webhooks.trusted_proxies`): only their `X-Forwarded-For` names a request's client. None by
//! default: any other peer could write any address into that header.

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::HeaderMap;

/// A network, `10.0.0.0/8`, or one address.
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
    fn contains(&self, address: IpAddr) -> bool {
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

/// The proxies whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    /// Trusts all addresses of these networks.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    /// Whether `address` is a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }

    /// The client of a request that `peer` sent: `peer` itself, or, where `peer` is trusted, the last address in
    /// `X-Forwarded-For` that is not. None where a trusted proxy names no client.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.trusts(peer) {
            return Some(peer);
        }
        let values = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let named: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
        for name in named.into_iter().rev() {
            // Text before a word that is no address was not written by a trusted proxy.
            let address = address(name)?;
            if !self.trusts(address) {
                return Some(address);
            }
        }
        None
    }
}

/// Parses an address as proxies write it: bare, in brackets, with a port.
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
    fn a_client_is_named_by_a_trusted_proxy_and_by_nobody_else() {
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
            assert!(network.contains(within.parse().unwrap()), "{text} {within}");
            assert!(!network.contains(without.parse().unwrap()), "{text} {without}");
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0/8", "proxy.example", "10.0.0.0/", "10.0.0.0/-1", "::/129"] {
            assert_eq!(wrong.parse::<Network>(), Err(()), "{wrong}");
        }
    }
}
