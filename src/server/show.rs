//! The routes that show how things are at the moment.

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

/// A supervisor that takes longer is stuck.
const PING_WAIT: Duration = Duration::from_secs(5);

/// `GET /healthz`.
pub(super) async fn health(State(shared): State<AppState>) -> Result<Response, Problem> {
    match timeout(PING_WAIT, shared.ops.control.ping()).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Problem::unavailable("the supervisor does not answer")),
    }
    Ok(done_response("alive"))
}

/// `GET /readyz`.
pub(super) async fn ready(State(shared): State<AppState>) -> Result<Response, Problem> {
    match shared.unready_reason() {
        Some(reason) => Err(Problem::unavailable(reason)),
        None => Ok(done_response("ready")),
    }
}

/// `GET /metrics`: OpenMetrics to who asks for it, as Prometheus does, else the older text format.
pub(super) async fn metrics(State(shared): State<AppState>, headers: HeaderMap) -> Result<Response, Problem> {
    let stored = shared.read(|reader| metrics::FileStats::read(&reader)).await;
    let scrape = metrics::Scrape {
        now: Timestamp::now(),
        ready: shared.unready_reason().is_none(),
        mirror_stats: (shared.ops.own_metrics)(),
        counts: (shared.ops.feed_counts)(),
        file_stats: stored.ok(),
    };
    let text = scrape.text().map_err(Problem::unavailable)?;
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    Ok(match accepted.contains("application/openmetrics-text") {
        true => typed(metrics::MEDIA_TYPE, text),
        false => typed(classic::MEDIA_TYPE, classic::text(&text)),
    })
}

/// `GET /`: all feeds, or with `?q=` those that it finds.
pub(super) async fn overview_page(
    State(shared): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let search = Query::parse(query.as_deref()).text("q")?.unwrap_or_default();
    let (now, database) = (Timestamp::now(), shared.ops.database.clone());
    let commits = (shared.ops.own_metrics)().commits;
    let look = move || {
        let vitals = StorageStats::of(&database, &commits);
        Ok::<_, OutputError>((
            vitals,
            Reader::open(&database).and_then(|reader| page::OverviewData::read(&reader, now)),
        ))
    };
    let (vitals, seen) = blocking(look).await?;
    let seen = seen.map_err(Problem::from);
    let seen = seen.as_ref().map_err(Problem::words);
    let blocked = shared.unready_reason();
    let mut response = document(|nonce| {
        let frame = PageContext { now, nonce, blocked: blocked.as_deref() };
        page::overview(&frame, seen, &vitals, &search)
    })?;
    *response.status_mut() = if seen.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(response)
}

/// `GET /feeds/{name}`: one feed's page.
pub(super) async fn feed_page(State(shared): State<AppState>, Path(name): Path<String>) -> Result<Response, Problem> {
    let now = Timestamp::now();
    let seen = shared.read(move |reader| page::FeedPageData::read(&reader, &name, now)).await?;
    let blocked = shared.unready_reason();
    document(|nonce| page::feed(&PageContext { now, nonce, blocked: blocked.as_deref() }, &seen))
}

/// A page under a policy of its own.
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
pub(super) async fn feeds(State(shared): State<AppState>) -> Result<Response, Problem> {
    let status = shared.read(|reader| Status::read(&reader, &[])).await?;
    Ok(json(&json!(status)))
}

/// `GET /api/feeds/{name}`: its row, with its endpoints.
pub(super) async fn feed(State(shared): State<AppState>, Path(name): Path<String>) -> Result<Response, Problem> {
    let read = move |reader: Reader| {
        Ok::<_, StoreError>((reader.feeds(std::slice::from_ref(&name))?, reader.endpoints(Some(&name))?))
    };
    let (feeds, endpoints) = shared.read(read).await?;
    let mut row = json!(feeds.first());
    row["endpoints"] = json!(endpoints);
    Ok(json(&row))
}

impl AppState {
    /// Why the database takes no writes.
    fn unready_reason(&self) -> Option<String> {
        self.ops.unready_reason.borrow().clone()
    }
}
