//! Verbs that go on until they are told to stop: by SIGINT, by SIGTERM, or because whoever reads the output went away.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, runtime};

/// How long the work may take to notice that it is to stop; it may hang in a write that nobody reads.
const WORK_STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells the work when to stop.
pub(super) struct StopSignal(Receiver<()>);

impl StopSignal {
    /// Waits so long; true when it is time to stop.
    pub(super) fn within(&self, time: Duration) -> bool {
        !matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}

/// Does the work until it ends by itself or is told to stop, which is no failure.
///
/// # Errors
/// What the work says.
pub(super) fn until_stopped(
    work: impl FnOnce(&StopSignal) -> anyhow::Result<Exit> + Send + 'static,
) -> anyhow::Result<Exit> {
    let runtime = runtime()?;
    let (telling, stop_receiver) = sync_channel(1);
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
        drop(telling);
        tokio::time::timeout(WORK_STOP_TIMEOUT, work).await.unwrap_or(Ok(Ok(Exit::Done)))?
    });
    // Work that hangs in a write ends with the process.
    runtime.shutdown_background();
    done
}

/// Returns once nobody can read standard output any more, so that a quiet log doesn't keep the process; never where that
/// can't be seen, as with a file.
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
