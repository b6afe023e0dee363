//! Decides what follows a page: the publisher's `next`, resolved but otherwise unchanged, or, where the publisher sends
//! none, a URL made from the last item.
//!
//! URLs are text here: nothing is decoded, normalised or re-encoded, since a publisher's `next` is opaque (RPDE 1.0,
//! "paging") and the end of a feed is recognised byte for byte. Never decides whether a URL may be requested.

use crate::feed::{Dialect, Item, NextPage, Page};

/// Decides what follows a page that was requested at the URL `requested`; `published` is its `next`, secrets masked.
pub fn decide_next(requested: &str, page: &mut Page, published: Option<&str>, configured: Option<Dialect>) -> NextPage {
    let Some(published) = published else { return without_next(requested, page, configured) };
    if let Some((_, fragment)) = published.split_once('#') {
        page.add_finding("next-fragment", || {
            format!("`next` is cut at its raw `#`; {:?} is not sent", beginning(fragment))
        });
    }
    let url = resolve(requested, published);
    match (url == requested, page.is_empty()) {
        (true, true) if page.null_items => NextPage::TreatedAsLevel("items-null"),
        (true, true) => NextPage::Level,
        (true, false) => {
            let items = page.items.len();
            page.add_finding("self-next", || format!("a page with {items} items sends to itself: {requested}"));
            NextPage::TreatedAsLevel("self-next")
        }
        (false, _) => NextPage::Follow { url, generated: false },
    }
}

/// The longest URL that is followed, bytes: servers refuse longer ones.
const LONGEST: usize = 16 << 10;

/// Why a URL is not followed, if it is too long.
pub fn length_refusal(next: &str) -> Option<String> {
    let length = next.len();
    (length > LONGEST).then(|| format!("long-next: `next` has {length} bytes; up to {LONGEST} are followed"))
}

/// A page's `next` without reading the page's items, where that is easy: after the last list, or before `items`.
/// Best effort: it may return none although the page has a `next`, and never returns a wrong one.
pub fn peek_next(page: &[u8]) -> Option<String> {
    peek_after_items(page).or_else(|| peek_before_items(page))
}

/// The bytes searched: enough for the few fields that publishers send besides `items`.
const PEEKED_BYTES: usize = 4 << 10;

#[derive(serde::Deserialize)]
struct NextField {
    next: Option<String>,
}

/// The rest of the page is an object of its own only if the list was the page's own field.
fn peek_after_items(page: &[u8]) -> Option<String> {
    let from = page.len().saturating_sub(PEEKED_BYTES);
    let at = from + page.get(from..)?.iter().rposition(|byte| *byte == b']')?;
    let fields = page.get(at + 1..)?.trim_ascii_start().strip_prefix(b",")?;
    serde_json::from_slice::<NextField>(&[b"{", fields].concat()).ok()?.next
}

fn peek_before_items(page: &[u8]) -> Option<String> {
    let head = page.get(..page.len().min(PEEKED_BYTES))?;
    let at = head.windows(7).position(|word| word == b"\"items\"")?;
    let fields = head.get(..at)?.trim_ascii_end().strip_suffix(b",")?;
    serde_json::from_slice::<NextField>(&[fields, b"}"].concat()).ok()?.next
}

fn without_next(requested: &str, page: &mut Page, configured: Option<Dialect>) -> NextPage {
    page.add_finding("no-next", || format!("a page without `next`: {requested}"));
    let generated = page.items.last().and_then(|last| build_next(requested, last, configured));
    match generated {
        Some(url) if url != requested => NextPage::Follow { url, generated: true },
        _ => NextPage::TreatedAsLevel("no-next"),
    }
}

/// The first characters of the fragment that is removed.
fn beginning(fragment: &str) -> String {
    fragment.chars().take(80).collect()
}

/// Resolves `reference` against `base` (RFC 3986 §5.2), leaving the bytes of both as they are, but for blanks and
/// control characters around the reference, which no URL begins or ends with (WHATWG URL §4.4).
pub fn resolve(base: &str, reference: &str) -> String {
    let reference = reference.trim_matches(|c: char| c <= ' ');
    let base = base.split('#').next().unwrap_or(base);
    let reference = reference.split('#').next().unwrap_or(reference);
    if reference.is_empty() {
        return base.to_owned();
    }
    if has_scheme(reference) {
        return reference.to_owned();
    }
    let authority = base.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = (base.get(..authority.saturating_sub(2)).unwrap_or(""), &base[authority..]);
    if reference.starts_with("//") {
        return format!("{scheme}{reference}");
    }
    let path_at = authority + rest.find(['/', '?']).unwrap_or(rest.len());
    let (origin, path) = base.split_at(path_at);
    let path = path.split('?').next().unwrap_or(path);
    if reference.starts_with('?') {
        return format!("{origin}{path}{reference}");
    }
    let (target, query) = match reference.find('?') {
        Some(at) => reference.split_at(at),
        None => (reference, ""),
    };
    if target.starts_with('/') {
        return format!("{origin}{}{query}", without_dots(target));
    }
    let directory = path.rfind('/').map_or("/", |at| &path[..=at]);
    format!("{origin}{}{query}", without_dots(&format!("{directory}{target}")))
}

fn has_scheme(reference: &str) -> bool {
    let Some((scheme, _)) = reference.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// RFC 3986 §5.2.4, only where there is a dot segment to remove.
fn without_dots(path: &str) -> String {
    if !path.split('/').any(|segment| segment == "." || segment == "..") {
        return path.to_owned();
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

/// The dialect of a URL's parameters, whose case is ignored (`afterID` exists).
pub fn dialect_of(url: &str) -> Option<Dialect> {
    let names: Vec<String> = pairs(url).map(|(name, _)| name.to_ascii_lowercase()).collect();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if has("aftertimestamp") || has("afterid") {
        Some(Dialect::Timestamp)
    } else if has("afterchangenumber") {
        Some(Dialect::ChangeNumber)
    } else if has("from") || has("after") {
        Some(Dialect::Draft)
    } else {
        None
    }
}

/// A `next` from a page's last item, by the rules of the dialect that the URL shows or the feed is configured with.
fn build_next(requested: &str, last: &Item, configured: Option<Dialect>) -> Option<String> {
    let dialect = dialect_of(requested).or(configured)?;
    let modified = last.modified.to_string();
    let wanted: &[(&str, &str)] = &match dialect {
        Dialect::Draft => vec![("from", modified.as_str()), ("after", &last.id)],
        Dialect::Timestamp => vec![("afterTimestamp", modified.as_str()), ("afterId", &last.id)],
        Dialect::ChangeNumber => vec![("afterChangeNumber", modified.as_str())],
    };
    let mut query: Vec<String> = Vec::new();
    let mut written = vec![false; wanted.len()];
    for (name, value) in pairs(requested) {
        match wanted.iter().position(|(wanted, _)| wanted.eq_ignore_ascii_case(name)) {
            Some(i) => {
                written[i] = true;
                query.push(format!("{name}={}", percent_encode(wanted[i].1)));
            }
            None if value.is_empty() => query.push(name.to_owned()),
            None => query.push(format!("{name}={value}")),
        }
    }
    for (i, (name, value)) in wanted.iter().enumerate() {
        if !written[i] {
            query.push(format!("{name}={}", percent_encode(value)));
        }
    }
    let base = requested.split(['?', '#']).next().unwrap_or(requested);
    Some(format!("{base}?{}", query.join("&")))
}

fn pairs(url: &str) -> impl Iterator<Item = (&str, &str)> {
    let query = url.split('#').next().unwrap_or(url).split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Percent-encodes all but RFC 3986's unreserved characters.
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::decode::rpde;

    #[test]
    fn references_resolve_and_keep_their_bytes() {
        let base = "https://h.example:8443/a/b/feed?from=1#x";
        for (reference, expected) in [
            ("", "https://h.example:8443/a/b/feed?from=1"),
            ("https://Other.example/x%3ay?a={b}&afterId=", "https://Other.example/x%3ay?a={b}&afterId="),
            ("//other.example/x", "https://other.example/x"),
            ("/getSessions?from=2&after={d97}", "https://h.example:8443/getSessions?from=2&after={d97}"),
            ("?from=2", "https://h.example:8443/a/b/feed?from=2"),
            ("feed?from=2", "https://h.example:8443/a/b/feed?from=2"),
            ("./feed?from=a:b/../c", "https://h.example:8443/a/b/feed?from=a:b/../c"),
            ("../../../c/./d/..", "https://h.example:8443/c/"),
            (" \thttps://h.example/x?y \n", "https://h.example/x?y"),
            (" ?from=2 ", "https://h.example:8443/a/b/feed?from=2"),
        ] {
            assert_eq!(resolve(base, reference), expected, "{reference}");
        }
        assert_eq!(resolve("http://h.example", "x?y"), "http://h.example/x?y");
        assert_eq!(resolve("http://h.example?q=1", "?y"), "http://h.example?y");
    }

    #[test]
    fn a_peek_returns_the_page_s_own_next_or_nothing() {
        for (page, seen) in [
            (r#"{"items":[{"a":["]"]}],"next":"n\u0031","license":"l"}"#, Some("n1")),
            (r#"{ "next" : "n", "items" : [ ] }"#, Some("n")),
            (r#"{"license":"l","next":"n","items":[{"next":"x"}],"more":1}"#, Some("n")),
            (r#"{"items":[{"data":{"next":"x"}}]}"#, None),
            (r#"{"items":[1],"meta":{"list":[1],"next":"x"}}"#, None),
            (r#"{"meta":{"next":"x","items":[1]}}"#, None),
            (r#"{"items":[],"next":null}"#, None),
            ("", None),
        ] {
            assert_eq!(peek_next(page.as_bytes()).as_deref(), seen, "{page}");
        }
    }

    fn page(json: &str) -> Page {
        rpde::page(json.as_bytes().to_vec(), &rpde::DecodeSettings::default()).unwrap()
    }

    fn decide(requested: &str, json: &str, configured: Option<Dialect>) -> (NextPage, Page) {
        let mut page = page(json);
        let published = page.next.clone();
        (decide_next(requested, &mut page, published.as_deref(), configured), page)
    }

    const ITEM: &str = r#"{"state":"deleted","kind":"k","id":"{a b}","modified":7}"#;

    #[test]
    fn the_end_is_an_empty_page_whose_next_is_its_own_url() {
        let (next, _) = decide("http://h/f?x=1", r#"{"items":[],"next":"?x=1"}"#, None);
        assert_eq!(next, NextPage::Level);
        let (next, _) = decide("http://h/f?x=1", r#"{"items":[],"next":"http://H/f?x=1"}"#, None);
        assert_eq!(next, NextPage::Follow { url: "http://H/f?x=1".into(), generated: false });
    }

    #[test]
    fn a_page_with_items_whose_next_is_its_own_url_is_treated_as_level() {
        let (next, page) = decide("http://h/f", &format!(r#"{{"items":[{ITEM}],"next":"/f"}}"#), None);
        assert_eq!(next, NextPage::TreatedAsLevel("self-next"));
        assert_eq!(page.findings[0].rule, "self-next");
    }

    #[test]
    fn a_missing_next_is_generated_where_the_dialect_is_known() {
        let body = format!(r#"{{"items":[{ITEM}]}}"#);
        for (requested, configured, generated) in [
            ("http://h/f", None, None),
            (
                "http://h/f?limit=5",
                Some(Dialect::Timestamp),
                Some("http://h/f?limit=5&afterTimestamp=7&afterId=%7Ba%20b%7D"),
            ),
            (
                "http://h/f?AFTERID=x&a&afterTimestamp=1",
                None,
                Some("http://h/f?AFTERID=%7Ba%20b%7D&a&afterTimestamp=7"),
            ),
            ("http://h/f?afterChangeNumber=3", None, Some("http://h/f?afterChangeNumber=7")),
            ("http://h/f?after=x&from=1", None, Some("http://h/f?after=%7Ba%20b%7D&from=7")),
            ("http://h/f?afterChangeNumber=7", None, None),
        ] {
            let (next, page) = decide(requested, &body, configured);
            let expected = generated.map_or(NextPage::TreatedAsLevel("no-next"), |url| NextPage::Follow {
                url: url.into(),
                generated: true,
            });
            assert_eq!(next, expected, "{requested}");
            assert_eq!(page.findings[0].rule, "no-next");
        }
    }
}
