//! Carries out the operators' orders to quarantined records: beside the feeds, so that no feed waits for them.

use super::control::{ControlError, OrderAnswer, QuarantineBatchReport, QuarantineOrder, QuarantineSelection};
use super::fleet::RunningFeeds;
use super::orders::control_error;
use crate::feed::FeedName;
use crate::store::quarantine_batch::QuarantinedRecord;
use crate::store::quarantine_orders::StoredQuarantineOrder;
use crate::store::{Store, now};

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

    /// Stores the order, and carries it out. Rows that are quarantined meanwhile are not part of it.
    pub(super) async fn execute_many(
        &self,
        selection: QuarantineSelection,
        order: QuarantineOrder,
    ) -> Result<QuarantineBatchReport, ControlError> {
        let retry = order == QuarantineOrder::Retry;
        let stored = self.store.begin_quarantine_order(now(), selection, retry).await.map_err(control_error)?;
        self.carry_out(stored).await
    }

    /// Carries out the orders that an earlier run did not finish.
    pub(super) async fn resume_orders(&self) {
        let orders = match self.store.quarantine_orders().await {
            Ok(orders) => orders,
            Err(error) => return tracing::error!(%error, "orders to quarantined records can't be read"),
        };
        for stored in orders {
            let order = if stored.retry { QuarantineOrder::Retry } else { QuarantineOrder::Drop };
            match self.carry_out(stored).await {
                Ok(report) => tracing::info!(outcome = report.words(order), "an earlier order was carried out"),
                Err(error) => tracing::warn!(%error, "an earlier order could not be carried out"),
            }
        }
    }

    /// An order that fails has ended too, as the operator was told; only one that the mirror's own end cut short goes
    /// on with the next run.
    async fn carry_out(&self, stored: StoredQuarantineOrder) -> Result<QuarantineBatchReport, ControlError> {
        let number = stored.number;
        let outcome = self.execute_in_steps(stored).await;
        if !matches!(outcome, Err(ControlError::Stopping)) {
            self.store.end_quarantine_order(number).await.map_err(control_error)?;
        }
        outcome
    }

    /// Between two steps the writer thread does other work.
    async fn execute_in_steps(&self, stored: StoredQuarantineOrder) -> Result<QuarantineBatchReport, ControlError> {
        let StoredQuarantineOrder { retry, selection, newest_id, .. } = stored;
        let mut report = QuarantineBatchReport::default();
        let mut next = Some(0);
        while let Some(after) = next {
            let selection = selection.clone();
            next = if retry {
                let rows = self.store.quarantine_batch(selection, after, newest_id, RETRY_BATCH).await;
                let rows = rows.map_err(control_error)?;
                for row in &rows {
                    self.execute_row(row, &mut report).await?;
                }
                rows.last().map(|row| row.id)
            } else {
                let step = self.store.drop_quarantine_batch(selection, after, newest_id, DROP_BATCH).await;
                let (removed, last) = step.map_err(control_error)?;
                report.removed += removed;
                last
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
