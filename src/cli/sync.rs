//! `sync`: brings feeds level once, shows how it goes, and ends with a summary that a person can read.

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

/// What `sync` is told.
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

/// How long a database that can't be written is waited for.
const BLOCKED_TIMEOUT: Duration = Duration::from_secs(5);

/// One feed on its way.
struct FeedSync {
    name: String,
    expected: Option<LoadEstimate>,
    counts: Arc<FeedCounters>,
    began: Instant,
}

/// What a first load comes to, as its dataset site says.
#[derive(Clone, Copy)]
struct LoadEstimate {
    /// Items that are there already.
    before: u64,
    /// About as many in the end.
    total: u64,
}

/// Brings the feeds level.
///
/// # Errors
/// When the command line, the configuration or the database can't be used.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let targets = SyncTargets::of(globals, &args.feeds, args.db.as_ref(), &Overrides::default())?;
    // Failures stand in the summary: while a person watches bars, the log would only tear them.
    let quiet_log =
        LogSettings { level: if progress::is_watched(globals) { "off" } else { "warn" }.into(), ..targets.log.clone() };
    super::log::start(globals, &quiet_log)?;
    let runtime = super::runtime()?;
    let exit = runtime.block_on(async {
        tokio::select! {
            exit = bring(globals, targets, &args) => exit,
            () = signals(2) => Ok(Exit::Failed),
        }
    });
    runtime.shutdown_background();
    exit
}

async fn bring(globals: &GlobalArgs, targets: SyncTargets, args: &Args) -> anyhow::Result<Exit> {
    let database = targets.database.clone();
    let (shared, closing) = tokio::task::spawn_blocking(move || daemon::open(&database)).await??;
    let cancel = CancellationToken::new();
    let interrupted = tokio::spawn(cancel_on_signals(cancel.clone()));
    let began = Instant::now();
    let rows = tokio::select! {
        rows = sync_and_clean_up(globals, &targets, &shared, args.tries, &cancel) => rows,
        blocked = blocked(&shared.store) => Err(blocked.into()),
    };
    interrupted.abort();
    let broken = match &*shared.store.intake().borrow() {
        Intake::Broken(problem) => {
            Some(StoreError::Unusable { path: targets.database.clone(), problem: problem.clone() })
        }
        _ => None,
    };
    drop(shared);
    tokio::task::spawn_blocking(move || closing.finish()).await?;
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
    shared: &WorkerContext,
    tries: u32,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<FeedSummary>> {
    let rows = bring_all(globals, targets, shared, tries, cancel).await?;
    if !cancel.is_cancelled() && *shared.store.intake().borrow() == Intake::Open {
        housekeeping::remove_purged(&shared.store).await?;
        housekeeping::run_once(&shared.store, &targets.fleet.keep_settings).await?;
    }
    Ok(rows)
}

/// Returns once nothing could be written for so long that whoever waits for the end is better told why.
async fn blocked(store: &Store) -> StoreError {
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

async fn bring_all(
    globals: &GlobalArgs,
    targets: &SyncTargets,
    shared: &WorkerContext,
    tries: u32,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<FeedSummary>> {
    let store = &shared.store;
    store.record_start(now(), None, None).await?;
    let stored = configure(store, &targets.fleet, targets.all).await?;
    let (clients, turns) = (HttpClients::default(), HostLimiter::new(targets.fleet.hosts.clone()));
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
        let run = FeedSync { name, expected, counts: Arc::default(), began: Instant::now() };
        let settings = match configured {
            ConfiguredFeed::Ready(settings) => settings,
            ConfiguredFeed::Broken { reason, .. } => {
                rows.push(FeedSummary::new(&run, SyncOutcome::GivenUp(format!("settings: {reason}"))));
                continue;
            }
        };
        match build_feed(
            shared,
            &clients,
            &turns,
            settings,
            stored.id,
            Arc::clone(&run.counts),
            poll_only_state(settings, stored),
        ) {
            Ok(feed) => {
                progress.add(&run);
                let cancel = cancel.clone();
                tasks.spawn(one(run, Arc::new(feed), tries, cancel));
            }
            Err(failure) => rows.push(FeedSummary::new(&run, SyncOutcome::GivenUp(failure.to_string()))),
        }
    }
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
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

async fn one(run: FeedSync, feed: Arc<FeedRuntime>, tries: u32, cancel: CancellationToken) -> FeedSummary {
    let brought = sync_feed(&feed, tries, &cancel).await;
    FeedSummary::new(&run, brought)
}

/// The first signal ends the feeds' walks; a second one ends the process, whatever it waits for.
async fn cancel_on_signals(cancel: CancellationToken) {
    signals(1).await;
    cancel.cancel();
}

/// Returns once so many signals have come that ask for the end; never where they can't be watched.
async fn signals(count: usize) {
    let (Ok(mut end), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    for _ in 0..count {
        tokio::select! { _ = end.recv() => {} _ = interrupt.recv() => {} }
    }
}

fn read_counts(targets: &SyncTargets, rows: &mut [FeedSummary]) -> Result<(), StoreError> {
    let feeds = Reader::open(&targets.database)?.feeds(&[])?;
    for row in rows {
        if let Some(feed) = feeds.iter().find(|feed| feed.name == row.feed) {
            (row.items, row.tombstones) = (feed.items, feed.tombstones);
            // A feed may be level and yet need a look: a held sweep, a publisher that went back, an end that shows not as one.
            if row.trouble.is_none() {
                row.remark = feed.reason.clone();
            }
        }
    }
    Ok(())
}
