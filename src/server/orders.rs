//! The routes that change something: each is one order to the supervisor, whose words are the answer.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use url::Url;

use super::Shared;
use super::answer::{Problem, accepted, done, json};
use super::options::Options;
use crate::supervisor::ack::Ack;
use crate::supervisor::control::{Answer, Chosen, Named, Order, QuarantineOrder};

/// `POST /api/feeds/{name}/{verb}`.
pub(super) async fn feed(
    State(shared): State<Shared>,
    Path((name, verb)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let order = order(&verb, Options::read(body).await?)?;
    Ok(answered(shared.ops.control.feed(&name, order).await?))
}

/// `POST /api/quarantine/{id}/{verb}`.
pub(super) async fn quarantine(
    State(shared): State<Shared>,
    Path((id, verb)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let order = quarantine_order(&verb)?;
    Options::read(body).await?.finish()?;
    let id = id.parse().map_err(|_| Problem::missing(format!("there is no quarantine row {id}")))?;
    Ok(answered(shared.ops.control.quarantine(id, order).await?))
}

/// `POST /api/quarantine/retry`: many rows at once.
pub(super) async fn retry_many(State(shared): State<Shared>, body: Body) -> Result<Response, Problem> {
    sort(&shared, QuarantineOrder::Retry, body).await
}

/// `POST /api/quarantine/drop`: many rows at once.
pub(super) async fn drop_many(State(shared): State<Shared>, body: Body) -> Result<Response, Problem> {
    sort(&shared, QuarantineOrder::Drop, body).await
}

fn answered(answer: Answer) -> Response {
    match answer {
        Answer::Done(words) => done(&words),
        Answer::Accepted(words) => accepted(&words),
    }
}

async fn sort(shared: &Shared, order: QuarantineOrder, body: Body) -> Result<Response, Problem> {
    let mut options = Options::read(body).await?;
    let chosen =
        Chosen { ids: options.numbers("ids")?, feed: options.maybe("feed")?, reason: options.maybe("reason")? };
    let all = options.flag("all")?;
    options.finish()?;
    if all == (chosen != Chosen::default()) {
        return Err(Problem::bad("name ids, a feed or a reason, or say \"all\": true"));
    }
    Ok(match shared.ops.control.sort(chosen, order).await? {
        Answer::Done(sorted) => {
            let words = sorted.words(order);
            json(&serde_json::json!({ "done": words, "gone": sorted.gone, "failed": sorted.failed }))
        }
        Answer::Accepted(words) => accepted(&words),
    })
}

fn quarantine_order(verb: &str) -> Result<QuarantineOrder, Problem> {
    match verb {
        "retry" => Ok(QuarantineOrder::Retry),
        "drop" => Ok(QuarantineOrder::Drop),
        _ => Err(Problem::missing("a quarantine row can be told to retry or drop")),
    }
}

fn order(verb: &str, mut options: Options) -> Result<Order, Problem> {
    let order = match verb {
        "pause" => Order::Pause,
        "resume" => Order::Resume,
        "poll-now" => Order::PollNow,
        "purge" => Order::Purge,
        "forget" => Order::Forget {
            item: Named { id: options.text("id")?, kind: options.maybe("kind")? },
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

fn resync(options: &mut Options) -> Result<Order, Problem> {
    match (options.flag("trust_source")?, options.flag("accept")?) {
        (false, true) => Ok(Order::AcceptSweep),
        (trust_source, accept) => Ok(Order::Resync { trust_source, accept }),
    }
}

fn ack(options: &mut Options) -> Result<Option<Ack>, Problem> {
    let (until, note, clear) = (options.maybe("until")?, options.maybe("note")?, options.flag("clear")?);
    match (clear, until.is_some() || note.is_some()) {
        (true, true) => Err(Problem::bad("clear excludes until and note")),
        (true, false) => Ok(None),
        (false, _) => Ack::parse(until.as_deref(), note, Timestamp::now()).map(Some).map_err(Problem::bad),
    }
}

/// A cursor is kept as it is given; it only has to be one that can be asked for.
fn url(text: String) -> Result<String, Problem> {
    let parsed = Url::parse(&text).map_err(|error| Problem::bad(format!("url is no URL: {error}")))?;
    match parsed.scheme() {
        "http" | "https" => Ok(text),
        scheme => Err(Problem::bad(format!("url must be http or https, not {scheme}"))),
    }
}
