//! Where an item came from, as rows and as text: the delivery that wrote it, what was refused or quarantined of it
//! since, and its feed's state, which shows why the item may be stale.
//!
//! Also says what the mirror doesn't know: an item that it doesn't have, a delivery too long ago.

mod text;

use std::time::{Duration, Instant};

pub use text::print;

use super::OutputError;
use crate::store::read::{
    DeliveryRow, EndpointRow, FeedRow, ItemRow, QuarantineRow, Reader, RefusalRow, ResyncRow, StoreError,
};

/// A search in the data ends after this long.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);
/// The most items of other kinds and feeds that are listed.
const MAX_ELSEWHERE: usize = 20;

/// Which item to explain.
#[derive(Clone, Debug, Default)]
pub struct ItemQuery {
    /// The feed's name; any feed when none.
    pub feed: Option<String>,
    /// The publisher's id, or what the item's data call the item: their `@id` or `id`.
    pub id: String,
    /// The item's kind; any kind when none.
    pub kind: Option<String>,
}

/// All that is known of an item.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Explanation {
    /// The id asked for.
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
    /// The state of all feeds concerned.
    pub feeds: Vec<FeedCondition>,
}

#[derive(Clone, Debug, serde::Serialize)]
pub struct ItemExplanation {
    pub item: ItemRow,
    /// The delivery that wrote the item; none when that is too long ago, or a sweep made the item a tombstone.
    pub delivery: Option<DeliveryRow>,
    /// Versions of it that were refused as older or tied, newest first.
    pub refusals: Vec<RefusalRow>,
    /// Records in quarantine that name it, newest first.
    pub quarantine: Vec<QuarantineRow>,
}

/// A feed's state.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FeedCondition {
    pub feed: FeedRow,
    pub endpoints: Vec<EndpointRow>,
    /// The feed's resync under way.
    pub resync: Option<ResyncRow>,
    /// When a purge last removed the feed's rows.
    pub purged_at: Option<String>,
}

impl Explanation {
    /// Reads what the file knows. `before_search` is called before a search that reads the data of many items.
    ///
    /// # Errors
    /// When the file can't be read, or has no such feed.
    pub fn of(reader: &Reader, query: &ItemQuery, before_search: impl FnOnce()) -> Result<Self, OutputError> {
        let (feed, kind) = (query.feed.as_deref(), query.kind.as_deref());
        if let Some(feed) = feed {
            check_feed_known(reader, feed)?;
        }
        let mut items = reader.known_items(feed, kind, &query.id)?;
        let mut cut_short = false;
        if items.is_empty() && query.id.contains("://") {
            before_search();
            let found = reader.items_with_data_id(feed, &query.id, Instant::now() + SEARCH_TIMEOUT)?;
            cut_short = !found.complete;
            items = found.items;
            items.retain(|item| kind.is_none_or(|kind| item.kind == kind));
        }
        let mut names: Vec<&str> = items.iter().map(|item| item.feed.as_str()).chain(feed).collect();
        names.sort_unstable();
        names.dedup();
        let feeds = names.iter().map(|name| FeedCondition::of(reader, name)).collect::<Result<_, _>>()?;
        let mut explanation = Self {
            id: query.id.clone(),
            items: Vec::new(),
            cut_short,
            refusals: Vec::new(),
            quarantine: Vec::new(),
            elsewhere: Vec::new(),
            feeds,
        };
        if items.is_empty() {
            explanation.add_related(reader, query)?;
        }
        explanation.items =
            items.into_iter().map(|item| ItemExplanation::of(reader, item)).collect::<Result<_, _>>()?;
        Ok(explanation)
    }

    fn add_related(&mut self, reader: &Reader, query: &ItemQuery) -> Result<(), StoreError> {
        if let Some(feed) = &query.feed {
            self.refusals = reader.refusals_of(feed, query.kind.as_deref(), &query.id)?;
            self.quarantine = reader.quarantine_with_id(feed, &query.id)?;
        }
        self.elsewhere = reader.known_items(None, None, &query.id)?;
        self.elsewhere.truncate(MAX_ELSEWHERE);
        Ok(())
    }
}

/// A feed that was purged after it was no longer configured has left nothing but the purge's time.
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
