//! Carries out the operators' orders to quarantined records: beside the feeds, so that no feed waits for them.

use super::control::{ControlError, OrderAnswer, QuarantineBatchReport, QuarantineOrder, QuarantineSelection};
use super::fleet::RunningFeeds;
use super::orders::control_error;
use crate::feed::FeedName;
use crate::store::Store;
use crate::store::quarantine_batch::QuarantinedRecord;

/// Rows that are read at once to be decoded again, and rows that are dropped at once.
const RETRY_BATCH: usize = 50;
const DROP_BATCH: usize = 500;

/// Carries out orders to quarantine rows.
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

    /// Works in steps, between which the writer thread does other work. Rows that are quarantined meanwhile are not
    /// part of the order.
    pub(super) async fn execute_many(
        &self,
        selection: QuarantineSelection,
        order: QuarantineOrder,
    ) -> Result<QuarantineBatchReport, ControlError> {
        let newest = self.store.newest_quarantine_id(selection.clone()).await.map_err(control_error)?;
        let mut report = QuarantineBatchReport::default();
        let mut next = Some(0);
        while let Some(after) = next {
            next = match order {
                QuarantineOrder::Drop => {
                    let step = self.store.drop_quarantine_batch(selection.clone(), after, newest, DROP_BATCH).await;
                    let (removed, last) = step.map_err(control_error)?;
                    report.removed += removed;
                    last
                }
                QuarantineOrder::Retry => {
                    let rows = self
                        .store
                        .quarantine_batch(selection.clone(), after, newest, RETRY_BATCH)
                        .await
                        .map_err(control_error)?;
                    for row in &rows {
                        self.execute_row(row, &mut report).await?;
                    }
                    rows.last().map(|row| row.id)
                }
            };
        }
        Ok(report)
    }

    async fn execute_row(
        &self,
        row: &QuarantinedRecord,
        report: &mut QuarantineBatchReport,
    ) -> Result<(), ControlError> {
        match self.retry_quarantined(row).await {
            Ok(()) => {
                self.store.drop_quarantined(row.id).await.map_err(control_error)?;
                report.removed += 1;
            }
            Err(error) => {
                report.failed += 1;
                report.first_error.get_or_insert_with(|| format!("record {}: {error}", row.id));
            }
        }
        Ok(())
    }

    async fn retry_quarantined(&self, row: &QuarantinedRecord) -> Result<(), String> {
        let name = FeedName::new(&row.feed).ok_or_else(|| format!("there is no feed {}", row.feed))?;
        self.running_feeds.get(&name)?.retry_quarantined(&row.raw, row.transport).await
    }
}
