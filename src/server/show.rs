//! The routes that show how things are at the moment.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use rand::Rng;
use serde_json::json;
use tokio::time::timeout;

use super::Shared;
use super::answer::{Problem, done, json, typed};
use crate::output::status::Status;
use crate::output::{metrics, page};
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

/// `GET /metrics`.
pub(super) async fn metrics(State(shared): State<Shared>) -> Result<Response, Problem> {
    let stored = shared.read(|reader| metrics::Stored::read(&reader)).await;
    let scrape = metrics::Scrape {
        now: Timestamp::now(),
        ready: shared.blocked().is_none(),
        own: (shared.ops.own)(),
        counts: (shared.ops.live)(),
        stored: stored.ok(),
    };
    Ok(typed(metrics::MEDIA_TYPE, scrape.text().map_err(Problem::unavailable)?))
}

/// `GET /`.
pub(super) async fn page(State(shared): State<Shared>) -> Result<Response, Problem> {
    let stored = shared.read(|reader| metrics::Stored::read(&reader)).await;
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    let blocked = shared.blocked();
    let stored = stored.as_ref().map_err(Problem::words);
    let status = if stored.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let html = page::html(Timestamp::now(), &nonce, blocked.as_deref(), stored);
    let mut response = typed(page::MEDIA_TYPE, html);
    *response.status_mut() = status;
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
