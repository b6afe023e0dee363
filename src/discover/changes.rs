//! What a walk found, against what is configured: feeds that appeared, vanished or moved, and sites that vanished.
//!
//! Nothing is said to have vanished that may only be out of reach: a page that could not be read takes nothing with it,
//! and a walk that was cut short takes no site.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Dataset;
use super::names::{KnownFeed, KnownNames, NamedDataset};

/// What became of a feed or a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// Listed, and not configured.
    Appeared,
    /// Configured, and not listed by its site any more.
    Vanished,
    /// Listed at another URL.
    Moved,
    /// A whole site is not listed any more.
    SiteVanished,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListingChange {
    /// What became of it.
    pub change: ChangeKind,
    /// The feed's name, of a site its provider's.
    pub name: String,
    /// Where it is now, or was last.
    pub url: String,
    /// Where it was, when it moved.
    pub before: Option<String>,
    /// The dataset that it is of.
    pub dataset_url: String,
}

/// A walk's result, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct CrawlResult<'a> {
    /// Where it began.
    pub from: &'a str,
    /// Everything found.
    pub datasets: &'a [Dataset],
    /// Pages that could not be read.
    pub unread_pages: &'a BTreeSet<String>,
    /// Whether it came to its end.
    pub is_complete: bool,
}

/// Every difference, by dataset in the order of `named`, sites at the end.
pub fn compare_listings(walked: CrawlResult<'_>, named: &[NamedDataset], known: &KnownNames) -> Vec<ListingChange> {
    let mut changes: Vec<ListingChange> = named.iter().flat_map(|named| appeared(named, known)).collect();
    changes.extend(vanished(walked, named, known));
    if walked.is_complete {
        changes.extend(sites(walked, known));
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
    walked: CrawlResult<'a>,
    named: &'a [NamedDataset],
    known: &'a KnownNames,
) -> impl Iterator<Item = ListingChange> + use<'a> {
    let listed: BTreeSet<&str> =
        walked.datasets.iter().flat_map(|dataset| &dataset.feeds).map(|feed| feed.url.as_str()).collect();
    let read: BTreeSet<&str> = walked.datasets.iter().map(|dataset| dataset.url.as_str()).collect();
    let kept: BTreeSet<&str> = named.iter().flat_map(|named| &named.names).map(String::as_str).collect();
    known.feeds.iter().filter_map(move |feed| {
        let dataset_url = feed.dataset_url.as_deref().filter(|url| read.contains(url))?;
        let gone = !listed.contains(feed.url.as_str()) && !kept.contains(feed.name.as_str());
        gone.then(|| ListingChange {
            change: ChangeKind::Vanished,
            name: feed.name.clone(),
            url: feed.url.clone(),
            before: None,
            dataset_url: dataset_url.to_owned(),
        })
    })
}

fn sites<'a>(walked: CrawlResult<'a>, known: &'a KnownNames) -> impl Iterator<Item = ListingChange> + use<'a> {
    let found: BTreeSet<&str> = walked.datasets.iter().map(|dataset| dataset.url.as_str()).collect();
    let gone = known.sites.iter().filter(move |(url, site)| {
        site.from == walked.from && !found.contains(url.as_str()) && !walked.unread_pages.contains(&site.page)
    });
    gone.map(|(url, site)| ListingChange {
        change: ChangeKind::SiteVanished,
        name: site.provider.clone(),
        url: url.clone(),
        before: None,
        dataset_url: url.clone(),
    })
}

/// The feeds of a dataset's own file that its site doesn't list any more.
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

    fn told(found: Vec<Dataset>, known: &KnownNames, unread: &[&str], whole: bool) -> Vec<(ChangeKind, String)> {
        let named = assign_names(found.clone(), known, &mut Vec::new());
        let unread = unread.iter().map(|url| (*url).to_owned()).collect();
        let walked =
            CrawlResult { from: "https://from.example/", datasets: &found, unread_pages: &unread, is_complete: whole };
        compare_listings(walked, &named, known).into_iter().map(|change| (change.change, change.name)).collect()
    }

    #[test]
    fn what_appeared_vanished_and_moved_is_told() {
        let known = known(&[
            ("acme-same", "https://acme.example/same"),
            ("acme-moved", "https://acme.example/elsewhere"),
            ("acme-gone", "https://acme.example/gone"),
        ]);
        let changes = told(vec![dataset(SITE, &["same", "moved", "new"])], &known, &[], true);
        let expected = [
            (ChangeKind::Moved, "acme-moved"),
            (ChangeKind::Appeared, "acme-new"),
            (ChangeKind::Vanished, "acme-gone"),
        ];
        assert_eq!(changes, expected.map(|(what, name)| (what, name.to_owned())));
    }

    #[test]
    fn a_site_has_vanished_only_where_its_page_could_be_read_or_is_listed_no_more() {
        let known = known(&[("acme-same", "https://acme.example/same")]);
        assert_eq!(told(Vec::new(), &known, &[], true), [(ChangeKind::SiteVanished, "acme".to_owned())]);
        assert_eq!(told(Vec::new(), &known, &[SITE], true), []);
        assert_eq!(told(Vec::new(), &known, &[], false), []);
    }
}
