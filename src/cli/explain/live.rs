//! Asking an item's source again: from where the item was asked for when it came, or else from the feed's beginning.
//!
//! In a feed each item stands once, at its latest place. So what is found first is its newest version, and an item that
//! has changed since stands further on. Writes nothing.

use std::io::{self, Write};

use super::super::GlobalArgs;
use super::super::database_path::DatabasePath;
use super::super::read_only_walk::{FeedSource, ReadOnlyWalk};
use crate::feed::{Item, ItemState, Modified, Page};
use crate::output::explain::{Explanation, ItemExplanation, ItemQuery};
use crate::store::read::{ItemContent, Reader};
use crate::terminal::sanitise_line as shown;

/// What the source says of an item now.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct SourceCheck {
    feed: String,
    kind: Option<String>,
    id: String,
    /// `same`, `newer`, `older`, `differing`, `deleted`, `not-there`, `unreadable`, `not-found-yet` or `failed`.
    verdict: &'static str,
    /// In words.
    detail: String,
    modified: Option<String>,
    state: Option<&'static str>,
    /// The page it was found on.
    url: Option<String>,
    /// Seconds that that page had spent in caches.
    age: Option<u64>,
    /// Pages read.
    pages: u32,
    /// Where the reading began.
    from: String,
    /// Whether only the file was named, so that no secrets were sent.
    without_secrets: bool,
}

impl SourceCheck {
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let pages = if self.pages == 1 { "1 page".to_owned() } else { format!("{} pages", self.pages) };
        writeln!(out, "{} {}: asked its source again: {}", self.feed, shown(&self.id), self.verdict)?;
        writeln!(out, "  so        {}", shown(&self.detail))?;
        if let (Some(modified), Some(state)) = (&self.modified, self.state) {
            writeln!(out, "  source    modified {}, {state}", shown(modified))?;
        }
        if let Some(url) = &self.url {
            let age = self.age.map(|age| format!(", {age} s in caches")).unwrap_or_default();
            writeln!(out, "  page      {}{age}", shown(url))?;
        }
        writeln!(out, "  read      {pages} from {}", shown(&self.from))?;
        if self.without_secrets {
            writeln!(out, "  note      only the file was named: no secrets or settings of the feed were used")?;
        }
        Ok(())
    }
}

/// One answer for each item, or for the one that the mirror doesn't know, where its feed is named.
pub(super) fn ask(
    globals: &GlobalArgs,
    place: &DatabasePath,
    explanation: &Explanation,
    asked: &ItemQuery,
    pages: u32,
) -> anyhow::Result<Vec<SourceCheck>> {
    let reader = place.open(globals)?;
    let runtime = super::super::runtime()?;
    let mut answers = Vec::new();
    for explained in &explanation.items {
        let source = FeedSource::of(globals, place, &reader, &explained.item.feed)?;
        answers.push(runtime.block_on(SourceSearch::of(&source, Some(explained), asked).run(&reader, pages))?);
    }
    if let (true, Some(feed)) = (explanation.items.is_empty(), &asked.feed) {
        let source = FeedSource::of(globals, place, &reader, feed)?;
        answers.push(runtime.block_on(SourceSearch::of(&source, None, asked).run(&reader, pages))?);
    }
    Ok(answers)
}

struct SourceSearch<'a> {
    source: &'a FeedSource,
    held: Option<&'a ItemExplanation>,
    id: &'a str,
    kind: Option<&'a str>,
    start: Option<&'a str>,
}

impl<'a> SourceSearch<'a> {
    fn of(source: &'a FeedSource, held: Option<&'a ItemExplanation>, asked: &'a ItemQuery) -> Self {
        let item = held.map(|held| &held.item);
        let polled = held.and_then(|held| held.delivery.as_ref()).filter(|delivery| delivery.transport == "poll");
        Self {
            source,
            held,
            id: item.map_or(&asked.id, |item| &item.id),
            kind: item.map(|item| item.kind.as_str()).or(asked.kind.as_deref()),
            start: polled.and_then(|delivery| delivery.url.as_deref()),
        }
    }

    async fn run(&self, reader: &Reader, pages: u32) -> anyhow::Result<SourceCheck> {
        let source = self.source.pages()?;
        let mut walk = ReadOnlyWalk::new(self.source, &source, self.start);
        let mut answer = SourceCheck {
            feed: self.source.settings.name.to_string(),
            kind: self.kind.map(str::to_owned),
            id: self.id.to_owned(),
            verdict: "not-found-yet",
            detail: format!("not found within {pages} pages; --pages N reads further"),
            modified: None,
            state: None,
            url: None,
            age: None,
            pages: 0,
            from: self.start.unwrap_or(&self.source.settings.url).to_owned(),
            without_secrets: self.source.by_the_file,
        };
        while !walk.is_over() && (walk.pages < pages || walk.is_within_a_page()) {
            let got = match walk.next().await {
                Ok(Some(got)) => got,
                Ok(None) => break,
                // The place may be as dead as any old cursor: the feed is read from its beginning then.
                Err(_) if self.start.is_some() && walk.pages == 0 && answer.from != self.source.settings.url => {
                    answer.from.clone_from(&self.source.settings.url);
                    walk = ReadOnlyWalk::new(self.source, &source, None);
                    continue;
                }
                Err(reason) => {
                    (answer.verdict, answer.detail) = ("failed", reason);
                    answer.pages = walk.pages;
                    return Ok(answer);
                }
            };
            answer.pages = walk.pages;
            if let Some(item) = self.on(&got.page) {
                (answer.verdict, answer.detail) = self.judge(reader, item, got.page.data(item))?;
                answer.modified = Some(item.modified.to_string());
                answer.state = Some(item.state.as_str());
                (answer.url, answer.age) = (Some(got.asked), got.meta.age);
                return Ok(answer);
            }
            if let Some(bad) = got.page.unreadable.iter().find(|bad| bad.id.as_deref() == Some(self.id)) {
                answer.verdict = "unreadable";
                answer.detail =
                    format!("the source sends it in a form that can't be read: {}: {}", bad.reason, bad.detail);
                (answer.url, answer.age) = (Some(got.asked), got.meta.age);
                return Ok(answer);
            }
        }
        if walk.is_over() {
            answer.verdict = "not-there";
            let from_its_place = self.start.filter(|start| answer.from == *start);
            answer.detail = match (&walk.unclean, from_its_place) {
                (Some(reason), _) => format!("not found up to where the feed could be read: {reason}"),
                (None, Some(_)) => "its source no longer has it, from where it once stood to the feed's end".to_owned(),
                (None, None) => "its source does not have it: the whole feed was read".to_owned(),
            };
        }
        Ok(answer)
    }

    /// The newest where a page holds it twice.
    fn on<'p>(&self, page: &'p Page) -> Option<&'p Item> {
        let order = self.source.settings.modified;
        let wanted = |item: &&Item| &*item.id == self.id && self.kind.is_none_or(|kind| &*item.kind == kind);
        page.items.iter().filter(wanted).max_by(|a, b| a.modified.compare(&b.modified, order))
    }

    fn judge(&self, reader: &Reader, item: &Item, data: &str) -> anyhow::Result<(&'static str, String)> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let held = self.held.map(|held| reader.item_content(held.item.seq)).transpose()?.flatten();
        let Some(ItemContent { modified, state, hash }) = held else {
            return Ok(match self.held {
                None => ("newer", "the source has it, and the mirror does not".to_owned()),
                Some(_) => ("newer", "the mirror has taken another version while its source was asked".to_owned()),
            });
        };
        let order = item.modified.compare(&modified, self.source.settings.modified);
        Ok(match (order, item.state) {
            (Greater, ItemState::Deleted) => ("deleted", behind("its source has deleted it", &modified)),
            (Greater, ItemState::Updated) => ("newer", behind("its source has a newer version", &modified)),
            (Less, _) => ("older", format!("its source sends an older version than the mirror holds ({modified})")),
            (Equal, _) if item.state == state && ItemContent::hash_of(data) == hash => {
                ("same", "the mirror holds what its source sends".to_owned())
            }
            (Equal, _) => {
                let words = "its source sends other content under the same `modified`: a resync takes it over";
                ("differing", words.to_owned())
            }
        })
    }
}

fn behind(what: &str, modified: &Modified) -> String {
    format!("{what}, which the mirror ({modified}) does not have yet")
}
