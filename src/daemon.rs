//! The daemon as a function: takes bound listeners and a token that ends it, and puts store, supervisor and server
//! together. It knows no signals, no command line and no configuration files.

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

/// Bytes that all pages in flight may hold together (see docs/design/memory.md).
const BUDGET_BYTES: u64 = 48 << 20;
/// How long the loops get to finish their transaction, and the store as long again; 5 s are allowed for all of it.
const DRAIN: Duration = Duration::from_secs(2);
/// A writer thread that commits nothing for [`WRITER_SLOW`] while work waits is held by something, and the mirror is
/// not ready; after [`WRITER_HANGS`] without a known cause it hangs.
const WRITER_SLOW: Duration = Duration::from_secs(10);
const WRITER_HANGS: Duration = Duration::from_secs(180);
/// How long the supervisor may take to answer.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(5);
/// How often readiness is checked.
const READINESS_INTERVAL: Duration = Duration::from_millis(250);
/// Between two tries to open a file that can't be opened for now.
const OPEN_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How often it is checked whether clients without a valid secret used up all connections, and how often at most that
/// is reported.
const DROPPED_CHECK_INTERVAL: Duration = Duration::from_secs(5);
const DROPPED_REPORT_INTERVAL: Duration = Duration::from_secs(3600);

/// What systemd shows while nothing is wrong.
const MIRRORING: &str = "mirroring";

/// What a daemon runs with.
pub struct Setup {
    pub database: PathBuf,
    pub fleet: FleetSettings,
    /// The operators' listener.
    pub listener: TcpListener,
    /// The operators' token.
    pub token: SecretString,
    /// The listener that publishers post to, if any is configured.
    pub webhooks: Option<WebhookListener>,
    /// Receives the listener of a reload that configures the first one.
    pub webhooks_from_reload: Option<mpsc::Receiver<WebhookListener>>,
}

/// The listener that publishers post to, and its settings.
pub struct WebhookListener {
    pub listener: TcpListener,
    /// Which posts it takes.
    pub settings: WebhookListenerSettings,
    /// The certificate; plain HTTP without one.
    pub tls: Option<ReloadableTls>,
}

/// Opens the database, and makes what all loops share. Blocking.
///
/// # Errors
/// When the file can't be used.
pub fn open(database: &std::path::Path) -> Result<(WorkerContext, StoreGuard), StoreError> {
    let (store, store_guard) = Store::open(database)?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let worker_context =
        WorkerContext { store, budget: MemoryBudget::new(BUDGET_BYTES), decoders: DecoderPool::new(cores) };
    Ok((worker_context, store_guard))
}

/// Runs until `shutdown`, or until the file is found damaged. If the file can't be opened or written for now, waits
/// until it can be.
///
/// # Errors
/// When the file can't be used, from the start or from some time on.
pub async fn run(
    setup: Setup,
    reloads: mpsc::Receiver<FleetSettings>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let mut opener = DatabaseOpener::begin(&setup).await?;
    let result = serve(&mut opener, setup, reloads, shutdown).await;
    if let Some(store_guard) = opener.store_guard.take()
        && let Ok(Err(_)) | Err(_) = tokio::time::timeout(DRAIN, off_thread(move || store_guard.finish())).await
    {
        tracing::warn!("the end of the last write-back was not awaited; the next start does it");
    }
    result
}

async fn serve(
    opener: &mut DatabaseOpener,
    setup: Setup,
    reloads: mpsc::Receiver<FleetSettings>,
    shutdown: CancellationToken,
) -> Result<(), StoreError> {
    let address = setup.listener.local_addr().ok().map(|address| address.to_string());
    let webhooks = setup.webhooks.as_ref().and_then(|webhooks| webhooks.listener.local_addr().ok());
    let webhooks = webhooks.map(|address| address.to_string());
    let (control, orders) = control::channel();
    let (ready, readiness) = watch::channel(opener.problem());
    let mirror: Arc<OnceLock<RunningMirror>> = Arc::default();
    let (mirror_for_counts, mirror_for_metrics) = (Arc::clone(&mirror), Arc::clone(&mirror));
    let ops = server::OpsContext {
        database: setup.database,
        control: control.clone(),
        token: setup.token,
        unready_reason: readiness,
        feed_counts: Arc::new(move || {
            mirror_for_counts.get().map(|mirror| feed_counts(&mirror.counter_registry)).unwrap_or_default()
        }),
        own_metrics: Arc::new(move || {
            mirror_for_metrics.get().map(|mirror| own_metrics(&mirror.worker_context)).unwrap_or_default()
        }),
    };
    // A token of its own: a task that ends because of `shutdown` must not look as if it had failed.
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();
    let mut ops_server = tokio::spawn(server::serve(setup.listener, ops, stop.clone()));
    tasks.push(ops_server.abort_handle());
    tasks.push(tokio::spawn(watch_health(Arc::clone(&mirror), control, ready, stop.clone())).abort_handle());
    let running = async {
        let worker_context = opener.wait().await?;
        let store = worker_context.store.clone();
        let inbox = Inbox::default();
        let mut supervisor = Supervisor::new(worker_context.clone(), inbox.clone());
        // Only this sets it.
        let _ = mirror.set(RunningMirror {
            worker_context: worker_context.clone(),
            counter_registry: supervisor.counter_registry(),
        });
        tokio::select! {
            result = begin(&mut supervisor, &store, setup.fleet, (address.clone(), webhooks.clone())) => result?,
            error = wait_until_broken(&store) => return Err(error),
        }
        let mut supervisor_task = tokio::spawn(supervisor.run(orders, reloads, stop.clone()));
        tasks.push(supervisor_task.abort_handle());
        let mut webhook_server = tokio::spawn({
            let (worker_context, stop) = (worker_context.clone(), stop.clone());
            async move {
                let Some(webhooks) =
                    await_webhook_listener(setup.webhooks, setup.webhooks_from_reload, &worker_context.store, &stop)
                        .await
                else {
                    return Ok(());
                };
                let slots = ConnectionSlots::of_publishers(webhooks.settings.trusted_proxies.clone());
                let router = webhook::router(inbox, &webhooks.settings, worker_context.budget.clone());
                let server =
                    server::serve_webhooks(webhooks.listener, webhooks.tls, slots.clone(), router, stop.clone());
                let reporter = report_dropped_connections(&worker_context.store, &slots);
                tokio::select! { result = server => result, () = reporter => Ok(()) }
            }
        });
        tasks.push(webhook_server.abort_handle());
        tracing::info!(ops = address, webhooks, database = %store.path().display(), "running");
        notify_systemd(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(MIRRORING)]);
        tokio::select! {
            error = wait_until_broken(&store) => Err(error),
            _ = &mut supervisor_task => Err(StoreError::Refused("the supervisor fell over".into())),
            result = &mut webhook_server => Err(StoreError::Refused(format!("the webhook listener ended: {result:?}"))),
        }
    };
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        result = running => result,
        result = &mut ops_server => Err(StoreError::Refused(format!("the operators' listener ended: {result:?}"))),
    };
    notify_systemd(&[sd_notify::NotifyState::Stopping, sd_notify::NotifyState::Status("stopping")]);
    if let (Ok(()), Some(mirror)) = (&result, mirror.get()) {
        // Where nothing can be written, no event records the end: the log does.
        let event = mirror.worker_context.store.record_event(None, now(), "stopped", "asked to");
        let recorded = tokio::time::timeout(DRAIN / 4, event).await;
        tracing::info!(recorded = recorded.is_ok(), "stopping");
    }
    stop.cancel();
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

/// The publishers' listener, once there is one; none when the daemon ends before.
async fn await_webhook_listener(
    configured: Option<WebhookListener>,
    from_reload: Option<mpsc::Receiver<WebhookListener>>,
    store: &Store,
    stop: &CancellationToken,
) -> Option<WebhookListener> {
    if configured.is_some() {
        return configured;
    }
    let reloaded = async {
        match from_reload {
            Some(mut from_reload) => match from_reload.recv().await {
                Some(webhooks) => webhooks,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    };
    let webhooks = tokio::select! { webhooks = reloaded => webhooks, () = stop.cancelled() => return None };
    let address = webhooks.listener.local_addr().ok().map(|address| address.to_string());
    tracing::info!(webhooks = address, "listening for publishers");
    if let Err(error) = store.set_webhooks_address(address).await {
        tracing::warn!(%error, "the webhook listener's address could not be written down");
    }
    Some(webhooks)
}

/// Records, at most once an hour, that connections without a valid secret were dropped to make room.
async fn report_dropped_connections(store: &Store, slots: &ConnectionSlots) {
    let mut reported_count = 0;
    loop {
        tokio::time::sleep(DROPPED_CHECK_INTERVAL).await;
        let dropped = slots.evicted_count();
        if dropped == reported_count {
            continue;
        }
        let detail =
            format!("the webhook listener dropped {} silent connections to make room", dropped - reported_count);
        if let Err(error) = store.record_event(None, now(), "crowded", &detail).await {
            tracing::warn!(%error, detail, "an event could not be written");
        }
        reported_count = dropped;
        tokio::time::sleep(DROPPED_REPORT_INTERVAL).await;
    }
}

/// What there is once the database is open.
struct RunningMirror {
    worker_context: WorkerContext,
    counter_registry: CounterRegistry,
}

/// Opens the database, again and again where it can't be opened for now.
struct DatabaseOpener {
    database: PathBuf,
    first_attempt: Option<Result<WorkerContext, StoreError>>,
    store_guard: Option<StoreGuard>,
}

impl DatabaseOpener {
    /// Tries to open the file once.
    ///
    /// # Errors
    /// When trying again can't help.
    async fn begin(setup: &Setup) -> Result<Self, StoreError> {
        let mut opener = Self { database: setup.database.clone(), first_attempt: None, store_guard: None };
        let attempt = opener.attempt().await;
        if let Err(error) = &attempt {
            if !error.is_environment() {
                return Err(error.clone());
            }
            let ops = setup.listener.local_addr().ok().map(|address| address.to_string());
            tracing::error!(ops, %error, "the mirror begins once the database can be opened");
            let status = sd_notify::NotifyState::Status("waiting for the database");
            notify_systemd(&[sd_notify::NotifyState::Ready, status]);
        }
        opener.first_attempt = Some(attempt);
        Ok(opener)
    }

    /// Why the file is not open yet.
    fn problem(&self) -> Option<String> {
        match &self.first_attempt {
            Some(Err(error)) => Some(format!("{error}; tried again until it can be")),
            _ => None,
        }
    }

    /// Tries again until the file is open.
    ///
    /// # Errors
    /// When trying again can't help.
    async fn wait(&mut self) -> Result<WorkerContext, StoreError> {
        let mut attempt = match self.first_attempt.take() {
            Some(attempt) => attempt,
            None => self.attempt().await,
        };
        loop {
            match attempt {
                Err(error) if error.is_environment() => tokio::time::sleep(OPEN_RETRY_PAUSE).await,
                result => return result,
            }
            attempt = self.attempt().await;
        }
    }

    async fn attempt(&mut self) -> Result<WorkerContext, StoreError> {
        let database = self.database.clone();
        let (worker_context, store_guard) = off_thread(move || open(&database)).await??;
        self.store_guard = Some(store_guard);
        Ok(worker_context)
    }
}

/// Records the start and starts the feeds. Systemd is notified even while nothing can be written.
async fn begin(
    supervisor: &mut Supervisor,
    store: &Store,
    fleet: FleetSettings,
    (address, webhooks): (Option<String>, Option<String>),
) -> Result<(), StoreError> {
    let start = async {
        store.record_start(now(), address, webhooks).await?;
        supervisor.load(fleet).await
    };
    let mut start = std::pin::pin!(start);
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
        start = &mut start => return start,
        () = blocked => {}
    }
    start.await
}

fn feed_counts(counter_registry: &CounterRegistry) -> Vec<FeedCounts> {
    let to_counts = |totals: crate::supervisor::fleet::FeedTotals| FeedCounts {
        feed: FeedName::to_string(&totals.feed),
        pages: totals.pages,
        bytes: totals.bytes,
        records: totals.records,
        written: totals.written,
        quarantined: totals.quarantined,
        outcomes: totals.outcomes,
        polls: totals.polls,
    };
    counter_registry.totals().into_iter().map(to_counts).collect()
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

/// Publishes whether the mirror is ready, and feeds systemd's watchdog while supervisor and writer thread work.
async fn watch_health(
    mirror: Arc<OnceLock<RunningMirror>>,
    control: Control,
    ready: watch::Sender<Option<String>>,
    stop: CancellationToken,
) {
    let every = sd_notify::watchdog_enabled().map_or(Duration::from_secs(15), |limit| limit / 3);
    let mut last_fed = None;
    let mut pinned = 0;
    let mut tick = tokio::time::interval(READINESS_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut recording = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(mirror) = mirror.get() else {
            feed_watchdog(&mut last_fed, every);
            continue;
        };
        let store = &mirror.worker_context.store;
        let reason = unready_reason(store);
        if ready.send_if_modified(|current| {
            *current != reason && {
                current.clone_from(&reason);
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
        let due = last_fed.is_none_or(|last_fed: Instant| last_fed.elapsed() >= every);
        if due && writer_answers(store) && supervisor_answers(&control).await {
            feed_watchdog(&mut last_fed, every);
        }
    }
}

fn feed_watchdog(last_fed: &mut Option<Instant>, every: Duration) {
    if last_fed.is_none_or(|last_fed| last_fed.elapsed() >= every) {
        *last_fed = Some(Instant::now());
        notify_systemd(&[sd_notify::NotifyState::Watchdog]);
    }
}

/// Why nothing is written at the moment: the environment prevents it, or the writer thread commits nothing.
fn unready_reason(store: &Store) -> Option<String> {
    if let Intake::Blocked(reason) | Intake::Broken(reason) = &*store.intake().borrow() {
        return Some(reason.clone());
    }
    let busy_for = store.busy_for();
    (busy_for >= WRITER_SLOW).then(|| {
        // In steps of 10 s, so that the text does not change every second.
        let seconds = busy_for.as_secs() / 10 * 10;
        format!("the database's writer is held: nothing was committed for over {seconds} s, and work waits for it")
    })
}

/// Whether the writer thread works. If the environment keeps it from writing, it waits, and does not hang.
fn writer_answers(store: &Store) -> bool {
    *store.intake().borrow() != Intake::Open || store.busy_for() < WRITER_HANGS
}

/// Whether the supervisor answers. It waits for no feed and no store, so that it answers at once.
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

/// Notifies systemd, where it runs the daemon.
pub fn notify_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Refused(format!("a thread failed: {error}")))
}
