//! The dialects of RPDE 0.2.1 and 1.0: their URL parameters for positions, and their states.

use url::form_urlencoded;

use super::feed::{ListPosition, PageStart};
use super::value_forms::Id;

/// How a feed writes its URLs and states, and by what it orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// RPDE 1.0 by `afterTimestamp` and `afterId`.
    Timestamp,
    /// RPDE 1.0 by `afterChangeNumber`.
    ChangeNumber,
    /// RPDE 0.2.1: `from` and `after`, `Updated` and `Deleted`, a relative `next`.
    Draft,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: &'static [Self] = &[Self::Timestamp, Self::ChangeNumber, Self::Draft];

    /// The dialect's name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timestamp => "1.0",
            Self::ChangeNumber => "1.0-change-number",
            Self::Draft => "0.2.1",
        }
    }

    pub(super) fn state(self, deleted: bool) -> &'static str {
        match (self, deleted) {
            (Self::Draft, false) => "Updated",
            (Self::Draft, true) => "Deleted",
            (_, false) => "updated",
            (_, true) => "deleted",
        }
    }

    fn parameters(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Timestamp => ("afterTimestamp", Some("afterId")),
            Self::ChangeNumber => ("afterChangeNumber", None),
            Self::Draft => ("from", Some("after")),
        }
    }
}

/// A request for a page, parsed.
#[derive(Clone, Debug)]
pub(super) struct PageQuery {
    /// Path and query as received, without the redirect mark.
    pub(super) path_and_query: String,
    pub(super) start: PageStart,
    /// The most items to send (RPDE 1.0, `limit`).
    pub(super) limit: Option<usize>,
    /// The era of the position; a feed can declare earlier eras dead.
    pub(super) era: u32,
    /// The run of empty pages that the request is part of.
    pub(super) empty_run: Option<EmptyPageRun>,
    /// Whether a redirect led to this request.
    pub(super) redirected: bool,
}

/// A run of empty pages between two pages of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EmptyPageRun {
    pub(super) number: u64,
    pub(super) remaining: u32,
}

/// What a redirect appends to the query.
const REDIRECT_MARK: &str = "moved=1";

impl PageQuery {
    /// Parses path and query.
    ///
    /// # Errors
    /// As text, where a parameter of the dialect can't be read.
    pub(super) fn read(dialect: Dialect, path_and_query: &str) -> Result<Self, String> {
        let stripped = path_and_query.strip_suffix(REDIRECT_MARK).and_then(|rest| rest.strip_suffix(['?', '&']));
        let (path_and_query, redirected) = (stripped.unwrap_or(path_and_query).to_owned(), stripped.is_some());
        let mut page_query =
            Self { path_and_query, start: PageStart::Beginning, limit: None, era: 0, empty_run: None, redirected };
        let (by, then) = dialect.parameters();
        let (mut modified, mut id) = (None, None);
        let query = page_query.path_and_query.split_once('?').map_or("", |(_, query)| query).to_owned();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if name == by {
                modified = Some(value.parse::<i64>().map_err(|_| format!("{by} is no whole number: {value:?}"))?);
            } else if Some(&*name) == then {
                id = Some(Id::read(&value));
            } else if name == "limit" {
                page_query.limit = Some(value.parse().map_err(|_| format!("limit is no whole number: {value:?}"))?);
            } else if name == "era" {
                page_query.era = value.parse().map_err(|_| format!("era is no whole number: {value:?}"))?;
            } else if name == "detour" {
                page_query.empty_run = EmptyPageRun::read(&value);
            }
        }
        page_query.start = match (modified, id) {
            (None, _) => PageStart::Beginning,
            (Some(modified), Some(id)) => PageStart::After(ListPosition { modified, id }),
            (Some(modified), None) => PageStart::AfterModified(modified),
        };
        Ok(page_query)
    }

    /// Path and query of the page after this position.
    pub(super) fn next(&self, dialect: Dialect, position: &ListPosition) -> String {
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        let (by, then) = dialect.parameters();
        let mut next = format!("{path}?{by}={}", position.modified);
        if let Some(then) = then {
            next.push_str(&format!("&{then}={}", escape(&position.id.to_string(), dialect)));
        }
        if let Some(limit) = self.limit {
            next.push_str(&format!("&limit={limit}"));
        }
        if self.era > 0 {
            next.push_str(&format!("&era={}", self.era));
        }
        next
    }

    /// The same path and query with a run of empty pages before the page.
    pub(super) fn with_empty_run(&self, run: EmptyPageRun) -> String {
        let (path, query) = self.path_and_query.split_once('?').unwrap_or((&self.path_and_query, ""));
        let kept: Vec<&str> =
            query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("detour=")).collect();
        let between = if kept.is_empty() { "" } else { "&" };
        format!("{path}?{}{between}detour={}-{}", kept.join("&"), run.number, run.remaining)
    }

    /// The target of a redirect of this request.
    pub(super) fn redirect_target(&self) -> String {
        let separator = if self.path_and_query.contains('?') { '&' } else { '?' };
        format!("{}{separator}{REDIRECT_MARK}", self.path_and_query)
    }
}

impl EmptyPageRun {
    fn read(text: &str) -> Option<Self> {
        let (number, remaining) = text.split_once('-')?;
        Some(Self { number: number.parse().ok()?, remaining: remaining.parse().ok()? })
    }
}

/// Percent-encodes an id; the draft's own examples leave braces as they are (0.2.1 §2).
fn escape(id: &str, dialect: Dialect) -> String {
    let mut out = String::with_capacity(id.len());
    for byte in id.bytes() {
        let braces = dialect == Dialect::Draft && (byte == b'{' || byte == b'}');
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || braces {
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

    fn position(id: &str) -> ListPosition {
        ListPosition { modified: 7, id: Id::read(id) }
    }

    #[test]
    fn positions_are_spelt_as_the_dialect_does_and_read_back() {
        for (dialect, id, spelt) in [
            (
                Dialect::Timestamp,
                "009/2026-03-01T10:00:00Z",
                "/f?afterTimestamp=7&afterId=009%2F2026-03-01T10%3A00%3A00Z",
            ),
            (Dialect::ChangeNumber, "1", "/f?afterChangeNumber=7"),
            (Dialect::Draft, "{A-1}", "/f?from=7&after={A-1}"),
        ] {
            let page_query = PageQuery::read(dialect, "/f").unwrap();
            assert_eq!(page_query.next(dialect, &position(id)), spelt);
            let start = PageQuery::read(dialect, spelt).unwrap().start;
            let expected = if dialect == Dialect::ChangeNumber {
                PageStart::AfterModified(7)
            } else {
                PageStart::After(position(id))
            };
            assert_eq!(start, expected);
        }
    }

    #[test]
    fn limit_and_era_travel_along_and_a_detour_does_not() {
        let page_query = PageQuery::read(Dialect::Timestamp, "/f?limit=3&era=2&detour=5-0").unwrap();
        assert_eq!(page_query.next(Dialect::Timestamp, &position("1")), "/f?afterTimestamp=7&afterId=1&limit=3&era=2");
        assert_eq!(page_query.with_empty_run(EmptyPageRun { number: 6, remaining: 4 }), "/f?limit=3&era=2&detour=6-4");
        assert_eq!(page_query.empty_run, Some(EmptyPageRun { number: 5, remaining: 0 }));
    }

    #[test]
    fn a_redirect_leaves_the_place_as_it_was_asked() {
        for path_and_query in ["/f", "/f?limit=3"] {
            let moved = PageQuery::read(
                Dialect::Draft,
                &PageQuery::read(Dialect::Draft, path_and_query).unwrap().redirect_target(),
            )
            .unwrap();
            assert_eq!((moved.path_and_query.as_str(), moved.redirected), (path_and_query, true));
        }
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        assert!(PageQuery::read(Dialect::Timestamp, "/f?afterTimestamp=x").unwrap_err().contains("afterTimestamp"));
    }
}
