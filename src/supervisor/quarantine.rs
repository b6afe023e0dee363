//! Carrying out what operators ask of quarantined records: beside the feeds, so that none waits for it.

use super::control::{Answer, Batch, ControlError, QuarantineOrder, Sorted};
use super::fleet::AtWork;
use super::orders::refused;
use crate::feed::FeedName;
use crate::store::sift::Sifted;
use crate::store::{Intake, Store};

/// Rows read again in one go, and rows dropped.
const READ_AGAIN: usize = 50;
const DROPPED: usize = 500;

/// Who sees to it.
pub(super) struct Sorter {
    pub(super) store: Store,
    pub(super) at_work: AtWork,
}

impl Sorter {
    /// What is asked for is answered for at once, with what came of it: it is not put off.
    fn writable(&self) -> Result<(), ControlError> {
        match &*self.store.intake().borrow() {
            Intake::Open => Ok(()),
            Intake::Blocked(reason) | Intake::Broken(reason) => Err(ControlError::Refused(reason.clone())),
        }
    }

    pub(super) async fn one(&self, id: i64, order: QuarantineOrder) -> Result<Answer, ControlError> {
        self.writable()?;
        let unknown = || ControlError::Unknown(format!("there is no quarantined record {id}"));
        let store = &self.store;
        if order == QuarantineOrder::Retry {
            let (name, transport, raw) = store.quarantined(id).await.map_err(refused)?.ok_or_else(unknown)?;
            let name = FeedName::new(&name).ok_or_else(unknown)?;
            let feed = self.at_work.get(&name).map_err(ControlError::Refused)?;
            feed.read_again(&raw, transport).await.map_err(ControlError::Refused)?;
        }
        match (store.quarantine_drop(id).await.map_err(refused)?, order) {
            (false, _) => Err(unknown()),
            (true, QuarantineOrder::Drop) => Ok(Answer::Done(format!("record {id} is dropped"))),
            (true, QuarantineOrder::Retry) => {
                Ok(Answer::Done(format!("record {id} could be read, and has left quarantine")))
            }
        }
    }

    /// A part of an order to many rows; the rest is another order, so that no other waits for all of it.
    pub(super) async fn sort(&self, batch: Batch) -> Result<Sorted, ControlError> {
        self.writable()?;
        let Batch { chosen, order, after, newest } = batch;
        let store = self.store.clone();
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
        self.at_work.get(&name)?.read_again(&row.raw, row.transport).await
    }
}
