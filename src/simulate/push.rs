//! What is pushed to one receiver, and when: the items after its position, one page at a time, the next page when the
//! one before was accepted. Knows neither webhooks nor queues. The position is kept in memory only.

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

/// What a receiver was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PushStats {
    /// Items in pages that it accepted, or messages that its broker confirmed.
    pub items: u64,
    /// Attempts that failed since the start.
    pub failures: u64,
    /// Why the last attempt failed; none when it succeeded.
    pub trouble: Option<String>,
}

/// Pushes one feed to one receiver.
pub(super) struct Pusher {
    publisher: Arc<PublisherState>,
    pub(super) feed: String,
    receiver: &'static str,
    at: PageStart,
    random: Random,
    change_watch: watch::Receiver<u64>,
}

/// A batch that must be accepted before anything else is sent.
pub(super) struct PushBatch {
    /// A body that is no JSON, to be sent first.
    pub(super) before: Option<&'static str>,
    pub(super) items: Vec<DraftItem>,
    /// Whether it is sent a second time after it was accepted.
    pub(super) twice: bool,
    to: PageStart,
    fault: Option<Fault>,
}

/// A text that a publisher has been seen to send in place of JSON.
const NOT_JSON: &str = "No ride data found";

impl Pusher {
    /// Starts after the first population, or at the beginning; `None` for an unknown feed.
    pub(super) fn new(
        publisher: &Arc<PublisherState>,
        feed: &str,
        receiver: &'static str,
        from_start: bool,
    ) -> Option<Self> {
        let simulated = publisher.feed(feed)?;
        let at = if from_start { PageStart::Beginning } else { simulated.initial_end().clone() };
        let salt = feed.bytes().chain(receiver.bytes()).fold(0, |salt, byte| mix(salt ^ u64::from(byte)));
        let random = Random::new(publisher.settings.seed, salt);
        let change_watch = simulated.watch_changes();
        Some(Self { publisher: Arc::clone(publisher), feed: feed.to_owned(), receiver, at, random, change_watch })
    }

    /// Waits until there is something to send; `None` once the publisher stops.
    pub(super) async fn next(&mut self) -> Option<PushBatch> {
        loop {
            if self.publisher.stop.is_cancelled() {
                return None;
            }
            // Marked as seen before the feed is read, so that a change in between is looked at again.
            self.change_watch.borrow_and_update();
            if let Some(batch) = self.build_batch() {
                return Some(batch);
            }
            tokio::select! {
                () = self.publisher.stop.cancelled() => return None,
                _ = self.change_watch.changed() => {}
            }
        }
    }

    fn build_batch(&mut self) -> Option<PushBatch> {
        let faults = self.publisher.faults(FaultChannel::Push);
        let feed_with_faults = self.publisher.feed(&self.feed)?.lock();
        let feed = &feed_with_faults.feed;
        let records = feed.records(&self.at, self.publisher.settings.page);
        let to = PageStart::After(records.last()?.at.clone());
        let items = records.iter().map(|record| item(feed, record)).collect();
        let mut batch = PushBatch { before: None, items, twice: false, to, fault: None };
        for fault in faults_for(&mut self.random, &faults, true) {
            if batch.apply_fault(fault, feed, &records, &mut self.random).is_some() {
                batch.fault = Some(fault);
                break;
            }
        }
        Some(batch)
    }

    /// The batch was accepted: the next batch begins after it.
    pub(super) fn mark_accepted(&mut self, batch: &PushBatch) {
        self.at = batch.to.clone();
        self.publisher.record_push(self.receiver, &self.feed, |stats| {
            stats.items += batch.items.len() as u64;
            stats.trouble = None;
        });
    }

    pub(super) fn mark_failed(&self, problem: &str) {
        self.publisher.record_push(self.receiver, &self.feed, |stats| {
            stats.failures += 1;
            stats.trouble = Some(problem.to_owned());
        });
    }

    /// Whether the batch must still be sent: a faulty one is dropped once its fault is no longer set, and built anew.
    pub(super) fn is_current(&self, batch: &PushBatch) -> bool {
        batch.fault.is_none_or(|fault| self.publisher.can_happen(fault))
    }

    /// Counts the batch's fault, once its receiver has seen it.
    pub(super) fn count_batch_fault(&self, batch: &PushBatch) {
        batch.fault.into_iter().for_each(|fault| self.publisher.count_fault(fault));
    }

    /// Waits for this long; returns whether to go on.
    pub(super) async fn wait(&self, time: Duration) -> bool {
        tokio::select! {
            () = self.publisher.stop.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    /// Waits until the publisher stops.
    pub(super) async fn stopped(&self) {
        self.publisher.stop.cancelled().await;
    }

    /// Waits until the publisher stops, and then for `grace`.
    pub(super) fn stopped_for(&self, grace: Duration) -> impl Future<Output = ()> + use<> {
        let stop = self.publisher.stop.clone();
        async move {
            stop.cancelled().await;
            tokio::time::sleep(grace).await;
        }
    }
}

impl PushBatch {
    fn apply_fault(
        &mut self,
        fault: Fault,
        feed: &FeedModel,
        records: &[ListedRecord],
        random: &mut Random,
    ) -> Option<()> {
        let at = record_faults::index(random, records.len());
        match fault {
            Fault::PushSkip => drop(self.items.remove(at)),
            Fault::PushRepeat => self.twice = true,
            Fault::PushJunk if random.hits(0.5) => self.before = Some(NOT_JSON),
            Fault::PushJunk => {
                let record = &records[at];
                let data = feed.data(record.number, record.version);
                self.items.insert(at, record_faults::broken(Fault::NoId, JsonMembers::new(feed, record), data));
            }
            Fault::PushStale => self.items.push(item(feed, &record_faults::older(records, random)?)),
            _ => return None,
        }
        Some(())
    }
}

fn item(feed: &FeedModel, record: &ListedRecord) -> DraftItem {
    DraftItem::Record(JsonMembers::new(feed, record))
}

/// The wait after a failure: twice as long as after the one before, from 200 ms to 10 s.
pub(super) struct Backoff(Duration);

const MIN_WAIT: Duration = Duration::from_millis(200);
const MAX_WAIT: Duration = Duration::from_secs(10);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(MIN_WAIT)
    }

    /// The next wait, at least as long as the receiver asks for.
    pub(super) fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let wait = self.0.max(retry_after.unwrap_or_default());
        self.0 = (self.0 * 2).min(MAX_WAIT);
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
