//! What waits for the writer: small work before large, in the order in which it came; and how long nothing was answered.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::commits::CommitHistogram;
use super::writer::WriteTx;
use super::{Store, StoreError};

/// How a piece of work is queued and committed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JobClass {
    /// Goes behind all small work.
    pub(super) large: bool,
    /// Must be on the disk before it is answered.
    pub(super) durable: bool,
    /// The most change numbers it can take.
    pub(super) max_seqs: usize,
}

/// A piece of work. It may run more than once; only the last run counts.
pub(super) trait Job: Send {
    fn run(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError>;
    fn answer(self: Box<Self>, result: Result<(), StoreError>);
}

struct ReplyJob<F, T> {
    work: F,
    output: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Job for ReplyJob<F, T>
where
    F: FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn run(&mut self, tx: &mut WriteTx<'_>) -> Result<(), StoreError> {
        self.output = Some((self.work)(tx)?);
        Ok(())
    }

    fn answer(self: Box<Self>, result: Result<(), StoreError>) {
        let output = match (result, self.output) {
            (Ok(()), Some(output)) => Ok(output),
            (Ok(()), None) => Err(StoreError::Closed),
            (Err(error), _) => Err(error),
        };
        // Whoever asked may be gone; the work is committed all the same.
        let _ = self.reply.send(output);
    }
}

pub(super) struct QueuedJob {
    pub(super) class: JobClass,
    pub(super) job: Box<dyn Job>,
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct WriteQueue {
    waiting: Mutex<WriteQueueState>,
    changed: Condvar,
    pub(super) commits: CommitHistogram,
}

#[derive(Default)]
struct WriteQueueState {
    small: VecDeque<QueuedJob>,
    large: VecDeque<QueuedJob>,
    large_deferred: bool,
    closed: bool,
    /// Since when the writer has owed an answer: the end of the last group, or the first piece of work since it was idle.
    busy_since: Option<Instant>,
    /// Groups in a row that began with small work while large work waited.
    small_groups_in_row: u32,
}

/// After so many groups of small work it is large work's turn: a publisher that never stops pushing harms nobody.
const MAX_SMALL_GROUPS: u32 = 8;

impl WriteQueue {
    fn lock(&self) -> MutexGuard<'_, WriteQueueState> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: QueuedJob) {
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            return job.job.answer(Err(StoreError::Closed));
        }
        let line = if job.class.large { &mut waiting.large } else { &mut waiting.small };
        line.push_back(job);
        waiting.busy_since.get_or_insert_with(Instant::now);
        self.changed.notify_one();
    }

    /// No more work is taken; what waits is still done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// While it is put off, large work waits and small work goes on.
    pub(super) fn set_large_deferred(&self, put_off: bool) {
        self.lock().large_deferred = put_off;
        self.changed.notify_all();
    }

    pub(super) fn depths(&self) -> (usize, usize) {
        let waiting = self.lock();
        (waiting.small.len(), waiting.large.len())
    }

    /// How long the writer has owed an answer without giving any; nothing while it is idle.
    pub(super) fn busy_for(&self) -> Duration {
        self.lock().busy_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The next piece of work, small first; `None` once closed and empty. The one before is done.
    pub(super) fn wait_pop(&self) -> Option<QueuedJob> {
        let mut waiting = self.lock();
        let idle = waiting.small.is_empty() && waiting.large.is_empty();
        waiting.busy_since = (!idle).then(Instant::now);
        loop {
            let large_waits = !waiting.large_deferred && !waiting.large.is_empty();
            if (waiting.small_groups_in_row < MAX_SMALL_GROUPS || !large_waits)
                && let Some(job) = waiting.small.pop_front()
            {
                waiting.small_groups_in_row = if large_waits { waiting.small_groups_in_row + 1 } else { 0 };
                return Some(job);
            }
            if large_waits && let Some(job) = waiting.large.pop_front() {
                waiting.small_groups_in_row = 0;
                return Some(job);
            }
            if waiting.closed && waiting.large.is_empty() {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Another piece for an open group, if one waits that fits.
    pub(super) fn try_pop(&self, fits: impl Fn(&JobClass) -> bool) -> Option<QueuedJob> {
        let mut waiting = self.lock();
        if let Some(job) = waiting.small.front() {
            return if fits(&job.class) { waiting.small.pop_front() } else { None };
        }
        if !waiting.large_deferred && waiting.large.front().is_some_and(|job| fits(&job.class)) {
            return waiting.large.pop_front();
        }
        None
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits for so long; false once closed, which ends the wait.
    pub(super) fn wait_unless_closed(&self, time: Duration) -> bool {
        let open = |waiting: &mut WriteQueueState| !waiting.closed;
        let waited = self.changed.wait_timeout_while(self.lock(), time, open);
        !waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }
}

impl Store {
    /// Queues `work` for the writer and waits until it is committed. `work` may run more than once.
    pub(super) async fn submit<T, F>(&self, weight: JobClass, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.enqueue(weight, work).await.unwrap_or(Err(StoreError::Closed))
    }

    /// Queues `work` now, and lets the caller await its commit later.
    pub(super) fn enqueue<T, F>(&self, weight: JobClass, work: F) -> oneshot::Receiver<Result<T, StoreError>>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        self.queue.push(QueuedJob { class: weight, job: Box::new(ReplyJob { work, output: None, reply }) });
        receiver
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_writer_that_is_held_tells_for_how_long_and_an_idle_one_owes_nothing() {
        // Given
        let directory = tempfile::tempdir().unwrap();
        let (store, closing) = Store::open(&directory.path().join("mirror.db")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(store.ping()).unwrap();

        // When
        let (let_go, held) = std::sync::mpsc::sync_channel::<()>(1);
        let held = store.enqueue(JobClass::default(), move |_| Ok(held.recv().is_ok()));
        let waiting = store.enqueue(JobClass::default(), |_| Ok(()));
        let until = |condition: &dyn Fn(Duration) -> bool| {
            let end = Instant::now() + Duration::from_secs(30);
            while !condition(store.busy_for()) {
                assert!(Instant::now() < end, "{:?}", store.busy_for());
                std::thread::yield_now();
            }
        };

        // Then
        until(&|overdue| overdue > Duration::from_millis(300));
        let_go.send(()).unwrap();
        assert!(runtime.block_on(held).unwrap().unwrap());
        runtime.block_on(waiting).unwrap().unwrap();
        until(&|overdue| overdue.is_zero());
        drop(store);
        closing.finish();
    }
}
