//! Work that keeps a core busy, off the async threads: decompressing and decoding, as much at once as there are cores.
//!
//! Guarantees: a job keeps its place until it has ended, also where nobody waits for it any more; it is told then, so
//! that it can stop early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

/// Places for jobs.
#[derive(Clone)]
pub struct DecoderPool(Arc<Semaphore>);

/// Says that nobody waits for a job any more.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether the job may end without a result.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The job panicked; in words.
#[derive(Debug, thiserror::Error)]
#[error("decoder-panic: {0}")]
pub struct DecoderPanic(String);

impl DecoderPool {
    /// So many at once.
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Semaphore::new(places.max(1))))
    }

    /// Does a job as soon as there is a place.
    ///
    /// # Errors
    /// [`Panicked`].
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&StopFlag) -> T + Send + 'static,
    ) -> Result<T, DecoderPanic> {
        // The semaphore is never closed; without a place there would only be no limit.
        let place = Arc::clone(&self.0).acquire_owned().await.ok();
        let stop = StopFlag::default();
        let _left = StopOnDrop(stop.clone());
        let work = tokio::task::spawn_blocking(move || {
            let _place = place;
            job(&stop)
        });
        work.await.map_err(|panic| DecoderPanic(panic.to_string()))
    }
}

/// Tells the job when it is waited for no more.
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
    async fn a_job_that_nobody_waits_for_keeps_its_place_until_it_has_stopped() {
        let decoders = DecoderPool::new(1);
        let ((began, begun), (end, ended)) = (sync_channel(1), sync_channel::<()>(1));
        let mut job = Box::pin(decoders.run(move |stop| {
            began.send(stop.clone()).unwrap();
            ended.recv().unwrap();
        }));
        // Given: a job under way, which is given up.
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut job).await.is_err());
        let stop = begun.recv().unwrap();
        assert!(!stop.is_set());
        drop(job);
        // Then: it knows, and the next has no place until it has ended.
        assert!(stop.is_set());
        let mut next = Box::pin(decoders.run(|_| ()));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut next).await.is_err());
        end.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(5), next).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_told_and_gives_the_place_back() {
        let decoders = DecoderPool::new(1);
        let told: Result<(), _> = decoders.run(|_| std::panic::resume_unwind(Box::new("oh"))).await;
        assert!(told.unwrap_err().to_string().starts_with("decoder-panic: "));
        decoders.run(|_| ()).await.unwrap();
    }
}
