//! `[providers.*]` and `[feeds.*]`: a feed starts from its provider's settings, which start from the global ones.

use std::collections::BTreeMap;
use std::time::Duration;

use url::Url;

use super::problem::ProblemScope;
use super::push::{self, EndpointDrafts, PushEndpointSettings, warn_about_stream};
use super::secrets::{any_secret, headers, query};
use super::sections;
use super::table::{ConfigReport, ConfigValue, Table, nearest};
use super::units::{count, duration, duration_or_zero, or_off, text, word};
use super::urls::{as_written, http_url, is_loopback};
use super::{ConfigProblem, FailedFeed};
use crate::feed::{Attribution, Dialect, FeedName, ModifiedOrder, TiePolicy};
use crate::mode::PushSettings;
use crate::schedule::{PollSettings, RetrySettings};
use crate::source::http::HttpSettings;
use crate::source::secret::ConfiguredValue;
use crate::source::webhook::WebhookListenerSettings;
use crate::supervisor::{DEFAULT_RETENTION, FeedSettings, ResyncSettings};

/// Settings that a provider's feeds have in common, or all feeds.
#[derive(Clone)]
pub(super) struct FeedDefaults {
    attribution: Attribution,
    kind: Option<String>,
    dialect: Option<Dialect>,
    modified: ModifiedOrder,
    ties: TiePolicy,
    retention: Duration,
    purge_gone_after: Option<Duration>,
    headers: Vec<(String, ConfiguredValue)>,
    query: Vec<(String, ConfiguredValue)>,
    poll: PollSettings,
    retry: RetrySettings,
    resync: ResyncSettings,
    http: HttpSettings,
    push: PushSettings,
    drafts: EndpointDrafts,
}

impl FeedDefaults {
    /// The defaults of all feeds, from the global tables.
    pub(super) fn global(
        poll: PollSettings,
        retry: RetrySettings,
        resync: ResyncSettings,
        http: HttpSettings,
        push: PushSettings,
    ) -> Self {
        Self {
            attribution: Attribution::default(),
            kind: None,
            dialect: None,
            modified: ModifiedOrder::Standard,
            ties: TiePolicy::Keep,
            retention: DEFAULT_RETENTION,
            purge_gone_after: None,
            headers: Vec::new(),
            query: Vec::new(),
            poll,
            retry,
            resync,
            http,
            push,
            drafts: EndpointDrafts::default(),
        }
    }

    /// These settings with the changes of `table`, a provider's or a feed's.
    fn with(&self, table: &Table<'_>) -> Self {
        let mut base = self.clone();
        let attribution = &mut base.attribution;
        table.set("publisher", &mut attribution.publisher, |value| text(value).map(Some));
        table.set("license", &mut attribution.license, |value| text(value).map(Some));
        if let Some(url) = table.get_unshown("dataset_url", as_written) {
            attribution.dataset_url = Some(url);
        }
        table.set("kind", &mut base.kind, |value| text(value).map(Some));
        table.set("dialect", &mut base.dialect, |value| dialect(value).map(Some));
        table.set("modified", &mut base.modified, word(order, "\"standard\" or \"bytes\""));
        table.set("ties", &mut base.ties, word(TiePolicy::from_word, "\"keep\" or \"replace\""));
        table.set("retention", &mut base.retention, duration);
        table.set("purge_gone_after", &mut base.purge_gone_after, or_off(duration_or_zero));
        base.headers = headers(table, "headers", &self.headers);
        base.query = query(table, "query", &self.query);
        base.poll = sections::poll(table.table("poll"), &self.poll);
        base.retry = sections::retry(table.table("retry"), &self.retry);
        base.resync = sections::resync(table.table("resync"), &self.resync);
        base.http = sections::http(table.table("http"), &self.http);
        base.push = push::push(table.table("push"), &self.push);
        base
    }

    /// Whether a secret is sent with the feed's requests.
    fn has_secret(&self) -> bool {
        any_secret(&self.headers) || any_secret(&self.query)
    }

    fn feed(
        self,
        (name, was): (FeedName, Option<FeedName>),
        provider: Option<String>,
        url: String,
        endpoints: PushEndpointSettings,
    ) -> FeedSettings {
        FeedSettings {
            name,
            was,
            provider,
            url,
            attribution: self.attribution,
            kind: self.kind,
            dialect: self.dialect,
            modified: self.modified,
            ties: self.ties,
            retention: self.retention,
            purge_gone_after: self.purge_gone_after,
            headers: self.headers,
            query: self.query,
            poll: self.poll,
            retry: self.retry,
            resync: self.resync,
            http: self.http,
            push: self.push,
            sse: endpoints.sse,
            webhook: endpoints.webhook,
            amqp: endpoints.amqp,
        }
    }
}

fn dialect(value: &ConfigValue<'_>) -> Result<Dialect, String> {
    let from_word = |word: &str| Dialect::from_word(if word == "0.2" { "0.2.1" } else { word });
    word(from_word, "text: \"0.2.1\" (or \"0.2\"), \"1.0\" or \"1.0-change-number\"")(value)
}

fn order(word: &str) -> Option<ModifiedOrder> {
    match word {
        "standard" => Some(ModifiedOrder::Standard),
        "bytes" => Some(ModifiedOrder::Bytes),
        _ => None,
    }
}

/// Each provider's settings by name, over the global ones.
pub(super) fn providers(root: &Table<'_>, global: &FeedDefaults) -> BTreeMap<String, FeedDefaults> {
    let mut providers = BTreeMap::new();
    for (name, table) in root.entries("providers", |name| ProblemScope::Provider(name.to_owned())) {
        if FeedName::new(&name).is_none() {
            table.problem_here(INVALID_NAME.to_owned());
        }
        table.refuse("url", "belongs to a feed, [feeds.NAME]");
        table.refuse("total_items", "belongs to a feed, [feeds.NAME]");
        let mut base = global.with(&table);
        base.drafts = global.drafts.of_provider(&table);
        table.finish();
        providers.insert(name, base);
    }
    providers
}

const INVALID_NAME: &str = "not a name: use a-z, 0-9, and after the first also . _ -";

/// Each feed, or why it can't run.
pub(super) fn feeds(
    report: &ConfigReport<'_>,
    root: &Table<'_>,
    global: &FeedDefaults,
    providers: &BTreeMap<String, FeedDefaults>,
    webhooks: &WebhookListenerSettings,
) -> Vec<Result<FeedSettings, FailedFeed>> {
    let mut feeds = Vec::new();
    let (mut urls, mut queues, mut former_names) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, table) in root.entries("feeds", |name| ProblemScope::Feed(name.to_owned())) {
        let provider = provider(&table, providers);
        let base = provider.as_deref().and_then(|name| providers.get(name)).unwrap_or(global);
        let mut base = base.with(&table);
        table.set("total_items", &mut base.attribution.total_items, |value| count(value).map(|n| Some(n as u64)));
        let endpoints = base.drafts.clone().of_feed(&table, &name, webhooks);
        if let Some(amqp) = &endpoints.amqp
            && let Some(other) = queues.insert((amqp.url.to_string(), amqp.queue.clone()), name.clone())
        {
            table.warn("amqp", format!("takes from the queue of {other:?} too: each gets a part of its messages"));
        }
        let was = was(root, &table, &mut former_names);
        let url = url(&table);
        if let Some(url) = &url {
            warn_about(&table, &base, url);
            endpoints.sse.iter().for_each(|stream| warn_about_stream(&table, stream, base.has_secret()));
            if let Some(other) = urls.insert(url.to_string(), name.clone()) {
                table.warn("url", format!("is the URL of {other:?} too: its publisher is asked twice"));
            }
        }
        let Some(feed_name) = FeedName::new(&name) else {
            // An invalid name can't name a failed feed either: only the mistake is reported.
            table.problem_here(INVALID_NAME.to_owned());
            table.finish();
            continue;
        };
        let as_written = table.peek("url").and_then(|value| value.text()).map(|text| text.trim().to_owned());
        table.finish();
        let errors = mistakes_of(report, &name, provider.as_deref());
        feeds.push(match as_written {
            Some(url) if errors.is_empty() => Ok(base.feed((feed_name, was), provider, url, endpoints)),
            _ => Err(FailedFeed { name: feed_name, errors }),
        });
    }
    feeds
}

fn mistakes_of(report: &ConfigReport<'_>, feed: &str, provider: Option<&str>) -> Vec<ConfigProblem> {
    let concerns = |problem: &&ConfigProblem| match &problem.scope {
        ProblemScope::Fatal => false,
        ProblemScope::Provider(name) => provider == Some(name),
        ProblemScope::Feed(name) => feed == name,
    };
    report.problems.borrow().iter().filter(concerns).cloned().collect()
}

fn provider(table: &Table<'_>, providers: &BTreeMap<String, FeedDefaults>) -> Option<String> {
    table.get("provider", |value| {
        let name = text(value)?;
        if providers.contains_key(&name) {
            return Ok(name);
        }
        Err(match nearest(&name, providers.keys().map(String::as_str)) {
            Some(near) => format!("there is no such provider; did you mean {near:?}?"),
            None => format!("there is no [providers.{name}]"),
        })
    })
}

/// The feed's former name, which no configured feed has and no other feed had.
fn was(root: &Table<'_>, table: &Table<'_>, former_names: &mut BTreeMap<String, ()>) -> Option<FeedName> {
    table.get("was", |value| {
        let was = text(value)?;
        let name = FeedName::new(&was).ok_or_else(|| INVALID_NAME.to_owned())?;
        if root.table("feeds").peek(&was).is_some() {
            return Err("is the name of a feed that is configured: two would share its rows".to_owned());
        }
        match former_names.insert(was, ()) {
            None => Ok(name),
            Some(()) => Err("is what another feed was, too: only one can have its rows".to_owned()),
        }
    })
}

fn url(table: &Table<'_>) -> Option<Url> {
    if table.is_present() && table.peek("url").is_none() {
        table.ask("url");
        table.problem("url", "is missing: the URL of the feed's first page".to_owned());
        return None;
    }
    table.get_unshown("url", http_url)
}

fn warn_about(table: &Table<'_>, base: &FeedDefaults, url: &Url) {
    if url.scheme() == "http" && base.has_secret() && !is_loopback(url) {
        table.warn("url", "is plain http, and secrets are sent with it: anyone on the way can read them".to_owned());
    }
}
