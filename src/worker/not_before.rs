//! When a feed may be asked next, whoever wants to: its publisher's word, kept in one place for polls, look-backs,
//! resyncs, audits and probes. Only the operator's `poll-now` goes before.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::FeedRuntime;
use crate::store::{Millis, now};

/// A feed's "not before".
#[derive(Debug, Default)]
pub struct NotBefore(watch::Sender<Option<Instant>>);

impl NotBefore {
    /// Nobody asks before `wait` is over; a wait that ends earlier than one that holds already changes nothing.
    pub fn postpone(&self, wait: Duration) {
        let until = Instant::now() + wait;
        self.0.send_if_modified(|held| {
            let later = held.is_none_or(|held| held < until);
            if later {
                *held = Some(until);
            }
            later
        });
    }

    /// The operator wants it asked.
    pub fn clear(&self) {
        self.0.send_replace(None);
    }

    /// How long nobody may ask.
    pub fn remaining(&self) -> Duration {
        let until = *self.0.borrow();
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Waits until it may be asked.
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
                // The sender is our own: it is there.
                _ = changes.changed() => {}
            }
        }
    }
}

impl FeedRuntime {
    /// The publisher asked to be left alone for this long: nobody asks it before, restarts included.
    pub(super) async fn set_not_before(&self, wait: Duration) {
        self.source.not_before.postpone(wait);
        let until = now().saturating_add(Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX));
        self.log_store_error(self.context.store.set_held_until(self.id, Some(until)).await);
    }

    /// The operator wants it asked now.
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
    async fn whoever_asks_waits_for_the_longest_hold_and_an_operator_for_none() {
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
    async fn a_hold_that_comes_while_one_waits_is_waited_for_too() {
        let (not_before, wait, began) = (NotBefore::default(), Duration::from_millis(40), Instant::now());
        not_before.postpone(wait);
        let mut waiting = Box::pin(not_before.wait_until_passed());
        assert!((&mut waiting).now_or_never().is_none());
        not_before.postpone(wait * 3);
        waiting.await;
        assert!(began.elapsed() >= wait * 3);
    }
}
