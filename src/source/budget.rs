//! A global budget for bytes in flight: bodies being read, decoded or waiting for the writer.
//!
//! A page reserves what it is likely to need, compressed and decompressed, before it is asked for, and gives back what
//! it turns out not to. Pages that grow beyond it never deadlock: when the budget is used up, one at a time may exceed
//! it, so that memory is bounded by the budget and one largest page. A few buffers that pages no longer need are kept
//! for the next ones: memory fresh from the kernel is dear, since it comes page by page and zeroed.

use std::sync::{Arc, Mutex as Lock, PoisonError};

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

const UNIT: u64 = 4 << 10;
/// Buffers kept for the next pages, how large they may be, and the steps their sizes come in, so that they fit again.
const SPARE: usize = 4;
const SPARE_BYTES: usize = 4 << 20;
const SPARE_STEP: usize = 256 << 10;

/// The bytes that all pages together may hold.
#[derive(Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    beyond: Arc<Mutex<()>>,
    total: u64,
    spare: Arc<Lock<Vec<Vec<u8>>>>,
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
        Self { free, beyond: Arc::default(), total, spare: Arc::default() }
    }

    /// All its bytes, and how many of them are in use; what one page holds beyond them doesn't count.
    pub fn bytes(&self) -> (u64, u64) {
        let free = u64::try_from(self.free.available_permits()).unwrap_or(self.total);
        (self.total * UNIT, self.total.saturating_sub(free) * UNIT)
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

    /// A buffer of so many bytes for the page, whatever they are: one kept from another page, or a new one.
    pub(super) fn buffer(&self, bytes: usize) -> Vec<u8> {
        if bytes < SPARE_STEP / 2 {
            return vec![0; bytes];
        }
        let mut spare = self.budget.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = spare.iter().position(|buffer| (bytes..=2 * bytes).contains(&buffer.capacity()));
        let kept = fitting.map(|place| spare.swap_remove(place));
        drop(spare);
        let mut buffer = kept.unwrap_or_else(|| vec![0; bytes.next_multiple_of(SPARE_STEP)]);
        buffer.resize(bytes, 0);
        buffer
    }

    /// Ends the share; the page's buffer may serve another.
    pub fn recycle(self, buffer: Vec<u8>) {
        if !(SPARE_STEP..=SPARE_BYTES).contains(&buffer.capacity()) {
            return;
        }
        let mut spare = self.budget.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() >= SPARE {
            spare.remove(0);
        }
        spare.push(buffer);
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
        assert_eq!(budget.bytes(), (64 << 10, 0));
        let mut first = budget.reserve(32 << 10).await;
        assert_eq!(budget.bytes(), (64 << 10, 32 << 10));
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
    async fn a_large_buffer_serves_the_next_page_of_its_size_and_no_smaller_one() {
        let budget = Budget::new(64 << 10);
        let first = budget.reserve(1).await.buffer(300 << 10);
        let place = first.as_ptr();
        budget.reserve(1).await.recycle(first);
        let reservation = budget.reserve(1).await;
        for smaller in [1 << 10, 200 << 10] {
            let buffer = reservation.buffer(smaller);
            assert_ne!(buffer.as_ptr(), place);
        }
        let next = reservation.buffer(400 << 10);
        assert_eq!((next.as_ptr(), next.len()), (place, 400 << 10));
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
