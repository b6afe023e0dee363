//! Finds what changed on a page: a page's elements, each with an id, and a record of which were sent to whom.
//!
//! Guarantees: a listener that applies every update has the page as if it were loaded again. Text that only the passing
//! of time changes is not sent: scripts keep it current.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3Default;

/// One HTML element of a page.
#[derive(Clone, Debug)]
pub(super) struct PageElement {
    pub(super) id: String,
    pub(super) html: String,
}

/// A page's elements that may change.
#[derive(Clone, Debug)]
pub struct PageElements {
    pub(super) title: String,
    pub(super) single: Vec<PageElement>,
    /// The rows of the table, in their order; none on a page without one.
    pub(super) rows: Vec<PageElement>,
}

/// What one listener has received.
#[derive(Debug, Default)]
pub struct SentElements {
    title: String,
    order: Vec<String>,
    fingerprints: HashMap<String, u64>,
}

#[derive(Serialize)]
struct PageUpdate<'a> {
    /// Milliseconds since 1970.
    now: i64,
    title: &'a str,
    parts: Vec<&'a str>,
    /// All rows' ids, where they differ from before.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<&'a [String]>,
}

impl SentElements {
    /// The difference from what was sent before, as JSON; none where nothing differs.
    ///
    /// # Errors
    /// When it can't be encoded as JSON.
    pub fn update(&mut self, now: Timestamp, elements: &PageElements) -> Result<Option<String>, serde_json::Error> {
        let all: Vec<&PageElement> = elements.single.iter().chain(&elements.rows).collect();
        let fingerprints: HashMap<String, u64> =
            all.iter().map(|element| (element.id.clone(), fingerprint(&element.html))).collect();
        let differs = |element: &&&PageElement| self.fingerprints.get(&element.id) != fingerprints.get(&element.id);
        let changed: Vec<&str> = all.iter().filter(differs).map(|element| element.html.as_str()).collect();
        let order: Vec<String> = elements.rows.iter().map(|element| element.id.clone()).collect();
        let moved = order != self.order;
        if changed.is_empty() && !moved && elements.title == self.title {
            return Ok(None);
        }
        let sent_order = moved.then_some(&*order);
        let update =
            PageUpdate { now: now.as_millisecond(), title: &elements.title, parts: changed, order: sent_order };
        let text = serde_json::to_string(&update)?;
        *self = Self { title: elements.title.clone(), order, fingerprints };
        Ok(Some(text))
    }
}

/// A hash of everything but the text of `<time>` elements. Publishers' text is escaped: it holds no `<`.
fn fingerprint(html: &str) -> u64 {
    let mut hash = Xxh3Default::new();
    let mut pieces = html.split("<time ");
    hash.update(pieces.next().unwrap_or_default().as_bytes());
    for piece in pieces {
        let (tag, rest) = piece.split_once('>').unwrap_or((piece, ""));
        hash.update(tag.as_bytes());
        hash.update(rest.split_once("</time>").map_or(rest, |(_, behind)| behind).as_bytes());
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn element(id: &str, html: &str) -> PageElement {
        PageElement { id: id.into(), html: html.into() }
    }

    fn update(
        sent: &mut SentElements,
        title: &str,
        single: &[PageElement],
        rows: &[PageElement],
    ) -> Option<serde_json::Value> {
        let parts = PageElements { title: title.into(), single: single.to_vec(), rows: rows.to_vec() };
        let update = sent.update(Timestamp::UNIX_EPOCH, &parts).unwrap();
        update.map(|text| serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn a_listener_is_told_all_at_first_and_then_what_differs() {
        let mut sent = SentElements::default();
        let (a, b) = (element("a", "<tr>a</tr>"), element("b", "<tr>b</tr>"));
        let first = update(&mut sent, "t", &[element("s", "s")], &[a.clone(), b.clone()]).unwrap();
        assert_eq!(first["parts"], serde_json::json!(["s", "<tr>a</tr>", "<tr>b</tr>"]));
        assert_eq!(first["order"], serde_json::json!(["a", "b"]));
        assert_eq!(update(&mut sent, "t", &[element("s", "s")], &[a.clone(), b.clone()]), None);

        let second = update(&mut sent, "t", &[element("s", "s")], &[b.clone(), element("a", "<tr>A</tr>")]).unwrap();
        assert_eq!(second["parts"], serde_json::json!(["<tr>A</tr>"]));
        assert_eq!(second["order"], serde_json::json!(["b", "a"]));

        let gone = update(&mut sent, "t", &[element("s", "s")], &[b]).unwrap();
        assert_eq!((&gone["parts"], &gone["order"]), (&serde_json::json!([]), &serde_json::json!(["b"])));
    }

    #[test]
    fn the_passing_of_time_is_no_news_but_another_time_is() {
        let time = |at: &str, words: &str| format!("<td><time datetime=\"{at}\">{words}</time> x</td>");
        assert_eq!(fingerprint(&time("1", "1 s")), fingerprint(&time("1", "2 s")));
        assert_ne!(fingerprint(&time("1", "1 s")), fingerprint(&time("2", "1 s")));
        assert_ne!(fingerprint("<td>1</td>"), fingerprint("<td>2</td>"));
    }
}
