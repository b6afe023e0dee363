//! The daemon as a function: takes bound listeners and a token that ends it, and puts store, supervisor and server
//! together. Knows no signals, no command line and no configuration files.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::feed::FeedName;
use crate::output::metrics::{FeedCounts, Own};
use crate::server;
use crate::source::budget::Budget;
use crate::source::webhook::places::Places;
use crate::source::webhook::tls::Tls;
use crate::source::webhook::{self, Inbox, WebhooksSettings};
use crate::store::{Closing, Intake, Store, StoreError, now};
use crate::supervisor::Fleet;
use crate::supervisor::control::{self, Control};
use crate::supervisor::fleet::{Roster, Supervisor};
use crate::worker::Shared;

/// Bytes that all pages in flight may hold together (see ARCHITECTURE, "memory").
const BUDGET_BYTES: u64 = 48 << 20;
/// What the loops get to finish their transaction; the store's end gets as much again, of the 5 s there are.
const DRAIN: Duration = Duration::from_secs(2);
/// A writer that gives no answer for this long, though nothing keeps it from writing, hangs.
const WRITER_ANSWERS: Duration = Duration::from_secs(20);

/// How often it is looked whether strangers took all places, and told at most.
const STRANGERS_LOOKED_AT: Duration = Duration::from_secs(5);
const STRANGERS_TOLD: Duration = Duration::from_secs(3600);

/// What systemd shows while nothing is wrong.
const MIRRORING: &str = "mirroring";

/// What a daemon runs with.
pub struct Setup {
    /// The SQLite file.
    pub database: PathBuf,
    /// The feeds.
    pub fleet: Fleet,
    /// The operators' listener.
    pub listener: TcpListener,
    /// Their token.
    pub token: SecretString,
    /// The listener that publishers post to; none while there is none.
    pub webhooks: Option<Webhooks>,
    /// One that a reload begins.
    pub webhooks_later: Option<mpsc::Receiver<Webhooks>>,
}

/// Where publishers post.
pub struct Webhooks {
    /// Its listener.
    pub listener: TcpListener,
    /// What it takes.
    pub settings: WebhooksSettings,
    /// Its certificate; plain without one.
    pub tls: Option<Tls>,
}

/// Opens the file and what all endpoints share. Blocking.
///
/// # Errors
/// When the file can't be used.
pub fn open(database: &std::path::Path) -> Result<(Shared, Closing), StoreError> {
    let (store, closing) = Store::open(database)?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let shared = Shared { store, budget: Budget::new(BUDGET_BYTES), decoders: Arc::new(Semaphore::new(cores)) };
    Ok((shared, closing))
}

/// Runs until `shutdown`, or until the file is found damaged.
///
/// # Errors
/// When the file can't be used, or no longer.
pub async fn run(setup: Setup, reloads: mpsc::Receiver<Fleet>, shutdown: CancellationToken) -> Result<(), StoreError> {
    let database = setup.database.clone();
    let (shared, closing) = off_thread(move || open(&database)).await??;
    let result = serve(&shared, setup, reloads, shutdown).await;
    if let Ok(Err(_)) | Err(_) = tokio::time::timeout(DRAIN, off_thread(move || closing.finish())).await {
        tracing::warn!("the end of the last write-back was not awaited; the next start does it");
    }
    result
}

async fn serve(
    shared: &Shared,
    setup: Setup,
    reloads: mpsc::Receiver<Fleet>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let store = &shared.store;
    let address = setup.listener.local_addr().ok().map(|address| address.to_string());
    let webhooks = setup.webhooks.as_ref().and_then(|webhooks| webhooks.listener.local_addr().ok());
    let webhooks = webhooks.map(|address| address.to_string());
    store.started(now(), address.clone(), webhooks.clone()).await?;
    let inbox = Inbox::default();
    let mut supervisor = Supervisor::new(shared.clone(), inbox.clone());
    supervisor.load(setup.fleet).await?;
    let roster = supervisor.roster();
    let (control, orders) = control::channel();
    let (ready, readiness) = watch::channel(None);
    let ops = server::Ops {
        database: setup.database,
        control: control.clone(),
        token: setup.token,
        ready: readiness,
        live: Arc::new(move || counts(&roster)),
        own: {
            let (store, budget) = (store.clone(), shared.budget.clone());
            Arc::new(move || own(&store, &budget))
        },
    };
    // Its own token: what ends because of `shutdown` must not look as if it had ended by itself.
    let ended = CancellationToken::new();
    let mut supervising = tokio::spawn(supervisor.run(orders, reloads, ended.clone()));
    let mut serving = tokio::spawn(server::serve(setup.listener, ops, ended.clone()));
    let mut taking = tokio::spawn({
        let (shared, ended, begun) = (shared.clone(), ended.clone(), setup.webhooks);
        async move {
            let Some(webhooks) = first(begun, setup.webhooks_later, &shared.store, &ended).await else { return Ok(()) };
            let places = Places::of_publishers(webhooks.settings.trusted_proxies.clone());
            let router = webhook::router(inbox, &webhooks.settings, shared.budget.clone());
            let serving =
                server::serve_webhooks(webhooks.listener, webhooks.tls, places.clone(), router, ended.clone());
            let telling = tell_of_strangers(&shared.store, &places);
            tokio::select! { served = serving => served, () = telling => Ok(()) }
        }
    });
    let watching = tokio::spawn(watch(store.clone(), control, ready, ended.clone()));
    tracing::info!(ops = address, webhooks, database = %store.path().display(), "running");
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(MIRRORING)]);
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        broken = broken(store) => Err(broken),
        _ = &mut supervising => Err(StoreError::Refused("the supervisor fell over".into())),
        served = &mut serving => Err(StoreError::Refused(format!("the operators' listener ended: {served:?}"))),
        served = &mut taking => Err(StoreError::Refused(format!("the webhook listener ended: {served:?}"))),
    };
    notify(&[sd_notify::NotifyState::Stopping, sd_notify::NotifyState::Status("stopping")]);
    if result.is_ok() {
        // Where nothing can be written, the end goes unrecorded: the log says it.
        let recorded = tokio::time::timeout(DRAIN / 4, store.event(None, now(), "stopped", "asked to")).await;
        tracing::info!(recorded = recorded.is_ok(), "stopping");
    }
    ended.cancel();
    for task in [supervising.abort_handle(), serving.abort_handle(), taking.abort_handle(), watching.abort_handle()] {
        let end = async {
            while !task.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DRAIN, end).await.is_err() {
            task.abort();
        }
    }
    result
}

/// The publishers' listener, once there is one; nothing when the end comes before.
async fn first(
    begun: Option<Webhooks>,
    later: Option<mpsc::Receiver<Webhooks>>,
    store: &Store,
    ended: &CancellationToken,
) -> Option<Webhooks> {
    if begun.is_some() {
        return begun;
    }
    let coming = async {
        match later {
            Some(mut later) => match later.recv().await {
                Some(webhooks) => webhooks,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    };
    let webhooks = tokio::select! { webhooks = coming => webhooks, () = ended.cancelled() => return None };
    let address = webhooks.listener.local_addr().ok().map(|address| address.to_string());
    tracing::info!(webhooks = address, "listening for publishers");
    if let Err(error) = store.webhooks_listen(address).await {
        tracing::warn!(%error, "the webhook listener's address could not be written down");
    }
    Some(webhooks)
}

/// Writes down, once an hour at most, that strangers took all places.
async fn tell_of_strangers(store: &Store, places: &Places) {
    let mut told = 0;
    loop {
        tokio::time::sleep(STRANGERS_LOOKED_AT).await;
        let dropped = places.dropped();
        if dropped == told {
            continue;
        }
        let detail = format!("the webhook listener dropped {} silent connections to make room", dropped - told);
        if let Err(error) = store.event(None, now(), "crowded", &detail).await {
            tracing::warn!(%error, detail, "an event could not be written");
        }
        told = dropped;
        tokio::time::sleep(STRANGERS_TOLD).await;
    }
}

fn counts(roster: &Roster) -> Vec<FeedCounts> {
    let counts = |done: crate::supervisor::fleet::Done| FeedCounts {
        feed: FeedName::to_string(&done.feed),
        pages: done.pages,
        bytes: done.bytes,
        records: done.records,
        written: done.written,
        quarantined: done.quarantined,
        outcomes: done.outcomes,
        polls: done.polls,
    };
    roster.done().into_iter().map(counts).collect()
}

fn own(store: &Store, budget: &Budget) -> Own {
    let (queued_small, queued_large) = store.queue_depths();
    let (budget_bytes, budget_used_bytes) = budget.bytes();
    let (commits, pinned_bytes) = (store.commits(), store.pinned_bytes());
    Own { commits, queued_small, queued_large, pinned_bytes, budget_bytes, budget_used_bytes }
}

async fn broken(store: &Store) -> StoreError {
    let mut intake = store.intake();
    let problem = match intake.wait_for(|intake| matches!(intake, Intake::Broken(_))).await.as_deref() {
        Ok(Intake::Broken(problem)) => problem.clone(),
        _ => "the writer has ended".to_owned(),
    };
    StoreError::Unusable { path: store.path().to_owned(), problem }
}

/// Tells readiness as the store's intake changes, and feeds systemd's watchdog while supervisor and writer answer.
async fn watch(store: Store, control: Control, ready: watch::Sender<Option<String>>, ended: CancellationToken) {
    let every = sd_notify::watchdog_enabled().map_or(Duration::from_secs(15), |limit| limit / 3);
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut intake, mut pinned) = (store.intake(), store.pinned());
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            Ok(()) = intake.changed() => {
                let reason = blocked(&intake.borrow_and_update());
                let status = reason.as_deref().unwrap_or(MIRRORING);
                notify(&[sd_notify::NotifyState::Status(status)]);
                ready.send_replace(reason);
            }
            Ok(()) = pinned.changed() => {
                let pages = *pinned.borrow_and_update();
                record_pinned(&store, pages).await;
            }
            _ = tick.tick() => {
                if control.ping().await.is_ok() && writer_answers(&store).await {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                }
            }
        }
    }
}

async fn record_pinned(store: &Store, pages: i64) {
    let (what, detail) = match pages {
        0 => ("wal-reset", "the WAL could be written back".to_owned()),
        pages => ("wal-pinned", format!("a long reader keeps a WAL of {pages} pages from being written back")),
    };
    if let Err(error) = store.event(None, now(), what, &detail).await {
        tracing::warn!(%error, what, detail, "an event could not be written");
    }
}

fn blocked(intake: &Intake) -> Option<String> {
    match intake {
        Intake::Open => None,
        Intake::Blocked(reason) | Intake::Broken(reason) => Some(reason.clone()),
    }
}

/// A writer that the surroundings keep from writing waits, and does not hang.
async fn writer_answers(store: &Store) -> bool {
    if *store.intake().borrow() != Intake::Open {
        return true;
    }
    let answer = tokio::time::timeout(WRITER_ANSWERS, store.ping()).await;
    answer.is_ok() || *store.intake().borrow() != Intake::Open
}

/// Tells systemd, where there is one.
pub fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Refused(format!("a thread failed: {error}")))
}
