//! The daemon as a function: takes bound listeners and a token that ends it, and puts store, supervisor and server
//! together. Knows no signals, no command line and no configuration files.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::feed::FeedName;
use crate::output::metrics::{FeedCounts, MirrorStats};
use crate::server;
use crate::source::budget::MemoryBudget;
use crate::source::decoder_pool::DecoderPool;
use crate::source::webhook::connection_slots::ConnectionSlots;
use crate::source::webhook::tls::ReloadableTls;
use crate::source::webhook::{self, Inbox, WebhookListenerSettings};
use crate::store::{Intake, Store, StoreError, StoreGuard, now};
use crate::supervisor::FleetSettings;
use crate::supervisor::control::{self, Control};
use crate::supervisor::fleet::{CounterRegistry, Supervisor};
use crate::worker::WorkerContext;

/// Bytes that all pages in flight may hold together (see ARCHITECTURE, "memory").
const BUDGET_BYTES: u64 = 48 << 20;
/// What the loops get to finish their transaction; the store's end gets as much again, of the 5 s there are.
const DRAIN: Duration = Duration::from_secs(2);
/// A writer that gets nothing done for this long is held by something, and the mirror is not ready; though nothing is known
/// to keep it from writing, it hangs after so long.
const WRITER_SLOW: Duration = Duration::from_secs(10);
const WRITER_HANGS: Duration = Duration::from_secs(180);
/// How long the supervisor may take to answer.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(5);
/// How often readiness is looked at.
const READINESS_INTERVAL: Duration = Duration::from_millis(250);
/// Between two tries to open a file that can't be opened for now.
const OPEN_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked whether strangers took all places, and told at most.
const DROPPED_CHECK_INTERVAL: Duration = Duration::from_secs(5);
const DROPPED_REPORT_INTERVAL: Duration = Duration::from_secs(3600);

/// What systemd shows while nothing is wrong.
const MIRRORING: &str = "mirroring";

/// What a daemon runs with.
pub struct Setup {
    /// The SQLite file.
    pub database: PathBuf,
    /// The feeds.
    pub fleet: FleetSettings,
    /// The operators' listener.
    pub listener: TcpListener,
    /// Their token.
    pub token: SecretString,
    /// The listener that publishers post to; none while there is none.
    pub webhooks: Option<WebhookListener>,
    /// One that a reload begins.
    pub webhooks_from_reload: Option<mpsc::Receiver<WebhookListener>>,
}

/// Where publishers post.
pub struct WebhookListener {
    /// Its listener.
    pub listener: TcpListener,
    /// What it takes.
    pub settings: WebhookListenerSettings,
    /// Its certificate; plain without one.
    pub tls: Option<ReloadableTls>,
}

/// Opens the file and what all endpoints share. Blocking.
///
/// # Errors
/// When the file can't be used.
pub fn open(database: &std::path::Path) -> Result<(WorkerContext, StoreGuard), StoreError> {
    let (store, closing) = Store::open(database)?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let shared = WorkerContext { store, budget: MemoryBudget::new(BUDGET_BYTES), decoders: DecoderPool::new(cores) };
    Ok((shared, closing))
}

/// Runs until `shutdown`, or until the file is found damaged. One that can't be opened for now, or not be written, is waited
/// for.
///
/// # Errors
/// When the file can't be used, or no longer.
pub async fn run(
    setup: Setup,
    reloads: mpsc::Receiver<FleetSettings>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let mut opening = DatabaseOpener::begin(&setup).await?;
    let result = serve(&mut opening, setup, reloads, shutdown).await;
    if let Some(closing) = opening.closing.take()
        && let Ok(Err(_)) | Err(_) = tokio::time::timeout(DRAIN, off_thread(move || closing.finish())).await
    {
        tracing::warn!("the end of the last write-back was not awaited; the next start does it");
    }
    result
}

async fn serve(
    opening: &mut DatabaseOpener,
    setup: Setup,
    reloads: mpsc::Receiver<FleetSettings>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let address = setup.listener.local_addr().ok().map(|address| address.to_string());
    let webhooks = setup.webhooks.as_ref().and_then(|webhooks| webhooks.listener.local_addr().ok());
    let webhooks = webhooks.map(|address| address.to_string());
    let (control, orders) = control::channel();
    let (ready, readiness) = watch::channel(opening.problem());
    let mirror: Arc<OnceLock<RunningMirror>> = Arc::default();
    let (shown, owned) = (Arc::clone(&mirror), Arc::clone(&mirror));
    let ops = server::OpsContext {
        database: setup.database,
        control: control.clone(),
        token: setup.token,
        unready_reason: readiness,
        feed_counts: Arc::new(move || {
            shown.get().map(|mirror| feed_counts(&mirror.counter_registry)).unwrap_or_default()
        }),
        own_metrics: Arc::new(move || owned.get().map(|mirror| own_metrics(&mirror.shared)).unwrap_or_default()),
    };
    // Its own token: what ends because of `shutdown` must not look as if it had ended by itself.
    let ended = CancellationToken::new();
    let mut tasks = Vec::new();
    let mut serving = tokio::spawn(server::serve(setup.listener, ops, ended.clone()));
    tasks.push(serving.abort_handle());
    tasks.push(tokio::spawn(watch_health(Arc::clone(&mirror), control, ready, ended.clone())).abort_handle());
    let mirroring = async {
        let shared = opening.wait().await?;
        let store = shared.store.clone();
        let inbox = Inbox::default();
        let mut supervisor = Supervisor::new(shared.clone(), inbox.clone());
        // It is set once.
        let _ = mirror.set(RunningMirror { shared: shared.clone(), counter_registry: supervisor.counter_registry() });
        tokio::select! {
            begun = begin(&mut supervisor, &store, setup.fleet, (address.clone(), webhooks.clone())) => begun?,
            broken = wait_until_broken(&store) => return Err(broken),
        }
        let mut supervising = tokio::spawn(supervisor.run(orders, reloads, ended.clone()));
        tasks.push(supervising.abort_handle());
        let mut taking = tokio::spawn({
            let (shared, ended) = (shared.clone(), ended.clone());
            async move {
                let Some(webhooks) =
                    await_webhook_listener(setup.webhooks, setup.webhooks_from_reload, &shared.store, &ended).await
                else {
                    return Ok(());
                };
                let places = ConnectionSlots::of_publishers(webhooks.settings.trusted_proxies.clone());
                let router = webhook::router(inbox, &webhooks.settings, shared.budget.clone());
                let serving =
                    server::serve_webhooks(webhooks.listener, webhooks.tls, places.clone(), router, ended.clone());
                let telling = report_dropped_connections(&shared.store, &places);
                tokio::select! { served = serving => served, () = telling => Ok(()) }
            }
        });
        tasks.push(taking.abort_handle());
        tracing::info!(ops = address, webhooks, database = %store.path().display(), "running");
        notify_systemd(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(MIRRORING)]);
        tokio::select! {
            broken = wait_until_broken(&store) => Err(broken),
            _ = &mut supervising => Err(StoreError::Refused("the supervisor fell over".into())),
            served = &mut taking => Err(StoreError::Refused(format!("the webhook listener ended: {served:?}"))),
        }
    };
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        result = mirroring => result,
        served = &mut serving => Err(StoreError::Refused(format!("the operators' listener ended: {served:?}"))),
    };
    notify_systemd(&[sd_notify::NotifyState::Stopping, sd_notify::NotifyState::Status("stopping")]);
    if let (Ok(()), Some(mirror)) = (&result, mirror.get()) {
        // Where nothing can be written, the end goes unrecorded: the log says it.
        let event = mirror.shared.store.record_event(None, now(), "stopped", "asked to");
        let recorded = tokio::time::timeout(DRAIN / 4, event).await;
        tracing::info!(recorded = recorded.is_ok(), "stopping");
    }
    ended.cancel();
    for task in tasks {
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
async fn await_webhook_listener(
    begun: Option<WebhookListener>,
    later: Option<mpsc::Receiver<WebhookListener>>,
    store: &Store,
    ended: &CancellationToken,
) -> Option<WebhookListener> {
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
    if let Err(error) = store.set_webhooks_address(address).await {
        tracing::warn!(%error, "the webhook listener's address could not be written down");
    }
    Some(webhooks)
}

/// Writes down, once an hour at most, that strangers took all places.
async fn report_dropped_connections(store: &Store, places: &ConnectionSlots) {
    let mut told = 0;
    loop {
        tokio::time::sleep(DROPPED_CHECK_INTERVAL).await;
        let dropped = places.evicted_count();
        if dropped == told {
            continue;
        }
        let detail = format!("the webhook listener dropped {} silent connections to make room", dropped - told);
        if let Err(error) = store.record_event(None, now(), "crowded", &detail).await {
            tracing::warn!(%error, detail, "an event could not be written");
        }
        told = dropped;
        tokio::time::sleep(DROPPED_REPORT_INTERVAL).await;
    }
}

/// What works once the file is open.
struct RunningMirror {
    shared: WorkerContext,
    counter_registry: CounterRegistry,
}

/// A file that is being opened.
struct DatabaseOpener {
    database: PathBuf,
    first_attempt: Option<Result<WorkerContext, StoreError>>,
    closing: Option<StoreGuard>,
}

impl DatabaseOpener {
    /// Tries it once.
    ///
    /// # Errors
    /// When trying again can't help.
    async fn begin(setup: &Setup) -> Result<Self, StoreError> {
        let mut opening = Self { database: setup.database.clone(), first_attempt: None, closing: None };
        let tried = opening.attempt().await;
        if let Err(error) = &tried {
            if !error.is_environment() {
                return Err(error.clone());
            }
            let ops = setup.listener.local_addr().ok().map(|address| address.to_string());
            tracing::error!(ops, %error, "the mirror begins once the database can be opened");
            let status = sd_notify::NotifyState::Status("waiting for the database");
            notify_systemd(&[sd_notify::NotifyState::Ready, status]);
        }
        opening.first_attempt = Some(tried);
        Ok(opening)
    }

    /// Why it is not open yet.
    fn problem(&self) -> Option<String> {
        match &self.first_attempt {
            Some(Err(error)) => Some(format!("{error}; tried again until it can be")),
            _ => None,
        }
    }

    /// Tries again until it is open.
    ///
    /// # Errors
    /// When trying again can't help.
    async fn wait(&mut self) -> Result<WorkerContext, StoreError> {
        let mut tried = match self.first_attempt.take() {
            Some(tried) => tried,
            None => self.attempt().await,
        };
        loop {
            match tried {
                Err(error) if error.is_environment() => tokio::time::sleep(OPEN_RETRY_PAUSE).await,
                settled => return settled,
            }
            tried = self.attempt().await;
        }
    }

    async fn attempt(&mut self) -> Result<WorkerContext, StoreError> {
        let database = self.database.clone();
        let (shared, closing) = off_thread(move || open(&database)).await??;
        self.closing = Some(closing);
        Ok(shared)
    }
}

/// Writes the start down and starts the feeds. While nothing can be written systemd is told all the same.
async fn begin(
    supervisor: &mut Supervisor,
    store: &Store,
    fleet: FleetSettings,
    (address, webhooks): (Option<String>, Option<String>),
) -> Result<(), StoreError> {
    let began = async {
        store.record_start(now(), address, webhooks).await?;
        supervisor.load(fleet).await
    };
    let mut began = std::pin::pin!(began);
    let mut intake = store.intake();
    let blocked = async {
        if intake.wait_for(|intake| matches!(intake, Intake::Blocked(_))).await.is_ok() {
            notify_systemd(&[
                sd_notify::NotifyState::Ready,
                sd_notify::NotifyState::Status("waiting for the database"),
            ]);
        }
    };
    tokio::select! {
        began = &mut began => return began,
        () = blocked => {}
    }
    began.await
}

fn feed_counts(roster: &CounterRegistry) -> Vec<FeedCounts> {
    let counts = |done: crate::supervisor::fleet::FeedTotals| FeedCounts {
        feed: FeedName::to_string(&done.feed),
        pages: done.pages,
        bytes: done.bytes,
        records: done.records,
        written: done.written,
        quarantined: done.quarantined,
        outcomes: done.outcomes,
        polls: done.polls,
    };
    roster.totals().into_iter().map(counts).collect()
}

fn own_metrics(WorkerContext { store, budget, .. }: &WorkerContext) -> MirrorStats {
    let (queued_small, queued_large) = store.queue_depths();
    let (budget_bytes, budget_used_bytes) = budget.usage();
    let (commits, pinned_bytes) = (store.commits(), store.pinned_wal_bytes());
    MirrorStats { commits, queued_small, queued_large, pinned_bytes, budget_bytes, budget_used_bytes }
}

async fn wait_until_broken(store: &Store) -> StoreError {
    let mut intake = store.intake();
    let problem = match intake.wait_for(|intake| matches!(intake, Intake::Broken(_))).await.as_deref() {
        Ok(Intake::Broken(problem)) => problem.clone(),
        _ => "the writer has ended".to_owned(),
    };
    StoreError::Unusable { path: store.path().to_owned(), problem }
}

/// Tells readiness as the writer gets on or doesn't, and feeds systemd's watchdog while supervisor and writer answer.
async fn watch_health(
    mirror: Arc<OnceLock<RunningMirror>>,
    control: Control,
    ready: watch::Sender<Option<String>>,
    ended: CancellationToken,
) {
    let every = sd_notify::watchdog_enabled().map_or(Duration::from_secs(15), |limit| limit / 3);
    let mut fed = None;
    let mut pinned = 0;
    let mut tick = tokio::time::interval(READINESS_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut recording = JoinSet::new();
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(mirror) = mirror.get() else {
            feed_watchdog(&mut fed, every);
            continue;
        };
        let store = &mirror.shared.store;
        let reason = unready_reason(store);
        if ready.send_if_modified(|told| {
            *told != reason && {
                told.clone_from(&reason);
                true
            }
        }) {
            notify_systemd(&[sd_notify::NotifyState::Status(reason.as_deref().unwrap_or(MIRRORING))]);
        }
        let pages = *store.pinned_wal_pages().borrow();
        if pages != pinned && recording.is_empty() {
            pinned = pages;
            recording.spawn(record_pinned(store.clone(), pages));
        }
        while recording.try_join_next().is_some() {}
        let due = fed.is_none_or(|fed: Instant| fed.elapsed() >= every);
        if due && writer_answers(store) && supervisor_answers(&control).await {
            feed_watchdog(&mut fed, every);
        }
    }
}

fn feed_watchdog(fed: &mut Option<Instant>, every: Duration) {
    if fed.is_none_or(|fed| fed.elapsed() >= every) {
        *fed = Some(Instant::now());
        notify_systemd(&[sd_notify::NotifyState::Watchdog]);
    }
}

/// Why nothing is written at the moment: what the surroundings refuse, or a writer that gets nothing done.
fn unready_reason(store: &Store) -> Option<String> {
    if let Intake::Blocked(reason) | Intake::Broken(reason) = &*store.intake().borrow() {
        return Some(reason.clone());
    }
    let overdue = store.busy_for();
    (overdue >= WRITER_SLOW).then(|| {
        // In steps, so that it is no news every second.
        let seconds = overdue.as_secs() / 10 * 10;
        format!("the database's writer is held: nothing was committed for over {seconds} s, and work waits for it")
    })
}

/// A writer that the surroundings keep from writing waits, and does not hang.
fn writer_answers(store: &Store) -> bool {
    *store.intake().borrow() != Intake::Open || store.busy_for() < WRITER_HANGS
}

/// It waits for nobody, so it answers at once.
async fn supervisor_answers(control: &Control) -> bool {
    tokio::time::timeout(SUPERVISOR_TIMEOUT, control.ping()).await.is_ok_and(|answer| answer.is_ok())
}

async fn record_pinned(store: Store, pages: i64) {
    let (what, detail) = match pages {
        0 => ("wal-reset", "the WAL could be written back".to_owned()),
        pages => ("wal-pinned", format!("a long reader keeps a WAL of {pages} pages from being written back")),
    };
    if let Err(error) = store.record_event(None, now(), what, &detail).await {
        tracing::warn!(%error, what, detail, "an event could not be written");
    }
}

/// Tells systemd, where there is one.
pub fn notify_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Refused(format!("a thread failed: {error}")))
}
