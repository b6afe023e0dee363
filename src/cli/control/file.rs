//! Carries out orders on a database that no process holds: they change the file, and the next run goes on from there.

use std::path::Path;

use anyhow::{Context, bail};

use crate::feed::FeedName;
use crate::store::feeds::StoredFeed;
use crate::store::forget::erasure_summary;
use crate::store::resync::{ResyncStage, SourceTrust};
use crate::store::{Store, StoreGuard, now};
use crate::supervisor::control::{Order, QuarantineBatchReport, QuarantineOrder, QuarantineSelection};
use crate::supervisor::housekeeping::remove_purged;

/// Quarantine rows dropped in one transaction.
const DROP_BATCH_ROWS: usize = 500;

/// A database that this process holds while it carries out orders.
pub(super) struct FileOrders {
    store: Store,
    guard: Option<StoreGuard>,
}

impl Drop for FileOrders {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.finish();
        }
    }
}

impl FileOrders {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let (store, guard) = Store::open(path)?;
        Ok(Self { store, guard: Some(guard) })
    }

    pub(super) async fn feed(&self, name: &str, order: &Order) -> anyhow::Result<String> {
        let unknown = || format!("there is no feed {name} in {}", self.store.path().display());
        let name = FeedName::new(name).with_context(unknown)?;
        let stored = self.store.feed(&name).await?;
        match order {
            Order::PollNow => bail!("no daemon is running on {}: nobody polls", self.store.path().display()),
            Order::Pause => {
                self.store.set_paused(&name, now(), true).await?;
                Ok(format!("{name}: paused, for the next run too"))
            }
            Order::Resume => {
                remove_purged(&self.store).await?;
                self.store.set_paused(&name, now(), false).await?;
                Ok(format!("{name}: resumed; the next run reads it"))
            }
            Order::Seek(url) => {
                self.store.seek(&name, now(), url.clone()).await?;
                Ok(format!("{name}: the next run reads on from {url}"))
            }
            Order::Purge => {
                self.store.purge(&name, now()).await?;
                remove_purged(&self.store).await?;
                Ok(format!("{name}: purged"))
            }
            Order::Ack(Some(ack)) => {
                self.store.ack(&name, now(), Some(ack.until), ack.note.clone()).await?;
                Ok(format!("{name}: alerts are silenced until {}", ack.until_text()))
            }
            Order::Ack(None) => {
                self.store.ack(&name, now(), None, None).await?;
                Ok(format!("{name}: alerts come again"))
            }
            Order::Resync { trust_source, accept } => {
                self.resync(&name, &stored, SourceTrust::from_options(*trust_source, *accept)).await
            }
            Order::AcceptSweep => self.accept(&name, &stored).await,
            Order::Forget { item, undo: false } => {
                let report = self.store.forget(&name, now(), item.clone()).await?;
                let erased = self.store.erase().await?;
                Ok(format!("{}; {}", report.summary(&name), erasure_summary(erased)))
            }
            Order::Forget { item, undo: true } => {
                if !self.store.unforget(&name, now(), item.clone()).await? {
                    bail!("{name}: no such item was forgotten");
                }
                Ok(format!("{name}: it is taken again when it comes; resync {name} reads it anew"))
            }
        }
    }

    pub(super) async fn quarantine(&self, id: i64, order: QuarantineOrder) -> anyhow::Result<String> {
        if order == QuarantineOrder::Retry {
            bail!("no daemon is running on {}: reading a record again needs one", self.store.path().display());
        }
        if !self.store.drop_quarantined(id).await? {
            bail!("there is no quarantine row {id}");
        }
        Ok(format!("quarantine row {id}: dropped"))
    }

    /// Returns the result as text, and how many records still can't be read.
    pub(super) async fn quarantine_batch(
        &self,
        selection: &QuarantineSelection,
        order: QuarantineOrder,
    ) -> anyhow::Result<(String, u64)> {
        if order == QuarantineOrder::Retry {
            bail!("no daemon is running on {}: reading records again needs one", self.store.path().display());
        }
        let newest = self.store.newest_quarantine_id(selection.clone()).await?;
        let (mut sorted, mut next) = (QuarantineBatchReport::default(), Some(0));
        while let Some(after) = next {
            let (gone, last) =
                self.store.drop_quarantine_batch(selection.clone(), after, newest, DROP_BATCH_ROWS).await?;
            sorted.removed += gone;
            next = last;
        }
        Ok((sorted.words(order), 0))
    }

    /// Gives a feed a new name, and its items new numbers.
    pub(super) async fn rename(&self, old: &str, new: &FeedName) -> anyhow::Result<String> {
        let unknown = || format!("there is no feed {old} in {}", self.store.path().display());
        let old = FeedName::new(old).with_context(unknown)?;
        self.store.rename(now(), &old, new).await?;
        let items = self.store.renumber().await?;
        Ok(format!("{old} is {new} now, its cursors kept; {items} items have new numbers for those who follow"))
    }

    async fn resync(&self, name: &FeedName, stored: &StoredFeed, trust: SourceTrust) -> anyhow::Result<String> {
        if stored.purged {
            bail!("{name} is purged: resume reads it anew");
        }
        self.store.begin_resync(name, now(), trust, false).await?;
        Ok(format!(
            "{name}: the next run reads it anew{}",
            if trust == SourceTrust::No { "" } else { ", trusting the source" }
        ))
    }

    async fn accept(&self, name: &FeedName, stored: &StoredFeed) -> anyhow::Result<String> {
        if stored.resync.as_ref().is_none_or(|resync| resync.stage != ResyncStage::Held) {
            bail!("{name} has no held sweep to accept");
        }
        self.store.accept_sweep(stored.id, now()).await?;
        Ok(format!("{name}: accepted; the next run sweeps"))
    }
}
