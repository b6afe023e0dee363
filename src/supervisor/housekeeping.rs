//! What is done beside the feeds: renamed feeds' items get their new numbers, what is too old to be kept is removed, what was
//! forgotten is erased where the end of a run cut that short, and what purges left is removed.
//!
//! The last at once; the others at the start, after each reload, and hourly. A failure is told and ends nothing: the next run
//! does it.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::feed::FeedName;
use crate::store::retention::RetentionSettings;
use crate::store::{Store, StoreError, now};

/// Until cancelled.
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

/// Removes what purges left; the feeds that go on after it, since they were resumed meanwhile.
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

/// Removes what purges left, also in earlier runs, as it is left; `units` gets the feeds that were purged, and those that go
/// on after it. Until cancelled.
pub(super) async fn run_purge_removal(store: Store, units: mpsc::Sender<FeedName>, cancel: CancellationToken) {
    let work = async {
        loop {
            let tell = match remove_purged(&store).await {
                Ok(resumed) if resumed.is_empty() => store.await_purge().await,
                Ok(resumed) => resumed,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "what a purge left could not be removed: tried again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
            };
            for feed in tell {
                // The supervisor may be ending.
                drop(units.send(feed).await);
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = work => {}
    }
}

/// Before what failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Once, as `sync` does it at its end; how many rows were removed.
///
/// # Errors
/// When a statement fails or the writer has stopped.
pub async fn run_once(store: &Store, settings: &RetentionSettings) -> Result<u64, StoreError> {
    store.renumber().await?;
    let removed = store.remove_expired(settings, now()).await?;
    store.go_on_erasing(now()).await?;
    Ok(removed)
}
