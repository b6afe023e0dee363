//! URLs as settings: absolute, http or https, and never with a secret in them.

use url::Url;

use super::table::ConfigValue;

/// A URL that requests can be sent to.
pub(super) fn http_url(value: &ConfigValue<'_>) -> Result<Url, String> {
    let right = "must be an absolute http or https URL, as \"https://example.org/feed\"";
    let text = value.text().ok_or(right)?;
    let url = Url::parse(text).map_err(|error| format!("{right} ({error}){}", url_for_message(text)))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must hold no credentials (not shown here): put them in headers, as \
                    headers = { Authorization = { file = \"…\" } }"
            .to_owned());
    }
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("{right}{}", url_for_message(text)));
    }
    // A fragment is never sent, so no `next` could equal the requested URL: the feed would have no end.
    if url.fragment().is_some() {
        return Err("must hold no fragment: leave out what follows #".to_owned());
    }
    Ok(url)
}

/// As [`http_url`], but the URL as it was written.
pub(super) fn as_written(value: &ConfigValue<'_>) -> Result<String, String> {
    http_url(value)?;
    Ok(value.text().unwrap_or_default().trim().to_owned())
}

/// A wrong URL for a message, where it can hold no secret: none with an `@`, and nothing of a query.
fn url_for_message(text: &str) -> String {
    let without_query = text.split(['?', '#']).next().unwrap_or_default();
    if text.contains('@') || without_query.chars().count() > 100 {
        return " (what was given is not shown: it may hold a secret)".to_owned();
    }
    format!(", not {without_query:?}")
}

/// Whether the URL leads to this machine alone.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
