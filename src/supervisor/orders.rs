//! Carries out the operators' orders to a feed.

use std::time::Duration;

use super::ConfiguredFeed;
use super::ack::Ack;
use super::control::{ControlError, ItemSelector, Order, OrderAnswer};
use super::feed_supervisor::{FeedSupervisor, OrderReply, PAUSED, PURGED, RunningLoops};
use crate::feed::Health;
use crate::source::http::HttpFailure;
use crate::store::forget::erasure_summary;
use crate::store::resync::SourceTrust;
use crate::store::{StoreError, now};

/// How long the caller of `forget` waits for the item to be erased.
const ERASE_WAIT: Duration = Duration::from_secs(1);

impl FeedSupervisor {
    pub(super) async fn execute_order(&mut self, order: Order) -> Result<OrderAnswer, ControlError> {
        self.require_known().await?;
        match order {
            Order::Pause => self.pause().await,
            Order::Resume => self.resume().await,
            Order::PollNow => self.poll_now(),
            Order::Resync { trust_source, accept } => {
                self.resync(SourceTrust::from_options(trust_source, accept)).await
            }
            Order::AcceptSweep => self.accept_sweep().await,
            Order::Seek(url) => self.seek(&url).await,
            Order::Purge => self.purge().await,
            Order::Ack(ack) => self.ack(ack).await,
            Order::Forget { item, undo: false } => {
                let report =
                    self.context.worker_context.store.forget(&self.name, now(), item).await.map_err(control_error)?;
                Ok(OrderAnswer::Done(report.summary(&self.name)))
            }
            Order::Forget { item, undo: true } => self.unforget(item).await,
        }
    }

    /// Stops the loops first, which needs no store. That the feed is paused is stored as soon as possible.
    async fn pause(&mut self) -> Result<OrderAnswer, ControlError> {
        self.refuse_posts(PAUSED);
        self.stop().await;
        self.context.worker_context.store.set_paused(&self.name, now(), true).await.map_err(control_error)?;
        Ok(OrderAnswer::Done(format!("{} is paused until it is resumed, restarts included", self.name)))
    }

    async fn resume(&mut self) -> Result<OrderAnswer, ControlError> {
        self.require_configured()?;
        self.stop().await;
        let stored =
            self.context.worker_context.store.set_paused(&self.name, now(), false).await.map_err(control_error)?;
        self.start(&stored, Duration::ZERO).await;
        let name = &self.name;
        if stored.paused {
            return Ok(OrderAnswer::Accepted(format!("{name} goes on once the rows that its purge left are removed")));
        }
        self.require_running()?.feed.poll_when_allowed.notify_one();
        Ok(OrderAnswer::Done(format!("{name} goes on")))
    }

    fn poll_now(&self) -> Result<OrderAnswer, ControlError> {
        let running = self.require_running()?;
        running.feed.poll_now.notify_one();
        running.feed.resync_now.notify_one();
        Ok(OrderAnswer::Done(format!("{} is asked now", self.name)))
    }

    async fn resync(&self, trust: SourceTrust) -> Result<OrderAnswer, ControlError> {
        let (store, name) = (&self.context.worker_context.store, &self.name);
        let running = self.require_running()?;
        let in_progress = store.feed(name).await.map_err(control_error)?.resync.is_some();
        store.begin_resync(name, now(), trust, false).await.map_err(control_error)?;
        running.feed.resync_now.notify_one();
        running.feed.poll_when_allowed.notify_one();
        let text = match (trust, in_progress) {
            (SourceTrust::No, false) => format!("{name} is read anew; what is gone is swept at the end"),
            (SourceTrust::No, true) => format!("{name} is being read anew already"),
            _ => format!("{name} is read anew, and what its source says replaces what is stored"),
        };
        Ok(match running.feed.source.not_before.remaining() {
            Duration::ZERO => OrderAnswer::Done(text),
            remaining => OrderAnswer::Accepted(format!(
                "{text}; that begins in {} s, when its publisher may be asked again (poll-now asks at once)",
                remaining.as_secs() + 1
            )),
        })
    }

    async fn accept_sweep(&self) -> Result<OrderAnswer, ControlError> {
        let running = self.require_running()?;
        self.context.worker_context.store.accept_sweep(running.feed.id, now()).await.map_err(control_error)?;
        running.feed.resync_now.notify_one();
        Ok(OrderAnswer::Done(format!("{} is swept now", self.name)))
    }

    async fn seek(&self, url: &str) -> Result<OrderAnswer, ControlError> {
        let (store, name) = (&self.context.worker_context.store, &self.name);
        let running = self.require_running()?;
        running.feed.source.requests.check_permitted(url).map_err(|failure| {
            let reason = match failure {
                HttpFailure::ForeignNext(origin) => {
                    format!("{origin} is not {name}'s own origin; allow it with http.allow_hosts")
                }
                failure => failure.to_string(),
            };
            ControlError::Refused(reason)
        })?;
        if store.feed(name).await.map_err(control_error)?.cursor.is_none() {
            let reason = format!("{name} is being read anew and has no poll cursor yet");
            return Err(ControlError::Refused(reason));
        }
        let url = running.feed.source.requests.mask(url);
        store.seek(name, now(), url.clone()).await.map_err(control_error)?;
        running.feed.poll_when_allowed.notify_one();
        Ok(OrderAnswer::Done(format!("{name} goes on from {url}")))
    }

    async fn purge(&mut self) -> Result<OrderAnswer, ControlError> {
        self.refuse_posts(PURGED);
        self.stop().await;
        let rows_left = self.context.worker_context.store.purge(&self.name, now()).await.map_err(control_error)?;
        let name = &self.name;
        let text = match self.configured.is_some() {
            true => format!("{name} is purged, and paused until it is resumed"),
            false => format!("{name} is purged and forgotten"),
        };
        Ok(match rows_left {
            0 => OrderAnswer::Done(text),
            rows_left => OrderAnswer::Accepted(format!(
                "{text}; {rows_left} rows, which nobody sees any more, are being removed"
            )),
        })
    }

    async fn ack(&self, ack: Option<Ack>) -> Result<OrderAnswer, ControlError> {
        let name = &self.name;
        let text = match &ack {
            Some(ack) => format!("alerts of {name} are silenced until {}", ack.until_text()),
            None => format!("alerts of {name} come again"),
        };
        let (until, note) = ack.map(|ack| (ack.until, ack.note)).unzip();
        self.context.worker_context.store.ack(name, now(), until, note.flatten()).await.map_err(control_error)?;
        Ok(OrderAnswer::Done(text))
    }

    /// Erasing may take a while: it runs beside the feed's other orders.
    pub(super) async fn forget(&mut self, item: ItemSelector, reply: OrderReply) {
        let text = match self.execute_order(Order::Forget { item, undo: false }).await {
            Ok(answer) => answer.into_words(),
            Err(error) => return drop(reply.send(Err(error))),
        };
        let store = self.context.worker_context.store.clone();
        self.background_tasks.spawn(async move {
            let mut erasing = std::pin::pin!(store.erase());
            let Ok(erased) = tokio::time::timeout(ERASE_WAIT, &mut erasing).await else {
                drop(reply.send(Ok(OrderAnswer::Accepted(format!("{text}; {}", erasure_summary(false))))));
                if let Err(error) = erasing.await {
                    tracing::error!(%error, "what was forgotten could not be erased from the files");
                }
                return;
            };
            let not_erased = |error| ControlError::Refused(format!("{text}, but not erased: {error}"));
            let answer = erased.map(|erased| OrderAnswer::Done(format!("{text}; {}", erasure_summary(erased))));
            drop(reply.send(answer.map_err(not_erased)));
        });
    }

    async fn unforget(&self, item: ItemSelector) -> Result<OrderAnswer, ControlError> {
        let name = &self.name;
        match self.context.worker_context.store.unforget(name, now(), item).await.map_err(control_error)? {
            true => {
                Ok(OrderAnswer::Done(format!("{name}: it is taken again when it comes; resync {name} reads it anew")))
            }
            false => Err(ControlError::Unknown(format!("{name}: no such item was forgotten"))),
        }
    }

    /// Fails where neither the configuration nor the store knows the feed.
    async fn require_known(&self) -> Result<(), ControlError> {
        if self.configured.is_some() {
            return Ok(());
        }
        match self.context.worker_context.store.feed(&self.name).await {
            Ok(_) => Ok(()),
            Err(StoreError::Refused(_)) => Err(ControlError::Unknown(format!("there is no feed {}", self.name))),
            Err(error) => Err(control_error(error)),
        }
    }

    fn require_configured(&self) -> Result<(), ControlError> {
        let name = &self.name;
        match &self.configured {
            Some(ConfiguredFeed::Ready(_)) => Ok(()),
            Some(ConfiguredFeed::Broken { reason, .. }) => {
                Err(ControlError::Refused(format!("{name} can't run as it is configured: {reason}")))
            }
            None => Err(ControlError::Refused(format!("{name} is not configured"))),
        }
    }

    fn require_running(&self) -> Result<&RunningLoops, ControlError> {
        self.require_configured()?;
        self.running.as_ref().ok_or_else(|| {
            let (name, paused) = (&self.name, Health::Paused);
            ControlError::Refused(format!("{name} does not run: it is {paused} or could not start; resume it first"))
        })
    }
}

pub(super) fn control_error(error: StoreError) -> ControlError {
    match error {
        StoreError::Closed => ControlError::Stopping,
        error => ControlError::Refused(error.to_string()),
    }
}
