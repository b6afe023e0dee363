//! `pause`, `resume`, `poll-now`, `resync`, `seek`, `purge`, and orders to quarantine rows.
//!
//! Guarantees: an order goes to the daemon that holds the database, and to the file itself only when nothing holds it.
//! What was done is one line a feed on standard output; a feed that can't be told doesn't keep the others from being
//! told.

mod daemon;
mod file;

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, bail};
use url::Url;

use super::place::Place;
use super::{Exit, Globals, stdout};
use crate::feed::FeedName;
use crate::store::is_held;
use crate::supervisor::control::{Chosen, Named, Order, QuarantineOrder};
use crate::terminal;
use daemon::Daemon;
use file::AtRest;

/// What `pause`, `resume` and `poll-now` are told.
#[derive(Clone, Debug, clap::Args)]
pub struct Feeds {
    /// The feeds' names
    #[arg(required = true, value_name = "FEED")]
    feeds: Vec<String>,
    #[command(flatten)]
    place: Place,
}

/// What `resync` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Resync {
    /// The feeds' names
    #[arg(required = true, value_name = "FEED")]
    feeds: Vec<String>,
    /// Let what the publisher says now replace what is newer: for one restored from a backup
    #[arg(long)]
    trust_source: bool,
    /// Let a held sweep remove what it would remove; with --trust-source: don't hold that one
    #[arg(long)]
    accept: bool,
    #[command(flatten)]
    place: Place,
}

/// What `seek` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Seek {
    /// The feed's name
    feed: String,
    /// Where its poll cursor goes: the URL of a page of this feed
    url: String,
    #[command(flatten)]
    place: Place,
}

/// What `purge` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Purge {
    /// The feeds' names
    #[arg(required = true, value_name = "FEED")]
    feeds: Vec<String>,
    /// Don't ask first; without a terminal nothing is asked
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    place: Place,
}

/// Stops feeds.
///
/// # Errors
/// When there is no configuration or no mirror, or the daemon can't be reached.
pub fn pause(globals: &Globals, args: Feeds) -> anyhow::Result<Exit> {
    tell(globals, &args.place, &args.feeds, &Order::Pause)
}

/// Lets feeds go on.
///
/// # Errors
/// As [`pause`].
pub fn resume(globals: &Globals, args: Feeds) -> anyhow::Result<Exit> {
    tell(globals, &args.place, &args.feeds, &Order::Resume)
}

/// Has feeds asked at once.
///
/// # Errors
/// As [`pause`].
pub fn poll_now(globals: &Globals, args: Feeds) -> anyhow::Result<Exit> {
    tell(globals, &args.place, &args.feeds, &Order::PollNow)
}

/// Has feeds read anew, or accepts held sweeps.
///
/// # Errors
/// As [`pause`].
pub fn resync(globals: &Globals, args: Resync) -> anyhow::Result<Exit> {
    let order = match args {
        Resync { trust_source: false, accept: true, .. } => Order::AcceptSweep,
        Resync { trust_source, accept, .. } => Order::Resync { trust_source, accept },
    };
    tell(globals, &args.place, &args.feeds, &order)
}

/// Puts a feed's poll cursor elsewhere.
///
/// # Errors
/// As [`pause`], and when the URL is none.
pub fn seek(globals: &Globals, args: Seek) -> anyhow::Result<Exit> {
    let parsed = Url::parse(&args.url).with_context(|| format!("{} is no URL", args.url))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        bail!("{} is neither http nor https", args.url);
    }
    tell(globals, &args.place, &[args.feed], &Order::Seek(args.url))
}

/// Removes feeds' rows.
///
/// # Errors
/// As [`pause`].
pub fn purge(globals: &Globals, args: Purge) -> anyhow::Result<Exit> {
    if !args.yes && !confirmed(&format!("remove all rows, quarantine and cursors of {}", args.feeds.join(", ")))? {
        bail!("nothing was removed");
    }
    tell(globals, &args.place, &args.feeds, &Order::Purge)
}

/// Gives a quarantine row an order: to be read again, or to be dropped.
pub(super) fn quarantine(globals: &Globals, place: &Place, id: i64, retry: bool) -> anyhow::Result<Exit> {
    let order = if retry { QuarantineOrder::Retry } else { QuarantineOrder::Drop };
    let words = super::runtime()?.block_on(async {
        match Holder::find(globals, place)? {
            Holder::Daemon(daemon) => daemon.quarantine(id, order).await,
            Holder::Nobody(file) => file.quarantine(id, order).await,
        }
    })?;
    say(&words)?;
    Ok(Exit::Done)
}

/// Gives many quarantine rows an order. A record that still can't be read makes it fail, whatever became of the others.
pub(super) fn sort(globals: &Globals, place: &Place, chosen: &Chosen, order: QuarantineOrder) -> anyhow::Result<Exit> {
    let (words, failed) = super::runtime()?.block_on(async {
        match Holder::find(globals, place)? {
            Holder::Daemon(daemon) => daemon.sort(chosen, order).await,
            Holder::Nobody(file) => file.sort(chosen, order).await,
        }
    })?;
    say(&words)?;
    Ok(if failed > 0 { Exit::Failed } else { Exit::Done })
}

/// Forgets an item, or lets it be taken again.
pub(super) fn forget(globals: &Globals, place: &Place, feed: String, item: Named, undo: bool) -> anyhow::Result<Exit> {
    tell(globals, place, &[feed], &Order::Forget { item, undo })
}

/// Renames a feed in a file that nothing holds; a daemon does it by `was`, when it is told to reload.
pub(super) fn rename(globals: &Globals, place: &Place, old: &str, new: &FeedName) -> anyhow::Result<Exit> {
    let words = super::runtime()?.block_on(async {
        match Holder::find(globals, place)? {
            Holder::Daemon(_) => bail!(
                "a daemon holds the database: write [feeds.{new}] with was = \"{old}\" in place of [feeds.{old}], and \
                 reload it (SIGHUP): it renames the feed then"
            ),
            Holder::Nobody(file) => file.rename(old, new).await,
        }
    })?;
    say(&words)?;
    Ok(Exit::Done)
}

/// Asks the daemon whether it is ready: whether its database can be written. It takes no token.
pub(super) fn ready(globals: &Globals, place: &Place) -> anyhow::Result<Exit> {
    let database = place.path(globals)?;
    super::runtime()?.block_on(daemon::ready(globals, place, &database))?;
    Ok(Exit::Done)
}

/// Who acts on the database.
enum Holder {
    Daemon(Daemon),
    Nobody(AtRest),
}

impl Holder {
    fn find(globals: &Globals, place: &Place) -> anyhow::Result<Self> {
        let path = place.path(globals)?;
        if !path.try_exists().with_context(|| format!("cannot look for {}", path.display()))? {
            bail!("there is no mirror at {}: `feedmirror run` or `sync` makes it", path.display());
        }
        match is_held(&path) {
            true => Ok(Self::Daemon(Daemon::of(globals, place, &path)?)),
            false => Ok(Self::Nobody(AtRest::open(&path)?)),
        }
    }
}

/// Gives each of these feeds an order.
pub(super) fn tell(globals: &Globals, place: &Place, feeds: &[String], order: &Order) -> anyhow::Result<Exit> {
    super::runtime()?.block_on(async {
        let holder = Holder::find(globals, place)?;
        let mut exit = Exit::Done;
        for feed in feeds {
            let told = match &holder {
                Holder::Daemon(daemon) => daemon.feed(feed, order).await,
                Holder::Nobody(file) => file.feed(feed, order).await,
            };
            match told {
                Ok(words) => say(&words)?,
                // The one failure is the command's own; of several each is told, and the others go on.
                Err(error) if feeds.len() == 1 => return Err(error),
                Err(error) => {
                    super::tell(&error);
                    exit = Exit::Failed;
                }
            }
        }
        Ok(exit)
    })
}

fn say(words: &str) -> io::Result<()> {
    writeln!(stdout(false), "{words}")
}

/// Asks on a terminal; without one the command line was the answer.
pub(super) fn confirmed(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    write!(io::stderr().lock(), "{}? [y/N] ", terminal::line(question))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
