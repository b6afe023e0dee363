//! Which URLs are of the endpoint's own origin: only those get the feed's secrets. Pure.

use url::Url;

/// Whether `target` is of the endpoint's origin, or of its https origin: on the same port, or on 443 in place of 80.
pub(super) fn is_own_origin(endpoint_url: &Url, target: &Url) -> bool {
    if endpoint_url.origin() == target.origin() {
        return true;
    }
    let ports = (endpoint_url.port_or_known_default(), target.port_or_known_default());
    let upgraded = ports.0 == ports.1 || ports == (Some(80), Some(443));
    endpoint_url.scheme() == "http" && target.scheme() == "https" && endpoint_url.host() == target.host() && upgraded
}

/// The https URL that an http `target` means: a publisher behind a TLS proxy may write `http` though it is requested by
/// https. None where `target` needs no upgrade or is of another origin.
pub(super) fn upgraded_to_https(endpoint_url: &Url, target: &Url) -> Option<Url> {
    let port = target.port_or_known_default();
    let same_port = port == Some(80) || port == endpoint_url.port_or_known_default();
    if endpoint_url.scheme() != "https"
        || target.scheme() != "http"
        || endpoint_url.host() != target.host()
        || !same_port
    {
        return None;
    }
    let mut upgraded = target.clone();
    upgraded.set_scheme(endpoint_url.scheme()).ok()?;
    upgraded.set_port(endpoint_url.port()).ok()?;
    Some(upgraded)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn https_is_the_own_origin_on_the_same_port_or_on_443() {
        for (endpoint_url, target, own) in [
            ("http://h/feed", "http://h:80/x", true),
            ("http://h/feed", "https://h/x", true),
            ("http://h:8080/feed", "https://h:8080/x", true),
            ("http://h:8080/feed", "https://h/x", false),
            ("http://h:8080/feed", "https://h:8443/x", false),
            ("http://h/feed", "https://h:8443/x", false),
            ("http://h/feed", "https://other/x", false),
            ("https://h/feed", "http://h/x", false),
            ("https://h/feed", "https://h:444/x", false),
        ] {
            assert_eq!(is_own_origin(&url(endpoint_url), &url(target)), own, "{endpoint_url} {target}");
        }
    }

    #[test]
    fn http_of_an_https_endpoint_is_requested_by_https() {
        for (endpoint_url, target, upgraded) in [
            ("https://h/feed", "http://h/x?a=%2f", Some("https://h/x?a=%2f")),
            ("https://h:8443/feed", "http://h:8443/x", Some("https://h:8443/x")),
            ("https://h:8443/feed", "http://h/x", Some("https://h:8443/x")),
            ("https://h/feed", "http://h:443/x", Some("https://h/x")),
            ("https://h/feed", "http://h:8080/x", None),
            ("https://h/feed", "http://other/x", None),
            ("http://h/feed", "http://h/x", None),
            ("https://h/feed", "https://h/x", None),
        ] {
            assert_eq!(
                upgraded_to_https(&url(endpoint_url), &url(target)).as_ref().map(Url::as_str),
                upgraded,
                "{endpoint_url} {target}"
            );
        }
    }
}
