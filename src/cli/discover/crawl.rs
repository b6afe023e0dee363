//! The crawl: reads a collection's catalogues, their dataset sites and those sites' listings, within fixed limits.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{CrawlReporter, counted};
use crate::discover::{self, Dataset, DatasetFeed, Listing};
use crate::source::address_policy::AddressPolicy;
use crate::source::http::{HttpFailure, HttpSettings};
use crate::source::web_page_fetcher::WebPageFetcher;

/// Levels of catalogues within catalogues; the ecosystem has two.
const MAX_DEPTH: usize = 5;
/// Bytes of a page: a dataset site has some tens of kilobytes, the largest known catalogue some hundreds.
const PAGE_BYTES: u64 = 8 << 20;
/// Pages that are being fetched or wait for their host's limiter.
const MAX_CONCURRENT_PAGES: usize = 32;
/// Feeds of one crawl; the whole ecosystem has about a thousand.
const MAX_FEEDS: usize = 100_000;
/// HTML redirects (`meta refresh`) followed in a row.
const MAX_HTML_REDIRECTS: usize = 2;

/// Limits of one crawl.
#[derive(Clone, Copy, Debug)]
pub(super) struct CrawlLimits {
    /// Pages read, catalogues included.
    pub(super) pages: usize,
    /// Time of the whole crawl.
    pub(super) time: Duration,
}

/// What a crawl found.
#[derive(Debug, Default)]
pub(super) struct CrawlOutcome {
    pub(super) datasets: Vec<Dataset>,
    /// Pages that could not be read.
    pub(super) unread: BTreeSet<String>,
    pub(super) pages: usize,
    /// Whether the crawl read every page within its limits.
    pub(super) whole: bool,
}

/// A page still to be read.
#[derive(Clone, Debug)]
struct CrawlTarget {
    url: Url,
    depth: usize,
}

struct Crawl<'a> {
    pages: Arc<WebPageFetcher>,
    limits: CrawlLimits,
    reporter: &'a mut CrawlReporter,
    waiting: Vec<CrawlTarget>,
    seen: BTreeSet<String>,
    /// Pages beyond the limit.
    over: usize,
    by_url: HashMap<String, usize>,
    feeds: usize,
    found: CrawlOutcome,
}

/// Crawls from `from`, and leaves out feeds whose URLs lead to forbidden addresses.
///
/// # Errors
/// When the page at `from` can't be read.
pub(super) async fn crawl(
    from: &Url,
    guard: AddressPolicy,
    limits: CrawlLimits,
    reporter: &mut CrawlReporter,
) -> anyhow::Result<CrawlOutcome> {
    let settings = HttpSettings {
        read_timeout: Duration::from_secs(30),
        page_timeout: Duration::from_secs(60),
        max_page_bytes: PAGE_BYTES,
        ..HttpSettings::default()
    };
    let pages = Arc::new(WebPageFetcher::new(settings, guard)?);
    let mut crawl = Crawl {
        pages: Arc::clone(&pages),
        limits,
        reporter,
        waiting: Vec::new(),
        seen: BTreeSet::new(),
        over: 0,
        by_url: HashMap::new(),
        feeds: 0,
        found: CrawlOutcome { whole: true, ..CrawlOutcome::default() },
    };
    crawl.read_all(from).await?;
    let Crawl { mut found, reporter, .. } = crawl;
    drop_forbidden_feeds(&pages, &mut found.datasets, reporter).await;
    Ok(found)
}

impl Crawl<'_> {
    async fn read_all(&mut self, from: &Url) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.limits.time;
        self.enqueue(from.clone(), 0);
        let mut tasks: JoinSet<(CrawlTarget, Result<Listing, HttpFailure>)> = JoinSet::new();
        loop {
            while tasks.len() < MAX_CONCURRENT_PAGES {
                let Some(target) = self.waiting.pop() else { break };
                let pages = Arc::clone(&self.pages);
                tasks.spawn(async move {
                    let listing = listing(&pages, &target.url).await;
                    (target, listing)
                });
            }
            match timeout_at(deadline, tasks.join_next()).await {
                Ok(Some(read)) => {
                    let (target, read) = read?;
                    self.add_result(target, read, from)?;
                }
                Ok(None) => break,
                Err(_) => {
                    self.cut_short(tasks.len(), "the time is up (--timeout)");
                    break;
                }
            }
        }
        if self.over > 0 {
            self.cut_short(self.over, "the limit of pages is reached (--limit)");
        }
        Ok(())
    }

    fn enqueue(&mut self, url: Url, depth: usize) {
        if self.seen.contains(url.as_str()) {
            return;
        }
        if self.seen.len() >= self.limits.pages {
            self.over += 1;
            return;
        }
        self.seen.insert(url.to_string());
        self.waiting.push(CrawlTarget { url, depth });
    }

    fn add_result(
        &mut self,
        target: CrawlTarget,
        read: Result<Listing, HttpFailure>,
        from: &Url,
    ) -> anyhow::Result<()> {
        let CrawlTarget { url, depth } = target;
        let listing = match read {
            Ok(listing) => listing,
            Err(failure) if url == *from => return Err(anyhow::Error::new(failure).context(format!("{url}"))),
            Err(failure) => {
                self.reporter.problem(&format!("{url}: {failure}"));
                self.found.unread.insert(url.into());
                return Ok(());
            }
        };
        self.found.pages += 1;
        for problem in &listing.problems {
            self.reporter.problem(&format!("{url}: {problem}"));
        }
        if listing.is_feed {
            let text = format!("it is a feed itself, and tells of no others: feedmirror sync {url}");
            if url == *from {
                anyhow::bail!("{url}: no feeds were found: {text}");
            }
            self.reporter.problem(&format!("{url}: {text}"));
            self.found.unread.insert(url.into());
            return Ok(());
        }
        if listing.is_empty() {
            self.reporter.problem(&format!("{url}: the page tells of no dataset and no catalogue"));
            self.found.unread.insert(url.into());
            return Ok(());
        }
        let (catalogues, sites) = (listing.catalogues.len(), listing.sites.len());
        if catalogues + sites > 0 {
            let counts = [counted(catalogues, "catalogue"), counted(sites, "dataset site")];
            self.reporter.progress(&format!("{url}: {}", counts.join(", ")));
        }
        for dataset in listing.datasets {
            self.add_dataset(Dataset { page: url.to_string(), ..dataset });
        }
        if depth < MAX_DEPTH {
            listing.catalogues.into_iter().for_each(|catalogue| self.enqueue(catalogue, depth + 1));
        } else if catalogues > 0 {
            self.reporter
                .problem(&format!("{url}: its catalogues lie deeper than {MAX_DEPTH} levels, and are not read"));
            self.found.whole = false;
        }
        listing.sites.into_iter().for_each(|site| self.enqueue(site, MAX_DEPTH));
        Ok(())
    }

    /// Adds a dataset. Pages that describe the same dataset are merged; but where one of them is on the dataset's own
    /// site, only that page is believed, because anybody can put another's URL on a page.
    fn add_dataset(&mut self, dataset: Dataset) {
        if self.feeds + dataset.feeds.len() > MAX_FEEDS {
            self.reporter.problem(&format!("{}: more than {MAX_FEEDS} feeds: its feeds are left out", dataset.url));
            self.found.whole = false;
            return;
        }
        self.feeds += dataset.feeds.len();
        match self.by_url.entry(dataset.url.clone()) {
            Entry::Occupied(known) => {
                let Some(known) = self.found.datasets.get_mut(*known.get()) else { return };
                let other = match (is_on_own_site(known), is_on_own_site(&dataset)) {
                    (true, false) => dataset,
                    (false, true) => std::mem::replace(known, dataset),
                    _ => return known.merge(dataset),
                };
                let lacks = |feed: &&DatasetFeed| known.feeds.iter().all(|listed| listed.url != feed.url);
                let lacking = other.feeds.iter().filter(lacks).count();
                if lacking > 0 {
                    let problem = format!("{} of {} left out: not listed there", counted(lacking, "feed"), known.url);
                    self.reporter.problem(&format!("{}: {problem}", other.page));
                }
            }
            Entry::Vacant(new) => {
                new.insert(self.found.datasets.len());
                self.found.datasets.push(dataset);
            }
        }
    }

    fn cut_short(&mut self, in_progress: usize, why: &str) {
        let unread = in_progress + self.waiting.len();
        self.reporter.problem(&format!("{why}: {} left unread", counted(unread, "page")));
        self.waiting.clear();
        self.found.whole = false;
    }
}

/// Whether a dataset was found on its own site.
fn is_on_own_site(dataset: &Dataset) -> bool {
    let origin = |url: &str| Url::parse(url).ok().map(|url| url.origin());
    origin(&dataset.page) == origin(&dataset.url)
}

/// A page's listing; HTML redirects are followed.
async fn listing(pages: &WebPageFetcher, url: &Url) -> Result<Listing, HttpFailure> {
    let mut target = url.clone();
    for _ in 0..MAX_HTML_REDIRECTS {
        let listing = read_listing(pages, &target).await?;
        match &listing.meta_refresh {
            Some(elsewhere) => target = elsewhere.clone(),
            None => return Ok(listing),
        }
    }
    read_listing(pages, &target).await
}

async fn read_listing(pages: &WebPageFetcher, url: &Url) -> Result<Listing, HttpFailure> {
    let page = pages.get(url).await?;
    // Parsing megabytes of JSON takes a while.
    let read = tokio::task::spawn_blocking(move || discover::read(&page.bytes, &page.url));
    read.await.map_err(|error| HttpFailure::Broken(format!("the page could not be read: {error}")))
}

/// Leaves out feeds whose URL leads to a forbidden address; each host is checked once.
async fn drop_forbidden_feeds(pages: &Arc<WebPageFetcher>, datasets: &mut [Dataset], reporter: &mut CrawlReporter) {
    if pages.guard().allows_all() {
        return;
    }
    let feeds = datasets.iter().flat_map(|dataset| &dataset.feeds);
    let mut hosts: Vec<Url> = feeds.filter_map(|feed| host_url(&feed.url)).collect();
    hosts.sort();
    hosts.dedup();
    let mut tasks = JoinSet::new();
    let mut refused = BTreeSet::new();
    while !hosts.is_empty() || !tasks.is_empty() {
        while tasks.len() < MAX_CONCURRENT_PAGES {
            let Some(host) = hosts.pop() else { break };
            let pages = Arc::clone(pages);
            tasks.spawn(async move { pages.guard().check_url(&host).await.err().map(|failure| (host, failure)) });
        }
        // A host whose task panicked was not checked, and is not refused.
        if let Some(Ok(Some((host, failure)))) = tasks.join_next().await {
            reporter.problem(&format!("feeds at {host} are left out: {failure}"));
            refused.insert(host);
        }
    }
    for dataset in datasets {
        let stays = |feed: &DatasetFeed| host_url(&feed.url).is_none_or(|host| !refused.contains(&host));
        dataset.feeds.retain(stays);
    }
}

/// The URL of a feed's scheme, host and port alone.
fn host_url(url: &str) -> Option<Url> {
    let mut url = Url::parse(url).ok()?;
    url.set_path("");
    url.set_query(None);
    url.set_fragment(None);
    Some(url)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn feeds_that_lead_where_no_connection_may_go_are_left_out_and_told() {
        let feed = |url: &str| DatasetFeed { name: "a".into(), kind: None, url: url.into(), total_items: None };
        let inner =
            ["http://127.0.0.1:8080/a", "http://127.0.0.1:8080/b", "http://localhost/", "https://[fd00::1]/feed"];
        let urls = ["http://1.1.1.1/feed"].into_iter().chain(inner);
        let dataset = Dataset {
            url: "https://acme.example/".into(),
            page: String::new(),
            name: None,
            publisher: None,
            license: None,
            feeds: urls.map(feed).collect(),
        };
        for (guard, left, problems) in [(AddressPolicy::public_only(), 1, 3), (AddressPolicy::open(), 5, 0)] {
            let pages = Arc::new(WebPageFetcher::new(HttpSettings::default(), guard).unwrap());
            let (mut datasets, mut reporter) = ([dataset.clone()], CrawlReporter { quiet: true, problems: 0 });
            drop_forbidden_feeds(&pages, &mut datasets, &mut reporter).await;
            assert_eq!((datasets[0].feeds.len(), reporter.problems), (left, problems));
            assert_eq!(datasets[0].feeds[0].url, "http://1.1.1.1/feed");
        }
    }
}
