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

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, stdout};
use crate::feed::FeedName;
use crate::store::is_in_use;
use crate::supervisor::control::{ItemSelector, Order, QuarantineOrder, QuarantineSelection};
use crate::terminal;
use daemon::DaemonClient;
use file::FileOrders;

/// What `pause`, `resume` and `poll-now` are told.
#[derive(Clone, Debug, clap::Args)]
pub struct FeedsArgs {
    /// The feeds' names
    #[arg(required = true, value_name = "FEED")]
    feeds: Vec<String>,
    #[command(flatten)]
    place: DatabasePath,
}

/// What `resync` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct ResyncArgs {
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
    place: DatabasePath,
}

/// What `seek` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct SeekArgs {
    /// The feed's name
    feed: String,
    /// Where its poll cursor goes: the URL of a page of this feed
    url: String,
    #[command(flatten)]
    place: DatabasePath,
}

/// What `purge` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct PurgeArgs {
    /// The feeds' names
    #[arg(required = true, value_name = "FEED")]
    feeds: Vec<String>,
    /// Don't ask first; without a terminal nothing is asked
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    place: DatabasePath,
}

/// Stops feeds.
///
/// # Errors
/// When there is no configuration or no mirror, or the daemon can't be reached.
pub fn pause(globals: &GlobalArgs, args: FeedsArgs) -> anyhow::Result<Exit> {
    send_orders(globals, &args.place, &args.feeds, &Order::Pause)
}

/// Lets feeds go on.
///
/// # Errors
/// As [`pause`].
pub fn resume(globals: &GlobalArgs, args: FeedsArgs) -> anyhow::Result<Exit> {
    send_orders(globals, &args.place, &args.feeds, &Order::Resume)
}

/// Has feeds asked at once.
///
/// # Errors
/// As [`pause`].
pub fn poll_now(globals: &GlobalArgs, args: FeedsArgs) -> anyhow::Result<Exit> {
    send_orders(globals, &args.place, &args.feeds, &Order::PollNow)
}

/// Has feeds read anew, or accepts held sweeps.
///
/// # Errors
/// As [`pause`].
pub fn resync(globals: &GlobalArgs, args: ResyncArgs) -> anyhow::Result<Exit> {
    let order = match args {
        ResyncArgs { trust_source: false, accept: true, .. } => Order::AcceptSweep,
        ResyncArgs { trust_source, accept, .. } => Order::Resync { trust_source, accept },
    };
    send_orders(globals, &args.place, &args.feeds, &order)
}

/// Puts a feed's poll cursor elsewhere.
///
/// # Errors
/// As [`pause`], and when the URL is none.
pub fn seek(globals: &GlobalArgs, args: SeekArgs) -> anyhow::Result<Exit> {
    let parsed = Url::parse(&args.url).with_context(|| format!("{} is no URL", args.url))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        bail!("{} is neither http nor https", args.url);
    }
    send_orders(globals, &args.place, &[args.feed], &Order::Seek(args.url))
}

/// Removes feeds' rows.
///
/// # Errors
/// As [`pause`].
pub fn purge(globals: &GlobalArgs, args: PurgeArgs) -> anyhow::Result<Exit> {
    if !args.yes && !confirm(&format!("remove all rows, quarantine and cursors of {}", args.feeds.join(", ")))? {
        bail!("nothing was removed");
    }
    send_orders(globals, &args.place, &args.feeds, &Order::Purge)
}

/// Gives a quarantine row an order: to be read again, or to be dropped.
pub(super) fn quarantine(globals: &GlobalArgs, place: &DatabasePath, id: i64, retry: bool) -> anyhow::Result<Exit> {
    let order = if retry { QuarantineOrder::Retry } else { QuarantineOrder::Drop };
    let words = super::runtime()?.block_on(async {
        match OrderTarget::find(globals, place)? {
            OrderTarget::Daemon(daemon) => daemon.quarantine(id, order).await,
            OrderTarget::File(file) => file.quarantine(id, order).await,
        }
    })?;
    print_line(&words)?;
    Ok(Exit::Done)
}

/// Gives many quarantine rows an order. A record that still can't be read makes it fail, whatever became of the others.
pub(super) fn sort(
    globals: &GlobalArgs,
    place: &DatabasePath,
    chosen: &QuarantineSelection,
    order: QuarantineOrder,
) -> anyhow::Result<Exit> {
    let (words, failed) = super::runtime()?.block_on(async {
        match OrderTarget::find(globals, place)? {
            OrderTarget::Daemon(daemon) => daemon.sort(chosen, order).await,
            OrderTarget::File(file) => file.sort(chosen, order).await,
        }
    })?;
    print_line(&words)?;
    Ok(if failed > 0 { Exit::Failed } else { Exit::Done })
}

/// Forgets an item, or lets it be taken again.
pub(super) fn forget(
    globals: &GlobalArgs,
    place: &DatabasePath,
    feed: String,
    item: ItemSelector,
    undo: bool,
) -> anyhow::Result<Exit> {
    send_orders(globals, place, &[feed], &Order::Forget { item, undo })
}

/// Renames a feed in a file that nothing holds; a daemon does it by `was`, when it is told to reload.
pub(super) fn rename(globals: &GlobalArgs, place: &DatabasePath, old: &str, new: &FeedName) -> anyhow::Result<Exit> {
    let words = super::runtime()?.block_on(async {
        match OrderTarget::find(globals, place)? {
            OrderTarget::Daemon(_) => bail!(
                "a daemon holds the database: write [feeds.{new}] with was = \"{old}\" in place of [feeds.{old}], and \
                 reload it (SIGHUP): it renames the feed then"
            ),
            OrderTarget::File(file) => file.rename(old, new).await,
        }
    })?;
    print_line(&words)?;
    Ok(Exit::Done)
}

/// Asks the daemon whether it is ready: whether its database can be written. It takes no token.
pub(super) fn ready(globals: &GlobalArgs, place: &DatabasePath) -> anyhow::Result<Exit> {
    let database = place.path(globals)?;
    super::runtime()?.block_on(daemon::ready(globals, place, &database))?;
    Ok(Exit::Done)
}

/// Who acts on the database.
enum OrderTarget {
    Daemon(DaemonClient),
    File(FileOrders),
}

impl OrderTarget {
    fn find(globals: &GlobalArgs, place: &DatabasePath) -> anyhow::Result<Self> {
        let path = place.path(globals)?;
        if !path.try_exists().with_context(|| format!("cannot look for {}", path.display()))? {
            bail!("there is no mirror at {}: `feedmirror run` or `sync` makes it", path.display());
        }
        match is_in_use(&path) {
            true => Ok(Self::Daemon(DaemonClient::of(globals, place, &path)?)),
            false => Ok(Self::File(FileOrders::open(&path)?)),
        }
    }
}

/// Gives each of these feeds an order.
pub(super) fn send_orders(
    globals: &GlobalArgs,
    place: &DatabasePath,
    feeds: &[String],
    order: &Order,
) -> anyhow::Result<Exit> {
    super::runtime()?.block_on(async {
        let holder = OrderTarget::find(globals, place)?;
        let mut exit = Exit::Done;
        for feed in feeds {
            let told = match &holder {
                OrderTarget::Daemon(daemon) => daemon.feed(feed, order).await,
                OrderTarget::File(file) => file.feed(feed, order).await,
            };
            match told {
                Ok(words) => print_line(&words)?,
                // The one failure is the command's own; of several each is told, and the others go on.
                Err(error) if feeds.len() == 1 => return Err(error),
                Err(error) => {
                    super::print_error(&error);
                    exit = Exit::Failed;
                }
            }
        }
        Ok(exit)
    })
}

fn print_line(words: &str) -> io::Result<()> {
    writeln!(stdout(false), "{words}")
}

/// Asks on a terminal; without one the command line was the answer.
pub(super) fn confirm(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    write!(io::stderr().lock(), "{}? [y/N] ", terminal::sanitise_line(question))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
