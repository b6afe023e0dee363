//! The handlers that change something: each sends one order to the supervisor, whose text is the answer.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use url::Url;

use super::AppState;
use super::options::BodyOptions;
use super::response::{Problem, accepted, done_response, json};
use crate::supervisor::ack::Ack;
use crate::supervisor::control::{ItemSelector, Order, OrderAnswer, QuarantineOrder, QuarantineSelection};

/// `POST /api/feeds/{name}/{verb}`.
pub(super) async fn feed(
    State(app_state): State<AppState>,
    Path((name, verb)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let order = order(&verb, BodyOptions::read(body).await?)?;
    Ok(order_response(app_state.ops.control.order_feed(&name, order).await?))
}

/// `POST /api/quarantine/{id}/{verb}`.
pub(super) async fn quarantine(
    State(app_state): State<AppState>,
    Path((id, verb)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let order = quarantine_order(&verb)?;
    BodyOptions::read(body).await?.finish()?;
    let id = id.parse().map_err(|_| Problem::not_found(format!("there is no quarantine row {id}")))?;
    Ok(order_response(app_state.ops.control.order_record(id, order).await?))
}

/// `POST /api/quarantine/retry`: many rows at once.
pub(super) async fn retry_many(State(app_state): State<AppState>, body: Body) -> Result<Response, Problem> {
    order_records(&app_state, QuarantineOrder::Retry, body).await
}

/// `POST /api/quarantine/drop`: many rows at once.
pub(super) async fn drop_many(State(app_state): State<AppState>, body: Body) -> Result<Response, Problem> {
    order_records(&app_state, QuarantineOrder::Drop, body).await
}

fn order_response(answer: OrderAnswer) -> Response {
    match answer {
        OrderAnswer::Done(words) => done_response(&words),
        OrderAnswer::Accepted(words) => accepted(&words),
    }
}

async fn order_records(app_state: &AppState, order: QuarantineOrder, body: Body) -> Result<Response, Problem> {
    let mut options = BodyOptions::read(body).await?;
    let selection = QuarantineSelection {
        ids: options.numbers("ids")?,
        feed: options.optional_text("feed")?,
        reason: options.optional_text("reason")?,
    };
    let all = options.flag("all")?;
    options.finish()?;
    if all == (selection != QuarantineSelection::default()) {
        return Err(Problem::bad_request("name ids, a feed or a reason, or say \"all\": true"));
    }
    Ok(match app_state.ops.control.order_records(selection, order).await? {
        OrderAnswer::Done(report) => {
            let text = report.words(order);
            json(&serde_json::json!({ "done": text, "gone": report.removed, "failed": report.failed }))
        }
        OrderAnswer::Accepted(text) => accepted(&text),
    })
}

fn quarantine_order(verb: &str) -> Result<QuarantineOrder, Problem> {
    match verb {
        "retry" => Ok(QuarantineOrder::Retry),
        "drop" => Ok(QuarantineOrder::Drop),
        _ => Err(Problem::not_found("a quarantine row can be told to retry or drop")),
    }
}

fn order(verb: &str, mut options: BodyOptions) -> Result<Order, Problem> {
    let order = match verb {
        "pause" => Order::Pause,
        "resume" => Order::Resume,
        "poll-now" => Order::PollNow,
        "purge" => Order::Purge,
        "forget" => Order::Forget {
            item: ItemSelector { id: options.text("id")?, kind: options.optional_text("kind")? },
            undo: options.flag("undo")?,
        },
        "resync" => resync(&mut options)?,
        "seek" => Order::Seek(url(options.text("url")?)?),
        "ack" => Order::Ack(ack(&mut options)?),
        _ => {
            let words = "a feed can be told to pause, resume, resync, poll-now, seek, purge, ack or forget";
            return Err(Problem::new(StatusCode::NOT_FOUND, words));
        }
    };
    options.finish()?;
    Ok(order)
}

fn resync(options: &mut BodyOptions) -> Result<Order, Problem> {
    match (options.flag("trust_source")?, options.flag("accept")?) {
        (false, true) => Ok(Order::AcceptSweep),
        (trust_source, accept) => Ok(Order::Resync { trust_source, accept }),
    }
}

fn ack(options: &mut BodyOptions) -> Result<Option<Ack>, Problem> {
    let (until, note, clear) =
        (options.optional_text("until")?, options.optional_text("note")?, options.flag("clear")?);
    match (clear, until.is_some() || note.is_some()) {
        (true, true) => Err(Problem::bad_request("clear excludes until and note")),
        (true, false) => Ok(None),
        (false, _) => Ack::parse(until.as_deref(), note, Timestamp::now()).map(Some).map_err(Problem::bad_request),
    }
}

/// A cursor is stored as it is given; it only has to be a URL that can be requested.
fn url(text: String) -> Result<String, Problem> {
    let parsed = Url::parse(&text).map_err(|error| Problem::bad_request(format!("url is no URL: {error}")))?;
    match parsed.scheme() {
        "http" | "https" => Ok(text),
        scheme => Err(Problem::bad_request(format!("url must be http or https, not {scheme}"))),
    }
}
