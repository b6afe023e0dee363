//! Reading ahead: the pages that a walk most likely needs next are fetched while the walk decodes the page before and
//! the store writes the pages before that. How far ahead is bounded; fetched pages that the walk does not need are
//! dropped.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Heartbeat;
use super::page_source::{PageDownload, PageFailure, PageSource, WAIT_REPORT_INTERVAL};
use super::visited::VisitedUrls;
use crate::decode::next;
use crate::source::host_limiter::Priority;

/// Whole pages that wait for the walk; one more may be being fetched.
const PAGES: usize = 1;
/// A page of fewer bytes is not read ahead of: it may be the end.
const MIN_PAGE_BYTES: usize = 64 << 10;

/// Fetches the predicted pages one after the other; dropping it stops that.
pub(super) struct ReadAhead {
    pages: mpsc::Receiver<(String, Result<PageDownload, PageFailure>)>,
    _task: AbortOnDropHandle<()>,
}

impl ReadAhead {
    /// Begins with the page that follows `bytes`, the page of `url`; none where reading ahead is not worth it.
    pub(super) fn begin(source: &Arc<PageSource>, visited: &Arc<VisitedUrls>, url: &str, bytes: &[u8]) -> Option<Self> {
        let first = predict_next_url(source, visited, url, bytes)?;
        let (sender, pages) = mpsc::channel(PAGES);
        let task = tokio::spawn(fetch_pages(Arc::clone(source), Arc::clone(visited), first, sender));
        Some(Self { pages, _task: AbortOnDropHandle::new(task) })
    }

    /// The page of `url`, once it is fetched; none where another page was predicted, or none any more. How long the
    /// fetch waits for the host's permit depends on the other requests alone, so the heartbeat is renewed.
    pub(super) async fn page(
        &mut self,
        url: &str,
        heartbeat: Option<&Heartbeat>,
    ) -> Option<Result<PageDownload, PageFailure>> {
        loop {
            if let Some(heartbeat) = heartbeat {
                heartbeat.expect_within(WAIT_REPORT_INTERVAL);
            }
            match tokio::time::timeout(WAIT_REPORT_INTERVAL, self.pages.recv()).await {
                Ok(Some((fetched, downloaded))) => return (fetched == url).then_some(downloaded),
                Ok(None) => return None,
                Err(_) => {}
            }
        }
    }
}

async fn fetch_pages(
    source: Arc<PageSource>,
    visited: Arc<VisitedUrls>,
    first: String,
    sender: mpsc::Sender<(String, Result<PageDownload, PageFailure>)>,
) {
    let mut next_url = Some(first);
    while let Some(url) = next_url {
        let downloaded = source.download(&url, None, Priority::Refresh, None).await;
        next_url = match &downloaded {
            Ok(PageDownload::Page(opened, _)) => predict_next_url(&source, &visited, &url, &opened.bytes),
            Ok(PageDownload::NotModified(_) | PageDownload::ValidatorRefused) | Err(_) => None,
        };
        if sender.send((url, downloaded)).await.is_err() {
            return;
        }
    }
}

/// The URL that a walk most likely requests next. Only large pages are worth it, and a small one may be the end.
fn predict_next_url(source: &PageSource, visited: &VisitedUrls, url: &str, bytes: &[u8]) -> Option<String> {
    if bytes.len() < MIN_PAGE_BYTES {
        return None;
    }
    let published = next::peek_next(bytes)?;
    let next = next::resolve(url, &source.requests.mask(&published));
    let leads_on = next != url && !visited.contains(&next);
    (leads_on && source.requests.check_permitted(&next).is_ok()).then_some(next)
}
