//! A global budget for bytes in flight: bodies being read, decoded or waiting for the writer.
//!
//! Guarantees: memory is charged as bytes come, and nothing is held before an answer begins; what is held together is
//! bounded by the budget and one largest page; nothing deadlocks. No publisher holds it against others: a page that it
//! lets wait, or that its host's share doesn't cover, gives way when pages of others have waited for a moment
//! (`ledger`). Knows nothing of what the bytes say.

mod ledger;
mod transfer_rate;
mod buffer_pool;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use buffer_pool::BufferPool;
use ledger::{GrowResult, MemoryLedger, PATIENCE};

/// Who has waited for a while asks others to give way so often: the next to be served and pages that have begun, and whoever
/// waits behind.
const NEXT_PRESSES: Duration = Duration::from_millis(20);
const OTHERS_PRESS: Duration = Duration::from_millis(100);

/// The bytes that all pages together may hold.
#[derive(Clone)]
pub struct MemoryBudget {
    shared: Arc<BudgetState>,
}

struct BudgetState {
    ledger: Mutex<MemoryLedger>,
    spare: BufferPool,
    /// Wakes one that waits until what is ours leaves room.
    freed: Notify,
    total: u64,
}

/// A page's share, given back when dropped.
pub struct Reservation {
    budget: MemoryBudget,
    number: u64,
    changed: Arc<Notify>,
}

/// Looks at a page's share from outside.
#[derive(Clone)]
pub struct ReservationWatch {
    budget: MemoryBudget,
    number: u64,
}

/// The page has to be given up: others waited for the memory that it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// What it held, bytes.
    pub held: u64,
}

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let ledger = Mutex::new(MemoryLedger::new(bytes));
        Self {
            shared: Arc::new(BudgetState { ledger, spare: BufferPool::default(), freed: Notify::new(), total: bytes }),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, MemoryLedger> {
        self.shared.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All its bytes, and how many of them are in use; what one page holds beyond them doesn't count.
    pub fn usage(&self) -> (u64, u64) {
        (self.shared.total, self.ledger().used())
    }

    /// The share of a page of `host`'s, which is expected to need `bytes`: it holds nothing yet.
    pub fn open_page(&self, host: &str, bytes: u64) -> Reservation {
        let (number, changed) = self.ledger().open_page(Some(host), bytes);
        Reservation { budget: self.clone(), number, changed }
    }

    /// Waits for room for `bytes` that never give way; never for more than the whole budget.
    pub async fn reserve(&self, bytes: u64) -> Reservation {
        let bytes = bytes.clamp(1, self.shared.total);
        let (number, changed) = self.ledger().open_page(None, bytes);
        let mut reservation = Reservation { budget: self.clone(), number, changed };
        // Who has no host never gives way.
        let _ = reservation.grow_to(bytes).await;
        reservation
    }

    /// In words, what a page that can't grow waits for.
    pub fn describe_wait(&self) -> String {
        let ledger = self.ledger();
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let (waiting, most) = ledger.overview();
        let most = most.map(|(host, held)| format!(", {} MiB by {host}", mib(held))).unwrap_or_default();
        let (used, total) = (mib(ledger.used()), mib(self.shared.total));
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
    /// The bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.budget.ledger().held_bytes(self.number)
    }

    /// A look at it from outside.
    pub fn watch(&self) -> ReservationWatch {
        ReservationWatch { budget: self.budget.clone(), number: self.number }
    }

    /// How long it has waited for memory.
    pub fn waited(&self) -> Duration {
        self.budget.ledger().waited(self.number, Instant::now())
    }

    /// Waits while what is ours alone, to be decoded or written, leaves no room for `bytes`: nothing is asked for that
    /// there would be no place for. No publisher can make this wait last.
    pub async fn wait_for_admission(&self, bytes: u64) {
        loop {
            let freed = self.budget.shared.freed.notified();
            if self.budget.ledger().is_admitted(self.number, bytes) {
                // The next one has to look for itself.
                self.budget.shared.freed.notify_one();
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

    /// Waits for what comes from its publisher, and meanwhile for others who need what it holds.
    ///
    /// # Errors
    /// [`GivesWay`].
    pub async fn receive<T>(&self, bytes: impl Future<Output = T>) -> Result<T, Preemption> {
        let _receiving = ReceivingGuard::begin(self);
        let mut bytes = std::pin::pin!(bytes);
        loop {
            tokio::select! {
                biased;
                came = &mut bytes => return Ok(came),
                () = self.changed.notified() => self.check_preempted()?,
            }
        }
    }

    fn check_preempted(&self) -> Result<(), Preemption> {
        let ledger = self.budget.ledger();
        if ledger.is_preempted(self.number) { Err(Preemption { held: ledger.held_bytes(self.number) }) } else { Ok(()) }
    }

    /// All of it has come: from here on it doesn't depend on its publisher.
    pub fn mark_arrived(&self) {
        self.budget.ledger().mark_arrived(self.number);
    }

    /// A buffer of so many bytes for the page, whatever they are: one kept from another page, or a new one.
    pub(super) fn buffer(&self, bytes: usize) -> Vec<u8> {
        self.budget.shared.spare.take(bytes)
    }

    /// Ends the share; the page's buffer may serve another.
    pub fn recycle(self, buffer: Vec<u8>) {
        self.budget.shared.spare.give_back(buffer);
    }

    /// Makes sure that the page may hold `bytes`, waiting where others must finish first. Dropped while it waits, it
    /// leaves the page as it was.
    ///
    /// # Errors
    /// [`GivesWay`], where others need what it holds more; never one that has no host.
    pub async fn grow_to(&mut self, bytes: u64) -> Result<(), Preemption> {
        let wish = self.budget.ledger().grow(self.number, bytes, Instant::now());
        match wish {
            GrowResult::Granted => return Ok(()),
            GrowResult::Preempted => return self.check_preempted(),
            GrowResult::Waiting => {}
        }
        let waiting = WithdrawOnDrop(self);
        let mut patience = PATIENCE.saturating_sub(waiting.0.waited()).max(NEXT_PRESSES);
        loop {
            let woken = timeout(patience, self.changed.notified()).await.is_ok();
            self.check_preempted()?;
            if !self.budget.ledger().is_waiting(self.number) {
                return Ok(());
            }
            if !woken {
                let mut ledger = self.budget.ledger();
                ledger.preempt_others(self.number, Instant::now());
                patience = if ledger.is_near_front(self.number) { NEXT_PRESSES } else { OTHERS_PRESS };
            }
        }
    }

    /// Gives back what is not needed to hold `bytes`, which is all that it will need.
    pub fn shrink_to(&mut self, bytes: u64) {
        self.budget.ledger().shrink(self.number, bytes, Instant::now());
        self.budget.shared.freed.notify_one();
    }

    /// Hands on the share of `bytes` that are taken from it, which have arrived.
    pub fn split(&mut self, bytes: u64) -> Self {
        let (number, changed) = self.budget.ledger().split(self.number, bytes);
        Self { budget: self.budget.clone(), number, changed }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.ledger().close_page(self.number, Instant::now());
        self.budget.shared.freed.notify_one();
    }
}

/// A wish that ends with the wait for it.
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
