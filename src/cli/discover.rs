//! `discover`: reads a collection, a catalogue or a dataset site and makes configuration of the feeds found.
//!
//! An unreadable page never ends the crawl: it is reported, and the rest is read. Nothing is written without `--add`,
//! and then only files that `discover` itself made.

mod add;
mod current_config;
mod crawl;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;
use url::Url;

use super::{Exit, GlobalArgs, UsageError, lines, stdout};
use crate::discover::changes::{ChangeKind, CrawlResult, ListingChange, compare_listings};
use crate::discover::names::{KnownNames, NamedDataset, assign_names};
use crate::discover::provider_file::provider_tables;
use crate::source::address_policy::AddressPolicy;
use crate::terminal;
use crawl::{CrawlLimits, CrawlOutcome, crawl};
use current_config::CurrentConfig;

/// Arguments of `discover`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A collection, a catalogue or a dataset site
    #[arg(value_name = "URL")]
    url: String,
    /// Write a file for each dataset to DIR, by default where the configuration includes files from
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    add: Option<Option<PathBuf>>,
    /// Take feeds that their site doesn't list any more out of those files
    #[arg(long, requires = "add", conflicts_with = "diff")]
    prune: bool,
    /// Show what appeared, vanished and moved against the configuration (and DIR), and write nothing
    #[arg(long)]
    diff: bool,
    /// Print rows as JSON
    #[arg(long)]
    json: bool,
    /// Connect to private and local addresses too, and by the environment's proxy
    #[arg(long)]
    allow_private: bool,
    /// Read at most so many pages, catalogues included
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Stop reading after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// One feed found, as `--json` prints it.
#[derive(Serialize)]
struct Row<'a> {
    feed: &'a str,
    provider: &'a str,
    url: &'a str,
    kind: Option<&'a str>,
    total_items: Option<u64>,
    publisher: Option<&'a str>,
    license: Option<&'a str>,
    dataset: Option<&'a str>,
    dataset_url: &'a str,
}

/// Crawls, and prints, compares or writes what was found.
///
/// # Errors
/// When the URL itself can't be read, nothing was found, or the configuration or a file can't be used.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let from = start(&args.url)?;
    // The configuration is read before any request: a wrong folder should not cost a whole crawl.
    let current = match (args.diff, &args.add) {
        (false, None) => None,
        (diff, add) => Some(CurrentConfig::load(globals, add.as_ref().and_then(Option::as_deref), diff)?),
    };
    let guard = if args.allow_private { AddressPolicy::open() } else { AddressPolicy::public_only() };
    let limits = CrawlLimits { pages: args.limit as usize, time: Duration::from_secs(args.timeout) };
    let mut reporter = CrawlReporter { quiet: globals.quiet, problems: 0 };
    let found = super::runtime()?.block_on(crawl(&from, guard, limits, &mut reporter))?;
    let known = current.as_ref().map(|current| current.known.clone()).unwrap_or_default();
    let mut problems = Vec::new();
    let named = assign_names(found.datasets.clone(), &known, &mut problems);
    problems.iter().for_each(|problem| reporter.problem(problem));
    reporter.summary(&found);
    if found.datasets.iter().all(|dataset| dataset.feeds.is_empty()) && !args.diff {
        bail!("{from}: no feeds were found");
    }
    match current {
        None => show(&mut stdout(args.json), &named, args.json)?,
        Some(current) if args.diff => {
            let changes = changes(&from, &found, &named, &current.known);
            show_changes(&mut stdout(args.json), &changes, args.json)?;
        }
        Some(current) => {
            let changes = changes(&from, &found, &named, &current.known);
            add::run(globals, &current, &named, &changes, &from, args.prune, args.json)?;
        }
    }
    Ok(Exit::Done)
}

fn start(text: &str) -> Result<Url, UsageError> {
    let with_scheme = Url::parse(&format!("https://{text}")).ok().filter(|_| !text.contains("://"));
    if let Some(meant) =
        with_scheme.filter(|url| url.host_str().is_some_and(|host| host.contains('.') || host == "localhost"))
    {
        return Err(UsageError(format!("{text} is not a URL: it has no scheme; did you mean {meant}?")));
    }
    let url = Url::parse(text).map_err(|error| UsageError(format!("{text} is not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(UsageError(format!("{text} is neither http nor https")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UsageError("the URL must hold no credentials".to_owned()));
    }
    Ok(url)
}

fn changes(from: &Url, found: &CrawlOutcome, named: &[NamedDataset], known: &KnownNames) -> Vec<ListingChange> {
    let crawl_result = CrawlResult {
        from: from.as_str(),
        datasets: &found.datasets,
        unread_pages: &found.unread,
        is_complete: found.whole,
    };
    compare_listings(crawl_result, named, known)
}

fn show(out: &mut impl Write, named: &[NamedDataset], json: bool) -> io::Result<()> {
    if json {
        let rows =
            named.iter().flat_map(|named| named.names.iter().zip(&named.dataset.feeds).map(move |pair| (named, pair)));
        let rows = rows.map(|(named, (name, feed))| Row {
            feed: name,
            provider: &named.provider,
            url: &feed.url,
            kind: feed.kind.as_deref(),
            total_items: feed.total_items,
            publisher: named.dataset.publisher.as_deref(),
            license: named.dataset.license.as_deref(),
            dataset: named.dataset.name.as_deref(),
            dataset_url: &named.dataset.url,
        });
        return lines(out, &rows.collect::<Vec<_>>());
    }
    for (at, named) in named.iter().enumerate() {
        write!(out, "{}{}", if at > 0 { "\n" } else { "" }, provider_tables(named, &[]))?;
    }
    out.flush()
}

fn show_changes(out: &mut impl Write, changes: &[ListingChange], json: bool) -> io::Result<()> {
    if json {
        return lines(out, changes);
    }
    for change in changes {
        writeln!(out, "{}", in_words(change))?;
    }
    out.flush()
}

fn in_words(change: &ListingChange) -> String {
    let ListingChange { change: what, name, url, before, .. } = change;
    match what {
        ChangeKind::Appeared => format!("appeared: {name}: {url}"),
        ChangeKind::Vanished => format!("vanished: {name}: {url}"),
        ChangeKind::Moved => format!("moved: {name}: {} → {url}", before.as_deref().unwrap_or_default()),
        ChangeKind::SiteVanished => format!("site vanished: {name}: {url}"),
    }
}

/// What the crawl reports on standard error while it runs.
struct CrawlReporter {
    quiet: bool,
    problems: usize,
}

impl CrawlReporter {
    fn progress(&self, words: &str) {
        if !self.quiet {
            print_note(words);
        }
    }

    fn problem(&mut self, words: &str) {
        self.problems += 1;
        print_note(&format!("problem: {words}"));
    }

    fn summary(&self, found: &CrawlOutcome) {
        let feeds: usize = found.datasets.iter().map(|dataset| dataset.feeds.len()).sum();
        let counts = [
            counted(found.pages, "page"),
            counted(found.datasets.len(), "dataset"),
            counted(feeds, "feed"),
            counted(self.problems, "problem"),
        ];
        self.progress(&counts.join(", "));
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Nobody is left to tell when standard error is closed.
fn print_note(words: &str) {
    let _ = writeln!(io::stderr(), "feedmirror: {}", terminal::sanitise_line(words));
}
