//! What a redirect does to the question: an answer means only what was asked for.

use url::Url;

use super::encodings::decoded;

/// Whether `reached` no longer says where `asked` wanted to read on: a value of its query that the feed's own URL doesn't
/// have is found neither in the query nor in the path, or the redirect led back to the feed's own page. `asked` is
/// without secrets; their placeholders are nobody's cursor.
pub(super) fn loses_cursor(home: &Url, asked: &str, reached: &Url) -> bool {
    let Ok(asked) = Url::parse(asked) else { return false };
    let own = values(home);
    let cursor: Vec<Vec<u8>> = values(&asked).into_iter().filter(|value| !own.contains(value)).collect();
    if cursor.is_empty() {
        return asked.path() != home.path() && reached.path() == home.path();
    }
    let segments = reached.path_segments().into_iter().flatten().map(decoded);
    let kept: Vec<Vec<u8>> = values(reached).into_iter().chain(segments).collect();
    cursor.iter().any(|value| !kept.contains(value))
}

/// What a URL's query says, without what is empty or a placeholder.
fn values(url: &Url) -> Vec<Vec<u8>> {
    let said = |value: &str| !(value.is_empty() || value.starts_with('{') && value.ends_with('}'));
    let values = url.query_pairs().filter(|(_, value)| said(value));
    values.map(|(_, value)| value.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn loses(home: &str, asked: &str, reached: &str) -> bool {
        loses_cursor(&Url::parse(home).unwrap(), asked, &Url::parse(reached).unwrap())
    }

    #[test]
    fn a_cursor_is_kept_under_other_names_and_paths_and_lost_with_its_value() {
        let home = "https://a.example/feed?type=x&from=0";
        let asked = "https://a.example/feed?type=x&from=5%2B&after=i/7&key={key}";
        for kept in [
            "https://a.example/feed?type=x&from=5%2b&after=i%2F7",
            "https://a.example/new?afterTimestamp=5%2B&afterId=i/7",
            "https://a.example/new/5+/i%2F7",
        ] {
            assert!(!loses(home, asked, kept), "{kept}");
        }
        for lost in [
            "https://a.example/new",
            "https://a.example/feed?type=x&from=0",
            "https://a.example/feed?from=5%2B",
            "https://a.example/login?return=%2Ffeed%3Ffrom%3D5",
        ] {
            assert!(loses(home, asked, lost), "{lost}");
        }
    }

    #[test]
    fn the_first_page_has_no_cursor_to_lose_and_one_in_the_path_is_lost_at_the_feeds_own() {
        let home = "https://a.example/feed?type=x";
        assert!(!loses(home, home, "https://b.example/other"));
        assert!(!loses(home, "https://a.example/feed/17", "https://a.example/feeds/17"));
        assert!(loses(home, "https://a.example/feed/17", "https://a.example/feed?type=x"));
    }
}
