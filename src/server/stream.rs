//! The routes that answer with as many rows as there are: items, quarantined records, the change log, once or followed,
//! and what is new on a page that stays open.
//!
//! Guarantees: a page is read in one short transaction, and the next one only once the client has taken it, so that a
//! stalled client holds no transaction; a position of another mirror, or ahead of this one, is 410 and never an empty
//! answer; all of it ends at the shutdown, and a followed log also when another file takes the mirror's place.

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
pub(super) async fn items(State(shared): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let filter = filter(&mut query);
    let after = position("since", query.text("since")?.as_deref().unwrap_or("0"))?;
    let (id, deleted, state) = (query.text("id")?, query.flag("deleted")?, state(&mut query)?);
    let left = limit(&mut query)?;
    query.finish()?;
    let items = move |reader| ItemRows { reader, filter, id, after, deleted, state, left }.next_page();
    let (first, rest) = shared.read(items).await?;
    Ok(typed(NDJSON, pages(first, rest, shared.shutdown)))
}

/// `GET /api/quarantine`: records that could not be understood, the oldest first.
pub(super) async fn quarantine(State(shared): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let filter = QuarantineFilter { feed: query.text("feed")?, reason: query.text("reason")? };
    let (after, left) = (query.number("after")?.unwrap_or(0), limit(&mut query)?);
    query.finish()?;
    let records = move |reader| QuarantineRows { reader, filter, after, left }.next_page();
    let (first, rest) = shared.read(records).await?;
    Ok(typed(NDJSON, pages(first, rest, shared.shutdown)))
}

/// `GET /api/changes`: the change log from a position to its end, or followed where the client reads events.
pub(super) async fn changes(
    State(shared): State<AppState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (form, media_type) =
        if accepts_events(&headers) { (ChangeFormat::Events, EVENTS) } else { (ChangeFormat::Lines, NDJSON) };
    let mut query = Query::parse(query.as_deref());
    let after = since(&mut query, &headers, form)?;
    let selection = ChangeSelection { filter: filter(&mut query), data: query.flag("data")? };
    let (wanted, left) = (state(&mut query)?, limit(&mut query)?);
    query.finish()?;
    let log = move |reader| {
        ChangeRows { reader, after, selection, state_filter: wanted, left, form, log_progress: Default::default() }
            .next_page()
    };
    let (first, rest) = shared.read(log).await?;
    Ok(typed(media_type, pages(first, rest, shared.shutdown)))
}

/// `GET /live`: what is new on the status page, or on one feed's page.
pub(super) async fn live(State(shared): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let mut query = Query::parse(query.as_deref());
    let feed = query.text("feed")?;
    query.finish()?;
    let place = Arc::clone(&shared.live_page_permits).try_acquire_owned();
    let place = place.map_err(|_| Problem::unavailable("as many pages are kept current as may be"))?;
    let (ready, own) = (shared.ops.unready_reason.clone(), Arc::clone(&shared.ops.own_metrics));
    let (first, rest) = shared.read(move |reader| LivePage::new(reader, feed, ready, own, place).next_page()).await?;
    Ok(typed(EVENTS, pages(first, rest, shared.shutdown)))
}

fn filter(query: &mut Query) -> FeedKindFilter {
    FeedKindFilter { feeds: query.texts("feed"), kinds: query.texts("kind") }
}

/// Rows at most; a request for none would get an answer that says nothing, not even how far it reaches.
fn limit(query: &mut Query) -> Result<usize, Problem> {
    match query.number("limit")? {
        Some(0) => Err(Problem::bad_request("limit must be at least 1")),
        limit => Ok(limit.unwrap_or(usize::MAX)),
    }
}

/// The one state of items that is asked for.
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

/// A client that comes back says in a header where it was; the query is where it began.
fn since(query: &mut Query, headers: &HeaderMap, form: ChangeFormat) -> Result<LogPosition, Problem> {
    let asked = query.text("since")?;
    let (what, text) = match headers.get("last-event-id").filter(|id| form == ChangeFormat::Events && !id.is_empty()) {
        Some(id) => ("Last-Event-ID", id.to_str().unwrap_or_default()),
        None => ("since", asked.as_deref().unwrap_or("0")),
    };
    position(what, text)
}

/// The first page, and each further one once it is asked for.
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
                // What was sent is right, but not all: the connection breaks, so that the client knows.
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
