//! Which addresses are a feed's own: only those get its secrets.

use url::Url;

/// Whether `target` is of the feed's own origin, or the https of it: on the same port, or on 443 where it has 80.
pub(super) fn is_own_origin(home: &Url, target: &Url) -> bool {
    if home.origin() == target.origin() {
        return true;
    }
    let ports = (home.port_or_known_default(), target.port_or_known_default());
    let upgraded = ports.0 == ports.1 || ports == (Some(80), Some(443));
    home.scheme() == "http" && target.scheme() == "https" && home.host() == target.host() && upgraded
}

/// `target`, or the https address that it means: a publisher behind something that speaks TLS for it may not know, and
/// write `http` where it is asked by https.
pub(super) fn upgraded_to_https(home: &Url, target: &Url) -> Option<Url> {
    let port = target.port_or_known_default();
    let ours = port == Some(80) || port == home.port_or_known_default();
    if home.scheme() != "https" || target.scheme() != "http" || home.host() != target.host() || !ours {
        return None;
    }
    let mut asked = target.clone();
    asked.set_scheme(home.scheme()).ok()?;
    asked.set_port(home.port()).ok()?;
    Some(asked)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn https_is_home_on_the_same_port_or_its_own() {
        for (home, target, own) in [
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
            assert_eq!(is_own_origin(&url(home), &url(target)), own, "{home} {target}");
        }
    }

    #[test]
    fn http_of_an_https_feed_is_asked_by_https() {
        for (home, target, asked) in [
            ("https://h/feed", "http://h/x?a=%2f", Some("https://h/x?a=%2f")),
            ("https://h:8443/feed", "http://h:8443/x", Some("https://h:8443/x")),
            ("https://h:8443/feed", "http://h/x", Some("https://h:8443/x")),
            ("https://h/feed", "http://h:443/x", Some("https://h/x")),
            ("https://h/feed", "http://h:8080/x", None),
            ("https://h/feed", "http://other/x", None),
            ("http://h/feed", "http://h/x", None),
            ("https://h/feed", "https://h/x", None),
        ] {
            assert_eq!(upgraded_to_https(&url(home), &url(target)).as_ref().map(Url::as_str), asked, "{home} {target}");
        }
    }
}
