//! Reading a feed without writing anything: the daemon's own reader, with its rules for what may be followed and how
//! failures are tried again.
//!
//! It shares a host's budget with nobody: beside a running daemon the host may see one request more at once. Holds a
//! part of one page at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Overrides};
use crate::feed::{FeedName, Page};
use crate::mode::{self, History};
use crate::schedule;
use crate::source::budget::{Budget, Reservation};
use crate::source::client::Clients;
use crate::source::decoders::Decoders;
use crate::source::headers::Meta;
use crate::source::http::HostSettings;
use crate::source::turns::{Priority, Turns};
use crate::store::read::Reader;
use crate::supervisor::{Configured, FeedSettings};
use crate::worker::page_source::{Failed, PageSource};
use crate::worker::reader::{Answered, EndMemory, Manner, Onward, PageReader, Part, ReadPage};

use super::place::Place;
use super::{Globals, run};

const BUDGET_BYTES: u64 = 64 << 20;
/// A page is tried so often.
const TRIES: u32 = 5;
/// Whoever asks is there and waits: a longer wait is told instead.
const PATIENCE: Duration = Duration::from_secs(30);

/// A feed's settings, and the budgets of hosts.
pub(super) struct Source {
    pub(super) settings: FeedSettings,
    hosts: HostSettings,
    /// Whether its secrets and settings are unknown, since only the file was named.
    pub(super) by_the_file: bool,
}

impl Source {
    /// As configured; with `--db` and no `--config` only what the file says, which holds no secrets.
    pub(super) fn of(globals: &Globals, place: &Place, reader: &Reader, feed: &str) -> anyhow::Result<Self> {
        // One that the mirror never had is told with the nearest that it has.
        let stored = reader.feeds(&[feed.to_owned()])?.into_iter().next();
        if let (Some(_), None) = (&place.db, &globals.config) {
            let name = FeedName::new(feed).zip(stored);
            let Some((name, row)) = name else { anyhow::bail!("there is no feed {feed} in the mirror") };
            let settings = FeedSettings::plain(name, row.url);
            return Ok(Self { settings, hosts: HostSettings::default(), by_the_file: true });
        }
        let fleet = run::fleet(&config::load(globals.config.as_deref(), &Overrides::default())?);
        let configured = fleet.feeds.into_iter().find(|configured| configured.name().as_str() == feed);
        match configured {
            Some(Configured::Ready(settings)) => {
                Ok(Self { settings: *settings, hosts: fleet.hosts, by_the_file: false })
            }
            Some(Configured::Broken { reason, .. }) => anyhow::bail!("{feed} can't be asked as configured: {reason}"),
            None => anyhow::bail!("{feed} is not configured, so it can't be asked"),
        }
    }
}

/// A part of a page that came.
pub(super) struct Got {
    /// Where the page was asked for, without secrets.
    pub(super) asked: String,
    pub(super) page: Page,
    pub(super) meta: Meta,
    _room: Option<Arc<Reservation>>,
}

impl Source {
    /// The feed's publisher, as it is asked for pages by whoever has no store.
    ///
    /// # Errors
    /// When its URL or a secret can't be used.
    pub(super) fn pages(&self) -> anyhow::Result<Arc<PageSource>> {
        let turns = Turns::new(self.hosts.clone());
        let limits = (Budget::new(BUDGET_BYTES), Decoders::new(1));
        let source = self.settings.page_source((&Clients::default(), &turns), limits, Arc::default(), None)?;
        Ok(Arc::new(source))
    }
}

/// A walk under way.
pub(super) struct Walk<'a> {
    settings: &'a FeedSettings,
    reader: PageReader<'a>,
    page: Option<Box<ReadPage>>,
    /// Pages that came.
    pub(super) pages: u32,
    /// Why the end it came to, if it did, is not one by the standard's sign.
    pub(super) unclean: Option<String>,
}

impl<'a> Walk<'a> {
    /// A walk of the feed from `start`, or from its beginning.
    pub(super) fn new(source: &'a Source, pages: &'a Arc<PageSource>, start: Option<&str>) -> Self {
        let settings = &source.settings;
        let manner = Manner { first: Priority::Refresh, ahead: false };
        let start = start.unwrap_or(&settings.url).to_owned();
        let reader = PageReader::new(pages, manner, start, None, EndMemory::default(), None);
        Self { settings, reader, page: None, pages: 0, unclean: None }
    }

    /// Whether it has come to an end, clean or not.
    pub(super) fn is_over(&self) -> bool {
        self.page.is_none() && self.reader.place().is_none()
    }

    /// Whether the rest of a page is still to come.
    pub(super) fn is_within_a_page(&self) -> bool {
        self.page.is_some()
    }

    /// The next part of a page; none at the end.
    ///
    /// # Errors
    /// In words, when a page could not be had.
    pub(super) async fn next(&mut self) -> Result<Option<Got>, String> {
        loop {
            let Some(mut read) = self.page.take() else {
                match self.page().await? {
                    Some(read) => self.page = Some(read),
                    None => return Ok(None),
                }
                continue;
            };
            let part = self.reader.part(&mut read).await.map_err(|(_, reason)| format!("{}: {reason}", read.url))?;
            let Some(Part { page, reservation, place }) = part else { continue };
            let (asked, meta) = (read.url.clone(), read.meta.clone());
            match place {
                None => self.page = Some(read),
                Some(place) if place.clean => {}
                Some(place) => {
                    self.unclean = Some(match place.onward {
                        Onward::Level => "unclean-end".to_owned(),
                        Onward::AsLevel(reason) => reason.to_owned(),
                        Onward::Failed(_, reason) => reason,
                        Onward::Page => "no-next".to_owned(),
                    });
                }
            }
            return Ok(Some(Got { asked, page, meta, _room: reservation }));
        }
    }

    async fn page(&mut self) -> Result<Option<Box<ReadPage>>, String> {
        let Some(asked) = self.reader.place().map(str::to_owned) else { return Ok(None) };
        let mut failures = 0;
        loop {
            let (trouble, reason): Failed = match self.reader.next().await {
                Ok(Some(Answered::Page(read))) => {
                    self.pages += 1;
                    return Ok(Some(read));
                }
                Ok(Some(Answered::NotModified(_)) | None) => return Ok(None),
                Err(failed) => failed,
            };
            failures += 1;
            let history = History { failures, first_page: asked == self.settings.url, ..History::default() };
            let ruling = mode::judge(trouble, &history);
            if failures >= TRIES || !trouble.heals() {
                return Err(format!("{asked}: {reason}"));
            }
            let wait = schedule::after_failure(&self.settings.retry, ruling.wait, failures, rand::random());
            if wait > PATIENCE {
                let seconds = wait.as_secs();
                return Err(format!("{asked}: {reason}; it is to be asked again in {seconds} s: try then"));
            }
            tokio::time::sleep(wait).await;
        }
    }
}
