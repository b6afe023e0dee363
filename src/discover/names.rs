//! Names for providers and feeds: the same datasets get the same names, whatever else is found with them. Pure.
//!
//! A configured feed keeps its name for good, even where its publisher or identifier is renamed: the feed's rows are
//! stored under its name. Names are made of a-z, 0-9 and `-`, as `FeedName` accepts them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use url::Url;

use super::{Dataset, DatasetFeed};

/// The longest name, characters.
const LONGEST: usize = 60;

/// The names that are configured already.
#[derive(Clone, Debug, Default)]
pub struct KnownNames {
    /// The providers' names, and every other name that no provider may get.
    pub providers: BTreeSet<String>,
    pub feeds: Vec<KnownFeed>,
    /// The datasets in files that discovery wrote, by URL.
    pub sites: BTreeMap<String, KnownSite>,
}

/// A dataset in a file that discovery wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownSite {
    /// The provider's name.
    pub provider: String,
    /// The page that the dataset was found on.
    pub page: String,
    /// The URL that the crawl began at.
    pub from: String,
}

/// A configured feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownFeed {
    pub name: String,
    pub provider: Option<String>,
    /// The first page's URL; empty when the configured one is invalid.
    pub url: String,
    /// The URL of the feed's dataset.
    pub dataset_url: Option<String>,
}

/// A dataset with the names of its provider and feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedDataset {
    /// The provider's name.
    pub provider: String,
    pub dataset: Dataset,
    /// The names of the dataset's feeds, in their order.
    pub names: Vec<String>,
}

/// Names for these datasets, in the order of their URLs. A feed is left out where the configuration outside of the
/// dataset's own file has it, or, with a line in `problems`, where another dataset has it.
pub fn assign_names(mut datasets: Vec<Dataset>, known: &KnownNames, problems: &mut Vec<String>) -> Vec<NamedDataset> {
    datasets.sort_by(|a, b| a.url.cmp(&b.url));
    let mut used = UsedNames {
        providers: known.providers.clone(),
        names: known.feeds.iter().map(|feed| feed.name.clone()).collect(),
        by_url: known.feeds.iter().map(|feed| (feed.url.as_str(), feed)).collect(),
        known,
    };
    let mut owners: HashMap<String, String> = HashMap::new();
    let mut named = Vec::new();
    for mut dataset in datasets {
        let own = known.sites.get(&dataset.url).map(|site| site.provider.clone());
        let elsewhere = |url: &str| used.by_url.get(url).is_some_and(|feed| own.is_none() || feed.provider != own);
        dataset.feeds.retain(|feed| match owners.get(&feed.url) {
            // Configured by hand: the feed stays in that configuration.
            _ if elsewhere(&feed.url) => false,
            Some(owner) => {
                problems.push(format!("{}: {} is a feed of {owner} too, and taken once", dataset.url, feed.url));
                false
            }
            None => true,
        });
        if dataset.feeds.is_empty() && own.is_none() {
            continue;
        }
        owners.extend(dataset.feeds.iter().map(|feed| (feed.url.clone(), dataset.url.clone())));
        let provider = own.unwrap_or_else(|| provider(&dataset, &used.providers));
        used.providers.insert(provider.clone());
        let names = used.feeds(&dataset, &provider);
        named.push(NamedDataset { provider, dataset, names });
    }
    named
}

/// The names in use, and the configured feeds by URL.
struct UsedNames<'a> {
    providers: BTreeSet<String>,
    names: HashSet<String>,
    by_url: HashMap<&'a str, &'a KnownFeed>,
    known: &'a KnownNames,
}

impl UsedNames<'_> {
    /// A feed that is configured with its URL keeps its name; a feed that has moved keeps the name that it would get
    /// anew.
    fn feeds(&mut self, dataset: &Dataset, provider: &str) -> Vec<String> {
        let urls: HashSet<&str> = dataset.feeds.iter().map(|feed| feed.url.as_str()).collect();
        let own = self.known.feeds.iter().filter(|feed| feed.provider.as_deref() == Some(provider));
        // Names in the dataset's own file whose feed has another URL now.
        let mut reusable: HashSet<&str> =
            own.filter(|feed| !urls.contains(feed.url.as_str())).map(|feed| feed.name.as_str()).collect();
        let mut names = Vec::with_capacity(dataset.feeds.len());
        for feed in &dataset.feeds {
            let known = self.by_url.get(feed.url.as_str()).map(|known| known.name.clone());
            let name = known.unwrap_or_else(|| {
                let mut free = |name: &String| reusable.remove(name.as_str()) || !self.names.contains(name);
                candidates(provider, feed).find(|name| free(name)).unwrap_or_default()
            });
            self.names.insert(name.clone());
            names.push(name);
        }
        names
    }
}

/// The provider's name: of the publisher, else of the host; where it is in use, with the host, then the path, then a
/// hash.
fn provider(dataset: &Dataset, used: &BTreeSet<String>) -> String {
    let url = Url::parse(&dataset.url).ok();
    let host = url.as_ref().map(|url| kebab(&host(url))).unwrap_or_default();
    let path = url.as_ref().map(|url| kebab(url.path())).unwrap_or_default();
    let publisher = dataset.publisher.as_deref().map(kebab).unwrap_or_default();
    let first = if publisher.is_empty() { host.clone() } else { publisher };
    let hash = format!("{:08x}", xxhash_rust::xxh3::xxh3_64(dataset.url.as_bytes()) >> 32);
    let longer = [joined(&[&first, &host]), joined(&[&first, &host, &path]), joined(&[&first, &hash])];
    let candidates = [first].into_iter().chain(longer);
    let free = candidates.into_iter().find(|name| !name.is_empty() && !used.contains(name));
    // Only the same URL has the same hash.
    free.unwrap_or_else(|| joined(&["dataset", &hash]))
}

fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!("-{port}")).unwrap_or_default();
    format!("{}{port}", host.strip_prefix("www.").unwrap_or(host))
}

fn candidates(provider: &str, feed: &DatasetFeed) -> impl Iterator<Item = String> {
    let base = joined(&[provider, &kebab(&split_camel_case(&feed.name))]);
    let kind = feed.kind.as_deref().map(|kind| joined(&[&base, &kebab(&split_camel_case(kind))]));
    let numbered = base.clone();
    [base].into_iter().chain(kind).chain((2..).map(move |n| format!("{numbered}-{n}")))
}

/// `ScheduledSession` → `Scheduled Session`.
fn split_camel_case(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 4);
    let mut before = ' ';
    for character in name.chars() {
        if character.is_ascii_uppercase() && before.is_ascii_lowercase() {
            text.push(' ');
        }
        text.push(character);
        before = character;
    }
    text
}

/// a-z, 0-9 and single dashes between them; empty when there is nothing to make it of.
fn kebab(text: &str) -> String {
    let words =
        text.split(|character: char| !character.is_ascii_alphanumeric() && character != '\'' && character != '’');
    let words = words.map(|word| word.replace(['\'', '’'], "").to_ascii_lowercase());
    shortened(words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-"))
}

fn joined(parts: &[&str]) -> String {
    parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("-")
}

fn shortened(mut name: String) -> String {
    name.truncate(LONGEST);
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn download(name: &str, url: &str) -> DatasetFeed {
        DatasetFeed { name: name.to_owned(), kind: None, url: url.to_owned(), total_items: None }
    }

    fn dataset(url: &str, publisher: Option<&str>, feeds: &[(&str, &str)]) -> Dataset {
        let feeds = feeds.iter().map(|(name, url)| download(name, url)).collect();
        let publisher = publisher.map(str::to_owned);
        Dataset { url: url.to_owned(), page: url.to_owned(), name: None, publisher, license: None, feeds }
    }

    fn names(datasets: Vec<Dataset>, known: &KnownNames) -> Vec<String> {
        assign_names(datasets, known, &mut Vec::new()).into_iter().flat_map(|named| named.names).collect()
    }

    #[test]
    fn names_are_made_of_publisher_and_feed() {
        for (publisher, url, name, expected) in [
            (Some("1Life"), "https://a.example/", "SessionSeries", "1life-session-series"),
            (Some("BwD Leisure"), "https://a.example/", "Slot for FacilityUse", "bwd-leisure-slot-for-facility-use"),
            (Some("Let's Ride"), "https://a.example/", "rides", "lets-ride-rides"),
            (None, "https://www.a.example/open/", "openactive.php", "a-example-openactive-php"),
            (None, "http://127.0.0.1:8080/", "Event", "127-0-0-1-8080-event"),
            (Some("日本"), "https://b.example/", "日本", "b-example"),
        ] {
            let assigned =
                names(vec![dataset(url, publisher, &[(name, "https://f.example/")])], &KnownNames::default());
            assert_eq!(assigned, [expected]);
            assert!(crate::feed::FeedName::new(expected).is_some(), "{expected}");
        }
    }

    #[test]
    fn two_datasets_of_one_publisher_and_two_feeds_of_one_name_get_distinct_names_in_any_order() {
        let one = dataset(
            "https://a.example/one",
            Some("Acme"),
            &[("Slot", "https://f.example/1"), ("slot", "https://f.example/2")],
        );
        let two = dataset("https://b.example/two", Some("Acme"), &[("Slot", "https://f.example/3")]);
        let expected = ["acme-slot", "acme-slot-2", "acme-b-example-slot"];
        assert_eq!(names(vec![one.clone(), two.clone()], &KnownNames::default()), expected);
        assert_eq!(names(vec![two, one], &KnownNames::default()), expected);
    }

    #[test]
    fn a_url_that_two_datasets_have_is_used_once_and_reported() {
        let feeds = [("Slot", "https://f.example/1")];
        let twice = ["https://a.example/", "https://b.example/"].map(|url| dataset(url, Some("Acme"), &feeds));
        let mut problems = Vec::new();
        let named = assign_names(twice.into(), &KnownNames::default(), &mut problems);
        assert_eq!(named.len(), 1);
        assert_eq!(
            problems,
            ["https://b.example/: https://f.example/1 is a feed of https://a.example/ too, and taken once"]
        );
    }

    #[test]
    fn a_configured_feed_keeps_its_name_when_publisher_identifier_or_url_change() {
        let feed = |name: &str, url: &str| KnownFeed {
            name: name.into(),
            provider: Some("old".into()),
            url: url.into(),
            dataset_url: None,
        };
        let site = KnownSite { provider: "old".into(), ..KnownSite::default() };
        let known = KnownNames {
            providers: ["old".to_owned()].into(),
            feeds: vec![feed("old-slot", "https://f.example/1"), feed("old-event", "https://f.example/2")],
            sites: [("https://a.example/".to_owned(), site)].into(),
        };
        let found = [("Places", "https://f.example/1"), ("Event", "https://f.example/moved")];
        assert_eq!(names(vec![dataset("https://a.example/", Some("New"), &found)], &known), ["old-slot", "old-event"]);
    }

    #[test]
    fn a_feed_that_was_configured_by_hand_is_not_configured_again() {
        let url = "https://f.example/1".to_owned();
        let hand = KnownFeed { name: "mine".into(), provider: None, url, dataset_url: None };
        let known = KnownNames { feeds: vec![hand], ..KnownNames::default() };
        let found = [("Slot", "https://f.example/1"), ("Event", "https://f.example/2")];
        assert_eq!(names(vec![dataset("https://a.example/", Some("Acme"), &found)], &known), ["acme-event"]);
    }
}
