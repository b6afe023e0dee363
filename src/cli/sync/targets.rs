//! What `sync` brings level: URLs with names, or feeds of the configuration.

use std::collections::BTreeSet;
use std::path::PathBuf;

use url::Url;

use crate::cli::{GlobalArgs, UsageError, run};
use crate::config::{self, LogSettings, Overrides};
use crate::feed::FeedName;
use crate::supervisor::{ConfiguredFeed, FeedSettings, FleetSettings};

/// The feeds to bring level, and where.
pub(super) struct SyncTargets {
    pub(super) database: PathBuf,
    pub(super) fleet: FleetSettings,
    /// Whether the fleet is complete: feeds in the file that are not in it are then no longer configured.
    pub(super) all: bool,
    pub(super) log: LogSettings,
    names: Option<BTreeSet<FeedName>>,
}

impl SyncTargets {
    pub(super) fn of(
        globals: &GlobalArgs,
        feeds: &[String],
        db: Option<&PathBuf>,
        overrides: &Overrides,
    ) -> anyhow::Result<Self> {
        let urls = feeds.iter().filter(|feed| feed.contains("://")).count();
        match urls {
            0 => Self::from_config(globals, feeds, db, overrides),
            n if n == feeds.len() => Self::from_urls(feeds, db),
            _ => Err(UsageError("give either URLs or names of configured feeds, not both".to_owned()).into()),
        }
    }

    pub(super) fn includes(&self, name: &FeedName) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }

    fn from_config(
        globals: &GlobalArgs,
        feeds: &[String],
        db: Option<&PathBuf>,
        overrides: &Overrides,
    ) -> anyhow::Result<Self> {
        let mut config = config::load(globals.config.as_deref(), overrides)?;
        if let Some(db) = db {
            config.database.clone_from(db);
        }
        let fleet = run::fleet(&config);
        let known: BTreeSet<&FeedName> = fleet.feeds.iter().map(ConfiguredFeed::name).collect();
        let mut names = BTreeSet::new();
        for feed in feeds {
            let name = FeedName::new(feed).filter(|name| known.contains(name));
            let name = name.ok_or_else(|| {
                let known: Vec<&str> = known.iter().map(|name| name.as_str()).collect();
                UsageError(format!("there is no feed {feed} in the configuration; it has: {}", known.join(", ")))
            })?;
            names.insert(name);
        }
        let names = (!feeds.is_empty()).then_some(names);
        Ok(Self { database: config.database, fleet, all: true, log: config.log, names })
    }

    fn from_urls(feeds: &[String], db: Option<&PathBuf>) -> anyhow::Result<Self> {
        let mut names = BTreeSet::new();
        let mut settings = Vec::new();
        for feed in feeds {
            let (name, url) = name_and_url(feed)?;
            if !names.insert(name.clone()) {
                let why = format!("two feeds would be named {name}: give each a name, as other-name={url}");
                return Err(UsageError(why).into());
            }
            settings.push(ConfiguredFeed::Ready(Box::new(FeedSettings::with_defaults(name, url))));
        }
        Ok(Self {
            database: db.cloned().unwrap_or_else(|| PathBuf::from("mirror.db")),
            fleet: FleetSettings { feeds: settings, ..FleetSettings::default() },
            all: false,
            log: LogSettings::default(),
            names: None,
        })
    }
}

/// Splits `[NAME=]URL`; without a name, host and path make one.
fn name_and_url(feed: &str) -> Result<(FeedName, String), UsageError> {
    let named = feed.split_once('=').filter(|(name, _)| !name.contains("://"));
    let (name, url) = named.map_or((None, feed), |(name, url)| (Some(name), url));
    let parsed = Url::parse(url).map_err(|error| UsageError(format!("{url} is not a URL: {error}")))?;
    if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
        return Err(UsageError(format!("{url} is neither http nor https")));
    }
    if parsed.fragment().is_some() {
        return Err(UsageError(format!("{url} has a fragment: leave out what follows #")));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(UsageError("a URL must hold no credentials: put them in a configuration's headers".to_owned()));
    }
    let name_text = name.map_or_else(|| name_from_url(&parsed), str::to_owned);
    let name = FeedName::new(&name_text).ok_or_else(|| {
        UsageError(format!("{name_text:?} can't name a feed: use a-z, 0-9, and after the first also . _ -"))
    })?;
    Ok((name, url.to_owned()))
}

fn name_from_url(url: &Url) -> String {
    let port = url.port().map(|port| format!("-{port}")).unwrap_or_default();
    let text = format!("{}{port}{}", url.host_str().unwrap_or_default(), url.path()).to_ascii_lowercase();
    let mut name = String::new();
    for c in text.chars() {
        let plain = c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
        match plain {
            true => name.push(c),
            false if name.ends_with('-') => {}
            false => name.push('-'),
        }
    }
    name.trim_matches(|c| "-._".contains(c)).to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn host_and_path_make_a_name() {
        for (url, expected) in [
            ("https://Acme.example/rpde/session-series", "acme.example-rpde-session-series"),
            ("https://acme.example/", "acme.example"),
            ("http://127.0.0.1:8480/sessions?limit=5", "127.0.0.1-8480-sessions"),
            ("https://acme.example/Feeds//A%20b/", "acme.example-feeds-a-20b"),
            ("http://[::1]:80/x", "1-x"),
        ] {
            let (name, kept) = name_and_url(url).unwrap();
            assert_eq!((name.as_str(), kept.as_str()), (expected, url));
        }
    }

    #[test]
    fn a_name_in_front_is_taken_and_an_equals_sign_in_the_url_is_not_one() {
        let (name, url) = name_and_url("acme=https://acme.example/f?a=b").unwrap();
        assert_eq!((name.as_str(), url.as_str()), ("acme", "https://acme.example/f?a=b"));
        let (name, _) = name_and_url("https://acme.example/f?a=b").unwrap();
        assert_eq!(name.as_str(), "acme.example-f");
    }

    #[test]
    fn what_can_not_be_a_feed_is_refused_with_the_reason() {
        for (feed, why) in [
            ("Acme=https://acme.example/", "can't name a feed"),
            ("ftp://acme.example/", "neither http nor https"),
            ("https://u:p@acme.example/", "no credentials"),
            ("https://acme.example/#x", "fragment"),
            ("https://", "not a URL"),
        ] {
            let error = name_and_url(feed).unwrap_err().0;
            assert!(error.contains(why), "{feed}: {error}");
        }
    }
}
