//! The operators' listener: status page, health, metrics, the stored data, and orders to the supervisor.
//!
//! Guarantees: a request that changes something needs the admin token, and so does reading where the listener can be
//! reached from another machine; a web page of another site gets nothing. No client can block the mirror: reads are
//! short transactions off the async threads, a stream reads its next page only once the client has taken the last one,
//! and a peer that stalls is dropped. It decides and stores nothing: orders go to the supervisor, whose text is the
//! answer.
//!
//! The listener that publishers post to is another one, since it faces the internet: it serves the webhooks' own
//! router, over connections that are bounded in the same way.

mod response;
mod connection;
mod access;
mod journals;
mod options;
mod orders;
mod session;
mod show;
mod stream;
pub mod token;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::{IncomingStream, Listener};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::output::metrics::{FeedCounts, MirrorStats};
use crate::source::webhook::connection_slots::{ConnectionSlots, Peer};
use crate::source::webhook::tls::ReloadableTls;
use crate::store::read::{Reader, StoreError};
use crate::supervisor::control::Control;
use access::AccessControl;
use connection::{BoundedListener, TlsListener};
use response::Problem;

/// What the operators' listener works with.
#[derive(Clone)]
pub struct OpsContext {
    pub database: PathBuf,
    pub control: Control,
    pub token: SecretString,
    /// Why nothing can be written; none when the mirror is ready.
    pub unready_reason: watch::Receiver<Option<String>>,
    /// The counters of each feed since the daemon's start.
    pub feed_counts: Arc<dyn Fn() -> Vec<FeedCounts> + Send + Sync>,
    /// The mirror's own metrics.
    pub own_metrics: Arc<dyn Fn() -> MirrorStats + Send + Sync>,
}

/// How long responses in progress may take after the shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(1500);

/// The most pages that are kept current at once: each reads the file at most once a second.
const MAX_LIVE_PAGES: usize = 32;

/// Serves until the shutdown, and returns at most 2 s after it; streams end at once.
///
/// # Errors
/// When the listener has no address.
pub async fn serve(listener: TcpListener, ops: OpsContext, shutdown: CancellationToken) -> io::Result<()> {
    let loopback = listener.local_addr()?.ip().to_canonical().is_loopback();
    let access_control = Arc::new(AccessControl::new(ops.token.clone(), loopback));
    let live_page_permits = Arc::new(Semaphore::new(MAX_LIVE_PAGES));
    let router = router(AppState { ops: Arc::new(ops), access_control, live_page_permits, shutdown: shutdown.clone() });
    serve_until(shutdown, BoundedListener::new(listener, ConnectionSlots::of_operators()), router).await
}

/// Serves the publishers' listener, over TLS where there is a certificate, until the shutdown; returns at most 2 s
/// after it. Earlier posts are answered, as far as that takes no longer.
///
/// # Errors
/// When the listener fails.
pub async fn serve_webhooks(
    listener: TcpListener,
    tls: Option<ReloadableTls>,
    slots: ConnectionSlots,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    match tls {
        Some(tls) => serve_until(shutdown, TlsListener::new(listener, tls, slots), router).await,
        None => serve_until(shutdown, BoundedListener::new(listener, slots), router).await,
    }
}

async fn serve_until<L>(shutdown: CancellationToken, listener: L, router: Router) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
    Peer: for<'a> Connected<IncomingStream<'a, L>>,
{
    let service = router.into_make_service_with_connect_info::<Peer>();
    let server = axum::serve(listener, service).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    let grace = async {
        shutdown.cancelled().await;
        sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        result = server.into_future() => result,
        () = grace => Ok(()),
    }
}

fn router(app_state: AppState) -> Router {
    let access_control = Arc::clone(&app_state.access_control);
    Router::new()
        .route("/", get(show::overview_page))
        .route("/feeds/{name}", get(show::feed_page))
        .route("/live", get(stream::live))
        .route("/login", get(session::ask))
        .route("/login", post(session::log_in))
        .route("/healthz", get(show::health))
        .route("/readyz", get(show::ready))
        .route("/metrics", get(show::metrics))
        .route("/api/feeds", get(show::feeds))
        .route("/api/feeds/{name}", get(show::feed))
        .route("/api/items", get(stream::items))
        .route("/api/items/{feed}/{kind}/{id}", get(journals::item))
        .route("/api/changes", get(stream::changes))
        .route("/api/events", get(journals::events))
        .route("/api/refusals", get(journals::refusals))
        .route("/api/findings", get(journals::findings))
        .route("/api/report", get(journals::report))
        .route("/api/quarantine", get(stream::quarantine))
        .route("/api/quarantine/{id}", get(journals::quarantined))
        .route("/api/openapi.json", get(journals::openapi))
        .route("/api/feeds/{name}/{verb}", post(orders::feed))
        .route("/api/quarantine/retry", post(orders::retry_many))
        .route("/api/quarantine/drop", post(orders::drop_many))
        .route("/api/quarantine/{id}/{verb}", post(orders::quarantine))
        .fallback(async || Problem::not_found("there is nothing here"))
        .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method"))
        .with_state(app_state)
        .layer(from_fn_with_state(access_control, access::check_access))
        .layer(map_response(add_security_headers))
}

/// Forbids clients to cache a response, to guess its type, and to send its URL as a referrer.
async fn add_security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// What all handlers share.
#[derive(Clone)]
struct AppState {
    ops: Arc<OpsContext>,
    access_control: Arc<AccessControl>,
    /// Permits for pages that are kept current.
    live_page_permits: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl AppState {
    /// Opens the file and reads from it, off the async threads.
    async fn read<T, E>(&self, work: impl FnOnce(Reader) -> Result<T, E> + Send + 'static) -> Result<T, Problem>
    where
        T: Send + 'static,
        E: From<StoreError> + Into<Problem> + Send + 'static,
    {
        let database = self.ops.database.clone();
        blocking(move || work(Reader::open(&database)?)).await
    }
}

async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Problem>
where
    T: Send + 'static,
    E: Into<Problem> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        // A panic, which is in the log, or the end of the runtime.
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "reading the mirror failed")),
    }
}
