//! `check --online`: sends every endpoint one request, within its host's limits, and prints the answer. A stream is
//! opened and closed, a queue is inspected and no message taken from it. A webhook is an endpoint of ours: its
//! publisher can't be asked for anything.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::EndpointProbe;
use crate::feed::Page;
use crate::source::amqp::{self, AmqpSettings};
use crate::source::budget::MemoryBudget;
use crate::source::client::HttpClients;
use crate::source::decoder_pool::DecoderPool;
use crate::source::host_limiter::{HostLimiter, Priority};
use crate::source::http::{EndpointClient, HttpFailure};
use crate::source::sse::Stream;
use crate::supervisor::{ConfiguredFeed, FeedSettings, FleetSettings};
use crate::worker::page_source::PageFailure;
use crate::worker::reader::{EndEvidence, NextStep, PagePosition, PageReader, ReadAnswer, ReadOptions};

const BUDGET_BYTES: u64 = 32 << 20;

/// Probes every endpoint once; the results are in the configuration's order.
pub(super) async fn probe(fleet: &FleetSettings) -> Vec<EndpointProbe> {
    let (clients, host_limiter, budget) =
        (HttpClients::default(), HostLimiter::new(fleet.hosts.clone()), MemoryBudget::new(BUDGET_BYTES));
    let mut tasks = JoinSet::new();
    for (at, configured) in fleet.feeds.iter().enumerate() {
        let ConfiguredFeed::Ready(settings) = configured else { continue };
        let (settings, clients, host_limiter, budget) =
            (settings.clone(), clients.clone(), host_limiter.clone(), budget.clone());
        tasks.spawn(async move { (at, endpoints(&settings, &clients, &host_limiter, &budget).await) });
    }
    // A probe that panicked is a bug of ours: it is left out here and shows as missing.
    let mut probes: Vec<(usize, Vec<EndpointProbe>)> = tasks.join_all().await;
    probes.sort_by_key(|(at, _)| *at);
    probes.into_iter().flat_map(|(_, probes)| probes).collect()
}

async fn endpoints(
    settings: &FeedSettings,
    clients: &HttpClients,
    host_limiter: &HostLimiter,
    budget: &MemoryBudget,
) -> Vec<EndpointProbe> {
    let probe =
        |key, url: &str, answer| EndpointProbe { feed: settings.name.to_string(), key, url: url.to_owned(), answer };
    let mut probes = vec![probe("url", &settings.url, probe_poll(settings, clients, host_limiter, budget).await)];
    if let Some(sse) = &settings.sse {
        probes.push(probe("sse.url", &sse.url, probe_stream(settings, &sse.url, clients, host_limiter, budget).await));
    }
    if let Some(amqp) = &settings.amqp {
        probes.push(probe("amqp.queue", &amqp.queue, probe_queue(amqp).await));
    }
    probes
}

async fn probe_stream(
    settings: &FeedSettings,
    url: &str,
    clients: &HttpClients,
    host_limiter: &HostLimiter,
    budget: &MemoryBudget,
) -> Result<String, String> {
    let failed = |failure: HttpFailure| failure.to_string();
    let requests =
        EndpointClient::new(clients, url, &settings.http, &settings.headers, &settings.query).map_err(failed)?;
    let host = host_limiter.queue_for(requests.endpoint_url());
    let _permit = host.acquire(&settings.name, Priority::Level).await;
    Stream::open(&requests, url, None, budget.open_page(host.name(), 0))
        .await
        .map(|_| "a stream of events".to_owned())
        .map_err(failed)
}

async fn probe_queue(settings: &AmqpSettings) -> Result<String, String> {
    let url = settings.url.read().map_err(|error| format!("settings: {error}"))?;
    match amqp::look(settings, &url).await.map_err(|failure| failure.to_string())? {
        Some(1) => Ok("1 message waits".to_owned()),
        Some(messages) => Ok(format!("{messages} messages wait")),
        None => Ok("not there yet; it is declared when the feed runs".to_owned()),
    }
}

async fn probe_poll(
    settings: &FeedSettings,
    clients: &HttpClients,
    host_limiter: &HostLimiter,
    budget: &MemoryBudget,
) -> Result<String, String> {
    let limits = (budget.clone(), DecoderPool::new(1));
    let source = settings.page_source((clients, host_limiter), limits, Arc::default(), None);
    let source = Arc::new(source.map_err(|failure| failure.to_string())?);
    let read_options = ReadOptions { first_priority: Priority::Level, read_ahead: false };
    let mut reader = PageReader::new(&source, read_options, settings.url.clone(), None, EndEvidence::default(), None);
    let failed = |(_, reason): PageFailure| reason;
    let Some(ReadAnswer::Page(mut read)) = reader.next().await.map_err(failed)? else {
        return Ok("not modified".to_owned());
    };
    let mut contents = PageContents::default();
    while let Some(part) = reader.next_part(&mut read).await.map_err(failed)? {
        contents.add(&part.page);
        if let Some(position) = part.page_position {
            return contents.words(position);
        }
    }
    Ok("no page".to_owned())
}

/// What a page holds, counted part by part.
#[derive(Default)]
struct PageContents {
    items: usize,
    unreadable: u64,
    first_reason: Option<&'static str>,
    rules: Vec<&'static str>,
}

impl PageContents {
    fn add(&mut self, page: &Page) {
        self.items += page.items.len();
        self.unreadable += page.unreadable_count();
        self.first_reason = self.first_reason.or(page.unreadable.first().map(|record| record.reason));
        for finding in &page.findings {
            if !self.rules.contains(&finding.rule) {
                self.rules.push(finding.rule);
            }
        }
    }

    fn words(&self, position: PagePosition) -> Result<String, String> {
        let mut words = match self.items {
            1 => "1 item".to_owned(),
            n => format!("{n} items"),
        };
        if let Some(reason) = self.first_reason {
            words.push_str(&format!(", {} that can't be read ({reason})", self.unreadable));
        }
        words.push_str(match position.next_step {
            NextStep::Page if position.clean => ", and more pages",
            NextStep::Page => ", and more pages, though it sends no `next`",
            NextStep::Level => ", and no more pages",
            NextStep::AssumedLevel(_) => ", and no way on",
            NextStep::Failed(_, reason) => return Err(reason),
        });
        if !self.rules.is_empty() {
            words.push_str(&format!("; findings: {}", self.rules.join(", ")));
        }
        Ok(words)
    }
}
