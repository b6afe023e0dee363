//! Whether redirects lost the cursor of a request: then the response says nothing about the feed's end. Pure.

use url::Url;

use super::encodings::decoded;

/// Whether the URL `reached` lost the cursor of the URL `requested`: a value in the query of `requested` that the
/// endpoint's URL doesn't have is neither in the query nor in the path of `reached`, or the redirect led back to the
/// endpoint's own page. `requested` is without secrets; their placeholders are no cursor.
pub(super) fn loses_cursor(endpoint_url: &Url, requested: &str, reached: &Url) -> bool {
    let Ok(requested) = Url::parse(requested) else { return false };
    let own = values(endpoint_url);
    let cursor: Vec<Vec<u8>> = values(&requested).into_iter().filter(|value| !own.contains(value)).collect();
    if cursor.is_empty() {
        return requested.path() != endpoint_url.path() && reached.path() == endpoint_url.path();
    }
    let segments = reached.path_segments().into_iter().flatten().map(decoded);
    let kept: Vec<Vec<u8>> = values(reached).into_iter().chain(segments).collect();
    cursor.iter().any(|value| !kept.contains(value))
}

/// The values in a URL's query, but for empty ones and placeholders.
fn values(url: &Url) -> Vec<Vec<u8>> {
    let is_value = |value: &str| !(value.is_empty() || value.starts_with('{') && value.ends_with('}'));
    let values = url.query_pairs().filter(|(_, value)| is_value(value));
    values.map(|(_, value)| value.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn loses(endpoint_url: &str, requested: &str, reached: &str) -> bool {
        loses_cursor(&Url::parse(endpoint_url).unwrap(), requested, &Url::parse(reached).unwrap())
    }

    #[test]
    fn a_cursor_is_kept_under_other_names_and_paths_and_lost_with_its_value() {
        let endpoint_url = "https://a.example/feed?type=x&from=0";
        let requested = "https://a.example/feed?type=x&from=5%2B&after=i/7&key={key}";
        for kept in [
            "https://a.example/feed?type=x&from=5%2b&after=i%2F7",
            "https://a.example/new?afterTimestamp=5%2B&afterId=i/7",
            "https://a.example/new/5+/i%2F7",
        ] {
            assert!(!loses(endpoint_url, requested, kept), "{kept}");
        }
        for lost in [
            "https://a.example/new",
            "https://a.example/feed?type=x&from=0",
            "https://a.example/feed?from=5%2B",
            "https://a.example/login?return=%2Ffeed%3Ffrom%3D5",
        ] {
            assert!(loses(endpoint_url, requested, lost), "{lost}");
        }
    }

    #[test]
    fn the_first_page_has_no_cursor_to_lose_and_one_in_the_path_is_lost_at_the_feeds_own() {
        let endpoint_url = "https://a.example/feed?type=x";
        assert!(!loses(endpoint_url, endpoint_url, "https://b.example/other"));
        assert!(!loses(endpoint_url, "https://a.example/feed/17", "https://a.example/feeds/17"));
        assert!(loses(endpoint_url, "https://a.example/feed/17", "https://a.example/feed?type=x"));
    }
}
