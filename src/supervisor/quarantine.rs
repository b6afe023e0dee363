//! Carrying out what operators ask of quarantined records: beside the feeds, so that none waits for it.

use super::control::{Answer, Chosen, ControlError, QuarantineOrder, Sorted};
use super::fleet::AtWork;
use super::orders::refused;
use crate::feed::FeedName;
use crate::store::Store;
use crate::store::sift::Sifted;

/// Rows looked up in one go to be read again, and rows dropped.
const READ_AGAIN: usize = 50;
const DROPPED: usize = 500;

/// Who sees to it.
pub(super) struct Sorter {
    pub(super) store: Store,
    pub(super) at_work: AtWork,
}

impl Sorter {
    pub(super) async fn one(&self, id: i64, order: QuarantineOrder) -> Result<Answer, ControlError> {
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

    /// In steps, between which the writer does other work. Rows that come meanwhile are none of the order's business.
    pub(super) async fn sort(&self, chosen: Chosen, order: QuarantineOrder) -> Result<Sorted, ControlError> {
        let newest = self.store.newest_quarantined(chosen.clone()).await.map_err(refused)?;
        let mut sorted = Sorted::default();
        let mut next = Some(0);
        while let Some(after) = next {
            next = match order {
                QuarantineOrder::Drop => {
                    let step = self.store.sift_out(chosen.clone(), after, newest, DROPPED).await;
                    let (gone, last) = step.map_err(refused)?;
                    sorted.gone += gone;
                    last
                }
                QuarantineOrder::Retry => {
                    let rows = self.store.sift(chosen.clone(), after, newest, READ_AGAIN).await.map_err(refused)?;
                    for row in &rows {
                        self.sort_one(row, &mut sorted).await?;
                    }
                    rows.last().map(|row| row.id)
                }
            };
        }
        Ok(sorted)
    }

    async fn sort_one(&self, row: &Sifted, sorted: &mut Sorted) -> Result<(), ControlError> {
        match self.read_again(row).await {
            Ok(()) => {
                self.store.quarantine_drop(row.id).await.map_err(refused)?;
                sorted.gone += 1;
            }
            Err(why) => {
                sorted.failed += 1;
                sorted.why.get_or_insert_with(|| format!("record {}: {why}", row.id));
            }
        }
        Ok(())
    }

    async fn read_again(&self, row: &Sifted) -> Result<(), String> {
        let name = FeedName::new(&row.feed).ok_or_else(|| format!("there is no feed {}", row.feed))?;
        self.at_work.get(&name)?.read_again(&row.raw, row.transport).await
    }
}
