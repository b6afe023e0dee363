//! Where an item came from, in rows and in words: the delivery that wrote it, what was refused or quarantined of it
//! since, and how its feed is doing, so that one can tell why it may be stale.
//!
//! What the mirror doesn't know is said too: an item that is not there, a delivery too long ago.

mod text;

use std::time::{Duration, Instant};

pub use text::print;

use super::OutputError;
use crate::store::read::{
    DeliveryRow, EndpointRow, FeedRow, ItemRow, QuarantineRow, Reader, RefusalRow, ResyncRow, StoreError,
};

/// A search in the data ends after this long.
const SEARCH: Duration = Duration::from_secs(30);
/// Items found elsewhere that are told of.
const ELSEWHERE: usize = 20;

/// Which item is asked for.
#[derive(Clone, Debug, Default)]
pub struct ItemQuery {
    /// The feed's name; any when not given.
    pub feed: Option<String>,
    /// The publisher's id, or what the item's data call it: their `@id` or `id`.
    pub id: String,
    /// Its kind; any when not given.
    pub kind: Option<String>,
}

/// What is known.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Explanation {
    /// What was asked for.
    pub id: String,
    /// The items that it names, tombstones too; several where kinds or feeds share an id.
    pub items: Vec<ItemExplanation>,
    /// Whether a search in the data was given up before its end, so that there may be more.
    pub cut_short: bool,
    /// Where nothing was found: what the named feed refused of it, newest first.
    pub refusals: Vec<RefusalRow>,
    /// Where nothing was found: records in the named feed's quarantine that name it, newest first.
    pub quarantine: Vec<QuarantineRow>,
    /// Where nothing was found: items of other kinds and feeds with this id.
    pub elsewhere: Vec<ItemRow>,
    /// How the feeds of all this are doing.
    pub feeds: Vec<FeedCondition>,
}

/// One item.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ItemExplanation {
    /// The item.
    pub item: ItemRow,
    /// What wrote it; none when that is too long ago, or a sweep made it a tombstone.
    pub delivery: Option<DeliveryRow>,
    /// What was refused of it as older or tied, newest first.
    pub refusals: Vec<RefusalRow>,
    /// Records in quarantine that name it, newest first.
    pub quarantine: Vec<QuarantineRow>,
}

/// How a feed is doing.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FeedCondition {
    /// The feed.
    pub feed: FeedRow,
    /// Its endpoints.
    pub endpoints: Vec<EndpointRow>,
    /// Its resync under way.
    pub resync: Option<ResyncRow>,
    /// When a purge last removed its rows.
    pub purged_at: Option<String>,
}

impl Explanation {
    /// Gathers what the file says. `searching` is called before a search that reads the data of many items.
    ///
    /// # Errors
    /// When the file can't be read, or has no such feed.
    pub fn of(reader: &Reader, asked: &ItemQuery, searching: impl FnOnce()) -> Result<Self, OutputError> {
        let (feed, kind) = (asked.feed.as_deref(), asked.kind.as_deref());
        if let Some(feed) = feed {
            check_feed_known(reader, feed)?;
        }
        let mut items = reader.known_items(feed, kind, &asked.id)?;
        let mut cut_short = false;
        if items.is_empty() && asked.id.contains("://") {
            searching();
            let found = reader.items_with_data_id(feed, &asked.id, Instant::now() + SEARCH)?;
            cut_short = !found.complete;
            items = found.items;
            items.retain(|item| kind.is_none_or(|kind| item.kind == kind));
        }
        let mut names: Vec<&str> = items.iter().map(|item| item.feed.as_str()).chain(feed).collect();
        names.sort_unstable();
        names.dedup();
        let feeds = names.iter().map(|name| FeedCondition::of(reader, name)).collect::<Result<_, _>>()?;
        let mut explanation = Self {
            id: asked.id.clone(),
            items: Vec::new(),
            cut_short,
            refusals: Vec::new(),
            quarantine: Vec::new(),
            elsewhere: Vec::new(),
            feeds,
        };
        if items.is_empty() {
            explanation.add_related(reader, asked)?;
        }
        explanation.items =
            items.into_iter().map(|item| ItemExplanation::of(reader, item)).collect::<Result<_, _>>()?;
        Ok(explanation)
    }

    fn add_related(&mut self, reader: &Reader, asked: &ItemQuery) -> Result<(), StoreError> {
        if let Some(feed) = &asked.feed {
            self.refusals = reader.refusals_of(feed, asked.kind.as_deref(), &asked.id)?;
            self.quarantine = reader.quarantine_with_id(feed, &asked.id)?;
        }
        self.elsewhere = reader.known_items(None, None, &asked.id)?;
        self.elsewhere.truncate(ELSEWHERE);
        Ok(())
    }
}

/// A feed that was purged once it was no longer configured has left nothing but that.
fn check_feed_known(reader: &Reader, feed: &str) -> Result<(), StoreError> {
    match (reader.feeds(&[feed.to_owned()]), reader.purged_at(feed)?) {
        (Err(StoreError::Refused(_)), Some(at)) => {
            Err(StoreError::Refused(format!("{feed} is no longer configured, and was purged at {at}")))
        }
        (feeds, _) => feeds.map(drop),
    }
}

impl ItemExplanation {
    fn of(reader: &Reader, item: ItemRow) -> Result<Self, StoreError> {
        Ok(Self {
            delivery: reader.delivery_of(item.seq)?,
            refusals: reader.refusals_of(&item.feed, Some(&item.kind), &item.id)?,
            quarantine: reader.quarantine_with_id(&item.feed, &item.id)?,
            item,
        })
    }
}

impl FeedCondition {
    fn of(reader: &Reader, name: &str) -> Result<Self, StoreError> {
        let feed = reader.feeds(&[name.to_owned()])?.into_iter().next();
        let feed = feed.ok_or_else(|| StoreError::Refused(format!("there is no feed {name} in the mirror")))?;
        Ok(Self {
            endpoints: reader.endpoints(Some(name))?,
            resync: reader.resyncs()?.into_iter().find(|resync| resync.feed == name),
            purged_at: reader.purged_at(name)?,
            feed,
        })
    }
}
