//! Reading ahead: the pages that a walk comes to next are fetched while it decodes the one before and the store writes
//! those before that. How far ahead is bounded, and what was fetched and isn't wanted is thrown away.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Pulse;
use super::page_source::{Downloaded, Failed, PageSource, TELL_WAITING};
use super::visited::VisitedUrls;
use crate::decode::next;
use crate::source::turns::Priority;

/// Whole pages that wait for the walk; one more may be in hand.
const PAGES: usize = 1;
/// A page of fewer bytes is not read ahead of: it may be the end.
const WORTH_IT: usize = 64 << 10;

/// One after the other, the pages that come next; given up when dropped.
pub(super) struct ReadAhead {
    pages: mpsc::Receiver<(String, Result<Downloaded, Failed>)>,
    _task: AbortOnDropHandle<()>,
}

impl ReadAhead {
    /// Begins with the page that `bytes`, asked for at `url`, leads to; nothing where that is not worth it.
    pub(super) fn begin(source: &Arc<PageSource>, visited: &Arc<VisitedUrls>, url: &str, bytes: &[u8]) -> Option<Self> {
        let first = onward(source, visited, url, bytes)?;
        let (sender, pages) = mpsc::channel(PAGES);
        let task = tokio::spawn(read(Arc::clone(source), Arc::clone(visited), first, sender));
        Some(Self { pages, _task: AbortOnDropHandle::new(task) })
    }

    /// The page of `url`, once it is there; nothing where the walk has gone another way, or no further page was
    /// begun. The wait for a place at the host is bounded by nothing but the others' turns.
    pub(super) async fn page(&mut self, url: &str, pulse: Option<&Pulse>) -> Option<Result<Downloaded, Failed>> {
        loop {
            if let Some(pulse) = pulse {
                pulse.within(TELL_WAITING);
            }
            match tokio::time::timeout(TELL_WAITING, self.pages.recv()).await {
                Ok(Some((fetched, downloaded))) => return (fetched == url).then_some(downloaded),
                Ok(None) => return None,
                Err(_) => {}
            }
        }
    }
}

async fn read(
    source: Arc<PageSource>,
    visited: Arc<VisitedUrls>,
    first: String,
    sender: mpsc::Sender<(String, Result<Downloaded, Failed>)>,
) {
    let mut place = Some(first);
    while let Some(url) = place {
        let downloaded = source.download(&url, None, Priority::Refresh, None).await;
        place = match &downloaded {
            Ok(Downloaded::Page(opened, _)) => onward(&source, &visited, &url, &opened.bytes),
            Ok(Downloaded::NotModified(_) | Downloaded::ValidatorRefused) | Err(_) => None,
        };
        if sender.send((url, downloaded)).await.is_err() {
            return;
        }
    }
}

/// Where a walk most likely goes from here. Only large pages are worth it, and a small one may be the end.
fn onward(source: &PageSource, visited: &VisitedUrls, url: &str, bytes: &[u8]) -> Option<String> {
    if bytes.len() < WORTH_IT {
        return None;
    }
    let published = next::glimpse(bytes)?;
    let next = next::resolve(url, &source.requests.mask(&published));
    let leads_on = next != url && !visited.contains(&next);
    (leads_on && source.requests.permit(&next).is_ok()).then_some(next)
}
