//! What a walk found, against what is configured: feeds that appeared, vanished or moved, and sites that vanished.
//!
//! Nothing is said to have vanished that may only be out of reach: a page that could not be read takes nothing with it,
//! and a walk that was cut short takes no site.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Dataset;
use super::names::{Known, KnownFeed, Named};

/// What became of a feed or a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
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
pub struct Change {
    /// What became of it.
    pub change: What,
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
pub struct Walked<'a> {
    /// Where it began.
    pub from: &'a str,
    /// Everything found.
    pub found: &'a [Dataset],
    /// Pages that could not be read.
    pub unread: &'a BTreeSet<String>,
    /// Whether it came to its end.
    pub whole: bool,
}

/// Every difference, by dataset in the order of `named`, sites at the end.
pub fn between(walked: Walked<'_>, named: &[Named], known: &Known) -> Vec<Change> {
    let mut changes: Vec<Change> = named.iter().flat_map(|named| appeared(named, known)).collect();
    changes.extend(vanished(walked, named, known));
    if walked.whole {
        changes.extend(sites(walked, known));
    }
    changes
}

fn appeared<'a>(named: &'a Named, known: &'a Known) -> impl Iterator<Item = Change> + use<'a> {
    named.names.iter().zip(&named.dataset.feeds).filter_map(|(name, feed)| {
        let before = known.feeds.iter().find(|known| known.name == *name);
        if before.is_some_and(|known| known.url == feed.url) {
            return None;
        }
        Some(Change {
            change: if before.is_some() { What::Moved } else { What::Appeared },
            name: name.clone(),
            url: feed.url.clone(),
            before: before.map(|known| known.url.clone()),
            dataset_url: named.dataset.url.clone(),
        })
    })
}

fn vanished<'a>(walked: Walked<'a>, named: &'a [Named], known: &'a Known) -> impl Iterator<Item = Change> + use<'a> {
    let listed: BTreeSet<&str> =
        walked.found.iter().flat_map(|dataset| &dataset.feeds).map(|feed| feed.url.as_str()).collect();
    let read: BTreeSet<&str> = walked.found.iter().map(|dataset| dataset.url.as_str()).collect();
    let kept: BTreeSet<&str> = named.iter().flat_map(|named| &named.names).map(String::as_str).collect();
    known.feeds.iter().filter_map(move |feed| {
        let dataset_url = feed.dataset_url.as_deref().filter(|url| read.contains(url))?;
        let gone = !listed.contains(feed.url.as_str()) && !kept.contains(feed.name.as_str());
        gone.then(|| Change {
            change: What::Vanished,
            name: feed.name.clone(),
            url: feed.url.clone(),
            before: None,
            dataset_url: dataset_url.to_owned(),
        })
    })
}

fn sites<'a>(walked: Walked<'a>, known: &'a Known) -> impl Iterator<Item = Change> + use<'a> {
    let found: BTreeSet<&str> = walked.found.iter().map(|dataset| dataset.url.as_str()).collect();
    let gone = known.sites.iter().filter(move |(url, site)| {
        site.from == walked.from && !found.contains(url.as_str()) && !walked.unread.contains(&site.page)
    });
    gone.map(|(url, site)| Change {
        change: What::SiteVanished,
        name: site.provider.clone(),
        url: url.clone(),
        before: None,
        dataset_url: url.clone(),
    })
}

/// The feeds of a dataset's own file that its site doesn't list any more.
pub fn gone(named: &Named, own: &[KnownFeed]) -> Vec<KnownFeed> {
    let listed = |feed: &&KnownFeed| {
        !named.names.contains(&feed.name) && named.dataset.feeds.iter().all(|found| found.url != feed.url)
    };
    own.iter().filter(listed).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::Download;
    use crate::discover::names::{KnownSite, assign};

    const SITE: &str = "https://acme.example/";

    fn dataset(url: &str, feeds: &[&str]) -> Dataset {
        let feeds = feeds.iter().map(|name| Download {
            name: (*name).to_owned(),
            kind: None,
            url: format!("{url}{name}"),
            total_items: None,
        });
        let publisher = Some("Acme".to_owned());
        Dataset { url: url.into(), page: url.into(), name: None, publisher, license: None, feeds: feeds.collect() }
    }

    fn known(feeds: &[(&str, &str)]) -> Known {
        let feeds = feeds.iter().map(|(name, url)| KnownFeed {
            name: (*name).into(),
            provider: Some("acme".into()),
            url: (*url).into(),
            dataset_url: Some(SITE.into()),
        });
        let site = KnownSite { provider: "acme".into(), page: SITE.into(), from: "https://from.example/".into() };
        Known { feeds: feeds.collect(), providers: ["acme".to_owned()].into(), sites: [(SITE.to_owned(), site)].into() }
    }

    fn told(found: Vec<Dataset>, known: &Known, unread: &[&str], whole: bool) -> Vec<(What, String)> {
        let named = assign(found.clone(), known, &mut Vec::new());
        let unread = unread.iter().map(|url| (*url).to_owned()).collect();
        let walked = Walked { from: "https://from.example/", found: &found, unread: &unread, whole };
        between(walked, &named, known).into_iter().map(|change| (change.change, change.name)).collect()
    }

    #[test]
    fn what_appeared_vanished_and_moved_is_told() {
        let known = known(&[
            ("acme-same", "https://acme.example/same"),
            ("acme-moved", "https://acme.example/elsewhere"),
            ("acme-gone", "https://acme.example/gone"),
        ]);
        let changes = told(vec![dataset(SITE, &["same", "moved", "new"])], &known, &[], true);
        let expected = [(What::Moved, "acme-moved"), (What::Appeared, "acme-new"), (What::Vanished, "acme-gone")];
        assert_eq!(changes, expected.map(|(what, name)| (what, name.to_owned())));
    }

    #[test]
    fn a_site_has_vanished_only_where_its_page_could_be_read_or_is_listed_no_more() {
        let known = known(&[("acme-same", "https://acme.example/same")]);
        assert_eq!(told(Vec::new(), &known, &[], true), [(What::SiteVanished, "acme".to_owned())]);
        assert_eq!(told(Vec::new(), &known, &[SITE], true), []);
        assert_eq!(told(Vec::new(), &known, &[], false), []);
    }
}
