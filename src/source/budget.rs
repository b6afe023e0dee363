//! The memory budget for bytes in flight: bodies being read, decoded or waiting for the writer.
//!
//! Guarantees: memory is charged as bytes arrive, and nothing is held before a response begins; all pages together are
//! bounded by the budget and one largest page; nothing deadlocks. No publisher can hold the budget against others: a
//! page whose publisher is slow, or whose host holds more than others, is preempted when pages of others have waited
//! for a moment (`ledger`). Knows nothing of the bytes' content.

mod ledger;
mod transfer_rate;
mod buffer_pool;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use buffer_pool::BufferPool;
use ledger::{GrowResult, MemoryLedger, PREEMPT_AFTER};

/// How often a page that has waited for a while preempts others: a page near the front of the queue, and any other.
const FRONT_PREEMPTS_EVERY: Duration = Duration::from_millis(20);
const OTHERS_PREEMPT_EVERY: Duration = Duration::from_millis(100);

/// The bytes that all pages together may hold.
#[derive(Clone)]
pub struct MemoryBudget {
    state: Arc<BudgetState>,
}

struct BudgetState {
    ledger: Mutex<MemoryLedger>,
    buffers: BufferPool,
    /// Wakes one page that waits for admission.
    freed: Notify,
    total: u64,
}

/// A page's memory, released when dropped.
pub struct Reservation {
    budget: MemoryBudget,
    number: u64,
    changed: Arc<Notify>,
}

/// Observes a page's reservation.
#[derive(Clone)]
pub struct ReservationWatch {
    budget: MemoryBudget,
    number: u64,
}

/// The page must be given up: other pages waited for the memory that it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// What the page held, bytes.
    pub held: u64,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let ledger = Mutex::new(MemoryLedger::new(bytes));
        Self {
            state: Arc::new(BudgetState { ledger, buffers: BufferPool::default(), freed: Notify::new(), total: bytes }),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, MemoryLedger> {
        self.state.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The budget and the part of it in use, bytes, without the one page that may exceed the budget.
    pub fn usage(&self) -> (u64, u64) {
        (self.state.total, self.ledger().used())
    }

    /// A reservation for a page of `host` that is expected to need `bytes`: it holds nothing yet.
    pub fn open_page(&self, host: &str, bytes: u64) -> Reservation {
        let (number, changed) = self.ledger().open_page(Some(host), bytes);
        Reservation { budget: self.clone(), number, changed }
    }

    /// Waits for `bytes`, which are never preempted; never for more than the whole budget.
    pub async fn reserve(&self, bytes: u64) -> Reservation {
        let bytes = bytes.clamp(1, self.state.total);
        let (number, changed) = self.ledger().open_page(None, bytes);
        let mut reservation = Reservation { budget: self.clone(), number, changed };
        // A reservation without a host is never preempted.
        let _ = reservation.grow_to(bytes).await;
        reservation
    }

    /// What a page that can't grow waits for, in words.
    pub fn describe_wait(&self) -> String {
        let ledger = self.ledger();
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let (waiting, most) = ledger.overview();
        let most = most.map(|(host, held)| format!(", {} MiB by {host}", mib(held))).unwrap_or_default();
        let (used, total) = (mib(ledger.used()), mib(self.state.total));
        format!("waiting: for memory ({used} of {total} MiB are in use{most}; {waiting} wait)")
    }
}

impl ReservationWatch {
    /// Whether the page waits for memory now.
    pub fn is_waiting(&self) -> bool {
        self.budget.ledger().is_waiting(self.number)
    }
}

impl Reservation {
    /// The bytes held.
    pub fn bytes(&self) -> u64 {
        self.budget.ledger().held_bytes(self.number)
    }

    /// Observes this reservation.
    pub fn watch(&self) -> ReservationWatch {
        ReservationWatch { budget: self.budget.clone(), number: self.number }
    }

    /// How long the page has waited for memory.
    pub fn waited(&self) -> Duration {
        self.budget.ledger().waited(self.number, Instant::now())
    }

    /// Waits while local bytes, which wait to be decoded or written, leave no room for `bytes`: nothing is requested
    /// that there would be no memory for. No publisher can prolong this wait.
    pub async fn wait_for_admission(&self, bytes: u64) {
        loop {
            let freed = self.budget.state.freed.notified();
            if self.budget.ledger().is_admitted(self.number, bytes) {
                // The next waiting page checks for itself.
                self.budget.state.freed.notify_one();
                return;
            }
            freed.await;
        }
    }

    /// What the page is expected to need in all, bytes.
    pub fn expected_bytes(&self) -> u64 {
        self.budget.ledger().expected_bytes(self.number)
    }

    /// The page is expected to need `bytes` in all.
    pub fn set_expected(&self, bytes: u64) {
        self.budget.ledger().set_expected(self.number, bytes);
    }

    /// Waits for bytes of the publisher, unless the page is preempted meanwhile.
    ///
    /// # Errors
    /// [`Preemption`].
    pub async fn receive<T>(&self, bytes: impl Future<Output = T>) -> Result<T, Preemption> {
        let _receiving = ReceivingGuard::begin(self);
        let mut bytes = std::pin::pin!(bytes);
        loop {
            tokio::select! {
                biased;
                received = &mut bytes => return Ok(received),
                () = self.changed.notified() => self.check_preempted()?,
            }
        }
    }

    fn check_preempted(&self) -> Result<(), Preemption> {
        let ledger = self.budget.ledger();
        if ledger.is_preempted(self.number) { Err(Preemption { held: ledger.held_bytes(self.number) }) } else { Ok(()) }
    }

    /// The whole page has arrived: from here on it doesn't depend on its publisher.
    pub fn mark_arrived(&self) {
        self.budget.ledger().mark_arrived(self.number);
    }

    /// A buffer of so many bytes, of any content: another page's, or a new one.
    pub(super) fn buffer(&self, bytes: usize) -> Vec<u8> {
        self.budget.state.buffers.take(bytes)
    }

    /// Ends the reservation and keeps the page's buffer for another page.
    pub fn recycle(self, buffer: Vec<u8>) {
        self.budget.state.buffers.give_back(buffer);
    }

    /// Makes sure that the page may hold `bytes`, waiting where others must finish first. A call that is dropped while
    /// it waits leaves the reservation unchanged.
    ///
    /// # Errors
    /// [`Preemption`]; never for a page without a host.
    pub async fn grow_to(&mut self, bytes: u64) -> Result<(), Preemption> {
        let result = self.budget.ledger().grow(self.number, bytes, Instant::now());
        match result {
            GrowResult::Granted => return Ok(()),
            GrowResult::Preempted => return self.check_preempted(),
            GrowResult::Waiting => {}
        }
        let waiting = WithdrawOnDrop(self);
        let mut next_preemption = PREEMPT_AFTER.saturating_sub(waiting.0.waited()).max(FRONT_PREEMPTS_EVERY);
        loop {
            let woken = timeout(next_preemption, self.changed.notified()).await.is_ok();
            self.check_preempted()?;
            if !self.budget.ledger().is_waiting(self.number) {
                return Ok(());
            }
            if !woken {
                let mut ledger = self.budget.ledger();
                ledger.preempt_others(self.number, Instant::now());
                next_preemption =
                    if ledger.is_near_front(self.number) { FRONT_PREEMPTS_EVERY } else { OTHERS_PREEMPT_EVERY };
            }
        }
    }

    /// Releases all but `bytes`, which is all that the page will need.
    pub fn shrink_to(&mut self, bytes: u64) {
        self.budget.ledger().shrink(self.number, bytes, Instant::now());
        self.budget.state.freed.notify_one();
    }

    /// Splits off a reservation for `bytes` of this one, which have arrived.
    pub fn split(&mut self, bytes: u64) -> Self {
        let (number, changed) = self.budget.ledger().split(self.number, bytes);
        Self { budget: self.budget.clone(), number, changed }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.ledger().close_page(self.number, Instant::now());
        self.budget.state.freed.notify_one();
    }
}

/// Withdraws the page's memory request when its wait ends.
struct WithdrawOnDrop<'a>(&'a Reservation);

impl Drop for WithdrawOnDrop<'_> {
    fn drop(&mut self) {
        self.0.budget.ledger().withdraw(self.0.number, Instant::now());
    }
}

struct ReceivingGuard<'a>(&'a Reservation);

impl<'a> ReceivingGuard<'a> {
    fn begin(reservation: &'a Reservation) -> Self {
        reservation.budget.ledger().set_receiving(reservation.number, true, Instant::now());
        Self(reservation)
    }
}

impl Drop for ReceivingGuard<'_> {
    fn drop(&mut self) {
        self.0.budget.ledger().set_receiving(self.0.number, false, Instant::now());
    }
}

#[cfg(test)]
mod tests;
