//! The handlers that show the present state.

use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use rand::RngExt;
use serde_json::json;
use tokio::time::timeout;

use super::options::Query;
use super::response::{Problem, done_response, json, typed};
use super::{AppState, blocking};
use crate::output::metrics::classic;
use crate::output::page::{self, PageContext};
use crate::output::status::Status;
use crate::output::storage_stats::StorageStats;
use crate::output::{OutputError, metrics};
use crate::store::read::{Reader, StoreError};

/// A supervisor that takes longer to answer is stuck.
const PING_WAIT: Duration = Duration::from_secs(5);

/// `GET /healthz`.
pub(super) async fn health(State(app_state): State<AppState>) -> Result<Response, Problem> {
    match timeout(PING_WAIT, app_state.ops.control.ping()).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Problem::unavailable("the supervisor does not answer")),
    }
    Ok(done_response("alive"))
}

/// `GET /readyz`.
pub(super) async fn ready(State(app_state): State<AppState>) -> Result<Response, Problem> {
    match app_state.unready_reason() {
        Some(reason) => Err(Problem::unavailable(reason)),
        None => Ok(done_response("ready")),
    }
}

/// `GET /metrics`: OpenMetrics to a client that accepts it, as Prometheus does, else the older text format.
pub(super) async fn metrics(State(app_state): State<AppState>, headers: HeaderMap) -> Result<Response, Problem> {
    let stored = app_state.read(|reader| metrics::FileStats::read(&reader)).await;
    let scrape = metrics::Scrape {
        now: Timestamp::now(),
        ready: app_state.unready_reason().is_none(),
        mirror_stats: (app_state.ops.own_metrics)(),
        counts: (app_state.ops.feed_counts)(),
        file_stats: stored.ok(),
    };
    let text = scrape.text().map_err(Problem::unavailable)?;
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    Ok(match accepted.contains("application/openmetrics-text") {
        true => typed(metrics::MEDIA_TYPE, text),
        false => typed(classic::MEDIA_TYPE, classic::text(&text)),
    })
}

/// `GET /`: all feeds, or with `?q=` those that match.
pub(super) async fn overview_page(
    State(app_state): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let search = Query::parse(query.as_deref()).text("q")?.unwrap_or_default();
    let (now, database) = (Timestamp::now(), app_state.ops.database.clone());
    let commits = (app_state.ops.own_metrics)().commits;
    let read = move || {
        let storage_stats = StorageStats::of(&database, &commits);
        Ok::<_, OutputError>((
            storage_stats,
            Reader::open(&database).and_then(|reader| page::OverviewData::read(&reader, now)),
        ))
    };
    let (storage_stats, data) = blocking(read).await?;
    let data = data.map_err(Problem::from);
    let data = data.as_ref().map_err(Problem::words);
    let blocked = app_state.unready_reason();
    let mut response = document(|nonce| {
        let context = PageContext { now, nonce, blocked: blocked.as_deref() };
        page::overview(&context, data, &storage_stats, &search)
    })?;
    *response.status_mut() = if data.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(response)
}

/// `GET /feeds/{name}`: one feed's page.
pub(super) async fn feed_page(
    State(app_state): State<AppState>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let now = Timestamp::now();
    let data = app_state.read(move |reader| page::FeedPageData::read(&reader, &name, now)).await?;
    let blocked = app_state.unready_reason();
    document(|nonce| page::feed(&PageContext { now, nonce, blocked: blocked.as_deref() }, &data))
}

/// An HTML page with a content security policy of its own.
pub(super) fn document<E: std::fmt::Display>(
    make: impl FnOnce(&str) -> Result<String, E>,
) -> Result<Response, Problem> {
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    let html = make(&nonce).map_err(Problem::unavailable)?;
    let mut response = typed(page::MEDIA_TYPE, html);
    let policy = HeaderValue::try_from(page::policy(&nonce)).map_err(Problem::unavailable)?;
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    Ok(response)
}

/// `GET /api/feeds`: as `feedmirror status --json`.
pub(super) async fn feeds(State(app_state): State<AppState>) -> Result<Response, Problem> {
    let status = app_state.read(|reader| Status::read(&reader, &[])).await?;
    Ok(json(&json!(status)))
}

/// `GET /api/feeds/{name}`: the feed's row, with its endpoints.
pub(super) async fn feed(State(app_state): State<AppState>, Path(name): Path<String>) -> Result<Response, Problem> {
    let read = move |reader: Reader| {
        Ok::<_, StoreError>((reader.feeds(std::slice::from_ref(&name))?, reader.endpoints(Some(&name))?))
    };
    let (feeds, endpoints) = app_state.read(read).await?;
    let mut row = json!(feeds.first());
    row["endpoints"] = json!(endpoints);
    Ok(json(&row))
}

impl AppState {
    /// Why nothing can be written; none when the mirror is ready.
    fn unready_reason(&self) -> Option<String> {
        self.ops.unready_reason.borrow().clone()
    }
}
