//! Reads datasets, catalogues and sites from JSON-LD as publishers write it. Expands no context.
//!
//! All of these are read: `@id` or `id`, `@type` or `type`, one object in place of a list, a URL in place of an object,
//! prefixes before schema.org's names, references into a `@graph`. What is left out is reported as a problem in words.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};
use url::Url;

use super::text::{clean, without_references};
use super::{Dataset, DatasetFeed, Listing};

type Node = Map<String, Value>;

/// Prefixes that pages put before the names of schema.org's properties.
const PREFIXES: [&str; 4] = ["", "schema:", "https://schema.org/", "http://schema.org/"];
/// The properties that hold a page's main objects.
const MAIN_PROPERTIES: [&str; 4] = ["@graph", "mainEntity", "mainEntityOfPage", "about"];
/// The most entries read of one list, and datasets of one page: no publisher has a tenth of them.
const MOST: usize = 5_000;
/// The deepest level that is read: serde_json itself refuses 128.
const DEEPEST: usize = 32;

/// A link of a page at `at`: absolute, http or https, without a fragment.
pub(super) fn link(text: &str, at: &Url) -> Result<Url, String> {
    let shown = || clean(text).unwrap_or_default();
    if is_template(text) {
        return Err(format!("{:?} is a template that was never filled in", shown()));
    }
    let mut url = at.join(text.trim()).map_err(|error| format!("{:?} is no URL: {error}", shown()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("{:?} is neither http nor https", shown()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with credentials in it (not shown)".to_owned());
    }
    url.set_fragment(None);
    Ok(url)
}

/// Whether a text holds the marks of a template: the page was sent without being rendered.
fn is_template(text: &str) -> bool {
    const MARKS: [&str; 10] = ["{{", "}}", "{%", "<%", "%>", "${", "#{", "[[", "<?", "%7b%7b"];
    let text = text.to_ascii_lowercase();
    MARKS.iter().any(|mark| text.contains(mark))
}

/// Reads the trees of a page at the URL `at`; `escaped` when its texts may hold HTML's character references.
pub(super) fn read_trees(trees: &[Value], at: &Url, escaped: bool) -> Listing {
    let mut nodes = HashMap::new();
    trees.iter().for_each(|tree| index(tree, &mut nodes, 0));
    let mut reader = ListingReader { at, escaped, nodes, listing: Listing::default(), seen: BTreeSet::new() };
    trees.iter().for_each(|tree| reader.visit(tree, 0));
    reader.listing
}

/// Indexes by id the nodes that have other properties, too.
fn index<'a>(value: &'a Value, nodes: &mut HashMap<&'a str, &'a Node>, depth: usize) {
    if depth > DEEPEST {
        return;
    }
    match value {
        Value::Array(list) => list.iter().for_each(|value| index(value, nodes, depth + 1)),
        Value::Object(node) => {
            if let Some(id) = id(node)
                && node.len() > 1
            {
                nodes.entry(id).or_insert(node);
            }
            node.values().for_each(|value| index(value, nodes, depth + 1));
        }
        _ => {}
    }
}

fn id(node: &Node) -> Option<&str> {
    node.get("@id").or_else(|| node.get("id")).and_then(Value::as_str)
}

fn property<'a>(node: &'a Node, name: &str) -> Option<&'a Value> {
    let named = node.get(name).or_else(|| PREFIXES.iter().find_map(|prefix| node.get(&format!("{prefix}{name}"))));
    // JSON-LD's names are case-sensitive, and publishers write them in any case.
    let cased = || node.iter().find(|(key, _)| local(key).eq_ignore_ascii_case(name) && !key.starts_with('@'));
    named.or_else(|| cased().map(|(_, value)| value))
}

/// The key that may be a misspelt `name`, where that is missing.
fn near<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    let keys = node.keys().map(|key| (strsim::damerau_levenshtein(local(key), name), key.as_str()));
    keys.filter(|(distance, _)| *distance <= 3).min().map(|(_, key)| key)
}

/// Which key may be a missing property, in words.
fn or_near(node: &Node, name: &str) -> String {
    near(node, name).map_or_else(String::new, |key| format!(": did {:?} mean it?", clean(key).unwrap_or_default()))
}

/// The key that `name` is read from in another case than it has.
fn misspelt<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    let right = PREFIXES.iter().any(|prefix| node.contains_key(&format!("{prefix}{name}")));
    let cased = |key: &&String| local(key).eq_ignore_ascii_case(name);
    node.keys().find(cased).filter(|_| !right).map(String::as_str)
}

/// A value as a list: in JSON-LD, one value is a list of one.
fn each(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(list) => list,
        one => std::slice::from_ref(one),
    }
}

fn entries<'a>(node: &'a Node, name: &str) -> &'a [Value] {
    property(node, name).map_or(&[], each)
}

/// `https://schema.org/Dataset`, `schema:Dataset` and `Dataset` are the same name.
fn local(name: &str) -> &str {
    name.rsplit(['/', '#', ':']).next().unwrap_or(name)
}

fn is_a(node: &Node, wanted: &str) -> bool {
    let types = node.get("@type").or_else(|| node.get("type"));
    types.map_or(&[][..], each).iter().filter_map(Value::as_str).any(|name| local(name) == wanted)
}

fn is_dataset(node: &Node) -> bool {
    is_a(node, "Dataset") || property(node, "distribution").is_some() && !is_a(node, "DataCatalog")
}

fn is_catalogue(node: &Node) -> bool {
    let lists = property(node, "dataset").is_some() || property(node, "hasPart").is_some();
    is_a(node, "DataCatalog") || lists && !is_dataset(node)
}

struct ListingReader<'a> {
    at: &'a Url,
    escaped: bool,
    nodes: HashMap<&'a str, &'a Node>,
    listing: Listing,
    /// Nodes read already, by address: a graph may refer to a node from many others.
    seen: BTreeSet<usize>,
}

impl<'a> ListingReader<'a> {
    fn visit(&mut self, value: &'a Value, depth: usize) {
        match value {
            Value::Array(list) if depth <= DEEPEST => list.iter().for_each(|value| self.visit(value, depth + 1)),
            Value::Object(node) if depth <= DEEPEST => {
                let node = self.dereference(node);
                if !self.seen.insert(std::ptr::from_ref(node).addr()) {
                    return;
                }
                if is_dataset(node) {
                    self.dataset(node);
                } else if is_catalogue(node) {
                    self.catalogue(node, depth);
                }
                for inner in MAIN_PROPERTIES.iter().filter_map(|name| node.get(*name)) {
                    self.visit(inner, depth + 1);
                }
            }
            _ => {}
        }
    }

    /// The node that a bare reference stands for.
    fn dereference(&self, node: &'a Node) -> &'a Node {
        let named = id(node).filter(|_| node.len() == 1).and_then(|id| self.nodes.get(id));
        named.copied().unwrap_or(node)
    }

    fn catalogue(&mut self, node: &'a Node, depth: usize) {
        for list in ["dataset", "hasPart"] {
            for entry in self.limited(list, entries(node, list)) {
                self.entry(list, entry, depth);
            }
        }
    }

    fn limited(&mut self, list: &str, entries: &'a [Value]) -> &'a [Value] {
        if entries.len() > MOST {
            self.listing.problems.push(format!("of `{list}` only the first {MOST} of {} are read", entries.len()));
        }
        &entries[..entries.len().min(MOST)]
    }

    /// Reads an entry of a catalogue: the dataset or catalogue itself, or its URL.
    fn entry(&mut self, list: &str, entry: &'a Value, depth: usize) {
        let mut is_site = list == "dataset";
        let target = match entry {
            Value::Object(node) => {
                let node = self.dereference(node);
                if property(node, "distribution").is_some() || property(node, "dataset").is_some() {
                    return self.visit(entry, depth + 1);
                }
                is_site = is_dataset(node) || is_site && !is_a(node, "DataCatalog");
                self.first_text(property(node, "url")).or_else(|| id(node).map(str::to_owned))
            }
            other => self.first_text(Some(other)).filter(|_| other.is_string()),
        };
        let link = match target {
            Some(target) => link(&target, self.at),
            None => Err(format!("it is {}, neither a URL nor something with one", type_name(entry))),
        };
        match link {
            Ok(url) if self.listing.sites.len() + self.listing.catalogues.len() < 2 * MOST => {
                let urls = if is_site { &mut self.listing.sites } else { &mut self.listing.catalogues };
                if !urls.contains(&url) {
                    urls.push(url);
                }
            }
            Ok(_) => {}
            Err(problem) => self.listing.problems.push(format!("an entry of `{list}` was left out: {problem}")),
        }
    }

    fn dataset(&mut self, node: &'a Node) {
        let url = self.first_text(property(node, "url")).or_else(|| id(node).map(str::to_owned));
        let url = url.and_then(|url| link(&url, self.at).ok()).unwrap_or_else(|| self.at.clone());
        let publisher = ["publisher", "creator", "provider"].iter().find_map(|name| self.party(property(node, name)?));
        let mut dataset = Dataset {
            url: url.into(),
            page: self.at.to_string(),
            name: self.shown(property(node, "name")),
            publisher,
            license: self.license(property(node, "license")),
            feeds: Vec::new(),
        };
        if property(node, "distribution").is_none() && near(node, "distribution").is_some() {
            let problem = format!("a dataset has no distribution{}", or_near(node, "distribution"));
            self.listing.problems.push(problem);
        }
        for entry in self.limited("distribution", entries(node, "distribution")) {
            if let Some(key) = entry.as_object().and_then(|node| misspelt(node, "contentUrl")) {
                self.listing.problems.push(format!("{:?} is taken for contentUrl", clean(key).unwrap_or_default()));
            }
            match self.download(entry) {
                Ok(feed) if dataset.feeds.iter().any(|known| known.url == feed.url) => {}
                Ok(feed) => dataset.feeds.push(feed),
                Err(problem) => self.listing.problems.push(format!("a download was left out: {problem}")),
            }
        }
        let room = self.listing.datasets.len() < MOST;
        match self.listing.datasets.iter_mut().find(|known| known.url == dataset.url) {
            Some(known) => known.merge(dataset),
            None if room => self.listing.datasets.push(dataset),
            None => {}
        }
    }

    fn download(&self, entry: &'a Value) -> Result<DatasetFeed, String> {
        let Value::Object(node) = entry else { return Err(format!("it is {}, no object", type_name(entry))) };
        let node = self.dereference(node);
        let kind = self.shown(property(node, "additionalType")).map(|kind| local(&kind).to_owned());
        let url = self.first_text(property(node, "contentUrl"));
        let url = url.ok_or_else(|| format!("it has no contentUrl{}", or_near(node, "contentUrl")))?;
        let target = link(&url, self.at)?;
        if !self.is_rpde(node) {
            return Err(format!("{target} is no RPDE feed, by its encodingFormat"));
        }
        // A feed's URL is requested as its publisher wrote it, where that is possible.
        let url = if Url::parse(&url).is_ok_and(|written| written == target) { url } else { target.to_string() };
        let named = ["identifier", "name"].iter().find_map(|name| self.shown(property(node, name)));
        let named = named.filter(|name| !name.contains("://") && name.chars().any(char::is_alphabetic));
        let last_segment = || target.path_segments()?.rfind(|part| !part.is_empty()).map(str::to_owned);
        let name = named.or_else(|| kind.clone()).or_else(last_segment).unwrap_or_else(|| "feed".to_owned());
        Ok(DatasetFeed { name, kind, url, total_items: property(node, "totalItems").and_then(count) })
    }

    /// Whether the download is an RPDE feed, by its format; one without a format is, if its type is one of
    /// OpenActive's.
    fn is_rpde(&self, node: &'a Node) -> bool {
        let formats = ["encodingFormat", "fileFormat"].iter().flat_map(|name| entries(node, name));
        let formats: Vec<String> = formats.filter_map(|format| self.first_text(Some(format))).collect();
        if formats.is_empty() {
            let kind = self.first_text(property(node, "additionalType")).unwrap_or_default();
            return kind.contains("openactive.io/");
        }
        formats.iter().any(|format| format.to_ascii_lowercase().contains("rpde"))
    }

    /// A person's or an organisation's name, given as text or as an object.
    fn party(&self, value: &'a Value) -> Option<String> {
        each(value).iter().find_map(|value| match value {
            Value::Object(node) => {
                let node = self.dereference(node);
                self.shown(property(node, "name")).or_else(|| self.shown(property(node, "legalName")))
            }
            other => self.shown(Some(other)),
        })
    }

    fn license(&self, value: Option<&'a Value>) -> Option<String> {
        each(value?).iter().find_map(|value| match value {
            Value::Object(node) => {
                let node = self.dereference(node);
                let named = self.shown(property(node, "url")).or_else(|| id(node).and_then(clean));
                named.or_else(|| self.shown(property(node, "name")))
            }
            other => self.shown(Some(other)),
        })
    }

    /// The first text of a value.
    fn first_text(&self, value: Option<&'a Value>) -> Option<String> {
        let text = each(value?).iter().find_map(|value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Object(node) => {
                let inner = node.get("@value").or_else(|| property(node, "url")).or_else(|| node.get("@id"))?;
                inner.as_str().map(str::to_owned)
            }
            _ => None,
        })?;
        let text = if self.escaped { without_references(&text).into_owned() } else { text };
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn shown(&self, value: Option<&'a Value>) -> Option<String> {
        self.first_text(value).filter(|text| !is_template(text)).and_then(|text| clean(&text))
    }
}

impl Dataset {
    /// Adds what another description of the same dataset has besides.
    pub(crate) fn merge(&mut self, other: Self) {
        self.name = self.name.take().or(other.name);
        self.publisher = self.publisher.take().or(other.publisher);
        self.license = self.license.take().or(other.license);
        for feed in other.feeds {
            if self.feeds.iter().all(|known| known.url != feed.url) {
                self.feeds.push(feed);
            }
        }
    }
}

fn count(value: &Value) -> Option<u64> {
    let number = match value {
        Value::Number(number) => number.as_u64().or_else(|| to_integer(number.as_f64()?)),
        Value::String(text) => text.trim().replace(',', "").parse().ok(),
        Value::Array(list) => count(list.first()?),
        _ => None,
    };
    // At most SQLite's largest integer; 0 is no useful number, since no feed is empty for long.
    number.filter(|number| (1..=i64::MAX as u64).contains(number))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within 2^53")]
fn to_integer(number: f64) -> Option<u64> {
    (0.0..9e15).contains(&number).then_some(number as u64)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "an empty text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
