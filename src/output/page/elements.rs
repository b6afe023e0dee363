//! What of a page is new: its parts, each one element with an id, and who was told of which.
//!
//! Guarantees: a listener that keeps to what it is told has the page as it would be loaded anew. Words that only time
//! changes are no news: scripts keep them current.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3Default;

/// One element.
#[derive(Clone, Debug)]
pub(super) struct PageElement {
    /// Its id.
    pub(super) id: String,
    /// Itself.
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

/// What one listener was told.
#[derive(Debug, Default)]
pub struct SentElements {
    title: String,
    order: Vec<String>,
    parts: HashMap<String, u64>,
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
    /// What differs from what was told before, as JSON; none where nothing does.
    ///
    /// # Errors
    /// When it can't be written as JSON.
    pub fn update(&mut self, now: Timestamp, parts: &PageElements) -> Result<Option<String>, serde_json::Error> {
        let all: Vec<&PageElement> = parts.single.iter().chain(&parts.rows).collect();
        let seen: HashMap<String, u64> = all.iter().map(|part| (part.id.clone(), fingerprint(&part.html))).collect();
        let differs = |part: &&&PageElement| self.parts.get(&part.id) != seen.get(&part.id);
        let changed: Vec<&str> = all.iter().filter(differs).map(|part| part.html.as_str()).collect();
        let order: Vec<String> = parts.rows.iter().map(|part| part.id.clone()).collect();
        let moved = order != self.order;
        if changed.is_empty() && !moved && parts.title == self.title {
            return Ok(None);
        }
        let order_told = moved.then_some(&*order);
        let news = PageUpdate { now: now.as_millisecond(), title: &parts.title, parts: changed, order: order_told };
        let text = serde_json::to_string(&news)?;
        *self = Self { title: parts.title.clone(), order, parts: seen };
        Ok(Some(text))
    }
}

/// Of everything but what stands in `<time>` elements. Text of others is escaped: it holds no `<`.
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

    fn part(id: &str, html: &str) -> PageElement {
        PageElement { id: id.into(), html: html.into() }
    }

    fn news(
        told: &mut SentElements,
        title: &str,
        single: &[PageElement],
        rows: &[PageElement],
    ) -> Option<serde_json::Value> {
        let parts = PageElements { title: title.into(), single: single.to_vec(), rows: rows.to_vec() };
        let news = told.update(Timestamp::UNIX_EPOCH, &parts).unwrap();
        news.map(|text| serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn a_listener_is_told_all_at_first_and_then_what_differs() {
        let mut told = SentElements::default();
        let (a, b) = (part("a", "<tr>a</tr>"), part("b", "<tr>b</tr>"));
        let first = news(&mut told, "t", &[part("s", "s")], &[a.clone(), b.clone()]).unwrap();
        assert_eq!(first["parts"], serde_json::json!(["s", "<tr>a</tr>", "<tr>b</tr>"]));
        assert_eq!(first["order"], serde_json::json!(["a", "b"]));
        assert_eq!(news(&mut told, "t", &[part("s", "s")], &[a.clone(), b.clone()]), None);

        let second = news(&mut told, "t", &[part("s", "s")], &[b.clone(), part("a", "<tr>A</tr>")]).unwrap();
        assert_eq!(second["parts"], serde_json::json!(["<tr>A</tr>"]));
        assert_eq!(second["order"], serde_json::json!(["b", "a"]));

        let gone = news(&mut told, "t", &[part("s", "s")], &[b]).unwrap();
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
