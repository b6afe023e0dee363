//! Housekeeping beside the feeds: gives renamed feeds' items their new numbers, removes expired rows, erases forgotten
//! items where the end of a run interrupted that, and removes the rows that purges left.
//!
//! The last happens at once; the others at the start, after each reload, and hourly. A failure is logged and ends
//! nothing: the next run tries again.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::feed::FeedName;
use crate::store::retention::RetentionSettings;
use crate::store::{Store, StoreError, now};

/// Runs until cancelled.
pub async fn run_housekeeping(
    store: Store,
    mut settings: watch::Receiver<RetentionSettings>,
    cancel: CancellationToken,
) {
    loop {
        let current = settings.borrow_and_update().clone();
        let run = AssertUnwindSafe(run_once(&store, &current)).catch_unwind();
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
            () = tokio::time::sleep(current.run_interval()) => {}
        }
    }
}

/// Removes the rows that purges left. Returns the feeds that were resumed meanwhile, and go on now.
///
/// # Errors
/// When a statement fails or the writer has stopped.
pub async fn remove_purged(store: &Store) -> Result<Vec<FeedName>, StoreError> {
    let mut resumed = Vec::new();
    for removal in store.pending_removals().await? {
        if store.remove_purged(&removal, now).await? {
            resumed.extend(removal.owner);
        }
    }
    Ok(resumed)
}

/// Removes the rows that purges leave, also those of earlier runs, until cancelled. Sends to `feeds` the feeds that
/// were purged, and those that go on after it.
pub(super) async fn run_purge_removal(store: Store, feeds: mpsc::Sender<FeedName>, cancel: CancellationToken) {
    let work = async {
        loop {
            let changed_feeds = match remove_purged(&store).await {
                Ok(resumed) if resumed.is_empty() => store.await_purge().await,
                Ok(resumed) => resumed,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "what a purge left could not be removed: tried again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            };
            for feed in changed_feeds {
                // The supervisor may have stopped.
                drop(feeds.send(feed).await);
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Runs the housekeeping once, as `sync` does at its end. Returns how many rows were removed.
///
/// # Errors
/// When a statement fails or the writer has stopped.
pub async fn run_once(store: &Store, settings: &RetentionSettings) -> Result<u64, StoreError> {
    store.renumber().await?;
    let removed = store.remove_expired(settings, now()).await?;
    store.go_on_erasing(now()).await?;
    Ok(removed)
}
