//! The publisher's HTTP interface: feeds for readers, and requests by which a test in another process observes and
//! controls it.
//!
//! | request | does |
//! |---|---|
//! | `GET /` | the feeds, as JSON |
//! | `GET /{feed}` | a page |
//! | `GET /{feed}/stream?from=&after=` | what comes after that position, as server-sent events |
//! | `GET /_truth/{feed}` | all the feed says now, as NDJSON in order |
//! | `GET /_fired` | how often each fault has happened, as JSON |
//! | `GET /_pushed` | what each webhook and queue has taken, as JSON |
//! | `POST /_freeze`, `POST /_thaw` | stops the rate of change, or lets it go on |
//! | `POST /_calm` | ends all faults |
//! | `POST /_change/{feed}?n=` | makes changes now, one if not said |
//! | `POST /_restore/{feed}` | restores the feed to an older state |

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, Response, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use super::connection::{ConnectionCutter, CuttableListener};
use super::dialect::PageQuery;
use super::fault::{Fault, FaultChannel};
use super::poll_faults::{self, PageRequest};
use super::publisher::PublisherState;
use super::stream;
use super::wire_response::{self, WireResponse};

type SharedPublisher = State<Arc<PublisherState>>;

/// How long responses may take to end in good order when the publisher stops.
const GRACE: Duration = Duration::from_millis(500);

/// Serves until stopped.
pub(super) async fn serve(listener: CuttableListener, publisher: Arc<PublisherState>) {
    let (stop, cut) = (publisher.stop.clone(), listener.cut.clone());
    let routes = Router::new()
        .route("/", get(index))
        .route("/{feed}", get(page))
        .route("/{feed}/stream", get(stream))
        .route("/_truth/{feed}", get(expected_items))
        .route("/_fired", get(fault_counts))
        .route("/_pushed", get(async |State(publisher): SharedPublisher| Json(publisher.push_stats())))
        .route("/_freeze", post(async |State(publisher): SharedPublisher| publisher.freeze(true)))
        .route("/_thaw", post(async |State(publisher): SharedPublisher| publisher.freeze(false)))
        .route("/_calm", post(async |State(publisher): SharedPublisher| publisher.set_faults(Vec::new())))
        .route("/_change/{feed}", post(change))
        .route("/_restore/{feed}", post(restore))
        .with_state(publisher);
    let service = routes.into_make_service_with_connect_info::<ConnectionCutter>();
    let server = axum::serve(listener, service).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future();
    let cut_after_grace = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
        cut.cancel();
    };
    tokio::select! { _ = server => {} () = cut_after_grace => {} }
}

#[derive(Serialize)]
struct FeedListing {
    name: String,
    url: String,
    stream: String,
    dialect: &'static str,
}

async fn index(State(publisher): SharedPublisher, headers: HeaderMap) -> Json<Vec<FeedListing>> {
    let base = base(&headers, &publisher);
    let listed = publisher.names().filter_map(|name| {
        let dialect = publisher.feed(name)?.lock().feed.dialect.as_str();
        Some(FeedListing {
            name: name.to_owned(),
            url: format!("{base}/{name}"),
            stream: format!("{base}/{name}/stream"),
            dialect,
        })
    });
    Json(listed.collect())
}

async fn expected_items(State(publisher): SharedPublisher, Path(feed): Path<String>) -> Response<Body> {
    let Some(simulated) = publisher.feed(&feed) else { return unknown(&feed) };
    let items = simulated.lock().feed.expected_items();
    let lines: Vec<String> = items.iter().filter_map(|item| serde_json::to_string(item).ok()).collect();
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).into_response()
}

async fn fault_counts(State(publisher): SharedPublisher) -> impl IntoResponse {
    Json(publisher.fault_counts())
}

#[derive(Deserialize)]
struct ChangeQuery {
    n: Option<u64>,
}

async fn change(
    State(publisher): SharedPublisher,
    Path(feed): Path<String>,
    Query(count): Query<ChangeQuery>,
) -> Response<Body> {
    let Some(simulated) = publisher.feed(&feed) else { return unknown(&feed) };
    simulated.lock().feed.change(count.n.unwrap_or(1));
    StatusCode::OK.into_response()
}

async fn restore(State(publisher): SharedPublisher, Path(feed): Path<String>) -> Response<Body> {
    let Some(simulated) = publisher.feed(&feed) else { return unknown(&feed) };
    let went_back = simulated.lock().feed.restore();
    if went_back { StatusCode::OK } else { StatusCode::CONFLICT }.into_response()
}

fn unknown(feed: &str) -> Response<Body> {
    (StatusCode::NOT_FOUND, format!("no feed is named {feed:?}\n")).into_response()
}

async fn page(
    State(publisher): SharedPublisher,
    Path(name): Path<String>,
    ConnectInfo(cut): ConnectInfo<ConnectionCutter>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let Some(simulated) = publisher.feed(&name) else { return unknown(&name) };
    let (dialect, gone_for_good) = {
        let feed_with_faults = simulated.lock();
        (feed_with_faults.feed.dialect, feed_with_faults.poll_faults.gone_for_good)
    };
    let path_and_query = uri.path_and_query().map_or(uri.path(), |target| target.as_str());
    let query = match PageQuery::read(dialect, path_and_query) {
        Ok(query) => query,
        Err(problem) => return (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response(),
    };
    let base = base(&headers, &publisher);
    let request = PageRequest { query, base, gzip: takes_gzip(&headers), page: publisher.settings.page, gone_for_good };
    let known_tags = text(&headers, header::IF_NONE_MATCH).map(str::to_owned);
    let writer = Arc::clone(&publisher);
    let response = tokio::task::spawn_blocking(move || write(&writer, &name, request, known_tags.as_deref())).await;
    match response {
        Ok(Some(response)) => send(response, publisher, cut).await,
        Ok(None) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn stream(
    State(publisher): SharedPublisher,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let path_and_query = uri.path_and_query().map_or(uri.path(), |target| target.as_str());
    let last = text(&headers, HeaderName::from_static("last-event-id"));
    stream::answer(publisher, &name, path_and_query, last).unwrap_or_else(|| unknown(&name))
}

fn write(
    publisher: &PublisherState,
    name: &str,
    mut request: PageRequest,
    known_tags: Option<&str>,
) -> Option<WireResponse> {
    let faults = publisher.faults(FaultChannel::Poll);
    let reply = poll_faults::answer(&mut publisher.feed(name)?.lock(), &mut request, &faults);
    Some(wire_response::build(reply, &request, known_tags, &publisher.settings))
}

/// Sends a response, or what its fault makes of it; the fault is counted when it happens.
async fn send(response: WireResponse, publisher: Arc<PublisherState>, cut: ConnectionCutter) -> Response<Body> {
    let Some(fault) = response.fault else { return response.whole() };
    let settings = publisher.settings.clone();
    let count_fault = move || publisher.count_fault(fault);
    match fault {
        Fault::Reset => {
            count_fault();
            cut.reset();
            std::future::pending().await
        }
        Fault::Silence => {
            count_fault();
            tokio::time::sleep(settings.hold).await;
            cut.reset();
            std::future::pending().await
        }
        Fault::Slow => {
            let pause = response.pause();
            tokio::time::sleep(pause).await;
            count_fault();
            response.whole()
        }
        Fault::CutShort => response.cut_short(count_fault),
        Fault::Drip => response.dripping(settings.drip, settings.hold, count_fault),
        Fault::TooLarge => {
            count_fault();
            response.padded(settings.large)
        }
        _ => {
            count_fault();
            response.whole()
        }
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme and authority as the reader wrote them.
fn base(headers: &HeaderMap, publisher: &PublisherState) -> String {
    match text(headers, header::HOST) {
        Some(host) => format!("http://{host}"),
        None => format!("http://{}", publisher.address),
    }
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let codings = text(headers, header::ACCEPT_ENCODING).unwrap_or_default();
    codings.split(',').any(|coding| {
        let (coding, quality) = coding.split_once(';').unwrap_or((coding, ""));
        coding.trim().eq_ignore_ascii_case("gzip")
            && !quality.replace(' ', "").starts_with("q=0.0")
            && quality.replace(' ', "") != "q=0"
    })
}
