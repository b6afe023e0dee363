//! Carrying out what operators ask of a feed.

use std::time::Duration;

use super::Configured;
use super::ack::Ack;
use super::control::{Answer, ControlError, Named, Order};
use super::unit::{PAUSED, PURGED, Reply, Running, Unit};
use crate::feed::Health;
use crate::source::http::Failure;
use crate::store::forget::erased_words;
use crate::store::resync::Trust;
use crate::store::{StoreError, now};

/// How long whoever has something forgotten waits for it to be erased.
const ERASED: Duration = Duration::from_secs(1);

impl Unit {
    pub(super) async fn order(&mut self, order: Order) -> Result<Answer, ControlError> {
        self.known().await?;
        match order {
            Order::Pause => self.pause().await,
            Order::Resume => self.resume().await,
            Order::PollNow => self.poll_now(),
            Order::Resync { trust_source, accept } => self.resync(Trust::of(trust_source, accept)).await,
            Order::AcceptSweep => self.accept_sweep().await,
            Order::Seek(url) => self.seek(&url).await,
            Order::Purge => self.purge().await,
            Order::Ack(ack) => self.ack(ack).await,
            Order::Forget { item, undo: false } => {
                let forgot = self.common.shared.store.forget(&self.name, now(), item).await.map_err(refused)?;
                Ok(Answer::Done(forgot.words(&self.name)))
            }
            Order::Forget { item, undo: true } => self.remember(item).await,
        }
    }

    /// The loops end first: that needs no store. Why they did is stored as soon as it can be.
    async fn pause(&mut self) -> Result<Answer, ControlError> {
        self.shut(PAUSED);
        self.stop().await;
        self.common.shared.store.pause(&self.name, now(), true).await.map_err(refused)?;
        Ok(Answer::Done(format!("{} is paused until it is resumed, restarts included", self.name)))
    }

    async fn resume(&mut self) -> Result<Answer, ControlError> {
        self.configured()?;
        self.stop().await;
        let stored = self.common.shared.store.pause(&self.name, now(), false).await.map_err(refused)?;
        self.start(&stored, Duration::ZERO).await;
        let name = &self.name;
        if stored.paused {
            return Ok(Answer::Accepted(format!("{name} goes on once the rows that its purge left are removed")));
        }
        self.running()?.feed.poll_anew.notify_one();
        Ok(Answer::Done(format!("{name} goes on")))
    }

    fn poll_now(&self) -> Result<Answer, ControlError> {
        let running = self.running()?;
        running.feed.poll_now.notify_one();
        running.feed.resync_now.notify_one();
        Ok(Answer::Done(format!("{} is asked now", self.name)))
    }

    async fn resync(&self, trust: Trust) -> Result<Answer, ControlError> {
        let (store, name) = (&self.common.shared.store, &self.name);
        let running = self.running()?;
        let underway = store.feed(name).await.map_err(refused)?.resync.is_some();
        store.begin_resync(name, now(), trust, false).await.map_err(refused)?;
        running.feed.resync_now.notify_one();
        running.feed.poll_anew.notify_one();
        let words = match (trust, underway) {
            (Trust::No, false) => format!("{name} is read anew; what is gone is swept at the end"),
            (Trust::No, true) => format!("{name} is being read anew already"),
            _ => format!("{name} is read anew, and what its source says replaces what is stored"),
        };
        Ok(match running.feed.source.not_before.left() {
            Duration::ZERO => Answer::Done(words),
            left => Answer::Accepted(format!(
                "{words}; that begins in {} s, when its publisher may be asked again (poll-now asks at once)",
                left.as_secs() + 1
            )),
        })
    }

    async fn accept_sweep(&self) -> Result<Answer, ControlError> {
        let running = self.running()?;
        self.common.shared.store.accept_sweep(running.feed.id, now()).await.map_err(refused)?;
        running.feed.resync_now.notify_one();
        Ok(Answer::Done(format!("{} is swept now", self.name)))
    }

    async fn seek(&self, url: &str) -> Result<Answer, ControlError> {
        let (store, name) = (&self.common.shared.store, &self.name);
        let running = self.running()?;
        running.feed.source.requests.permit(url).map_err(|failure| {
            let refused = match failure {
                Failure::ForeignNext(origin) => {
                    format!("{origin} is not {name}'s own origin; allow it with http.allow_hosts")
                }
                failure => failure.to_string(),
            };
            ControlError::Refused(refused)
        })?;
        if store.feed(name).await.map_err(refused)?.cursor.is_none() {
            let reason = format!("{name} is being read anew and has no poll cursor yet");
            return Err(ControlError::Refused(reason));
        }
        let url = running.feed.source.requests.mask(url);
        store.seek(name, now(), url.clone()).await.map_err(refused)?;
        running.feed.poll_anew.notify_one();
        Ok(Answer::Done(format!("{name} goes on from {url}")))
    }

    async fn purge(&mut self) -> Result<Answer, ControlError> {
        self.shut(PURGED);
        self.stop().await;
        let left = self.common.shared.store.purge(&self.name, now()).await.map_err(refused)?;
        let name = &self.name;
        let words = match self.configured.is_some() {
            true => format!("{name} is purged, and paused until it is resumed"),
            false => format!("{name} is purged and forgotten"),
        };
        Ok(match left {
            0 => Answer::Done(words),
            left => Answer::Accepted(format!("{words}; {left} rows, which nobody sees any more, are being removed")),
        })
    }

    async fn ack(&self, ack: Option<Ack>) -> Result<Answer, ControlError> {
        let name = &self.name;
        let words = match &ack {
            Some(ack) => format!("alerts of {name} are silenced until {}", ack.until_text()),
            None => format!("alerts of {name} come again"),
        };
        let (until, note) = ack.map(|ack| (ack.until, ack.note)).unzip();
        self.common.shared.store.ack(name, now(), until, note.flatten()).await.map_err(refused)?;
        Ok(Answer::Done(words))
    }

    /// Erasing may take a while: it goes on beside the feed's other orders.
    pub(super) async fn forget(&mut self, item: Named, reply: Reply) {
        let words = match self.order(Order::Forget { item, undo: false }).await {
            Ok(answer) => answer.into_words(),
            Err(error) => return drop(reply.send(Err(error))),
        };
        let store = self.common.shared.store.clone();
        self.errands.spawn(async move {
            let mut erasing = std::pin::pin!(store.erase());
            let Ok(erased) = tokio::time::timeout(ERASED, &mut erasing).await else {
                drop(reply.send(Ok(Answer::Accepted(format!("{words}; {}", erased_words(false))))));
                if let Err(error) = erasing.await {
                    tracing::error!(%error, "what was forgotten could not be erased from the files");
                }
                return;
            };
            let failed = |error| ControlError::Refused(format!("{words}, but not erased: {error}"));
            let answer = erased.map(|erased| Answer::Done(format!("{words}; {}", erased_words(erased))));
            drop(reply.send(answer.map_err(failed)));
        });
    }

    async fn remember(&self, item: Named) -> Result<Answer, ControlError> {
        let name = &self.name;
        match self.common.shared.store.unforget(name, now(), item).await.map_err(refused)? {
            true => Ok(Answer::Done(format!("{name}: it is taken again when it comes; resync {name} reads it anew"))),
            false => Err(ControlError::Unknown(format!("{name}: no such item was forgotten"))),
        }
    }

    /// Of a feed that is not configured only the store knows whether there is one.
    async fn known(&self) -> Result<(), ControlError> {
        if self.configured.is_some() {
            return Ok(());
        }
        match self.common.shared.store.feed(&self.name).await {
            Ok(_) => Ok(()),
            Err(StoreError::Refused(_)) => Err(ControlError::Unknown(format!("there is no feed {}", self.name))),
            Err(error) => Err(refused(error)),
        }
    }

    fn configured(&self) -> Result<(), ControlError> {
        let name = &self.name;
        match &self.configured {
            Some(Configured::Ready(_)) => Ok(()),
            Some(Configured::Broken { reason, .. }) => {
                Err(ControlError::Refused(format!("{name} can't run as it is configured: {reason}")))
            }
            None => Err(ControlError::Refused(format!("{name} is not configured"))),
        }
    }

    fn running(&self) -> Result<&Running, ControlError> {
        self.configured()?;
        self.running.as_ref().ok_or_else(|| {
            let (name, paused) = (&self.name, Health::Paused);
            ControlError::Refused(format!("{name} does not run: it is {paused} or could not start; resume it first"))
        })
    }
}

pub(super) fn refused(error: StoreError) -> ControlError {
    match error {
        StoreError::Closed => ControlError::Stopping,
        error => ControlError::Refused(error.to_string()),
    }
}
