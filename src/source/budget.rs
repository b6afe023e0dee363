//! A global budget for bytes in flight: bodies being read, decoded or waiting for the writer.
//!
//! A page reserves what it is likely to need and grows in steps. Growing never deadlocks: when the budget is used up,
//! one page at a time may exceed it, so that memory is bounded by the budget and one largest page.

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
    /// Makes sure that the page may hold `bytes`, waiting where others must finish first.
    pub async fn grow_to(&mut self, bytes: u64) {
        if bytes <= self.held || self.beyond.is_some() {
            return;
        }
        let more = u32::try_from((bytes - self.held).div_ceil(UNIT)).unwrap_or(u32::MAX);
        match Arc::clone(&self.budget.free).try_acquire_many_owned(more) {
            Ok(permit) => {
                self.permit.merge(permit);
                self.held += u64::from(more) * UNIT;
            }
            Err(_) => self.beyond = Some(Arc::clone(&self.budget.beyond).lock_owned().await),
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
}
