//! `sync`: brings feeds level once, shows progress, and prints a summary.

mod progress;
mod summary;
mod targets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Exit, GlobalArgs, stdout};
use crate::config::{LogSettings, Overrides};
use crate::daemon;
use crate::feed::Mode;
use crate::source::client::HttpClients;
use crate::source::host_limiter::HostLimiter;
use crate::store::read::Reader;
use crate::store::{Intake, Store, StoreError, now};
use crate::supervisor::ConfiguredFeed;
use crate::supervisor::endpoints::poll_only_state;
use crate::supervisor::fleet::build_feed;
use crate::supervisor::housekeeping;
use crate::supervisor::registration::configure;
use crate::supervisor::sync::{SyncOutcome, sync_feed};
use crate::worker::{FeedCounters, FeedRuntime, WorkerContext};
use progress::Progress;
use summary::FeedSummary;
use targets::SyncTargets;

/// Arguments of `sync`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Feeds to bring level: URLs, each with a name in front if you like; or names from the configuration (all if none)
    #[arg(value_name = "[NAME=]URL|FEED")]
    feeds: Vec<String>,
    /// The SQLite file [default: mirror.db, or the configuration's]
    #[arg(long, value_name = "FILE", env = "FEEDMIRROR_DB")]
    db: Option<PathBuf>,
    /// Give a feed up after this many failures in a row
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// Print the summary as JSON, a line for each feed
    #[arg(long)]
    json: bool,
}

/// How long `sync` waits for a database that can't be written.
const BLOCKED_TIMEOUT: Duration = Duration::from_secs(5);

/// One feed that is being brought level.
struct FeedSync {
    name: String,
    expected: Option<LoadEstimate>,
    counts: Arc<FeedCounters>,
    began: Instant,
}

/// The size of a first load, as the dataset site states it.
#[derive(Clone, Copy)]
struct LoadEstimate {
    /// Items that the mirror already has.
    before: u64,
    /// About how many it will have in the end.
    total: u64,
}

/// Brings the feeds level.
///
/// # Errors
/// When the command line, the configuration or the database can't be used.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let targets = SyncTargets::of(globals, &args.feeds, args.db.as_ref(), &Overrides::default())?;
    // Failures are in the summary: while progress bars are shown, log lines would break them up.
    let quiet_log =
        LogSettings { level: if progress::is_watched(globals) { "off" } else { "warn" }.into(), ..targets.log.clone() };
    super::log::start(globals, &quiet_log)?;
    let runtime = super::runtime()?;
    let exit = runtime.block_on(async {
        tokio::select! {
            exit = sync_targets(globals, targets, &args) => exit,
            () = signals(2) => Ok(Exit::Failed),
        }
    });
    runtime.shutdown_background();
    exit
}

async fn sync_targets(globals: &GlobalArgs, targets: SyncTargets, args: &Args) -> anyhow::Result<Exit> {
    let database = targets.database.clone();
    let (context, store_guard) = tokio::task::spawn_blocking(move || daemon::open(&database)).await??;
    let cancel = CancellationToken::new();
    let signal_task = tokio::spawn(cancel_on_signals(cancel.clone()));
    let began = Instant::now();
    let rows = tokio::select! {
        rows = sync_and_clean_up(globals, &targets, &context, args.tries, &cancel) => rows,
        problem = wait_until_blocked(&context.store) => Err(problem.into()),
    };
    signal_task.abort();
    let broken = match &*context.store.intake().borrow() {
        Intake::Broken(problem) => {
            Some(StoreError::Unusable { path: targets.database.clone(), problem: problem.clone() })
        }
        _ => None,
    };
    drop(context);
    tokio::task::spawn_blocking(move || store_guard.finish()).await?;
    if let Some(broken) = broken {
        return Err(broken.into());
    }
    let mut rows = rows?;
    read_counts(&targets, &mut rows)?;
    summary::print(&mut stdout(args.json), &rows, began.elapsed(), args.json, &targets.database)?;
    Ok(if rows.iter().all(FeedSummary::is_well) { Exit::Done } else { Exit::NotLevel })
}

async fn sync_and_clean_up(
    globals: &GlobalArgs,
    targets: &SyncTargets,
    context: &WorkerContext,
    tries: u32,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<FeedSummary>> {
    let rows = sync_feeds(globals, targets, context, tries, cancel).await?;
    if !cancel.is_cancelled() && *context.store.intake().borrow() == Intake::Open {
        housekeeping::remove_purged(&context.store).await?;
        housekeeping::run_once(&context.store, &targets.fleet.keep_settings).await?;
    }
    Ok(rows)
}

/// Returns once the store could write nothing for [`BLOCKED_TIMEOUT`]: the user should then be told why.
async fn wait_until_blocked(store: &Store) -> StoreError {
    let mut intake = store.intake();
    loop {
        let problem = match intake.wait_for(|intake| matches!(intake, Intake::Blocked(_))).await.as_deref() {
            Ok(Intake::Blocked(problem)) => problem.clone(),
            _ => return std::future::pending().await,
        };
        let open = intake.wait_for(|intake| *intake == Intake::Open);
        if tokio::time::timeout(BLOCKED_TIMEOUT, open).await.is_err() {
            return StoreError::Unavailable { path: store.path().to_owned(), problem };
        }
    }
}

async fn sync_feeds(
    globals: &GlobalArgs,
    targets: &SyncTargets,
    context: &WorkerContext,
    tries: u32,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<FeedSummary>> {
    let store = &context.store;
    store.record_start(now(), None, None).await?;
    let stored = configure(store, &targets.fleet, targets.all).await?;
    let (clients, host_limiter) = (HttpClients::default(), HostLimiter::new(targets.fleet.hosts.clone()));
    let expected = load_estimates(&targets.database)?;
    let mut progress = Progress::start(globals, &targets.database);
    let mut tasks: JoinSet<FeedSummary> = JoinSet::new();
    let mut rows = Vec::new();
    for (configured, stored) in targets.fleet.feeds.iter().zip(&stored) {
        if !targets.includes(configured.name()) {
            continue;
        }
        let name = configured.name().to_string();
        let expected = expected.get(&name).copied();
        let feed_sync = FeedSync { name, expected, counts: Arc::default(), began: Instant::now() };
        let settings = match configured {
            ConfiguredFeed::Ready(settings) => settings,
            ConfiguredFeed::Broken { reason, .. } => {
                rows.push(FeedSummary::new(&feed_sync, SyncOutcome::GivenUp(format!("settings: {reason}"))));
                continue;
            }
        };
        match build_feed(
            context,
            &clients,
            &host_limiter,
            settings,
            stored.id,
            Arc::clone(&feed_sync.counts),
            poll_only_state(settings, stored),
        ) {
            Ok(feed) => {
                progress.add(&feed_sync);
                let cancel = cancel.clone();
                tasks.spawn(sync_one(feed_sync, Arc::new(feed), tries, cancel));
            }
            Err(failure) => rows.push(FeedSummary::new(&feed_sync, SyncOutcome::GivenUp(failure.to_string()))),
        }
    }
    loop {
        tokio::select! {
            result = tasks.join_next() => match result {
                Some(row) => {
                    let row = row?;
                    progress.finish_feed(&row);
                    rows.push(row);
                }
                None => break,
            },
            () = progress.tick() => {}
        }
    }
    progress.finish();
    rows.sort_by(|a, b| a.feed.cmp(&b.feed));
    Ok(rows)
}

fn load_estimates(database: &Path) -> Result<BTreeMap<String, LoadEstimate>, StoreError> {
    let feeds = Reader::open(database)?.feeds(&[])?;
    let loading = feeds.into_iter().filter(|feed| feed.mode == Mode::Refresh.as_str());
    let expected = loading.filter_map(|feed| {
        let (before, total) = (u64::try_from(feed.items).ok()?, u64::try_from(feed.total_items?).ok()?);
        Some((feed.name, LoadEstimate { before, total }))
    });
    Ok(expected.collect())
}

async fn sync_one(feed_sync: FeedSync, feed: Arc<FeedRuntime>, tries: u32, cancel: CancellationToken) -> FeedSummary {
    let outcome = sync_feed(&feed, tries, &cancel).await;
    FeedSummary::new(&feed_sync, outcome)
}

/// The first signal cancels the feeds' walks; a second one ends the process at once.
async fn cancel_on_signals(cancel: CancellationToken) {
    signals(1).await;
    cancel.cancel();
}

/// Returns once SIGTERM or SIGINT came `count` times; never where signals can't be watched.
async fn signals(count: usize) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    for _ in 0..count {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
    }
}

fn read_counts(targets: &SyncTargets, rows: &mut [FeedSummary]) -> Result<(), StoreError> {
    let feeds = Reader::open(&targets.database)?.feeds(&[])?;
    for row in rows {
        if let Some(feed) = feeds.iter().find(|feed| feed.name == row.feed) {
            (row.items, row.tombstones) = (feed.items, feed.tombstones);
            // A feed may be level and still need attention: a held sweep, a publisher that went back, an end without
            // the standard's sign.
            if row.trouble.is_none() {
                row.remark = feed.reason.clone();
            }
        }
    }
    Ok(())
}
