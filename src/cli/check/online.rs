//! `check --online`: asks every endpoint once, politely, and says what came. A stream is opened and left, a queue looked
//! at and nothing taken from it. A webhook is an endpoint of ours: its publisher can't be asked for anything.

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Probe;
use crate::decode::{next, rpde};
use crate::feed::{Next, Page};
use crate::source::amqp::{self, AmqpSettings};
use crate::source::budget::Budget;
use crate::source::client::Clients;
use crate::source::http::{Answer, Failure, Requests};
use crate::source::sse::Stream;
use crate::source::turns::{Priority, Turns};
use crate::supervisor::{Configured, FeedSettings, Fleet};
use crate::worker;

const BUDGET_BYTES: u64 = 32 << 20;
const PAGE_BYTES: u64 = 1 << 20;

/// One answer an endpoint, in the configuration's order.
pub(super) async fn probe(fleet: &Fleet) -> Vec<Probe> {
    let (clients, turns, budget) = (Clients::default(), Turns::new(fleet.hosts.clone()), Budget::new(BUDGET_BYTES));
    let mut tasks = JoinSet::new();
    for (at, configured) in fleet.feeds.iter().enumerate() {
        let Configured::Ready(settings) = configured else { continue };
        let (settings, clients, turns, budget) = (settings.clone(), clients.clone(), turns.clone(), budget.clone());
        tasks.spawn(async move { (at, endpoints(&settings, &clients, &turns, &budget).await) });
    }
    // A probe that panicked would be a mistake of ours: it is left out here and shows as missing.
    let mut probes: Vec<(usize, Vec<Probe>)> = tasks.join_all().await;
    probes.sort_by_key(|(at, _)| *at);
    probes.into_iter().flat_map(|(_, probes)| probes).collect()
}

async fn endpoints(settings: &FeedSettings, clients: &Clients, turns: &Turns, budget: &Budget) -> Vec<Probe> {
    let probe = |key, url: &str, answer| Probe { feed: settings.name.to_string(), key, url: url.to_owned(), answer };
    let mut probes = vec![probe("url", &settings.url, ask(settings, clients, turns, budget).await)];
    if let Some(sse) = &settings.sse {
        probes.push(probe("sse.url", &sse.url, open(settings, &sse.url, clients, turns).await));
    }
    if let Some(amqp) = &settings.amqp {
        probes.push(probe("amqp.queue", &amqp.queue, look(amqp).await));
    }
    probes
}

async fn open(settings: &FeedSettings, url: &str, clients: &Clients, turns: &Turns) -> Result<String, String> {
    let failed = |failure: Failure| failure.to_string();
    let requests = Requests::new(clients, url, &settings.http, &settings.headers, &settings.query).map_err(failed)?;
    let _turn = turns.host(requests.home()).turn(&settings.name, Priority::Level).await;
    Stream::open(&requests, url, None).await.map(|_| "a stream of events".to_owned()).map_err(failed)
}

async fn look(settings: &AmqpSettings) -> Result<String, String> {
    let url = settings.url.read().map_err(|error| format!("settings: {error}"))?;
    match amqp::look(settings, &url).await.map_err(|failure| failure.to_string())? {
        Some(1) => Ok("1 message waits".to_owned()),
        Some(messages) => Ok(format!("{messages} messages wait")),
        None => Ok("not there yet; it is declared when the feed runs".to_owned()),
    }
}

async fn ask(settings: &FeedSettings, clients: &Clients, turns: &Turns, budget: &Budget) -> Result<String, String> {
    let requests = Requests::new(clients, &settings.url, &settings.http, &settings.headers, &settings.query)
        .map_err(|failure| failure.to_string())?;
    let _turn = turns.host(requests.home()).turn(&settings.name, Priority::Level).await;
    let answer = requests
        .get(&settings.url, None, budget.reserve(PAGE_BYTES).await)
        .await
        .map_err(|failure| failure.to_string())?;
    let Answer::Page(body, _) = answer else { return Ok("not modified".to_owned()) };
    let opened = body.open(&Semaphore::new(1)).await.map_err(|failure| failure.to_string())?;
    let reading = worker::reading(settings.kind.as_deref(), settings.modified);
    let mut page = rpde::page(opened.bytes, &reading).map_err(|refused| requests.mask(&refused.to_string()))?;
    let published = page.next.as_deref().map(|next| requests.mask(next));
    let next = next::place(&settings.url, &mut page, published.as_deref(), settings.dialect);
    if let Next::Follow { url, .. } = &next {
        requests.permit(url).map_err(|failure| failure.to_string())?;
    }
    Ok(words(&page, &next))
}

fn words(page: &Page, next: &Next) -> String {
    let mut words = match page.items.len() {
        1 => "1 item".to_owned(),
        n => format!("{n} items"),
    };
    match page.unreadable.as_slice() {
        [] => {}
        [first, ..] => words.push_str(&format!(", {} that can't be read ({})", page.unread(), first.reason)),
    }
    words.push_str(match next {
        Next::Follow { made: false, .. } => ", and more pages",
        Next::Follow { made: true, .. } => ", and more pages, though it sends no `next`",
        Next::Level => ", and no more pages",
        Next::AsLevel(_) => ", and no way on",
    });
    if !page.findings.is_empty() {
        let rules: Vec<&str> = page.findings.iter().map(|finding| finding.rule).collect();
        words.push_str(&format!("; findings: {}", rules.join(", ")));
    }
    words
}
