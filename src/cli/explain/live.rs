//! Asks an item's source again: from the page where the item came from, or else from the feed's beginning.
//!
//! In a feed each item occurs once, at its latest position. So the first match is the item's newest version, and an
//! item that has changed since comes later in the feed. Writes nothing.

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
    /// The verdict as a sentence.
    detail: String,
    modified: Option<String>,
    state: Option<&'static str>,
    /// URL of the page on which the item was found.
    url: Option<String>,
    /// Seconds that this page had spent in caches (`Age`).
    age: Option<u64>,
    /// Pages read.
    pages: u32,
    /// URL from which the walk began.
    from: String,
    /// Whether only the database file was named, so that no secrets were sent.
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

/// One check for each item, or for the id that the mirror doesn't know, where its feed is named.
pub(super) fn ask(
    globals: &GlobalArgs,
    database_path: &DatabasePath,
    explanation: &Explanation,
    query: &ItemQuery,
    pages: u32,
) -> anyhow::Result<Vec<SourceCheck>> {
    let reader = database_path.open(globals)?;
    let runtime = super::super::runtime()?;
    let mut source_checks = Vec::new();
    for explained in &explanation.items {
        let source = FeedSource::of(globals, database_path, &reader, &explained.item.feed)?;
        source_checks.push(runtime.block_on(SourceSearch::of(&source, Some(explained), query).run(&reader, pages))?);
    }
    if let (true, Some(feed)) = (explanation.items.is_empty(), &query.feed) {
        let source = FeedSource::of(globals, database_path, &reader, feed)?;
        source_checks.push(runtime.block_on(SourceSearch::of(&source, None, query).run(&reader, pages))?);
    }
    Ok(source_checks)
}

struct SourceSearch<'a> {
    source: &'a FeedSource,
    mirrored: Option<&'a ItemExplanation>,
    id: &'a str,
    kind: Option<&'a str>,
    start: Option<&'a str>,
}

impl<'a> SourceSearch<'a> {
    fn of(source: &'a FeedSource, mirrored: Option<&'a ItemExplanation>, query: &'a ItemQuery) -> Self {
        let item = mirrored.map(|mirrored| &mirrored.item);
        let polled =
            mirrored.and_then(|mirrored| mirrored.delivery.as_ref()).filter(|delivery| delivery.transport == "poll");
        Self {
            source,
            mirrored,
            id: item.map_or(&query.id, |item| &item.id),
            kind: item.map(|item| item.kind.as_str()).or(query.kind.as_deref()),
            start: polled.and_then(|delivery| delivery.url.as_deref()),
        }
    }

    async fn run(&self, reader: &Reader, pages: u32) -> anyhow::Result<SourceCheck> {
        let source = self.source.pages()?;
        let mut walk = ReadOnlyWalk::new(self.source, &source, self.start);
        let mut check = SourceCheck {
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
            without_secrets: self.source.file_only,
        };
        while !walk.is_over() && (walk.pages < pages || walk.is_within_a_page()) {
            let fetched = match walk.next().await {
                Ok(Some(fetched)) => fetched,
                Ok(None) => break,
                // The page may be as unusable as any old cursor: the feed is then read from its beginning.
                Err(_) if self.start.is_some() && walk.pages == 0 && check.from != self.source.settings.url => {
                    check.from.clone_from(&self.source.settings.url);
                    walk = ReadOnlyWalk::new(self.source, &source, None);
                    continue;
                }
                Err(reason) => {
                    (check.verdict, check.detail) = ("failed", reason);
                    check.pages = walk.pages;
                    return Ok(check);
                }
            };
            check.pages = walk.pages;
            if let Some(item) = self.newest_on(&fetched.page) {
                (check.verdict, check.detail) = self.compare_versions(reader, item, fetched.page.data(item))?;
                check.modified = Some(item.modified.to_string());
                check.state = Some(item.state.as_str());
                (check.url, check.age) = (Some(fetched.url), fetched.meta.age);
                return Ok(check);
            }
            if let Some(bad) = fetched.page.unreadable.iter().find(|bad| bad.id.as_deref() == Some(self.id)) {
                check.verdict = "unreadable";
                check.detail =
                    format!("the source sends it in a form that can't be read: {}: {}", bad.reason, bad.detail);
                (check.url, check.age) = (Some(fetched.url), fetched.meta.age);
                return Ok(check);
            }
        }
        if walk.is_over() {
            check.verdict = "not-there";
            let from_its_page = self.start.filter(|start| check.from == *start);
            check.detail = match (&walk.unclean, from_its_page) {
                (Some(reason), _) => format!("not found up to where the feed could be read: {reason}"),
                (None, Some(_)) => "its source no longer has it, from where it once stood to the feed's end".to_owned(),
                (None, None) => "its source does not have it: the whole feed was read".to_owned(),
            };
        }
        Ok(check)
    }

    /// The newest version, where a page holds the item twice.
    fn newest_on<'p>(&self, page: &'p Page) -> Option<&'p Item> {
        let order = self.source.settings.modified;
        let wanted = |item: &&Item| &*item.id == self.id && self.kind.is_none_or(|kind| &*item.kind == kind);
        page.items.iter().filter(wanted).max_by(|a, b| a.modified.compare(&b.modified, order))
    }

    fn compare_versions(&self, reader: &Reader, item: &Item, data: &str) -> anyhow::Result<(&'static str, String)> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let mirrored = self.mirrored.map(|mirrored| reader.item_content(mirrored.item.seq)).transpose()?.flatten();
        let Some(ItemContent { modified, state, hash }) = mirrored else {
            return Ok(match self.mirrored {
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
