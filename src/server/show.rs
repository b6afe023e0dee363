//! The routes that show how things are at the moment.

use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use rand::RngExt;
use serde_json::json;
use tokio::time::timeout;

use super::answer::{Problem, done, json, typed};
use super::options::Query;
use super::{Shared, blocking};
use crate::output::metrics::classic;
use crate::output::page::{self, Frame};
use crate::output::status::Status;
use crate::output::vitals::Vitals;
use crate::output::{OutputError, metrics};
use crate::store::read::{Reader, StoreError};

/// A supervisor that takes longer is stuck.
const PING_WAIT: Duration = Duration::from_secs(5);

/// `GET /healthz`.
pub(super) async fn health(State(shared): State<Shared>) -> Result<Response, Problem> {
    match timeout(PING_WAIT, shared.ops.control.ping()).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Problem::unavailable("the supervisor does not answer")),
    }
    Ok(done("alive"))
}

/// `GET /readyz`.
pub(super) async fn ready(State(shared): State<Shared>) -> Result<Response, Problem> {
    match shared.blocked() {
        Some(reason) => Err(Problem::unavailable(reason)),
        None => Ok(done("ready")),
    }
}

/// `GET /metrics`: OpenMetrics to who asks for it, as Prometheus does, else the older text format.
pub(super) async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Result<Response, Problem> {
    let stored = shared.read(|reader| metrics::Stored::read(&reader)).await;
    let scrape = metrics::Scrape {
        now: Timestamp::now(),
        ready: shared.blocked().is_none(),
        own: (shared.ops.own)(),
        counts: (shared.ops.live)(),
        stored: stored.ok(),
    };
    let text = scrape.text().map_err(Problem::unavailable)?;
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    Ok(match accepted.contains("application/openmetrics-text") {
        true => typed(metrics::MEDIA_TYPE, text),
        false => typed(classic::MEDIA_TYPE, classic::text(&text)),
    })
}

/// `GET /`: all feeds, or with `?q=` those that it finds.
pub(super) async fn page(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let search = Query::parse(query.as_deref()).text("q")?.unwrap_or_default();
    let (now, database) = (Timestamp::now(), shared.ops.database.clone());
    let commits = (shared.ops.own)().commits;
    let look = move || {
        let vitals = Vitals::of(&database, &commits);
        Ok::<_, OutputError>((vitals, Reader::open(&database).and_then(|reader| page::Overview::read(&reader, now))))
    };
    let (vitals, seen) = blocking(look).await?;
    let seen = seen.map_err(Problem::from);
    let seen = seen.as_ref().map_err(Problem::words);
    let blocked = shared.blocked();
    let mut response = document(|nonce| {
        let frame = Frame { now, nonce, blocked: blocked.as_deref() };
        page::overview(&frame, seen, &vitals, &search)
    })?;
    *response.status_mut() = if seen.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok(response)
}

/// `GET /feeds/{name}`: one feed's page.
pub(super) async fn feed_page(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let now = Timestamp::now();
    let seen = shared.read(move |reader| page::Feed::read(&reader, &name, now)).await?;
    let blocked = shared.blocked();
    document(|nonce| page::feed(&Frame { now, nonce, blocked: blocked.as_deref() }, &seen))
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
pub(super) async fn feeds(State(shared): State<Shared>) -> Result<Response, Problem> {
    let status = shared.read(|reader| Status::read(&reader, &[])).await?;
    Ok(json(&json!(status)))
}

/// `GET /api/feeds/{name}`: its row, with its endpoints.
pub(super) async fn feed(State(shared): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let read = move |reader: Reader| {
        Ok::<_, StoreError>((reader.feeds(std::slice::from_ref(&name))?, reader.endpoints(Some(&name))?))
    };
    let (feeds, endpoints) = shared.read(read).await?;
    let mut row = json!(feeds.first());
    row["endpoints"] = json!(endpoints);
    Ok(json(&row))
}

impl Shared {
    /// Why the database takes no writes.
    fn blocked(&self) -> Option<String> {
        self.ops.ready.borrow().clone()
    }
}
