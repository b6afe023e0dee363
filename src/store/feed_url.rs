//! What a change of a feed's configured URL means for the stored cursors: whether the URL is another feed's, and what a
//! stored cursor becomes. Pure functions of texts; a cursor keeps the publisher's own spelling except for what changed.

/// A URL's parts as they are written.
struct Parts<'a> {
    scheme: &'a str,
    authority: &'a str,
    /// With the leading slash.
    path: &'a str,
    query: Option<&'a str>,
    /// With its `#`.
    fragment: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (rest, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
        let (location, query) = rest.split_once('?').map_or((rest, None), |(location, query)| (location, Some(query)));
        let (authority, path) = location.split_at(location.find('/').unwrap_or(location.len()));
        Some(Self { scheme, authority, path, query, fragment })
    }

    /// The host in lower case, and the port unless it is the scheme's own.
    fn host(&self) -> String {
        let host = self.authority.to_ascii_lowercase();
        let default_port = if self.scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
        host.strip_suffix(default_port).unwrap_or(&host).to_owned()
    }

    fn path(&self) -> &str {
        if self.path.is_empty() { "/" } else { self.path }
    }

    fn pairs(&self) -> Vec<&'a str> {
        self.query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect()
    }
}

/// Whether two URLs differ in host or path; a change of scheme or query is not another feed.
pub(super) fn is_moved(before: &str, after: &str) -> bool {
    match (Parts::of(before), Parts::of(after)) {
        (Some(before), Some(after)) => before.host() != after.host() || before.path() != after.path(),
        _ => before != after,
    }
}

/// What `cursor` becomes once the feed's URL has changed from `before` to `after`, on the same host and path; `None`
/// when the cursor stays as it is. A cursor of the old origin moves to the new one; query pairs that the URL no longer
/// has are removed, and new ones are added, unless the publisher has set its own value.
pub(super) fn rebase_cursor(cursor: &str, before: &str, after: &str) -> Option<String> {
    let (cursor_parts, before, after) = (Parts::of(cursor)?, Parts::of(before)?, Parts::of(after)?);
    if cursor_parts.host() != before.host() {
        return None;
    }
    let same_scheme = cursor_parts.scheme.eq_ignore_ascii_case(before.scheme);
    let target = if same_scheme { &after } else { &cursor_parts };
    let query = query(&cursor_parts.pairs(), &before.pairs(), &after.pairs());
    // A query that doesn't change stays as it is written.
    let query = match query.iter().eq(&cursor_parts.pairs()) {
        true => cursor_parts.query.map(str::to_owned),
        false => Some(query.join("&")).filter(|query| !query.is_empty()),
    };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let Parts { path, fragment, .. } = cursor_parts;
    let rebased = format!("{}://{}{path}{query}{fragment}", target.scheme, target.authority);
    (rebased != cursor).then_some(rebased)
}

fn query<'a>(cursor: &[&'a str], before: &[&str], after: &[&'a str]) -> Vec<&'a str> {
    let mut added: Vec<&str> = after.iter().filter(|pair| !before.contains(pair)).copied().collect();
    let mut pairs = Vec::new();
    for pair in cursor {
        if !before.contains(pair) || after.contains(pair) {
            added.retain(|new| key(new) != key(pair));
            pairs.push(*pair);
        } else if let Some(at) = added.iter().position(|new| key(new) == key(pair)) {
            pairs.push(added.remove(at));
        }
    }
    pairs.extend(added);
    pairs
}

fn key(pair: &str) -> &str {
    pair.split('=').next().unwrap_or(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_host_or_path_is_another_feed_and_another_scheme_or_query_is_not() {
        for (before, after, moved) in [
            ("http://h.example/feed", "https://h.example/feed", false),
            ("http://h.example:80/feed", "https://H.example/feed?a=1", false),
            ("https://h.example", "https://h.example/", false),
            ("https://h.example/feed", "https://h.example/feed2", true),
            ("https://h.example/feed", "https://h.example:8443/feed", true),
            ("https://h.example/feed", "https://other.example/feed", true),
        ] {
            assert_eq!(is_moved(before, after), moved, "{before} {after}");
        }
    }

    #[test]
    fn a_cursor_follows_a_change_of_scheme_or_query_and_stays_the_publishers_otherwise() {
        let (http, https) = ("http://h.example/feed", "https://h.example/feed");
        for (cursor, before, after, expected) in [
            ("http://h.example/feed?after=%7B1%7d&&x", http, https, Some("https://h.example/feed?after=%7B1%7d&&x")),
            ("http://h.example/other/page?p=2#x", http, https, Some("https://h.example/other/page?p=2#x")),
            ("https://h.example/feed?after=1", http, https, None),
            (
                "http://h.example/feed?after=1",
                "http://h.example:80/feed",
                "https://h.example:443/feed",
                Some("https://h.example:443/feed?after=1"),
            ),
            ("https://cdn.example/feed?after=1", https, "http://h.example/feed", None),
            // A key that changes, one that is removed, one that is added.
            (
                "https://h.example/feed?k=1&after=5",
                "https://h.example/feed?k=1",
                "https://h.example/feed?k=2",
                Some("https://h.example/feed?k=2&after=5"),
            ),
            (
                "https://h.example/feed?k=1&after=5",
                "https://h.example/feed?k=1",
                https,
                Some("https://h.example/feed?after=5"),
            ),
            (
                "https://h.example/feed?after=5",
                https,
                "https://h.example/feed?limit=9",
                Some("https://h.example/feed?after=5&limit=9"),
            ),
            ("https://h.example/feed", https, "https://h.example/feed?limit=9", Some("https://h.example/feed?limit=9")),
            ("https://h.example/feed?k=1", "https://h.example/feed?k=1", https, Some(https)),
            // The publisher's own values are kept.
            (
                "https://h.example/feed?after=5",
                "https://h.example/feed?after=0",
                "https://h.example/feed?after=3",
                None,
            ),
            ("https://h.example/feed?limit=7&after=5", https, "https://h.example/feed?limit=9", None),
        ] {
            assert_eq!(rebase_cursor(cursor, before, after).as_deref(), expected, "{cursor}: {before} → {after}");
        }
    }
}
