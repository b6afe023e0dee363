//! Reading ahead: the pages that a walk comes to next are fetched while it decodes the one before and the store writes
//! those before that. How far ahead is bounded, and what was fetched and isn't wanted is thrown away.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::fetch::{self, Downloaded, Failed, TELL_WAITING};
use super::{Feed, Pulse};
use crate::decode::next;
use crate::source::turns::Priority;

/// Whole pages that wait for the walk; one more may be in hand.
const PAGES: usize = 1;
/// A page of fewer bytes is not read ahead of: it may be the end.
const WORTH_IT: usize = 64 << 10;
/// Positions remembered to notice a walk that comes round again.
const REMEMBERED: usize = 2_000_000;

/// The places a walk has been to, by hash.
#[derive(Debug, Default)]
pub(super) struct Met {
    places: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl Met {
    pub(super) fn insert(&self, url: &str) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= REMEMBERED {
            places.clear();
        }
        places.insert(self.hasher.hash_one(url));
    }

    pub(super) fn contains(&self, url: &str) -> bool {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.hasher.hash_one(url))
    }
}

/// One after the other, the pages that come next; given up when dropped.
pub(super) struct Ahead {
    pages: mpsc::Receiver<(String, Result<Downloaded, Failed>)>,
    _task: AbortOnDropHandle<()>,
}

impl Ahead {
    /// Begins with the page that `bytes`, asked for at `asked`, leads to; nothing where that is not worth it.
    pub(super) fn begin(feed: &Arc<Feed>, met: &Arc<Met>, asked: &str, bytes: &[u8]) -> Option<Self> {
        let first = onward(feed, met, asked, bytes)?;
        let (sender, pages) = mpsc::channel(PAGES);
        let task = tokio::spawn(read(Arc::clone(feed), Arc::clone(met), first, sender));
        Some(Self { pages, _task: AbortOnDropHandle::new(task) })
    }

    /// The page asked for, once it is there; nothing where the walk has gone another way, or no further page was
    /// begun. The wait for a place at the host is bounded by nothing but the others' turns.
    pub(super) async fn page(&mut self, asked: &str, pulse: &Pulse) -> Option<Result<Downloaded, Failed>> {
        loop {
            pulse.within(TELL_WAITING);
            match tokio::time::timeout(TELL_WAITING, self.pages.recv()).await {
                Ok(Some((url, downloaded))) => return (url == asked).then_some(downloaded),
                Ok(None) => return None,
                Err(_) => {}
            }
        }
    }
}

async fn read(
    feed: Arc<Feed>,
    met: Arc<Met>,
    first: String,
    sender: mpsc::Sender<(String, Result<Downloaded, Failed>)>,
) {
    let mut place = Some(first);
    while let Some(asked) = place {
        let downloaded = fetch::download(&feed, &asked, None, Priority::Refresh, None).await;
        place = match &downloaded {
            Ok(Downloaded::Page(opened, _)) => onward(&feed, &met, &asked, &opened.bytes),
            Ok(Downloaded::NotModified(_)) | Err(_) => None,
        };
        if sender.send((asked, downloaded)).await.is_err() {
            return;
        }
    }
}

/// Where a walk most likely goes from here. Only large pages are worth it, and a small one may be the end.
fn onward(feed: &Feed, met: &Met, asked: &str, bytes: &[u8]) -> Option<String> {
    if bytes.len() < WORTH_IT {
        return None;
    }
    let published = next::glimpse(bytes)?;
    let url = next::resolve(asked, &feed.requests.mask(&published));
    let leads_on = url != asked && !met.contains(&url);
    (leads_on && feed.requests.permit(&url).is_ok()).then_some(url)
}
