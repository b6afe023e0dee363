//! Reads the pages' data from the file: in short reads, bounded whatever the file holds.

use std::collections::HashMap;

use jiff::Timestamp;

use super::chart::hour;
use crate::output::status::Status;
use crate::store::read::{EventRow, FindingRow, HourlyActivity, QuarantineReason, Reader, StoreError};

/// Hours that the overview's charts show.
pub(super) const DAY_HOURS: usize = 24;
/// Hours that a feed's own chart shows: all hours that are kept.
pub(super) const WEEK_HOURS: usize = 7 * DAY_HOURS;
/// Events that a feed's page shows.
const MAX_EVENTS: usize = 40;

/// The data of the overview of all feeds.
#[derive(Clone, Debug)]
pub struct OverviewData {
    pub(super) status: Status,
    /// Hour and changes, by feed.
    pub(super) activity: HashMap<String, Vec<(i64, i64)>>,
    /// Records in quarantine, by feed.
    pub(super) quarantined: HashMap<String, i64>,
}

impl OverviewData {
    /// Reads the data. Blocking.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(reader: &Reader, now: Timestamp) -> Result<Self, StoreError> {
        let mut activity: HashMap<String, Vec<(i64, i64)>> = HashMap::new();
        for HourlyActivity { feed, hour, changes } in reader.activity(None, first_hour(now, DAY_HOURS))? {
            activity.entry(feed).or_default().push((hour, changes));
        }
        let quarantined = reader.quarantine_counts()?.into_iter().map(|count| (count.feed, count.rows)).collect();
        Ok(Self { status: Status::read(reader, &[])?, activity, quarantined })
    }
}

/// The data of one feed's page.
#[derive(Clone, Debug)]
pub struct FeedPageData {
    /// The status of this feed alone.
    pub(super) status: Status,
    pub(super) activity: Vec<HourlyActivity>,
    /// The newest last.
    pub(super) events: Vec<EventRow>,
    pub(super) findings: Vec<FindingRow>,
    pub(super) quarantine: Vec<QuarantineReason>,
}

impl FeedPageData {
    /// Reads the data. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a feed that is not in the mirror; when the file can't be read.
    pub fn read(reader: &Reader, name: &str, now: Timestamp) -> Result<Self, StoreError> {
        Ok(Self {
            status: Status::read(reader, &[name.to_owned()])?,
            activity: reader.activity(Some(name), first_hour(now, WEEK_HOURS))?,
            events: reader.events(Some(name), MAX_EVENTS)?,
            findings: reader.findings(Some(name))?,
            quarantine: reader.quarantine_reasons(name)?,
        })
    }
}

fn first_hour(now: Timestamp, length: usize) -> i64 {
    hour(now.as_millisecond()) - i64::try_from(length).unwrap_or(0) + 1
}
