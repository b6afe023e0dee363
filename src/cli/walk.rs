//! Reading a feed without writing anything: the daemon's own requests and decoder, page by page, with its rules for what
//! may be followed and how failures are tried again.
//!
//! It shares a host's budget with nobody: beside a running daemon the host may see one request more at once. Holds one
//! page at a time.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::config::{self, Overrides};
use crate::decode::{next, rpde};
use crate::feed::{FeedName, Next, Page};
use crate::mode::{self, History, Trouble};
use crate::schedule;
use crate::source::budget::{Budget, Reservation};
use crate::source::client::Clients;
use crate::source::headers::Meta;
use crate::source::http::{Answer, Failure, HostSettings, Requests};
use crate::source::turns::{Host, Priority, Turns};
use crate::store::read::Reader;
use crate::supervisor::{Configured, FeedSettings};
use crate::worker::{self, walk::explain};

use super::place::Place;
use super::{Globals, run};

const BUDGET_BYTES: u64 = 64 << 20;
const PAGE_BYTES: u64 = 1 << 20;
/// A page is tried so often.
const TRIES: u32 = 5;
/// Whoever asks is there and waits: a longer wait is told instead.
const PATIENCE: Duration = Duration::from_secs(30);
/// Empty pages in a row that are followed at once; beyond, one each `poll.min`.
const EMPTY_PAGES: u32 = 10;
/// Places remembered to notice a walk that comes round again.
const REMEMBERED: usize = 1_000_000;

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

/// A page that came.
pub(super) struct Got {
    /// Where it was asked for, without secrets.
    pub(super) asked: String,
    pub(super) page: Page,
    pub(super) meta: Meta,
    _room: Reservation,
}

/// A walk under way.
pub(super) struct Walk {
    settings: FeedSettings,
    requests: Requests,
    host: Arc<Host>,
    budget: Budget,
    decoders: Semaphore,
    place: Option<String>,
    met: HashSet<u64>,
    hasher: RandomState,
    empty: u32,
    /// Pages that came.
    pub(super) pages: u32,
    /// Why the end it came to, if it did, is not one by the standard's sign.
    pub(super) unclean: Option<String>,
}

impl Walk {
    /// A walk of the feed from `start`, or from its beginning.
    pub(super) fn new(source: &Source, start: Option<&str>) -> anyhow::Result<Self> {
        let settings = source.settings.clone();
        let requests =
            Requests::new(&Clients::default(), &settings.url, &settings.http, &settings.headers, &settings.query)?;
        let host = Turns::new(source.hosts.clone()).host(requests.home());
        let place = Some(start.unwrap_or(&settings.url).to_owned());
        Ok(Self {
            settings,
            requests,
            host,
            budget: Budget::new(BUDGET_BYTES),
            decoders: Semaphore::new(1),
            place,
            met: HashSet::new(),
            hasher: RandomState::new(),
            empty: 0,
            pages: 0,
            unclean: None,
        })
    }

    /// Whether it has come to an end, clean or not.
    pub(super) fn is_over(&self) -> bool {
        self.place.is_none()
    }

    /// The next page; none at the end.
    ///
    /// # Errors
    /// In words, when a page could not be had.
    pub(super) async fn next(&mut self) -> Result<Option<Got>, String> {
        let Some(asked) = self.place.take() else { return Ok(None) };
        if self.empty >= EMPTY_PAGES {
            tokio::time::sleep(self.settings.poll.min).await;
        }
        let mut got = self.page(&asked).await?;
        self.pages += 1;
        self.empty = if got.page.is_empty() { self.empty + 1 } else { 0 };
        if self.met.len() >= REMEMBERED {
            self.met.clear();
        }
        self.met.insert(self.hasher.hash_one(&asked));
        let published = got.page.next.as_deref().map(|next| self.requests.mask(next));
        match next::place(&asked, &mut got.page, published.as_deref(), self.settings.dialect) {
            Next::Level => {}
            Next::AsLevel(reason) => self.unclean = Some(reason.to_owned()),
            Next::Follow { url, .. } if self.met.contains(&self.hasher.hash_one(&url)) => {
                self.unclean = Some(format!("loop: `next` leads back to {url}"));
            }
            Next::Follow { url, made } => match self.requests.permit(&url) {
                Ok(()) => {
                    if made {
                        self.unclean = Some("no-next".to_owned());
                    }
                    self.place = Some(url);
                }
                Err(failure) => self.unclean = Some(failure.to_string()),
            },
        }
        Ok(Some(got))
    }

    async fn page(&self, asked: &str) -> Result<Got, String> {
        let mut failures = 0;
        loop {
            let (trouble, reason) = match self.attempt(asked).await {
                Ok(got) => return Ok(got),
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

    async fn attempt(&self, asked: &str) -> Result<Got, (Trouble, String)> {
        let turn = self.host.turn(&self.settings.name, Priority::Refresh).await;
        let answer = self.requests.get(asked, None, self.budget.reserve(PAGE_BYTES).await).await;
        drop(turn);
        let (body, meta) = match answer.map_err(|failure| explain(&failure))? {
            Answer::Page(body, meta) => (body, meta),
            // Only answers to what was asked with a validator.
            Answer::NotModified(_) | Answer::ValidatorRefused(_) => return Err(explain(&Failure::UnaskedNotModified)),
        };
        self.host.succeeded();
        let opened = body.open(&self.decoders).await.map_err(|failure| explain(&failure))?;
        let reading = worker::reading(self.settings.kind.as_deref(), self.settings.modified);
        let page = rpde::page(opened.bytes, &reading)
            .map_err(|refused| (Trouble::Page, self.requests.mask(&refused.to_string())))?;
        Ok(Got { asked: asked.to_owned(), page, meta, _room: opened.reservation })
    }
}
