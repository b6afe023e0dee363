//! Carrying out what operators ask of quarantined records: beside the feeds, so that none waits for it.

use super::control::{ControlError, OrderAnswer, QuarantineBatchReport, QuarantineOrder, QuarantineSelection};
use super::fleet::RunningFeeds;
use super::orders::control_error;
use crate::feed::FeedName;
use crate::store::Store;
use crate::store::quarantine_batch::QuarantinedRecord;

/// Rows looked up in one go to be read again, and rows dropped.
const READ_AGAIN: usize = 50;
const DROPPED: usize = 500;

/// Who sees to it.
pub(super) struct QuarantineWorker {
    pub(super) store: Store,
    pub(super) running_feeds: RunningFeeds,
}

impl QuarantineWorker {
    pub(super) async fn execute_order(&self, id: i64, order: QuarantineOrder) -> Result<OrderAnswer, ControlError> {
        let unknown = || ControlError::Unknown(format!("there is no quarantined record {id}"));
        let store = &self.store;
        if order == QuarantineOrder::Retry {
            let (name, transport, raw) =
                store.quarantined_record(id).await.map_err(control_error)?.ok_or_else(unknown)?;
            let name = FeedName::new(&name).ok_or_else(unknown)?;
            let feed = self.running_feeds.get(&name).map_err(ControlError::Refused)?;
            feed.retry_quarantined(&raw, transport).await.map_err(ControlError::Refused)?;
        }
        match (store.drop_quarantined(id).await.map_err(control_error)?, order) {
            (false, _) => Err(unknown()),
            (true, QuarantineOrder::Drop) => Ok(OrderAnswer::Done(format!("record {id} is dropped"))),
            (true, QuarantineOrder::Retry) => {
                Ok(OrderAnswer::Done(format!("record {id} could be read, and has left quarantine")))
            }
        }
    }

    /// In steps, between which the writer does other work. Rows that come meanwhile are none of the order's business.
    pub(super) async fn execute_many(
        &self,
        chosen: QuarantineSelection,
        order: QuarantineOrder,
    ) -> Result<QuarantineBatchReport, ControlError> {
        let newest = self.store.newest_quarantine_id(chosen.clone()).await.map_err(control_error)?;
        let mut sorted = QuarantineBatchReport::default();
        let mut next = Some(0);
        while let Some(after) = next {
            next = match order {
                QuarantineOrder::Drop => {
                    let step = self.store.drop_quarantine_batch(chosen.clone(), after, newest, DROPPED).await;
                    let (gone, last) = step.map_err(control_error)?;
                    sorted.removed += gone;
                    last
                }
                QuarantineOrder::Retry => {
                    let rows = self
                        .store
                        .quarantine_batch(chosen.clone(), after, newest, READ_AGAIN)
                        .await
                        .map_err(control_error)?;
                    for row in &rows {
                        self.execute_row(row, &mut sorted).await?;
                    }
                    rows.last().map(|row| row.id)
                }
            };
        }
        Ok(sorted)
    }

    async fn execute_row(
        &self,
        row: &QuarantinedRecord,
        sorted: &mut QuarantineBatchReport,
    ) -> Result<(), ControlError> {
        match self.retry_quarantined(row).await {
            Ok(()) => {
                self.store.drop_quarantined(row.id).await.map_err(control_error)?;
                sorted.removed += 1;
            }
            Err(why) => {
                sorted.failed += 1;
                sorted.first_error.get_or_insert_with(|| format!("record {}: {why}", row.id));
            }
        }
        Ok(())
    }

    async fn retry_quarantined(&self, row: &QuarantinedRecord) -> Result<(), String> {
        let name = FeedName::new(&row.feed).ok_or_else(|| format!("there is no feed {}", row.feed))?;
        self.running_feeds.get(&name)?.retry_quarantined(&row.raw, row.transport).await
    }
}
