//! What waits for the writer: small work before large, in the order in which it came; and how long nothing was answered.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::commits::Commits;
use super::writer::Bench;
use super::{Store, StoreError};

/// How a piece of work is queued and committed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weight {
    /// Goes behind all small work.
    pub(super) large: bool,
    /// Must be on the disk before it is answered.
    pub(super) durable: bool,
    /// The most change numbers it can take.
    pub(super) seqs: usize,
}

/// A piece of work. It may run more than once; only the last run counts.
pub(super) trait Work: Send {
    fn run(&mut self, bench: &mut Bench<'_>) -> Result<(), StoreError>;
    fn answer(self: Box<Self>, result: Result<(), StoreError>);
}

struct Task<F, T> {
    work: F,
    output: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Work for Task<F, T>
where
    F: FnMut(&mut Bench<'_>) -> Result<T, StoreError> + Send,
    T: Send,
{
    fn run(&mut self, bench: &mut Bench<'_>) -> Result<(), StoreError> {
        self.output = Some((self.work)(bench)?);
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

pub(super) struct Job {
    pub(super) weight: Weight,
    pub(super) work: Box<dyn Work>,
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    pub(super) commits: Commits,
}

#[derive(Default)]
struct Waiting {
    small: VecDeque<Job>,
    large: VecDeque<Job>,
    large_put_off: bool,
    closed: bool,
    /// Since when the writer has owed an answer: the end of the last group, or the first piece of work since it was idle.
    busy_since: Option<Instant>,
    /// Groups in a row that began with small work while large work waited.
    small_first: u32,
}

/// After so many groups of small work it is large work's turn: a publisher that never stops pushing harms nobody.
const SMALL_FIRST: u32 = 8;

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            return job.work.answer(Err(StoreError::Closed));
        }
        let line = if job.weight.large { &mut waiting.large } else { &mut waiting.small };
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
    pub(super) fn put_off_large(&self, put_off: bool) {
        self.lock().large_put_off = put_off;
        self.changed.notify_all();
    }

    pub(super) fn depths(&self) -> (usize, usize) {
        let waiting = self.lock();
        (waiting.small.len(), waiting.large.len())
    }

    /// How long the writer has owed an answer without giving any; nothing while it is idle.
    pub(super) fn overdue(&self) -> Duration {
        self.lock().busy_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The next piece of work, small first; `None` once closed and empty. The one before is done.
    pub(super) fn first(&self) -> Option<Job> {
        let mut waiting = self.lock();
        let idle = waiting.small.is_empty() && waiting.large.is_empty();
        waiting.busy_since = (!idle).then(Instant::now);
        loop {
            let large_waits = !waiting.large_put_off && !waiting.large.is_empty();
            if (waiting.small_first < SMALL_FIRST || !large_waits)
                && let Some(job) = waiting.small.pop_front()
            {
                waiting.small_first = if large_waits { waiting.small_first + 1 } else { 0 };
                return Some(job);
            }
            if large_waits && let Some(job) = waiting.large.pop_front() {
                waiting.small_first = 0;
                return Some(job);
            }
            if waiting.closed && waiting.large.is_empty() {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Another piece for an open group, if one waits that fits.
    pub(super) fn another(&self, fits: impl Fn(&Weight) -> bool) -> Option<Job> {
        let mut waiting = self.lock();
        if let Some(job) = waiting.small.front() {
            return if fits(&job.weight) { waiting.small.pop_front() } else { None };
        }
        if !waiting.large_put_off && waiting.large.front().is_some_and(|job| fits(&job.weight)) {
            return waiting.large.pop_front();
        }
        None
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits for so long; false once closed, which ends the wait.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let open = |waiting: &mut Waiting| !waiting.closed;
        let waited = self.changed.wait_timeout_while(self.lock(), time, open);
        !waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }
}

impl Store {
    /// Queues `work` for the writer and waits until it is committed. `work` may run more than once.
    pub(super) async fn submit<T, F>(&self, weight: Weight, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Bench<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.queue(weight, work).await.unwrap_or(Err(StoreError::Closed))
    }

    /// Queues `work` now, and lets the caller await its commit later.
    pub(super) fn queue<T, F>(&self, weight: Weight, work: F) -> oneshot::Receiver<Result<T, StoreError>>
    where
        T: Send + 'static,
        F: FnMut(&mut Bench<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        self.queue.push(Job { weight, work: Box::new(Task { work, output: None, reply }) });
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
        let held = store.queue(Weight::default(), move |_| Ok(held.recv().is_ok()));
        let waiting = store.queue(Weight::default(), |_| Ok(()));
        let until = |condition: &dyn Fn(Duration) -> bool| {
            let end = Instant::now() + Duration::from_secs(30);
            while !condition(store.overdue()) {
                assert!(Instant::now() < end, "{:?}", store.overdue());
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
