//! Which addresses may be connected to when a URL comes from a web page: pages found by discovery, and the URLs in them.
//!
//! Guarantees: the address that is connected to is the one that was checked. Names are resolved here, for the
//! connection itself, so that a name that resolves differently the second time gains nothing; an address in a URL never
//! passes a resolver and is checked by itself. The check can't see beyond a proxy: a client with this policy must have
//! none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::http::HttpFailure;

/// How long resolving a name may take where nothing is fetched.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Which addresses may be connected to.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    allows_all: bool,
    /// Permitted besides the public ones.
    besides: Vec<IpAddr>,
}

/// An address that is not public.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, {range}")]
pub struct PrivateAddress {
    host: String,
    address: IpAddr,
    range: &'static str,
}

impl AddressPolicy {
    /// Permits public addresses alone.
    pub fn public_only() -> Self {
        Self::default()
    }

    /// Permits any address.
    pub fn open() -> Self {
        Self { allows_all: true, besides: Vec::new() }
    }

    /// Permits this address too.
    #[must_use]
    pub fn besides(mut self, address: IpAddr) -> Self {
        self.besides.push(address);
        self
    }

    /// Whether any address is permitted.
    pub fn allows_all(&self) -> bool {
        self.allows_all
    }

    fn permits(&self, host: &str, address: IpAddr) -> Result<(), PrivateAddress> {
        match special_purpose_range(address) {
            Some(range) if !self.allows_all && !self.besides.contains(&address) => {
                Err(PrivateAddress { host: host.to_owned(), address, range })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a URL with an address in it that may not be connected to; a name is checked when it is resolved.
    pub(super) fn permit_address(&self, url: &Url) -> Result<(), PrivateAddress> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            _ => return Ok(()),
        };
        self.permits(url.host_str().unwrap_or_default(), address)
    }

    /// Refuses a URL whose address may not be connected to, as its name resolves now. A name that can't be resolved is
    /// not refused.
    ///
    /// # Errors
    /// [`HttpFailure::PrivateAddress`].
    pub async fn check_url(&self, url: &Url) -> Result<(), HttpFailure> {
        self.permit_address(url).map_err(private_address_failure)?;
        let (Some(Host::Domain(name)), false) = (url.host(), self.allows_all) else { return Ok(()) };
        match tokio::time::timeout(RESOLVE_TIMEOUT, resolve_permitted(self, name)).await {
            Ok(Err(error)) => {
                error.downcast::<PrivateAddress>().map_or(Ok(()), |refused| Err(private_address_failure(*refused)))
            }
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }
}

pub(super) fn private_address_failure(refused: PrivateAddress) -> HttpFailure {
    HttpFailure::PrivateAddress(refused.to_string())
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The permitted addresses of a name; an error where it has only others.
async fn resolve_permitted(policy: &AddressPolicy, name: &str) -> Result<Vec<SocketAddr>, Error> {
    let mut addresses = Vec::new();
    let mut refused = None;
    for address in tokio::net::lookup_host((name, 0)).await? {
        match policy.permits(name, address.ip()) {
            Ok(()) => addresses.push(address),
            Err(refusal) => refused = Some(refusal),
        }
    }
    match refused {
        Some(refused) if addresses.is_empty() => Err(refused.into()),
        _ => Ok(addresses),
    }
}

impl Resolve for AddressPolicy {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.clone();
        Box::pin(async move {
            let addresses = resolve_permitted(&policy, name.as_str()).await?;
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

/// The special-purpose range that an address is in, and so not public (IANA registries, RFC 6890), in words.
pub fn special_purpose_range(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => range_v4(address),
        IpAddr::V6(address) => range_v6(address),
    }
}

fn range_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    Some(match (a, b, c) {
        (0, ..) => "this network",
        (127, ..) => "loopback",
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => "a private network",
        (100, 64..=127, _) => "a carrier's private network",
        (169, 254, _) => "link-local",
        (192, 0, 0) => "a protocol's own",
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => "documentation",
        (192, 88, 99) => "a relay's",
        (198, 18..=19, _) => "a benchmark's network",
        (224..=239, ..) => "multicast",
        (240..=255, ..) => "reserved",
        _ => return None,
    })
}

fn range_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([w, x], [y, z]) = (high.to_be_bytes(), low.to_be_bytes());
        range_v4(Ipv4Addr::new(w, x, y, z))
    };
    Some(match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0] if (g, h) == (0, 1) => "loopback",
        [0, 0, 0, 0, 0, 0] => "this network",
        // The same address in another dress: mapped, and translated (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => return embedded(g, h),
        [0x64, 0xff9b, 1, ..] => "a private network",
        [0x100, 0, 0, 0, ..] => "discarded",
        [0x2001, 0..=0x1ff, ..] => "a protocol's own",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "documentation",
        [0x2002, ..] => return embedded(b, c).or(Some("a relay's")),
        [0x5f00, ..] => "a protocol's own",
        [0xfc00..=0xfdff, ..] => "a unique local address",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "site-local",
        [0xff00..=0xffff, ..] => "multicast",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_recognised() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(special_purpose_range(address.parse().unwrap()).is_some(), "{address}");
        }
        for address in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert_eq!(special_purpose_range(address.parse().unwrap()), None, "{address}");
        }
    }

    #[tokio::test]
    async fn every_way_to_write_this_machine_is_refused() {
        for url in [
            "http://127.0.0.1/",
            "http://127.1:8080/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://localhost/",
            "http://LOCALHOST/",
        ] {
            let result = AddressPolicy::public_only().check_url(&Url::parse(url).unwrap()).await;
            assert!(matches!(result, Err(HttpFailure::PrivateAddress(_))), "{url}: {result:?}");
            assert!(AddressPolicy::open().check_url(&Url::parse(url).unwrap()).await.is_ok(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_client_s_resolver_gives_no_address_that_may_not_be_connected_to() {
        let name = || "localhost".parse::<Name>().unwrap();
        assert!(AddressPolicy::public_only().resolve(name()).await.is_err());
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let permitted: Vec<SocketAddr> =
            AddressPolicy::public_only().besides(here).resolve(name()).await.unwrap().collect();
        assert!(!permitted.is_empty() && permitted.iter().all(|address| address.ip() == here), "{permitted:?}");
    }
}
