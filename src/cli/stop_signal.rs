//! Runs a verb's work until it is stopped: by SIGINT, by SIGTERM, or because the reader of standard output went away.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, runtime};

/// How long the work may take to notice the stop signal; it may hang in a write that nobody reads.
const WORK_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The work's end of the stop signal.
pub(super) struct StopSignal(Receiver<()>);

impl StopSignal {
    /// Waits for this long; true when the work must stop.
    pub(super) fn within(&self, time: Duration) -> bool {
        !matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}

/// Runs the work until it ends by itself or is stopped, which is no failure.
///
/// # Errors
/// The work's errors.
pub(super) fn until_stopped(
    work: impl FnOnce(&StopSignal) -> anyhow::Result<Exit> + Send + 'static,
) -> anyhow::Result<Exit> {
    let runtime = runtime()?;
    let (stop_sender, stop_receiver) = sync_channel(1);
    let done = runtime.block_on(async {
        let mut work = tokio::task::spawn_blocking(move || work(&StopSignal(stop_receiver)));
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = &mut work => return done?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = reader_gone() => {}
        }
        drop(stop_sender);
        tokio::time::timeout(WORK_STOP_TIMEOUT, work).await.unwrap_or(Ok(Ok(Exit::Done)))?
    });
    // Work that still hangs in a write ends with the process.
    runtime.shutdown_background();
    done
}

/// Returns once nobody can read standard output any more, so that a quiet change log doesn't keep the process. Never
/// returns where that can't be detected, as with a file.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may change their descriptor; standard output's stays"
)]
async fn reader_gone() {
    if let Ok(output) = AsyncFd::with_interest(std::io::stdout(), Interest::ERROR)
        && output.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
