//! Compares a crawl's result with the configuration: feeds that appeared, vanished or moved, and sites that vanished.
//! Pure.
//!
//! Nothing is reported as vanished that may only be unreachable: not the feeds of a page that could not be read, and no
//! site where the crawl was incomplete.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Dataset;
use super::names::{KnownFeed, KnownNames, NamedDataset};

/// How a feed or a site has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// Listed, and not configured.
    Appeared,
    /// Configured, and not listed by the site any more.
    Vanished,
    /// Listed at another URL.
    Moved,
    /// A whole site is not listed any more.
    SiteVanished,
}

/// One difference between the listing and the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListingChange {
    pub change: ChangeKind,
    /// The feed's name; of a site, its provider's name.
    pub name: String,
    /// The current URL; of what has vanished, the last one.
    pub url: String,
    /// The former URL of what has moved.
    pub before: Option<String>,
    /// The URL of the dataset.
    pub dataset_url: String,
}

/// A crawl's result.
#[derive(Clone, Copy, Debug)]
pub struct CrawlResult<'a> {
    /// The URL that the crawl began at.
    pub from: &'a str,
    pub datasets: &'a [Dataset],
    /// Pages that could not be read.
    pub unread_pages: &'a BTreeSet<String>,
    /// Whether every page was visited.
    pub is_complete: bool,
}

/// Every difference, by dataset in the order of `named`, sites at the end.
pub fn compare_listings(crawl: CrawlResult<'_>, named: &[NamedDataset], known: &KnownNames) -> Vec<ListingChange> {
    let mut changes: Vec<ListingChange> = named.iter().flat_map(|named| appeared(named, known)).collect();
    changes.extend(vanished(crawl, named, known));
    if crawl.is_complete {
        changes.extend(sites(crawl, known));
    }
    changes
}

fn appeared<'a>(named: &'a NamedDataset, known: &'a KnownNames) -> impl Iterator<Item = ListingChange> + use<'a> {
    named.names.iter().zip(&named.dataset.feeds).filter_map(|(name, feed)| {
        let before = known.feeds.iter().find(|known| known.name == *name);
        if before.is_some_and(|known| known.url == feed.url) {
            return None;
        }
        Some(ListingChange {
            change: if before.is_some() { ChangeKind::Moved } else { ChangeKind::Appeared },
            name: name.clone(),
            url: feed.url.clone(),
            before: before.map(|known| known.url.clone()),
            dataset_url: named.dataset.url.clone(),
        })
    })
}

fn vanished<'a>(
    crawl: CrawlResult<'a>,
    named: &'a [NamedDataset],
    known: &'a KnownNames,
) -> impl Iterator<Item = ListingChange> + use<'a> {
    let listed: BTreeSet<&str> =
        crawl.datasets.iter().flat_map(|dataset| &dataset.feeds).map(|feed| feed.url.as_str()).collect();
    let read: BTreeSet<&str> = crawl.datasets.iter().map(|dataset| dataset.url.as_str()).collect();
    let assigned: BTreeSet<&str> = named.iter().flat_map(|named| &named.names).map(String::as_str).collect();
    known.feeds.iter().filter_map(move |feed| {
        let dataset_url = feed.dataset_url.as_deref().filter(|url| read.contains(url))?;
        let is_unlisted = !listed.contains(feed.url.as_str()) && !assigned.contains(feed.name.as_str());
        is_unlisted.then(|| ListingChange {
            change: ChangeKind::Vanished,
            name: feed.name.clone(),
            url: feed.url.clone(),
            before: None,
            dataset_url: dataset_url.to_owned(),
        })
    })
}

fn sites<'a>(crawl: CrawlResult<'a>, known: &'a KnownNames) -> impl Iterator<Item = ListingChange> + use<'a> {
    let found: BTreeSet<&str> = crawl.datasets.iter().map(|dataset| dataset.url.as_str()).collect();
    let vanished = known.sites.iter().filter(move |(url, site)| {
        site.from == crawl.from && !found.contains(url.as_str()) && !crawl.unread_pages.contains(&site.page)
    });
    vanished.map(|(url, site)| ListingChange {
        change: ChangeKind::SiteVanished,
        name: site.provider.clone(),
        url: url.clone(),
        before: None,
        dataset_url: url.clone(),
    })
}

/// The feeds of a dataset's own file that the dataset's site doesn't list any more.
pub fn unlisted_feeds(named: &NamedDataset, own: &[KnownFeed]) -> Vec<KnownFeed> {
    let listed = |feed: &&KnownFeed| {
        !named.names.contains(&feed.name) && named.dataset.feeds.iter().all(|found| found.url != feed.url)
    };
    own.iter().filter(listed).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::DatasetFeed;
    use crate::discover::names::{KnownSite, assign_names};

    const SITE: &str = "https://acme.example/";

    fn dataset(url: &str, feeds: &[&str]) -> Dataset {
        let feeds = feeds.iter().map(|name| DatasetFeed {
            name: (*name).to_owned(),
            kind: None,
            url: format!("{url}{name}"),
            total_items: None,
        });
        let publisher = Some("Acme".to_owned());
        Dataset { url: url.into(), page: url.into(), name: None, publisher, license: None, feeds: feeds.collect() }
    }

    fn known(feeds: &[(&str, &str)]) -> KnownNames {
        let feeds = feeds.iter().map(|(name, url)| KnownFeed {
            name: (*name).into(),
            provider: Some("acme".into()),
            url: (*url).into(),
            dataset_url: Some(SITE.into()),
        });
        let site = KnownSite { provider: "acme".into(), page: SITE.into(), from: "https://from.example/".into() };
        KnownNames {
            feeds: feeds.collect(),
            providers: ["acme".to_owned()].into(),
            sites: [(SITE.to_owned(), site)].into(),
        }
    }

    fn changes_of(
        found: Vec<Dataset>,
        known: &KnownNames,
        unread: &[&str],
        is_complete: bool,
    ) -> Vec<(ChangeKind, String)> {
        let named = assign_names(found.clone(), known, &mut Vec::new());
        let unread = unread.iter().map(|url| (*url).to_owned()).collect();
        let crawl = CrawlResult { from: "https://from.example/", datasets: &found, unread_pages: &unread, is_complete };
        compare_listings(crawl, &named, known).into_iter().map(|change| (change.change, change.name)).collect()
    }

    #[test]
    fn what_appeared_vanished_and_moved_is_reported() {
        let known = known(&[
            ("acme-same", "https://acme.example/same"),
            ("acme-moved", "https://acme.example/elsewhere"),
            ("acme-gone", "https://acme.example/gone"),
        ]);
        let changes = changes_of(vec![dataset(SITE, &["same", "moved", "new"])], &known, &[], true);
        let expected = [
            (ChangeKind::Moved, "acme-moved"),
            (ChangeKind::Appeared, "acme-new"),
            (ChangeKind::Vanished, "acme-gone"),
        ];
        assert_eq!(changes, expected.map(|(what, name)| (what, name.to_owned())));
    }

    #[test]
    fn a_site_has_vanished_only_where_the_crawl_was_complete_and_its_page_was_readable() {
        let known = known(&[("acme-same", "https://acme.example/same")]);
        assert_eq!(changes_of(Vec::new(), &known, &[], true), [(ChangeKind::SiteVanished, "acme".to_owned())]);
        assert_eq!(changes_of(Vec::new(), &known, &[SITE], true), []);
        assert_eq!(changes_of(Vec::new(), &known, &[], false), []);
    }
}
