//! Carrying out what operators ask for.

use super::Configured;
use super::ack::Ack;
use super::control::{Batch, ControlError, Order, QuarantineOrder, Sorted};
use super::fleet::{PAUSED, PURGED, Running, Supervisor};
use crate::feed::{FeedName, Health};
use crate::store::feeds::StoredFeed;
use crate::store::resync::Trust;
use crate::store::sift::Sifted;
use crate::store::{Intake, StoreError, now};

/// Rows read again in one go, and rows dropped.
const READ_AGAIN: usize = 50;
const DROPPED: usize = 500;

impl Supervisor {
    pub(super) async fn order(&mut self, name: &str, order: Order) -> Result<String, ControlError> {
        self.writable()?;
        let unknown = || ControlError::Unknown(format!("there is no feed {name}"));
        let name = FeedName::new(name).ok_or_else(unknown)?;
        let stored = match self.shared.store.feed(&name).await {
            Ok(stored) => stored,
            Err(StoreError::Refused(_)) => return Err(unknown()),
            Err(error) => return Err(refused(error)),
        };
        match order {
            Order::Pause => self.pause(&name).await,
            Order::Resume => self.resume(&name).await,
            Order::PollNow => self.poll_now(&name),
            Order::Resync { trust_source, accept } => {
                self.resync(&name, &stored, Trust::of(trust_source, accept)).await
            }
            Order::AcceptSweep => self.accept_sweep(&name, &stored).await,
            Order::Seek(url) => self.seek(&name, &stored, &url).await,
            Order::Purge => self.purge(&name).await,
            Order::Ack(ack) => self.ack(&name, ack).await,
            Order::Forget { item, undo: false } => {
                let forgot = self.shared.store.forget(&name, now(), item).await.map_err(refused)?;
                Ok(forgot.words(&name))
            }
            Order::Forget { item, undo: true } => {
                match self.shared.store.unforget(&name, now(), item).await.map_err(refused)? {
                    true => Ok(format!("{name}: it is taken again when it comes; resync {name} reads it anew")),
                    false => Err(ControlError::Unknown(format!("{name}: no such item was forgotten"))),
                }
            }
        }
    }

    /// An order that could not be written would be lost; it would also keep the supervisor waiting.
    fn writable(&self) -> Result<(), ControlError> {
        match &*self.shared.store.intake().borrow() {
            Intake::Open => Ok(()),
            Intake::Blocked(reason) | Intake::Broken(reason) => Err(ControlError::Refused(reason.clone())),
        }
    }

    async fn pause(&mut self, name: &FeedName) -> Result<String, ControlError> {
        self.shared.store.pause(name, now(), true).await.map_err(refused)?;
        self.shut(name, PAUSED);
        self.stop(name).await;
        // A turn that ended just now may have noted another health.
        self.shared.store.pause(name, now(), true).await.map_err(refused)?;
        Ok(format!("{name} is paused until it is resumed, restarts included"))
    }

    async fn resume(&mut self, name: &FeedName) -> Result<String, ControlError> {
        self.configured(name)?;
        self.stop(name).await;
        let stored = self.shared.store.pause(name, now(), false).await.map_err(refused)?;
        self.start(name, &stored, std::time::Duration::ZERO).await;
        self.running(name)?.feed.poll_now.notify_one();
        Ok(format!("{name} goes on"))
    }

    fn poll_now(&self, name: &FeedName) -> Result<String, ControlError> {
        let running = self.running(name)?;
        running.feed.poll_now.notify_one();
        running.feed.resync_now.notify_one();
        Ok(format!("{name} is asked now"))
    }

    async fn resync(&self, name: &FeedName, stored: &StoredFeed, trust: Trust) -> Result<String, ControlError> {
        let running = self.running(name)?;
        let underway = stored.resync.is_some();
        self.shared.store.begin_resync(name, now(), trust, false).await.map_err(refused)?;
        running.feed.resync_now.notify_one();
        running.feed.poll_now.notify_one();
        Ok(match (trust, underway) {
            (Trust::No, false) => format!("{name} is read anew; what is gone is swept at the end"),
            (Trust::No, true) => format!("{name} is being read anew already"),
            _ => format!("{name} is read anew, and what its source says replaces what is stored"),
        })
    }

    async fn accept_sweep(&self, name: &FeedName, stored: &StoredFeed) -> Result<String, ControlError> {
        let running = self.running(name)?;
        self.shared.store.accept_sweep(stored.id, now()).await.map_err(refused)?;
        running.feed.resync_now.notify_one();
        Ok(format!("{name} is swept now"))
    }

    async fn seek(&self, name: &FeedName, stored: &StoredFeed, url: &str) -> Result<String, ControlError> {
        let running = self.running(name)?;
        running.feed.source.requests.permit(url).map_err(|failure| ControlError::Refused(failure.to_string()))?;
        if stored.cursor.is_none() {
            let reason = format!("{name} is being read anew and has no poll cursor yet");
            return Err(ControlError::Refused(reason));
        }
        let url = running.feed.source.requests.mask(url);
        self.shared.store.seek(name, now(), url.clone()).await.map_err(refused)?;
        running.feed.poll_now.notify_one();
        Ok(format!("{name} goes on from {url}"))
    }

    async fn purge(&mut self, name: &FeedName) -> Result<String, ControlError> {
        self.shut(name, PURGED);
        self.stop(name).await;
        self.shared.store.purge(name, now()).await.map_err(refused)?;
        Ok(match self.members.contains_key(name) {
            true => format!("{name} is purged, and paused until it is resumed"),
            false => format!("{name} is purged and forgotten"),
        })
    }

    async fn ack(&self, name: &FeedName, ack: Option<Ack>) -> Result<String, ControlError> {
        let words = match &ack {
            Some(ack) => format!("alerts of {name} are silenced until {}", ack.until_text()),
            None => format!("alerts of {name} come again"),
        };
        let (until, note) = ack.map(|ack| (ack.until, ack.note)).unzip();
        self.shared.store.ack(name, now(), until, note.flatten()).await.map_err(refused)?;
        Ok(words)
    }

    pub(super) async fn quarantine(&mut self, id: i64, order: QuarantineOrder) -> Result<String, ControlError> {
        self.writable()?;
        let unknown = || ControlError::Unknown(format!("there is no quarantined record {id}"));
        let store = &self.shared.store;
        if order == QuarantineOrder::Retry {
            let (name, transport, raw) = store.quarantined(id).await.map_err(refused)?.ok_or_else(unknown)?;
            let name = FeedName::new(&name).ok_or_else(unknown)?;
            let running = self.running(&name)?;
            running.feed.read_again(&raw, transport).await.map_err(ControlError::Refused)?;
        }
        match (store.quarantine_drop(id).await.map_err(refused)?, order) {
            (false, _) => Err(unknown()),
            (true, QuarantineOrder::Drop) => Ok(format!("record {id} is dropped")),
            (true, QuarantineOrder::Retry) => Ok(format!("record {id} could be read, and has left quarantine")),
        }
    }

    /// A part of an order to many rows; the rest is another order, so that no other waits for all of it.
    pub(super) async fn sort(&mut self, batch: Batch) -> Result<Sorted, ControlError> {
        self.writable()?;
        let Batch { chosen, order, after, newest } = batch;
        let store = self.shared.store.clone();
        let newest = match newest {
            Some(newest) => newest,
            None => store.newest_quarantined(chosen.clone()).await.map_err(refused)?,
        };
        let mut sorted = Sorted::default();
        if order == QuarantineOrder::Drop {
            let (gone, last) = store.sift_out(chosen, after, newest, DROPPED).await.map_err(refused)?;
            return Ok(Sorted { gone, next: last.map(|last| (last, newest)), ..sorted });
        }
        for row in store.sift(chosen, after, newest, READ_AGAIN).await.map_err(refused)? {
            sorted.next = Some((row.id, newest));
            match self.read_again(&row).await {
                Ok(()) => {
                    store.quarantine_drop(row.id).await.map_err(refused)?;
                    sorted.gone += 1;
                }
                Err(why) => {
                    sorted.failed += 1;
                    sorted.why.get_or_insert_with(|| format!("record {}: {why}", row.id));
                }
            }
        }
        Ok(sorted)
    }

    async fn read_again(&self, row: &Sifted) -> Result<(), String> {
        let name = FeedName::new(&row.feed).ok_or_else(|| format!("there is no feed {}", row.feed))?;
        let running = self.running(&name).map_err(|error| error.to_string())?;
        running.feed.read_again(&row.raw, row.transport).await
    }

    fn configured(&self, name: &FeedName) -> Result<(), ControlError> {
        match self.members.get(name).map(|member| &member.configured) {
            Some(Configured::Ready(_)) => Ok(()),
            Some(Configured::Broken { reason, .. }) => {
                Err(ControlError::Refused(format!("{name} can't run as it is configured: {reason}")))
            }
            None => Err(ControlError::Refused(format!("{name} is not configured"))),
        }
    }

    fn running(&self, name: &FeedName) -> Result<&Running, ControlError> {
        self.configured(name)?;
        let running = self.members.get(name).and_then(|member| member.running.as_ref());
        running.ok_or_else(|| {
            let paused = Health::Paused;
            ControlError::Refused(format!("{name} does not run: it is {paused} or could not start; resume it first"))
        })
    }
}

fn refused(error: StoreError) -> ControlError {
    match error {
        StoreError::Closed => ControlError::Stopping,
        error => ControlError::Refused(error.to_string()),
    }
}
