//! What is done beside the feeds: renamed feeds' items get their new numbers, and what is too old to be kept is removed.
//!
//! At the start, after each reload, and hourly. A failure is told and ends nothing: the next run does it.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::keep::KeepSettings;
use crate::store::{Store, StoreError, now};

/// Until cancelled.
pub async fn keep_house(store: Store, mut settings: watch::Receiver<KeepSettings>, cancel: CancellationToken) {
    loop {
        let current = settings.borrow_and_update().clone();
        let run = AssertUnwindSafe(once(&store, &current)).catch_unwind();
        tokio::select! {
            () = cancel.cancelled() => return,
            done = run => match done {
                Ok(Ok(_)) | Ok(Err(StoreError::Closed)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "what is too old could not be removed: tried again later"),
                Err(_) => tracing::error!("housekeeping panicked: tried again later"),
            },
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = settings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(current.every()) => {}
        }
    }
}

/// Once, as `sync` does it at its end; how many rows were removed.
///
/// # Errors
/// When a statement fails or the writer has stopped.
pub async fn once(store: &Store, settings: &KeepSettings) -> Result<u64, StoreError> {
    store.renumber().await?;
    store.keep(settings, now()).await
}
