//! Runs CPU-bound jobs, decompressing and decoding, off the async threads, at most as many at once as there are cores.
//!
//! Guarantees: a job keeps its permit until it has ended, also where its caller is gone; its stop flag is set then, so
//! that it can end early. Knows nothing of what a job does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

/// A pool with a bounded number of jobs at once.
#[derive(Clone)]
pub struct DecoderPool(Arc<Semaphore>);

/// Set once nobody waits for a job any more.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether the job may end without a result.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The job panicked; holds the panic's message.
#[derive(Debug, thiserror::Error)]
#[error("decoder-panic: {0}")]
pub struct DecoderPanic(String);

impl DecoderPool {
    /// A pool of `jobs` jobs at once.
    pub fn new(jobs: usize) -> Self {
        Self(Arc::new(Semaphore::new(jobs.max(1))))
    }

    /// Runs a job as soon as there is a permit.
    ///
    /// # Errors
    /// [`DecoderPanic`].
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&StopFlag) -> T + Send + 'static,
    ) -> Result<T, DecoderPanic> {
        // The semaphore is never closed; without a permit there would only be no limit.
        let permit = Arc::clone(&self.0).acquire_owned().await.ok();
        let stop = StopFlag::default();
        let _stop_on_drop = StopOnDrop(stop.clone());
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job(&stop)
        });
        work.await.map_err(|panic| DecoderPanic(panic.to_string()))
    }
}

/// Sets the job's stop flag when its caller is dropped.
struct StopOnDrop(StopFlag);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_job_that_nobody_waits_for_keeps_its_permit_until_it_has_stopped() {
        let decoders = DecoderPool::new(1);
        let ((began, begun), (end, ended)) = (sync_channel(1), sync_channel::<()>(1));
        let mut job = Box::pin(decoders.run(move |stop| {
            began.send(stop.clone()).unwrap();
            ended.recv().unwrap();
        }));
        // Given: a job whose caller is dropped.
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut job).await.is_err());
        let stop = begun.recv().unwrap();
        assert!(!stop.is_set());
        drop(job);
        // Then: its flag is set, and the next job has no permit until it has ended.
        assert!(stop.is_set());
        let mut next = Box::pin(decoders.run(|_| ()));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut next).await.is_err());
        end.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(5), next).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_releases_the_permit() {
        let decoders = DecoderPool::new(1);
        let result: Result<(), _> = decoders.run(|_| std::panic::resume_unwind(Box::new("oh"))).await;
        assert!(result.unwrap_err().to_string().starts_with("decoder-panic: "));
        decoders.run(|_| ()).await.unwrap();
    }
}
