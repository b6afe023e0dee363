//! The handlers with answers of any length: items, quarantined records, the change log, once or followed, and the
//! changes of a status page that stays open.
//!
//! Guarantees: a page is read in one short transaction, and the next one only once the client has taken it, so that a
//! stalled client holds no transaction; a position of another mirror, or ahead of this one, is 410 and never an empty
//! answer; all streams end at the shutdown, and a followed log also when the mirror's file is replaced.

mod live;
mod rows;

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::options::Query;
use super::response::{Problem, typed};
use super::{AppState, blocking};
use crate::feed::ItemState;
use crate::output::changes::{ChangeSelection, LogPosition};
use crate::store::read::{FeedKindFilter, QuarantineFilter};
use live::LivePage;
use rows::{ChangeFormat, ChangeRows, ItemRows, PagedRows, QuarantineRows};

/// The media type of lines of JSON.
pub(super) const NDJSON: &str = "application/x-ndjson";
const EVENTS: &str = "text/event-stream";

/// `GET /api/items`: live items, as `feedmirror export` writes them.
pub(super) async fn items(State(app_state): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let filter = filter(&mut query);
    let after = position("since", query.text("since")?.as_deref().unwrap_or("0"))?;
    let (id, deleted, state) = (query.text("id")?, query.flag("deleted")?, state(&mut query)?);
    let remaining = limit(&mut query)?;
    query.finish()?;
    let items = move |reader| ItemRows { reader, filter, id, after, deleted, state, remaining }.next_page();
    let (first, rest) = app_state.read(items).await?;
    Ok(typed(NDJSON, pages(first, rest, app_state.shutdown)))
}

/// `GET /api/quarantine`: records that could not be decoded, the oldest first.
pub(super) async fn quarantine(
    State(app_state): State<AppState>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let filter = QuarantineFilter { feed: query.text("feed")?, reason: query.text("reason")? };
    let (after, remaining) = (query.number("after")?.unwrap_or(0), limit(&mut query)?);
    query.finish()?;
    let records = move |reader| QuarantineRows { reader, filter, after, remaining }.next_page();
    let (first, rest) = app_state.read(records).await?;
    Ok(typed(NDJSON, pages(first, rest, app_state.shutdown)))
}

/// `GET /api/changes`: the change log from a position to its end, or followed where the client accepts events.
pub(super) async fn changes(
    State(app_state): State<AppState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (format, media_type) =
        if accepts_events(&headers) { (ChangeFormat::Events, EVENTS) } else { (ChangeFormat::Lines, NDJSON) };
    let mut query = Query::parse(query.as_deref());
    let after = since(&mut query, &headers, format)?;
    let selection = ChangeSelection { filter: filter(&mut query), data: query.flag("data")? };
    let (state_filter, remaining) = (state(&mut query)?, limit(&mut query)?);
    query.finish()?;
    let log = move |reader| {
        ChangeRows { reader, after, selection, state_filter, remaining, format, log_progress: Default::default() }
            .next_page()
    };
    let (first, rest) = app_state.read(log).await?;
    Ok(typed(media_type, pages(first, rest, app_state.shutdown)))
}

/// `GET /live`: the changes of the status page, or of one feed's page.
pub(super) async fn live(State(app_state): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let feed = query.text("feed")?;
    query.finish()?;
    let permit = Arc::clone(&app_state.live_page_permits).try_acquire_owned();
    let permit = permit.map_err(|_| Problem::unavailable("as many pages are kept current as may be"))?;
    let (unready_reason, own_metrics) = (app_state.ops.unready_reason.clone(), Arc::clone(&app_state.ops.own_metrics));
    let (first, rest) = app_state
        .read(move |reader| LivePage::new(reader, feed, unready_reason, own_metrics, permit).next_page())
        .await?;
    Ok(typed(EVENTS, pages(first, rest, app_state.shutdown)))
}

fn filter(query: &mut Query) -> FeedKindFilter {
    FeedKindFilter { feeds: query.texts("feed"), kinds: query.texts("kind") }
}

/// The most rows; an answer without any would not even say how far it reaches.
fn limit(query: &mut Query) -> Result<usize, Problem> {
    match query.number("limit")? {
        Some(0) => Err(Problem::bad_request("limit must be at least 1")),
        limit => Ok(limit.unwrap_or(usize::MAX)),
    }
}

/// The state of items that is requested.
fn state(query: &mut Query) -> Result<Option<ItemState>, Problem> {
    let Some(word) = query.text("state")? else { return Ok(None) };
    let state = ItemState::from_word(&word);
    state.map(Some).ok_or_else(|| Problem::bad_request(format!("state must be updated or deleted, not {word:?}")))
}

fn position(what: &str, text: &str) -> Result<LogPosition, Problem> {
    text.parse().map_err(|error: String| Problem::bad_request(format!("{what}: {error}")))
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    accepted
        .flat_map(|accept| accept.split(','))
        .any(|one| one.split(';').next().is_some_and(|one| one.trim() == EVENTS))
}

/// The position to begin after: a client that connects again sends its last one in a header; the query has the first
/// one.
fn since(query: &mut Query, headers: &HeaderMap, format: ChangeFormat) -> Result<LogPosition, Problem> {
    let since = query.text("since")?;
    let (what, text) = match headers.get("last-event-id").filter(|id| format == ChangeFormat::Events && !id.is_empty())
    {
        Some(id) => ("Last-Event-ID", id.to_str().unwrap_or_default()),
        None => ("since", since.as_deref().unwrap_or("0")),
    };
    position(what, text)
}

/// A body of the first page, and of each further one once the client takes it.
fn pages<R: PagedRows>(first: Vec<u8>, rest: Option<R>, shutdown: CancellationToken) -> Body {
    let further = stream::unfold((rest, shutdown), async |(rest, shutdown)| {
        let mut rows = rest?;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = sleep(rows.wait()) => {}
            }
            let (page, rest) = match blocking(move || rows.next_page()).await {
                Ok(read) => read,
                // What was sent is right, but incomplete: the connection breaks, so that the client knows.
                Err(problem) => return Some((Err(io::Error::other(problem.words().to_owned())), (None, shutdown))),
            };
            if !page.is_empty() {
                return Some((Ok(Bytes::from(page)), (rest, shutdown)));
            }
            rows = rest?;
        }
    });
    Body::from_stream(stream::iter([Ok(Bytes::from(first))]).chain(further))
}
