//! A global budget for bytes in flight: bodies being read, decoded or waiting for the writer.
//!
//! A page reserves what it is likely to need, compressed and decompressed, before it is asked for, and gives back what
//! it turns out not to. Pages that grow beyond it never deadlock: when the budget is used up, one at a time may exceed
//! it, so that memory is bounded by the budget and one largest page.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

const UNIT: u64 = 4 << 10;

/// The bytes that all pages together may hold.
#[derive(Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    beyond: Arc<Mutex<()>>,
    total: u64,
}

/// A page's share, given back when dropped.
pub struct Reservation {
    budget: Budget,
    permit: OwnedSemaphorePermit,
    held: u64,
    beyond: Option<OwnedMutexGuard<()>>,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let total = bytes / UNIT;
        let free = Arc::new(Semaphore::new(usize::try_from(total).unwrap_or(Semaphore::MAX_PERMITS)));
        Self { free, beyond: Arc::default(), total }
    }

    /// Waits for room for `bytes`; never for more than the whole budget.
    pub async fn reserve(&self, bytes: u64) -> Reservation {
        let units = bytes.div_ceil(UNIT).clamp(1, self.total);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // The semaphore is never closed; an empty share would only make the page count as beyond the budget.
        let permit = match Arc::clone(&self.free).acquire_many_owned(units).await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the budget's semaphore is never closed"),
        };
        Reservation { budget: self.clone(), permit, held: u64::from(units) * UNIT, beyond: None }
    }
}

impl Reservation {
    /// The bytes it may hold without growing.
    pub fn bytes(&self) -> u64 {
        self.held
    }

    /// Makes sure that the page may hold `bytes`, waiting where others must finish first.
    pub async fn grow_to(&mut self, bytes: u64) {
        if bytes <= self.held || self.beyond.is_some() {
            return;
        }
        let more = (bytes - self.held).div_ceil(UNIT);
        let beyond = Arc::clone(&self.budget.beyond).lock_owned();
        // A wait for more than there is would keep what others give back.
        if self.held / UNIT + more > self.budget.total {
            self.beyond = Some(beyond.await);
            return;
        }
        let units = u32::try_from(more).unwrap_or(u32::MAX);
        tokio::select! {
            biased;
            Ok(permit) = Arc::clone(&self.budget.free).acquire_many_owned(units) => {
                self.permit.merge(permit);
                self.held += more * UNIT;
            }
            guard = beyond => self.beyond = Some(guard),
        }
    }

    /// Gives back what is not needed to hold `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if bytes > self.held {
            return;
        }
        self.beyond = None;
        let excess = usize::try_from(self.held / UNIT - bytes.div_ceil(UNIT)).unwrap_or(0);
        if let Some(excess) = self.permit.split(excess) {
            self.held -= excess.num_permits() as u64 * UNIT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_page_at_a_time_exceeds_the_budget_and_nobody_deadlocks() {
        let budget = Budget::new(64 << 10);
        let mut first = budget.reserve(32 << 10).await;
        let mut second = budget.reserve(32 << 10).await;
        first.grow_to(1 << 20).await;
        let waiting = tokio::spawn(async move {
            second.grow_to(1 << 20).await;
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert!(tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await.is_ok());
        drop(budget.reserve(1 << 30).await);
    }

    #[tokio::test]
    async fn what_a_page_gives_back_lets_another_grow() {
        let budget = Budget::new(64 << 10);
        let (mut first, mut second) = (budget.reserve(48 << 10).await, budget.reserve(16 << 10).await);
        first.shrink_to(1);
        assert_eq!(first.bytes(), 4 << 10);
        let mut beyond = budget.reserve(0).await;
        // Even while a third is beyond the budget, which only one may be.
        beyond.grow_to(1 << 20).await;
        second.grow_to(32 << 10).await;
        assert_eq!(second.bytes(), 32 << 10);
        drop((first, second, beyond));
        assert_eq!(budget.reserve(64 << 10).await.bytes(), 64 << 10);
    }
}
