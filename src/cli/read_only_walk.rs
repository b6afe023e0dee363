//! Reading a feed without writing anything: the daemon's own reader, with its rules for what may be followed and how
//! failures are tried again.
//!
//! It shares a host's budget with nobody: beside a running daemon the host may see one request more at once. Holds a
//! part of one page at a time.

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
/// A page is tried so often.
const TRIES: u32 = 5;
/// Whoever asks is there and waits: a longer wait is told instead.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(30);

/// A feed's settings, and the budgets of hosts.
pub(super) struct FeedSource {
    pub(super) settings: FeedSettings,
    hosts: HostSettings,
    /// Whether its secrets and settings are unknown, since only the file was named.
    pub(super) by_the_file: bool,
}

impl FeedSource {
    /// As configured; with `--db` and no `--config` only what the file says, which holds no secrets.
    pub(super) fn of(globals: &GlobalArgs, place: &DatabasePath, reader: &Reader, feed: &str) -> anyhow::Result<Self> {
        // One that the mirror never had is told with the nearest that it has.
        let stored = reader.feeds(&[feed.to_owned()])?.into_iter().next();
        if let (Some(_), None) = (&place.db, &globals.config) {
            let name = FeedName::new(feed).zip(stored);
            let Some((name, row)) = name else { anyhow::bail!("there is no feed {feed} in the mirror") };
            let settings = FeedSettings::with_defaults(name, row.url);
            return Ok(Self { settings, hosts: HostSettings::default(), by_the_file: true });
        }
        let fleet = run::fleet(&config::load(globals.config.as_deref(), &Overrides::default())?);
        let configured = fleet.feeds.into_iter().find(|configured| configured.name().as_str() == feed);
        match configured {
            Some(ConfiguredFeed::Ready(settings)) => {
                Ok(Self { settings: *settings, hosts: fleet.hosts, by_the_file: false })
            }
            Some(ConfiguredFeed::Broken { reason, .. }) => {
                anyhow::bail!("{feed} can't be asked as configured: {reason}")
            }
            None => anyhow::bail!("{feed} is not configured, so it can't be asked"),
        }
    }
}

/// A part of a page that came.
pub(super) struct FetchedPart {
    /// Where the page was asked for, without secrets.
    pub(super) asked: String,
    pub(super) page: Page,
    pub(super) meta: ResponseMeta,
    _room: Option<Arc<Reservation>>,
}

impl FeedSource {
    /// The feed's publisher, as it is asked for pages by whoever has no store.
    ///
    /// # Errors
    /// When its URL or a secret can't be used.
    pub(super) fn pages(&self) -> anyhow::Result<Arc<PageSource>> {
        let turns = HostLimiter::new(self.hosts.clone());
        let limits = (MemoryBudget::new(BUDGET_BYTES), DecoderPool::new(1));
        let source = self.settings.page_source((&HttpClients::default(), &turns), limits, Arc::default(), None)?;
        Ok(Arc::new(source))
    }
}

/// A walk under way.
pub(super) struct ReadOnlyWalk<'a> {
    settings: &'a FeedSettings,
    reader: PageReader<'a>,
    page: Option<Box<FetchedPage>>,
    /// Pages that came.
    pub(super) pages: u32,
    /// Why the end it came to, if it did, is not one by the standard's sign.
    pub(super) unclean: Option<String>,
}

impl<'a> ReadOnlyWalk<'a> {
    /// A walk of the feed from `start`, or from its beginning.
    pub(super) fn new(source: &'a FeedSource, pages: &'a Arc<PageSource>, start: Option<&str>) -> Self {
        let settings = &source.settings;
        let manner = ReadOptions { first_priority: Priority::Refresh, read_ahead: false };
        let start = start.unwrap_or(&settings.url).to_owned();
        let reader = PageReader::new(pages, manner, start, None, EndEvidence::default(), None);
        Self { settings, reader, page: None, pages: 0, unclean: None }
    }

    /// Whether it has come to an end, clean or not.
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
    /// In words, when a page could not be had.
    pub(super) async fn next(&mut self) -> Result<Option<FetchedPart>, String> {
        loop {
            let Some(mut read) = self.page.take() else {
                match self.page().await? {
                    Some(read) => self.page = Some(read),
                    None => return Ok(None),
                }
                continue;
            };
            let part =
                self.reader.next_part(&mut read).await.map_err(|(_, reason)| format!("{}: {reason}", read.url))?;
            let Some(PagePart { page, reservation, page_position: place }) = part else { continue };
            let (asked, meta) = (read.url.clone(), read.meta.clone());
            match place {
                None => self.page = Some(read),
                Some(place) if place.clean => {}
                Some(place) => {
                    self.unclean = Some(match place.next_step {
                        NextStep::Level => "unclean-end".to_owned(),
                        NextStep::AssumedLevel(reason) => reason.to_owned(),
                        NextStep::Failed(_, reason) => reason,
                        NextStep::Page => "no-next".to_owned(),
                    });
                }
            }
            return Ok(Some(FetchedPart { asked, page, meta, _room: reservation }));
        }
    }

    async fn page(&mut self) -> Result<Option<Box<FetchedPage>>, String> {
        let Some(asked) = self.reader.next_url().map(str::to_owned) else { return Ok(None) };
        let mut failures = 0;
        loop {
            let (trouble, reason): PageFailure = match self.reader.next().await {
                Ok(Some(ReadAnswer::Page(read))) => {
                    self.pages += 1;
                    return Ok(Some(read));
                }
                Ok(Some(ReadAnswer::NotModified(_)) | None) => return Ok(None),
                Err(failed) => failed,
            };
            failures += 1;
            let history =
                FailureHistory { failures, first_page: asked == self.settings.url, ..FailureHistory::default() };
            let ruling = mode::classify(trouble, &history);
            if failures >= TRIES || !trouble.heals() {
                return Err(format!("{asked}: {reason}"));
            }
            let wait = schedule::wait_after_failure(&self.settings.retry, ruling.wait, failures, rand::random());
            if wait > MAX_RETRY_WAIT {
                let seconds = wait.as_secs();
                return Err(format!("{asked}: {reason}; it is to be asked again in {seconds} s: try then"));
            }
            tokio::time::sleep(wait).await;
        }
    }
}
