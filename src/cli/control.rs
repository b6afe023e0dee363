//! `pause`, `resume`, `poll-now`, `resync`, `seek`, `purge`, and orders for quarantine rows.
//!
//! Guarantees: an order goes to the daemon that holds the database, and to the file itself only when no process holds
//! it. Each feed's result is one line on standard output; when an order fails for one feed, the other feeds still get
//! it.

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

/// Arguments of `pause`, `resume` and `poll-now`.
#[derive(Clone, Debug, clap::Args)]
pub struct FeedsArgs {
    /// The feeds' names
    #[arg(required = true, value_name = "FEED")]
    feeds: Vec<String>,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Arguments of `resync`.
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
    database_path: DatabasePath,
}

/// Arguments of `seek`.
#[derive(Clone, Debug, clap::Args)]
pub struct SeekArgs {
    /// The feed's name
    feed: String,
    /// Where its poll cursor goes: the URL of a page of this feed
    url: String,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Arguments of `purge`.
#[derive(Clone, Debug, clap::Args)]
pub struct PurgeArgs {
    /// The feeds' names
    #[arg(required = true, value_name = "FEED")]
    feeds: Vec<String>,
    /// Don't ask first; without a terminal nothing is asked
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Pauses feeds.
///
/// # Errors
/// When there is no configuration or no mirror, or the daemon can't be reached.
pub fn pause(globals: &GlobalArgs, args: FeedsArgs) -> anyhow::Result<Exit> {
    send_orders(globals, &args.database_path, &args.feeds, &Order::Pause)
}

/// Lets paused feeds go on.
///
/// # Errors
/// As [`pause`].
pub fn resume(globals: &GlobalArgs, args: FeedsArgs) -> anyhow::Result<Exit> {
    send_orders(globals, &args.database_path, &args.feeds, &Order::Resume)
}

/// Has feeds polled at once.
///
/// # Errors
/// As [`pause`].
pub fn poll_now(globals: &GlobalArgs, args: FeedsArgs) -> anyhow::Result<Exit> {
    send_orders(globals, &args.database_path, &args.feeds, &Order::PollNow)
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
    send_orders(globals, &args.database_path, &args.feeds, &order)
}

/// Sets a feed's poll cursor.
///
/// # Errors
/// As [`pause`], and when the argument is no URL.
pub fn seek(globals: &GlobalArgs, args: SeekArgs) -> anyhow::Result<Exit> {
    let parsed = Url::parse(&args.url).with_context(|| format!("{} is no URL", args.url))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        bail!("{} is neither http nor https", args.url);
    }
    send_orders(globals, &args.database_path, &[args.feed], &Order::Seek(args.url))
}

/// Removes feeds' rows.
///
/// # Errors
/// As [`pause`].
pub fn purge(globals: &GlobalArgs, args: PurgeArgs) -> anyhow::Result<Exit> {
    if !args.yes && !confirm(&format!("remove all rows, quarantine and cursors of {}", args.feeds.join(", ")))? {
        bail!("nothing was removed");
    }
    send_orders(globals, &args.database_path, &args.feeds, &Order::Purge)
}

/// Gives one quarantine row an order: to be read again, or to be dropped.
pub(super) fn quarantine(
    globals: &GlobalArgs,
    database_path: &DatabasePath,
    id: i64,
    retry: bool,
) -> anyhow::Result<Exit> {
    let order = if retry { QuarantineOrder::Retry } else { QuarantineOrder::Drop };
    let text = super::runtime()?.block_on(async {
        match OrderTarget::find(globals, database_path)? {
            OrderTarget::Daemon(daemon) => daemon.quarantine(id, order).await,
            OrderTarget::File(file) => file.quarantine(id, order).await,
        }
    })?;
    print_line(&text)?;
    Ok(Exit::Done)
}

/// Gives many quarantine rows an order. Exits 1 if a record still can't be read, whatever became of the others.
pub(super) fn quarantine_batch(
    globals: &GlobalArgs,
    database_path: &DatabasePath,
    selection: &QuarantineSelection,
    order: QuarantineOrder,
) -> anyhow::Result<Exit> {
    let (text, failed) = super::runtime()?.block_on(async {
        match OrderTarget::find(globals, database_path)? {
            OrderTarget::Daemon(daemon) => daemon.quarantine_batch(selection, order).await,
            OrderTarget::File(file) => file.quarantine_batch(selection, order).await,
        }
    })?;
    print_line(&text)?;
    Ok(if failed > 0 { Exit::Failed } else { Exit::Done })
}

/// Forgets an item, or with `undo` lets it be mirrored again.
pub(super) fn forget(
    globals: &GlobalArgs,
    database_path: &DatabasePath,
    feed: String,
    item: ItemSelector,
    undo: bool,
) -> anyhow::Result<Exit> {
    send_orders(globals, database_path, &[feed], &Order::Forget { item, undo })
}

/// Renames a feed in a file that no process holds; a daemon renames a feed on reload, by the key `was`.
pub(super) fn rename(
    globals: &GlobalArgs,
    database_path: &DatabasePath,
    old: &str,
    new: &FeedName,
) -> anyhow::Result<Exit> {
    let text = super::runtime()?.block_on(async {
        match OrderTarget::find(globals, database_path)? {
            OrderTarget::Daemon(_) => bail!(
                "a daemon holds the database: write [feeds.{new}] with was = \"{old}\" in place of [feeds.{old}], and \
                 reload it (SIGHUP): it renames the feed then"
            ),
            OrderTarget::File(file) => file.rename(old, new).await,
        }
    })?;
    print_line(&text)?;
    Ok(Exit::Done)
}

/// Asks the daemon whether it is ready, that is, whether its database can be written. This needs no token.
pub(super) fn ready(globals: &GlobalArgs, database_path: &DatabasePath) -> anyhow::Result<Exit> {
    let database = database_path.path(globals)?;
    super::runtime()?.block_on(daemon::ready(globals, database_path, &database))?;
    Ok(Exit::Done)
}

/// The process that acts on the database: the daemon that holds it, or this one.
enum OrderTarget {
    Daemon(DaemonClient),
    File(FileOrders),
}

impl OrderTarget {
    fn find(globals: &GlobalArgs, database_path: &DatabasePath) -> anyhow::Result<Self> {
        let path = database_path.path(globals)?;
        if !path.try_exists().with_context(|| format!("cannot look for {}", path.display()))? {
            bail!("there is no mirror at {}: `feedmirror run` or `sync` makes it", path.display());
        }
        match is_in_use(&path) {
            true => Ok(Self::Daemon(DaemonClient::of(globals, database_path, &path)?)),
            false => Ok(Self::File(FileOrders::open(&path)?)),
        }
    }
}

/// Gives each of these feeds an order.
pub(super) fn send_orders(
    globals: &GlobalArgs,
    database_path: &DatabasePath,
    feeds: &[String],
    order: &Order,
) -> anyhow::Result<Exit> {
    super::runtime()?.block_on(async {
        let target = OrderTarget::find(globals, database_path)?;
        let mut exit = Exit::Done;
        for feed in feeds {
            let result = match &target {
                OrderTarget::Daemon(daemon) => daemon.feed(feed, order).await,
                OrderTarget::File(file) => file.feed(feed, order).await,
            };
            match result {
                Ok(text) => print_line(&text)?,
                // The failure of a single feed is the command's own; of several feeds each failure is printed, and the
                // others go on.
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

/// Asks for confirmation on a terminal; without a terminal, giving the command is the confirmation.
pub(super) fn confirm(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    write!(io::stderr().lock(), "{}? [y/N] ", terminal::sanitise_line(question))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
