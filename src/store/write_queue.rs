//! The jobs that wait for the writer: small ones before large ones, each sort in the order of arrival; and for how long
//! the writer has answered none.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::commits::CommitHistogram;
use super::writer::WriteTx;
use super::{Store, StoreError};

/// How a job is queued and committed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JobClass {
    /// Goes after all small jobs.
    pub(super) large: bool,
    /// Must be on the disk before the caller is answered.
    pub(super) durable: bool,
    /// The most change numbers that the job can take.
    pub(super) max_seqs: usize,
}

/// A job of the writer. It may run more than once; only the last run counts.
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
        // The caller may be gone; the job is committed all the same.
        let _ = self.reply.send(output);
    }
}

pub(super) struct QueuedJob {
    pub(super) class: JobClass,
    pub(super) job: Box<dyn Job>,
}

#[derive(Default)]
pub(super) struct WriteQueue {
    state: Mutex<WriteQueueState>,
    changed: Condvar,
    pub(super) commits: CommitHistogram,
}

#[derive(Default)]
struct WriteQueueState {
    small: VecDeque<QueuedJob>,
    large: VecDeque<QueuedJob>,
    large_deferred: bool,
    closed: bool,
    /// Since when the writer has had jobs without answering one: the end of the last group, or the first job since the
    /// writer was idle.
    busy_since: Option<Instant>,
    /// Groups in a row that began with a small job while a large one waited.
    small_groups_in_row: u32,
}

/// After so many groups of small jobs a large one is next, so that a publisher that never stops pushing can't keep
/// large jobs waiting for good.
const MAX_SMALL_GROUPS: u32 = 8;

impl WriteQueue {
    fn lock(&self) -> MutexGuard<'_, WriteQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: QueuedJob) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return job.job.answer(Err(StoreError::Closed));
        }
        let jobs = if job.class.large { &mut state.large } else { &mut state.small };
        jobs.push_back(job);
        state.busy_since.get_or_insert_with(Instant::now);
        self.changed.notify_one();
    }

    /// Takes no more jobs; those that wait are still run.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// While `deferred`, large jobs wait and small ones go on.
    pub(super) fn set_large_deferred(&self, deferred: bool) {
        self.lock().large_deferred = deferred;
        self.changed.notify_all();
    }

    pub(super) fn depths(&self) -> (usize, usize) {
        let state = self.lock();
        (state.small.len(), state.large.len())
    }

    /// How long the writer has had jobs without answering one; zero while it is idle.
    pub(super) fn busy_for(&self) -> Duration {
        self.lock().busy_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The next job, small ones first; `None` once the queue is closed and empty. The call also says that the previous
    /// group is done.
    pub(super) fn wait_pop(&self) -> Option<QueuedJob> {
        let mut state = self.lock();
        let idle = state.small.is_empty() && state.large.is_empty();
        state.busy_since = (!idle).then(Instant::now);
        loop {
            let large_waits = !state.large_deferred && !state.large.is_empty();
            if (state.small_groups_in_row < MAX_SMALL_GROUPS || !large_waits)
                && let Some(job) = state.small.pop_front()
            {
                state.small_groups_in_row = if large_waits { state.small_groups_in_row + 1 } else { 0 };
                return Some(job);
            }
            if large_waits && let Some(job) = state.large.pop_front() {
                state.small_groups_in_row = 0;
                return Some(job);
            }
            if state.closed && state.large.is_empty() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Another job for an open group, if the first waiting one fits.
    pub(super) fn try_pop(&self, fits: impl Fn(&JobClass) -> bool) -> Option<QueuedJob> {
        let mut state = self.lock();
        if let Some(job) = state.small.front() {
            return if fits(&job.class) { state.small.pop_front() } else { None };
        }
        if !state.large_deferred && state.large.front().is_some_and(|job| fits(&job.class)) {
            return state.large.pop_front();
        }
        None
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits for this time; false once the queue is closed, which ends the wait.
    pub(super) fn wait_unless_closed(&self, time: Duration) -> bool {
        let open = |state: &mut WriteQueueState| !state.closed;
        let result = self.changed.wait_timeout_while(self.lock(), time, open);
        !result.unwrap_or_else(PoisonError::into_inner).0.closed
    }
}

impl Store {
    /// Queues `work` for the writer and waits until it is committed. `work` may run more than once.
    pub(super) async fn submit<T, F>(&self, class: JobClass, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.enqueue(class, work).await.unwrap_or(Err(StoreError::Closed))
    }

    /// Queues `work` now, and lets the caller await its commit later.
    pub(super) fn enqueue<T, F>(&self, class: JobClass, work: F) -> oneshot::Receiver<Result<T, StoreError>>
    where
        T: Send + 'static,
        F: FnMut(&mut WriteTx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        self.queue.push(QueuedJob { class, job: Box::new(ReplyJob { work, output: None, reply }) });
        receiver
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_writer_that_runs_a_long_job_is_busy_for_as_long_and_an_idle_one_is_not_busy() {
        // Given
        let directory = tempfile::tempdir().unwrap();
        let (store, guard) = Store::open(&directory.path().join("mirror.db")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(store.ping()).unwrap();

        // When
        let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
        let blocking = store.enqueue(JobClass::default(), move |_| Ok(released.recv().is_ok()));
        let waiting = store.enqueue(JobClass::default(), |_| Ok(()));
        let until = |condition: &dyn Fn(Duration) -> bool| {
            let end = Instant::now() + Duration::from_secs(30);
            while !condition(store.busy_for()) {
                assert!(Instant::now() < end, "{:?}", store.busy_for());
                std::thread::yield_now();
            }
        };

        // Then
        until(&|busy_for| busy_for > Duration::from_millis(300));
        release.send(()).unwrap();
        assert!(runtime.block_on(blocking).unwrap().unwrap());
        runtime.block_on(waiting).unwrap().unwrap();
        until(&|busy_for| busy_for.is_zero());
        drop(store);
        guard.finish();
    }
}
