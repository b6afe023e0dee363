//! The handlers for events, findings and refusals, and for one item or record by name.
//!
//! Guarantees: lists are bounded, whatever limit is requested, and read in one short transaction.

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::json;

use super::AppState;
use super::options::Query;
use super::response::{Problem, json, typed};
use super::stream::NDJSON;
use crate::output::report::{self, ReportScope};
use crate::output::{OutputError, export, write_json_line};
use crate::store::read::{FeedKindFilter, Reader, StoreError};

/// Rows of a list without `limit`, and the largest `limit`.
const DEFAULT_ROWS: usize = 1_000;
const MAX_ROWS: usize = 10_000;

/// `GET /api/events`: what happened, the newest last.
pub(super) async fn events(State(app_state): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let (feed, limit) = journal(query.as_deref())?;
    app_state.rows(move |reader| reader.events(feed.as_deref(), limit)).await
}

/// `GET /api/refusals`: items refused as older or tied, the newest last.
pub(super) async fn refusals(
    State(app_state): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (feed, limit) = journal(query.as_deref())?;
    app_state.rows(move |reader| reader.refusals(feed.as_deref(), limit)).await
}

/// `GET /api/findings`: ways in which publishers depart from the standard, by feed and rule.
pub(super) async fn findings(
    State(app_state): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let scope = scope(query.as_deref())?;
    app_state.rows(move |reader| report::rows(reader, &scope)).await
}

/// `GET /api/report`: as `feedmirror findings --report --json`, in one document.
pub(super) async fn report(State(app_state): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let scope = scope(query.as_deref())?;
    let publishers = app_state.read(move |reader| report::read(&reader, &scope)).await?;
    Ok(json(&json!({ "publishers": publishers })))
}

/// `GET /api/quarantine/{id}`: one record, whole.
pub(super) async fn quarantined(
    State(app_state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let missing = || Problem::not_found(format!("there is no quarantine row {id}"));
    let number: i64 = id.parse().map_err(|_| missing())?;
    let row = app_state.read(move |reader| reader.quarantined(number)).await?;
    Ok(json(&json!(row.ok_or_else(missing)?)))
}

/// `GET /api/items/{feed}/{kind}/{id}`: one item, a tombstone too.
pub(super) async fn item(
    State(app_state): State<AppState>,
    Path((feed, kind, id)): Path<(String, String, String)>,
) -> Result<Response, Problem> {
    let missing = Problem::not_found(format!("there is no item {id} of kind {kind} in {feed}"));
    let find = move |reader: Reader| {
        let filter = FeedKindFilter { feeds: vec![feed], kinds: vec![kind] };
        let mut text = Vec::new();
        for item in reader.items_with_id(&id, &filter, true)? {
            export::object(&mut text, &item)?;
            text.push(b'\n');
        }
        Ok::<_, OutputError>(text)
    };
    let text = app_state.read(find).await?;
    if text.is_empty() { Err(missing) } else { Ok(typed("application/json", text)) }
}

/// `GET /api/openapi.json`: what this listener answers, as OpenAPI 3.1.
pub(super) async fn openapi() -> Response {
    typed("application/json", include_str!("openapi.json"))
}

/// The feed or provider whose findings are requested.
fn scope(query: Option<&str>) -> Result<ReportScope, Problem> {
    let mut query = Query::parse(query);
    let scope = ReportScope { feed: query.text("feed")?, provider: query.text("provider")? };
    query.finish()?;
    match scope {
        ReportScope { feed: Some(_), provider: Some(_) } => {
            Err(Problem::bad_request("feed and provider exclude each other"))
        }
        scope => Ok(scope),
    }
}

/// The parameters of a list: the feed, and how many of the newest rows.
fn journal(query: Option<&str>) -> Result<(Option<String>, usize), Problem> {
    let mut query = Query::parse(query);
    let (feed, limit) = (query.text("feed")?, query.number("limit")?.unwrap_or(DEFAULT_ROWS));
    query.finish()?;
    if !(1..=MAX_ROWS).contains(&limit) {
        return Err(Problem::bad_request(format!("limit must be from 1 to {MAX_ROWS}")));
    }
    Ok((feed, limit))
}

impl AppState {
    /// The rows that `read` gives, as lines of JSON.
    async fn rows<R: Serialize + Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<Vec<R>, StoreError> + Send + 'static,
    ) -> Result<Response, Problem> {
        let lines = move |reader: Reader| {
            let mut text = Vec::new();
            for row in read(&reader)? {
                write_json_line(&mut text, &row)?;
            }
            Ok::<_, OutputError>(text)
        };
        Ok(typed(NDJSON, self.read(lines).await?))
    }
}
