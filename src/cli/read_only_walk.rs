//! Reads a feed without writing anything, through the daemon's own page reader and its rules for redirects, `next` and
//! retries.
//!
//! It has a host limiter of its own: beside a running daemon a host may see one request more at once. Holds a part of
//! one page at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Overrides};
use crate::feed::{FeedName, Page};
use crate::mode::{self, FailureHistory};
use crate::schedule;
use crate::source::budget::{MemoryBudget, Reservation};
use crate::source::client::HttpClients;
use crate::source::decoder_pool::DecoderPool;
use crate::source::headers::ResponseMeta;
use crate::source::host_limiter::{HostLimiter, Priority};
use crate::source::http::HostSettings;
use crate::store::read::Reader;
use crate::supervisor::{ConfiguredFeed, FeedSettings};
use crate::worker::page_source::{PageFailure, PageSource};
use crate::worker::reader::{EndEvidence, FetchedPage, NextStep, PagePart, PageReader, ReadAnswer, ReadOptions};

use super::database_path::DatabasePath;
use super::{GlobalArgs, run};

const BUDGET_BYTES: u64 = 64 << 20;
/// Attempts for one page.
const MAX_TRIES: u32 = 5;
/// The user is present and waits: a longer wait is reported instead.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(30);

/// A feed's settings and its hosts' limits.
pub(super) struct FeedSource {
    pub(super) settings: FeedSettings,
    hosts: HostSettings,
    /// Whether the feed's secrets and settings are unknown, because only the database file was named.
    pub(super) file_only: bool,
}

impl FeedSource {
    /// The settings as configured; with `--db` and no `--config` only those in the file, which holds no secrets.
    pub(super) fn of(
        globals: &GlobalArgs,
        database_path: &DatabasePath,
        reader: &Reader,
        feed: &str,
    ) -> anyhow::Result<Self> {
        // For a feed that the mirror never had, the error names the nearest feed that it has.
        let stored = reader.feeds(&[feed.to_owned()])?.into_iter().next();
        if let (Some(_), None) = (&database_path.db, &globals.config) {
            let name = FeedName::new(feed).zip(stored);
            let Some((name, row)) = name else { anyhow::bail!("there is no feed {feed} in the mirror") };
            let settings = FeedSettings::with_defaults(name, row.url);
            return Ok(Self { settings, hosts: HostSettings::default(), file_only: true });
        }
        let fleet = run::fleet(&config::load(globals.config.as_deref(), &Overrides::default())?);
        let configured = fleet.feeds.into_iter().find(|configured| configured.name().as_str() == feed);
        match configured {
            Some(ConfiguredFeed::Ready(settings)) => {
                Ok(Self { settings: *settings, hosts: fleet.hosts, file_only: false })
            }
            Some(ConfiguredFeed::Broken { reason, .. }) => {
                anyhow::bail!("{feed} can't be asked as configured: {reason}")
            }
            None => anyhow::bail!("{feed} is not configured, so it can't be asked"),
        }
    }
}

/// A part of a fetched page.
pub(super) struct FetchedPart {
    /// URL of the page, without secrets.
    pub(super) url: String,
    pub(super) page: Page,
    pub(super) meta: ResponseMeta,
    _reservation: Option<Arc<Reservation>>,
}

impl FeedSource {
    /// The feed's page source, for callers that have no store.
    ///
    /// # Errors
    /// When its URL or a secret can't be used.
    pub(super) fn pages(&self) -> anyhow::Result<Arc<PageSource>> {
        let host_limiter = HostLimiter::new(self.hosts.clone());
        let limits = (MemoryBudget::new(BUDGET_BYTES), DecoderPool::new(1));
        let source =
            self.settings.page_source((&HttpClients::default(), &host_limiter), limits, Arc::default(), None)?;
        Ok(Arc::new(source))
    }
}

/// A walk under way.
pub(super) struct ReadOnlyWalk<'a> {
    settings: &'a FeedSettings,
    reader: PageReader<'a>,
    page: Option<Box<FetchedPage>>,
    /// Pages fetched.
    pub(super) pages: u32,
    /// Why the walk's end, if it came to one, lacks the standard's sign of an end.
    pub(super) unclean: Option<String>,
}

impl<'a> ReadOnlyWalk<'a> {
    /// A walk of the feed from `start`, or from its beginning.
    pub(super) fn new(source: &'a FeedSource, pages: &'a Arc<PageSource>, start: Option<&str>) -> Self {
        let settings = &source.settings;
        let read_options = ReadOptions { first_priority: Priority::Refresh, read_ahead: false };
        let start = start.unwrap_or(&settings.url).to_owned();
        let reader = PageReader::new(pages, read_options, start, None, EndEvidence::default(), None);
        Self { settings, reader, page: None, pages: 0, unclean: None }
    }

    /// Whether the walk has come to an end, clean or not.
    pub(super) fn is_over(&self) -> bool {
        self.page.is_none() && self.reader.next_url().is_none()
    }

    /// Whether the rest of a page is still to come.
    pub(super) fn is_within_a_page(&self) -> bool {
        self.page.is_some()
    }

    /// The next part of a page; none at the end.
    ///
    /// # Errors
    /// With the reason as text, when a page could not be fetched.
    pub(super) async fn next(&mut self) -> Result<Option<FetchedPart>, String> {
        loop {
            let Some(mut read) = self.page.take() else {
                match self.next_page().await? {
                    Some(read) => self.page = Some(read),
                    None => return Ok(None),
                }
                continue;
            };
            let part =
                self.reader.next_part(&mut read).await.map_err(|(_, reason)| format!("{}: {reason}", read.url))?;
            let Some(PagePart { page, reservation, page_position: position }) = part else { continue };
            let (url, meta) = (read.url.clone(), read.meta.clone());
            match position {
                None => self.page = Some(read),
                Some(position) if position.clean => {}
                Some(position) => {
                    self.unclean = Some(match position.next_step {
                        NextStep::Level => "unclean-end".to_owned(),
                        NextStep::AssumedLevel(reason) => reason.to_owned(),
                        NextStep::Failed(_, reason) => reason,
                        NextStep::Page => "no-next".to_owned(),
                    });
                }
            }
            return Ok(Some(FetchedPart { url, page, meta, _reservation: reservation }));
        }
    }

    async fn next_page(&mut self) -> Result<Option<Box<FetchedPage>>, String> {
        let Some(url) = self.reader.next_url().map(str::to_owned) else { return Ok(None) };
        let mut failures = 0;
        loop {
            let (failure, reason): PageFailure = match self.reader.next().await {
                Ok(Some(ReadAnswer::Page(read))) => {
                    self.pages += 1;
                    return Ok(Some(read));
                }
                Ok(Some(ReadAnswer::NotModified(_)) | None) => return Ok(None),
                Err(failed) => failed,
            };
            failures += 1;
            let history =
                FailureHistory { failures, first_page: url == self.settings.url, ..FailureHistory::default() };
            let policy = mode::classify(failure, &history);
            if failures >= MAX_TRIES || !failure.heals() {
                return Err(format!("{url}: {reason}"));
            }
            let wait = schedule::wait_after_failure(&self.settings.retry, policy.wait, failures, rand::random());
            if wait > MAX_RETRY_WAIT {
                let seconds = wait.as_secs();
                return Err(format!("{url}: {reason}; it is to be asked again in {seconds} s: try then"));
            }
            tokio::time::sleep(wait).await;
        }
    }
}
