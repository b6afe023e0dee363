//! How a feed's positions are spelt: the parameters and states of RPDE 0.2.1 and 1.0.

use url::form_urlencoded;

use super::feed::{ListPosition, PageStart};
use super::value_forms::Id;

/// The way a feed spells its URLs and states, and what it orders by.
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

    /// Its spelling on the command line.
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

/// What a request for a page asks.
#[derive(Clone, Debug)]
pub(super) struct PageQuery {
    /// Path and query as they came over the wire, without the mark of a redirect.
    pub(super) place: String,
    pub(super) start: PageStart,
    /// At most so many items (RPDE 1.0, `limit`).
    pub(super) limit: Option<usize>,
    /// The age of the position; a feed can declare older ones dead.
    pub(super) era: u32,
    /// Empty pages still to come, and the number of their series.
    pub(super) empty_run: Option<EmptyPageRun>,
    /// Whether a redirect led here.
    pub(super) moved: bool,
}

/// A series of empty pages on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EmptyPageRun {
    pub(super) number: u64,
    pub(super) left: u32,
}

/// What a redirect adds to the query.
const REDIRECT_MARK: &str = "moved=1";

impl PageQuery {
    /// Reads path and query.
    ///
    /// # Errors
    /// In words, where a parameter of the dialect can't be read.
    pub(super) fn read(dialect: Dialect, place: &str) -> Result<Self, String> {
        let stripped = place.strip_suffix(REDIRECT_MARK).and_then(|rest| rest.strip_suffix(['?', '&']));
        let (place, moved) = (stripped.unwrap_or(place).to_owned(), stripped.is_some());
        let mut asked = Self { place, start: PageStart::Beginning, limit: None, era: 0, empty_run: None, moved };
        let (by, then) = dialect.parameters();
        let (mut modified, mut id) = (None, None);
        let query = asked.place.split_once('?').map_or("", |(_, query)| query).to_owned();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if name == by {
                modified = Some(value.parse::<i64>().map_err(|_| format!("{by} is no whole number: {value:?}"))?);
            } else if Some(&*name) == then {
                id = Some(Id::read(&value));
            } else if name == "limit" {
                asked.limit = Some(value.parse().map_err(|_| format!("limit is no whole number: {value:?}"))?);
            } else if name == "era" {
                asked.era = value.parse().map_err(|_| format!("era is no whole number: {value:?}"))?;
            } else if name == "detour" {
                asked.empty_run = EmptyPageRun::read(&value);
            }
        }
        asked.start = match (modified, id) {
            (None, _) => PageStart::Beginning,
            (Some(modified), Some(id)) => PageStart::After(ListPosition { modified, id }),
            (Some(modified), None) => PageStart::AfterModified(modified),
        };
        Ok(asked)
    }

    /// Path and query of the page after this position.
    pub(super) fn next(&self, dialect: Dialect, position: &ListPosition) -> String {
        let path = self.place.split('?').next().unwrap_or_default();
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

    /// The same place with an empty page, or some, on the way.
    pub(super) fn with_empty_run(&self, detour: EmptyPageRun) -> String {
        let (path, query) = self.place.split_once('?').unwrap_or((&self.place, ""));
        let kept: Vec<&str> =
            query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("detour=")).collect();
        let between = if kept.is_empty() { "" } else { "&" };
        format!("{path}?{}{between}detour={}-{}", kept.join("&"), detour.number, detour.left)
    }

    /// Where a redirect of this request leads.
    pub(super) fn elsewhere(&self) -> String {
        let sign = if self.place.contains('?') { '&' } else { '?' };
        format!("{}{sign}{REDIRECT_MARK}", self.place)
    }
}

impl EmptyPageRun {
    fn read(text: &str) -> Option<Self> {
        let (number, left) = text.split_once('-')?;
        Some(Self { number: number.parse().ok()?, left: left.parse().ok()? })
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
            let asked = PageQuery::read(dialect, "/f").unwrap();
            assert_eq!(asked.next(dialect, &position(id)), spelt);
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
        let asked = PageQuery::read(Dialect::Timestamp, "/f?limit=3&era=2&detour=5-0").unwrap();
        assert_eq!(asked.next(Dialect::Timestamp, &position("1")), "/f?afterTimestamp=7&afterId=1&limit=3&era=2");
        assert_eq!(asked.with_empty_run(EmptyPageRun { number: 6, left: 4 }), "/f?limit=3&era=2&detour=6-4");
        assert_eq!(asked.empty_run, Some(EmptyPageRun { number: 5, left: 0 }));
    }

    #[test]
    fn a_redirect_leaves_the_place_as_it_was_asked() {
        for place in ["/f", "/f?limit=3"] {
            let moved =
                PageQuery::read(Dialect::Draft, &PageQuery::read(Dialect::Draft, place).unwrap().elsewhere()).unwrap();
            assert_eq!((moved.place.as_str(), moved.moved), (place, true));
        }
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        assert!(PageQuery::read(Dialect::Timestamp, "/f?afterTimestamp=x").unwrap_err().contains("afterTimestamp"));
    }
}
