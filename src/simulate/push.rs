//! What is pushed to one receiver, and when: the items after its position, a page at a time, the next when this one was
//! taken. Knows neither webhooks nor queues. The position is kept in memory alone, as everything here.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::fault::{Fault, FaultChannel};
use super::feed::{FeedModel, ListedRecord, PageStart};
use super::page::{DraftItem, JsonMembers};
use super::poll_faults::faults_for;
use super::publisher::PublisherState;
use super::random::{Random, mix};
use super::record_faults;

/// What a receiver has been sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PushStats {
    /// Items in pages that it took, or messages that its broker confirmed.
    pub items: u64,
    /// Attempts that failed, over all time.
    pub failures: u64,
    /// Why the last attempt failed; nothing when it succeeded.
    pub trouble: Option<String>,
}

/// One feed's way to one receiver.
pub(super) struct Pusher {
    publisher: Arc<PublisherState>,
    pub(super) feed: String,
    receiver: &'static str,
    at: PageStart,
    random: Random,
    news: watch::Receiver<u64>,
}

/// What is to be taken before anything else is sent.
pub(super) struct PushBatch {
    /// A body that is no JSON, to be sent first.
    pub(super) before: Option<&'static str>,
    pub(super) items: Vec<DraftItem>,
    /// Whether it is sent once more when it was taken.
    pub(super) twice: bool,
    to: PageStart,
    fault: Option<Fault>,
}

/// What a publisher has been seen to say in place of JSON.
const NOT_JSON: &str = "No ride data found";

impl Pusher {
    /// A way from the end of the first population on, or from the beginning; `None` for an unknown feed.
    pub(super) fn new(
        publisher: &Arc<PublisherState>,
        feed: &str,
        receiver: &'static str,
        from_start: bool,
    ) -> Option<Self> {
        let desk = publisher.feed(feed)?;
        let at = if from_start { PageStart::Beginning } else { desk.initial_end().clone() };
        let salt = feed.bytes().chain(receiver.bytes()).fold(0, |salt, byte| mix(salt ^ u64::from(byte)));
        let dice = Random::new(publisher.settings.seed, salt);
        let news = desk.watch_changes();
        Some(Self { publisher: Arc::clone(publisher), feed: feed.to_owned(), receiver, at, random: dice, news })
    }

    /// Waits until there is something to send; `None` once all is to end.
    pub(super) async fn next(&mut self) -> Option<PushBatch> {
        loop {
            if self.publisher.stop.is_cancelled() {
                return None;
            }
            // Seen before looking, so that what changes in between is looked at again.
            self.news.borrow_and_update();
            if let Some(parcel) = self.build_batch() {
                return Some(parcel);
            }
            tokio::select! {
                () = self.publisher.stop.cancelled() => return None,
                _ = self.news.changed() => {}
            }
        }
    }

    fn build_batch(&mut self) -> Option<PushBatch> {
        let faults = self.publisher.faults(FaultChannel::Push);
        let served = self.publisher.feed(&self.feed)?.lock();
        let feed = &served.feed;
        let records = feed.records(&self.at, self.publisher.settings.page);
        let to = PageStart::After(records.last()?.at.clone());
        let items = records.iter().map(|record| item(feed, record)).collect();
        let mut parcel = PushBatch { before: None, items, twice: false, to, fault: None };
        for fault in faults_for(&mut self.random, &faults, true) {
            if parcel.spoil(fault, feed, &records, &mut self.random).is_some() {
                parcel.fault = Some(fault);
                break;
            }
        }
        Some(parcel)
    }

    /// The parcel was taken: what comes next is what comes after it.
    pub(super) fn mark_accepted(&mut self, parcel: &PushBatch) {
        self.at = parcel.to.clone();
        self.publisher.note(self.receiver, &self.feed, |pushed| {
            pushed.items += parcel.items.len() as u64;
            pushed.trouble = None;
        });
    }

    /// An attempt failed.
    pub(super) fn mark_failed(&self, trouble: &str) {
        self.publisher.note(self.receiver, &self.feed, |pushed| {
            pushed.failures += 1;
            pushed.trouble = Some(trouble.to_owned());
        });
    }

    /// Whether the parcel is to be sent at all: one that is spoilt is forgotten once calm, and made anew.
    pub(super) fn stands(&self, parcel: &PushBatch) -> bool {
        parcel.fault.is_none_or(|fault| self.publisher.risks(fault))
    }

    /// Counts what went wrong with the parcel, which has been seen by its receiver.
    pub(super) fn count_batch_fault(&self, parcel: &PushBatch) {
        parcel.fault.into_iter().for_each(|fault| self.publisher.fire(fault));
    }

    /// Waits so long; whether to go on.
    pub(super) async fn wait(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.publisher.stop.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    /// Waits until all is to end.
    pub(super) async fn stopped(&self) {
        self.publisher.stop.cancelled().await;
    }

    /// Waits until all is to end, and then for so long.
    pub(super) fn ending(&self, grace: Duration) -> impl Future<Output = ()> + use<> {
        let stop = self.publisher.stop.clone();
        async move {
            stop.cancelled().await;
            tokio::time::sleep(grace).await;
        }
    }
}

impl PushBatch {
    fn spoil(&mut self, fault: Fault, feed: &FeedModel, records: &[ListedRecord], dice: &mut Random) -> Option<()> {
        let at = record_faults::index(dice, records.len());
        match fault {
            Fault::PushSkip => drop(self.items.remove(at)),
            Fault::PushRepeat => self.twice = true,
            Fault::PushJunk if dice.hits(0.5) => self.before = Some(NOT_JSON),
            Fault::PushJunk => {
                let record = &records[at];
                let data = feed.data(record.number, record.version);
                self.items.insert(at, record_faults::broken(Fault::NoId, JsonMembers::new(feed, record), data));
            }
            Fault::PushStale => self.items.push(item(feed, &record_faults::older(records, dice)?)),
            _ => return None,
        }
        Some(())
    }
}

fn item(feed: &FeedModel, record: &ListedRecord) -> DraftItem {
    DraftItem::Record(JsonMembers::new(feed, record))
}

/// How long to wait after a failure: twice as long as after the one before, from 200 ms to 10 s.
pub(super) struct Backoff(Duration);

const LEAST: Duration = Duration::from_millis(200);
const MOST: Duration = Duration::from_secs(10);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(LEAST)
    }

    /// The next wait, which is no shorter than the receiver asks for.
    pub(super) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let wait = self.0.max(asked.unwrap_or_default());
        self.0 = (self.0 * 2).min(MOST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_seconds_and_never_undercut_what_was_asked() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next(None).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        let mut backoff = Backoff::new();
        assert_eq!(backoff.next(Some(Duration::from_secs(30))), Duration::from_secs(30));
        assert_eq!(backoff.next(Some(Duration::ZERO)), Duration::from_millis(400));
    }
}
