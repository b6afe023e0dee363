//! Discovery: from a published web page to the feeds that it lists, and from those to configuration.
//!
//! Pure: bytes and a URL come in, datasets, names and text go out. Nothing is fetched, resolved or written here.
//! Reading never fails: it returns what could be understood, and a problem in words for the rest. Knows schema.org's
//! terms as OpenActive uses them (Dataset API Discovery 1.0, "dataset sites" and "data catalogs"), not JSON-LD as a
//! whole: no context is fetched, no graph is expanded.

mod json_block;
pub mod changes;
pub mod provider_file;
mod html;
mod jsonld;
pub mod names;
mod text;

use url::Url;

/// What a page lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Datasets described on the page itself.
    pub datasets: Vec<Dataset>,
    /// URLs of further catalogues.
    pub catalogues: Vec<Url>,
    /// URLs of dataset sites.
    pub sites: Vec<Url>,
    /// The target of `<meta http-equiv=refresh>` on a page that lists nothing.
    pub meta_refresh: Option<Url>,
    /// Whether the page is a page of a feed itself (RPDE), and lists none.
    pub is_feed: bool,
    /// What could not be understood, in words.
    pub problems: Vec<String>,
}

/// One publisher's dataset: what its feeds have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The dataset's site; the page that the dataset was found on, where it names none.
    pub url: String,
    /// The page that the dataset was found on.
    pub page: String,
    /// The dataset's title.
    pub name: Option<String>,
    /// The publisher's name.
    pub publisher: Option<String>,
    /// The licence, mostly a URL.
    pub license: Option<String>,
    /// The dataset's RPDE feeds, in the order of the page, each URL once.
    pub feeds: Vec<DatasetFeed>,
}

/// One RPDE feed of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetFeed {
    /// Distinguishes the feed from the dataset's others: its identifier, name, type, or the end of its URL.
    pub name: String,
    /// The last part of `additionalType`: `SessionSeries`.
    pub kind: Option<String>,
    /// The URL of the first page: absolute, http or https, as written where that is possible.
    pub url: String,
    /// The approximate number of items.
    pub total_items: Option<u64>,
}

/// Reads the page at the URL `at`: JSON-LD, or HTML with JSON-LD in it, in UTF-8 or what is commonly sent instead.
pub fn read(bytes: &[u8], at: &Url) -> Listing {
    let text = text::decode(bytes);
    let text = text.trim_start();
    if text.starts_with(['{', '[']) {
        return match json_block::parse(text) {
            Ok(tree) if is_feed(&tree) => Listing { is_feed: true, ..Listing::default() },
            Ok(tree) => jsonld::read_trees(&[tree], at, false),
            Err(problem) => {
                Listing { problems: vec![format!("the page is not JSON: {problem}")], ..Listing::default() }
            }
        };
    }
    let page = html::read(text);
    let (mut trees, mut problems) = (Vec::new(), Vec::new());
    for block in &page.blocks {
        match json_block::parse_block(block) {
            Ok(tree) => trees.push(tree),
            Err(problem) => problems.push(format!("a JSON-LD block of the page is not JSON: {problem}")),
        }
    }
    let mut listing = jsonld::read_trees(&trees, at, true);
    listing.problems.splice(0..0, problems);
    if listing.is_empty() {
        listing.meta_refresh = page.meta_refresh.and_then(|target| jsonld::link(&target, at).ok());
    }
    listing
}

fn is_feed(tree: &serde_json::Value) -> bool {
    let is_json_ld = ["@type", "type", "distribution", "dataset", "hasPart"].iter().any(|key| tree.get(key).is_some());
    tree.get("items").is_some_and(|items| items.is_array() || items.is_null()) && !is_json_ld
}

impl Listing {
    /// Whether the page lists nothing.
    pub fn is_empty(&self) -> bool {
        self.datasets.is_empty() && self.catalogues.is_empty() && self.sites.is_empty()
    }
}

#[cfg(test)]
mod tests;
