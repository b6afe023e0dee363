//! The time before which no request may go to a feed's publisher, because the publisher said so: one for polls,
//! look-backs, resyncs, audit polls and probes together. Only the operator's `poll-now` overrides it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::FeedRuntime;
use crate::store::{millis, now};

/// A feed's "not before".
#[derive(Debug, Default)]
pub struct NotBefore(watch::Sender<Option<Instant>>);

impl NotBefore {
    /// Allows no request before `wait` is over; a wait that ends earlier than the present one changes nothing.
    pub fn postpone(&self, wait: Duration) {
        let until = Instant::now() + wait;
        self.0.send_if_modified(|present| {
            let later = present.is_none_or(|present| present < until);
            if later {
                *present = Some(until);
            }
            later
        });
    }

    /// Allows requests at once: the operator's order.
    pub fn clear(&self) {
        self.0.send_replace(None);
    }

    /// The time left until requests are allowed.
    pub fn remaining(&self) -> Duration {
        let until = *self.0.borrow();
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Waits until requests are allowed.
    pub async fn wait_until_passed(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let Some(until) = *changes.borrow_and_update() else { return };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    if self.remaining().is_zero() {
                        return;
                    }
                }
                // The sender is `self`'s own, so that the channel is open.
                _ = changes.changed() => {}
            }
        }
    }
}

impl FeedRuntime {
    /// The publisher allows no request for this long. It is stored, so that it holds over restarts.
    pub(super) async fn set_not_before(&self, wait: Duration) {
        self.source.not_before.postpone(wait);
        let until = now().saturating_add(millis(wait));
        self.log_store_error(self.context.store.set_held_until(self.id, Some(until)).await);
    }

    /// The operator's `poll-now` allows requests at once.
    pub(super) async fn clear_not_before(&self) {
        if !self.source.not_before.remaining().is_zero() {
            self.source.not_before.clear();
            self.log_store_error(self.context.store.set_held_until(self.id, None).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_request_waits_for_the_longest_postponement_until_the_operator_clears_it() {
        let (not_before, long) = (NotBefore::default(), Duration::from_millis(60));
        assert!(not_before.wait_until_passed().now_or_never().is_some());

        not_before.postpone(long);
        not_before.postpone(long / 10);
        let began = Instant::now();
        not_before.wait_until_passed().await;
        assert!(began.elapsed() >= long && not_before.remaining().is_zero());

        not_before.postpone(Duration::from_secs(300));
        let mut waiting = Box::pin(not_before.wait_until_passed());
        assert!((&mut waiting).now_or_never().is_none());
        not_before.clear();
        assert!(waiting.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_postponement_during_a_wait_extends_the_wait() {
        let (not_before, wait, began) = (NotBefore::default(), Duration::from_millis(40), Instant::now());
        not_before.postpone(wait);
        let mut waiting = Box::pin(not_before.wait_until_passed());
        assert!((&mut waiting).now_or_never().is_none());
        not_before.postpone(wait * 3);
        waiting.await;
        assert!(began.elapsed() >= wait * 3);
    }
}
