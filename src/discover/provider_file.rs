//! A dataset as configuration: a provider and its feeds, in TOML that `check` accepts and that discovery recognises
//! again.
//!
//! A file that discovery wrote begins with a mark and the checksum of all the rest: a file that was edited since must
//! not be overwritten. The same datasets make the same bytes. Nothing is read from or written to disk here.

use super::names::{KnownFeed, KnownSite, NamedDataset};
use crate::terminal::is_hidden;

/// The beginning of the first line of every file that discovery wrote.
const MARK: &str = "# Written by feedmirror discover";
const FIRST: &str = "# Written by feedmirror discover --add. Edit it, and it is left as it is from then on.";
const PAGE: &str = "# page: ";
const FROM: &str = "# from: ";
const CHECKSUM: &str = "# checksum: ";

/// Who wrote a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOrigin {
    /// Written by discovery, and unchanged.
    Ours,
    /// Written by discovery, and edited since.
    Edited,
    /// Not written by discovery.
    Foreign,
}

/// The content of a file that discovery wrote, as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderFile {
    pub dataset_url: String,
    /// The provider, and where the dataset was found.
    pub site: KnownSite,
    pub feeds: Vec<KnownFeed>,
}

/// The provider and its feeds as configuration; `unlisted` are feeds that the site doesn't list any more.
pub fn provider_tables(named: &NamedDataset, unlisted: &[KnownFeed]) -> String {
    let dataset = &named.dataset;
    let mut text = String::new();
    if let Some(name) = &dataset.name {
        text.push_str(&format!("# {name}\n"));
    }
    text.push_str(&format!("[providers.{}]\n", named.provider));
    let keys = [("publisher", &dataset.publisher), ("license", &dataset.license)];
    for (key, value) in keys.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))) {
        text.push_str(&format!("{key} = {}\n", quoted(value)));
    }
    text.push_str(&format!("dataset_url = {}\n", quoted(&dataset.url)));
    for (name, feed) in named.names.iter().zip(&dataset.feeds) {
        text.push_str(&table(name, &named.provider, &feed.url));
        if let Some(total) = feed.total_items {
            text.push_str(&format!("total_items = {total}\n"));
        }
    }
    for feed in unlisted {
        text.push_str("\n# Its site doesn't list this feed any more.");
        text.push_str(&table(&feed.name, &named.provider, &feed.url));
    }
    text
}

fn table(name: &str, provider: &str, url: &str) -> String {
    format!("\n[feeds.{}]\nprovider = {}\nurl = {}\n", key(name), quoted(provider), quoted(url))
}

/// A whole file, for a crawl that began at `from`.
pub fn render_file(named: &NamedDataset, unlisted: &[KnownFeed], from: &str) -> String {
    let rest = format!("{PAGE}{}\n{FROM}{from}\n\n{}", named.dataset.page, provider_tables(named, unlisted));
    format!("{FIRST}\n{CHECKSUM}{}\n{rest}", checksum(&rest))
}

fn checksum(rest: &str) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(rest.as_bytes()))
}

/// Recognises a file's origin by its first lines.
pub fn file_origin(text: &str) -> FileOrigin {
    if !text.starts_with(MARK) {
        return FileOrigin::Foreign;
    }
    let written = text.split_once('\n').and_then(|(_, rest)| rest.strip_prefix(CHECKSUM)?.split_once('\n'));
    match written {
        Some((written, rest)) if written == checksum(rest) => FileOrigin::Ours,
        _ => FileOrigin::Edited,
    }
}

/// Parses a file that discovery wrote; none when discovery didn't, or when it holds no provider with a dataset any
/// more.
pub fn parse(text: &str) -> Option<ProviderFile> {
    if file_origin(text) == FileOrigin::Foreign {
        return None;
    }
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default().to_owned();
    let tables: toml::Table = toml::from_str(text).ok()?;
    let below = |name: &str| tables.get(name).and_then(toml::Value::as_table).into_iter().flatten();
    let (provider, dataset_url) =
        below("providers").find_map(|(name, table)| Some((name, table.get("dataset_url")?.as_str()?)))?;
    let feed = |(name, table): (&String, &toml::Value)| {
        let text = |key: &str| table.get(key).and_then(toml::Value::as_str).map(str::to_owned);
        Some(KnownFeed {
            name: name.clone(),
            provider: text("provider"),
            url: text("url")?,
            dataset_url: Some(text("dataset_url").unwrap_or_else(|| dataset_url.to_owned())),
        })
    };
    Some(ProviderFile {
        dataset_url: dataset_url.to_owned(),
        site: KnownSite { provider: provider.clone(), page: line(PAGE), from: line(FROM) },
        feeds: below("feeds").filter_map(feed).collect(),
    })
}

/// A bare key where the name allows it, else a quoted one.
fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if bare { name.to_owned() } else { quoted(name) }
}

/// A basic string (TOML 1.0); invisible characters are escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            character if is_hidden(character) => out.push_str(&format!("\\U{:08X}", u32::from(character))),
            character => out.push(character),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::discover::{Dataset, DatasetFeed};

    fn named() -> NamedDataset {
        let feed = |name: &str, total_items| DatasetFeed {
            name: name.to_owned(),
            kind: None,
            url: format!("https://acme.example/{name}"),
            total_items,
        };
        let dataset = Dataset {
            url: "https://acme.example/".into(),
            page: "https://acme.example/openactive".into(),
            name: Some("Acme's sessions".into()),
            publisher: Some("A \"cme\" \\ Ltd".into()),
            license: None,
            feeds: vec![feed("a", Some(1200)), feed("b", None)],
        };
        NamedDataset { provider: "acme".into(), dataset, names: vec!["acme-a".into(), "acme-b".into()] }
    }

    #[test]
    fn a_rendered_file_is_parsed_again() {
        let unlisted = KnownFeed {
            name: "acme.c".into(),
            provider: Some("acme".into()),
            url: "https://acme.example/c".into(),
            dataset_url: Some("https://acme.example/".into()),
        };
        let written = render_file(&named(), std::slice::from_ref(&unlisted), "https://from.example/");

        let read = parse(&written).unwrap();
        let tables: toml::Table = toml::from_str(&written).unwrap();

        assert_eq!(file_origin(&written), FileOrigin::Ours);
        assert_eq!(read.dataset_url, "https://acme.example/");
        let (page, from) = ("https://acme.example/openactive".into(), "https://from.example/".into());
        assert_eq!(read.site, KnownSite { provider: "acme".into(), page, from });
        assert_eq!(
            read.feeds.iter().map(|feed| feed.name.as_str()).collect::<Vec<_>>(),
            ["acme-a", "acme-b", "acme.c"]
        );
        assert!(read.feeds.contains(&unlisted));
        assert_eq!(tables["providers"]["acme"]["publisher"].as_str(), Some("A \"cme\" \\ Ltd"));
        assert_eq!(tables["feeds"]["acme-a"]["total_items"].as_integer(), Some(1200));
    }

    #[test]
    fn an_edited_file_is_recognised_and_a_foreign_one_too() {
        let written = render_file(&named(), &[], "https://from.example/");
        assert_eq!(
            file_origin(&written.replace("https://acme.example/b", "https://acme.example/c")),
            FileOrigin::Edited
        );
        assert_eq!(file_origin(&format!("{written}\n")), FileOrigin::Edited);
        assert_eq!(file_origin(&written.replacen("# checksum", "# sum", 1)), FileOrigin::Edited);
        assert_eq!(file_origin(&provider_tables(&named(), &[])), FileOrigin::Foreign);
        assert_eq!(parse(&provider_tables(&named(), &[])), None);
        assert_eq!(parse(&format!("{FIRST}\nnot = [toml")), None);
    }

    #[test]
    fn a_publisher_s_text_stays_within_its_quotes() {
        let mut named = named();
        named.dataset.publisher = Some("a\"\n[ops]\nlisten = \"0.0.0.0:1".into());
        let read: toml::Table = toml::from_str(&provider_tables(&named, &[])).unwrap();
        assert_eq!(read["providers"]["acme"]["publisher"].as_str(), named.dataset.publisher.as_deref());
        assert!(read.get("ops").is_none());
    }
}
