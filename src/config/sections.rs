//! The sections of settings that are the same wherever they may occur: `[poll]` is every feed's default and, below a
//! provider or a feed, its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use reqwest::header::HeaderValue;
use tracing_subscriber::EnvFilter;
use url::Url;

use super::secrets::guarded_secret;
use super::table::{ConfigValue, Table};
use super::units::{count, duration, duration_text, or_off, rate, share, size, text, word};
use super::{FailedFeed, LogFormat, LogSettings, OpsSettings};
use crate::schedule::{PollSettings, RetrySettings};
use crate::source::http::{HostLimits, HostSettings, HttpSettings};
use crate::store::retention::{RetentionSettings, TOMBSTONE_MARGIN};
use crate::supervisor::{FeedSettings, ResyncSettings};

/// The shortest wait that the ecosystem expects: last pages are cached for this long (RPDE.md).
const POLITE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(8);

pub(super) fn poll(table: Table<'_>, base: &PollSettings) -> PollSettings {
    let mut poll = base.clone();
    let min = table.set("min", &mut poll.min, duration);
    let max = table.set("max", &mut poll.max, duration);
    table.set("lookback", &mut poll.lookback, duration);
    if min && poll.min < POLITE_INTERVAL {
        let message = format!("{} is under 8s, the shortest wait that publishers are used to", duration_text(poll.min));
        table.warn("min", message);
    }
    if (min || max) && poll.min > poll.max {
        table.problem(if min { "min" } else { "max" }, min_over_max(poll.min, poll.max));
    }
    table.finish();
    poll
}

pub(super) fn retry(table: Table<'_>, base: &RetrySettings) -> RetrySettings {
    let mut retry = base.clone();
    let min = table.set("min", &mut retry.min, duration);
    let max = table.set("max", &mut retry.max, duration);
    if (min || max) && retry.min > retry.max {
        table.problem(if min { "min" } else { "max" }, min_over_max(retry.min, retry.max));
    }
    table.finish();
    retry
}

fn min_over_max(min: std::time::Duration, max: std::time::Duration) -> String {
    format!("min ({}) must not be over max ({})", duration_text(min), duration_text(max))
}

pub(super) fn resync(table: Table<'_>, base: &ResyncSettings) -> ResyncSettings {
    let mut resync = base.clone();
    table.set("every", &mut resync.every, or_off(duration));
    table.set("max_sweep", &mut resync.max_sweep, share);
    table.finish();
    resync
}

/// `[http]`, which also holds the default limits of each host.
pub(super) fn global_http(table: Table<'_>) -> (HttpSettings, HostLimits) {
    let http = http_keys(&table, &HttpSettings::default());
    let each = host_limits(&table, &HostLimits::default());
    table.finish();
    (http, each)
}

/// `http` of a provider or a feed.
pub(super) fn http(table: Table<'_>, base: &HttpSettings) -> HttpSettings {
    let http = http_keys(&table, base);
    // One host may serve many feeds: a limit of the host can't be set per feed.
    for key in ["per_host", "rate"] {
        table.refuse(key, "is a host's, over all its feeds: set it in [hosts.\"example.org\"] or, for all, in [http]");
    }
    table.finish();
    http
}

fn http_keys(table: &Table<'_>, base: &HttpSettings) -> HttpSettings {
    let mut http = base.clone();
    table.set("user_agent", &mut http.user_agent, user_agent);
    table.set("connect_timeout", &mut http.connect_timeout, duration);
    table.set("read_timeout", &mut http.read_timeout, duration);
    table.set("page_timeout", &mut http.page_timeout, duration);
    table.set("max_page_bytes", &mut http.max_page_bytes, size);
    table.set("ca_file", &mut http.ca_file, |value| certificates(value).map(Some));
    table.set("allow_hosts", &mut http.allow_hosts, hosts_list);
    if let Some(proxy) = table.get_unshown("proxy", proxy) {
        http.proxy = Some(proxy);
    }
    http
}

fn user_agent(value: &ConfigValue<'_>) -> Result<String, String> {
    let agent = text(value)?;
    HeaderValue::from_str(&agent).map_err(|_| "holds characters that no header may".to_owned())?;
    Ok(agent)
}

/// The path of a PEM file with a certificate in it.
pub(super) fn certificates(value: &ConfigValue<'_>) -> Result<PathBuf, String> {
    pem(value, "-----BEGIN CERTIFICATE-----", "certificate")
}

/// The path of a PEM file that holds `mark`, which begins or ends `what`.
pub(super) fn pem(value: &ConfigValue<'_>, mark: &str, what: &str) -> Result<PathBuf, String> {
    let path = value.path().ok_or("must be the path of a PEM file")?;
    let read = std::fs::read(&path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    if !read.windows(mark.len()).any(|window| window == mark.as_bytes()) {
        return Err(format!("{} holds no PEM {what}", path.display()));
    }
    Ok(path)
}

/// A proxy's credentials would be in the settings in plain text, so they must come from the environment instead.
fn proxy(value: &ConfigValue<'_>) -> Result<String, String> {
    let right = "must be the URL of a proxy, as \"http://proxy.example:3128\"";
    let url = value.text().and_then(|text| Url::parse(text).ok()).filter(Url::has_host).ok_or(right)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must hold no credentials: give such a proxy in the environment, as HTTPS_PROXY".to_owned());
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(right.to_owned());
    }
    Ok(url.into())
}

fn hosts_list(value: &ConfigValue<'_>) -> Result<Vec<String>, String> {
    let right = "must be a list of hosts, as [\"cdn.example.org\", \"example.org:8443\"]";
    let list = value.list().ok_or(right)?;
    let host = |entry: &str| host_and_port(entry).ok_or_else(|| format!("{right}: {entry:?} is none"));
    list.into_iter().map(host).collect()
}

/// `host` or `host:port` in lower case; nothing else.
fn host_and_port(entry: &str) -> Option<String> {
    if entry.is_empty() || entry.contains(['/', '@', '?', '#', '*', '\\']) || entry.contains(char::is_whitespace) {
        return None;
    }
    let url = Url::parse(&format!("http://{entry}/")).ok()?;
    let host = url.host_str()?;
    // The parser drops `:80`, which here distinguishes one port from any port.
    let port = entry.rsplit_once(':').filter(|(before, _)| !before.contains(':') || before.ends_with(']'));
    match port {
        Some((_, port)) => Some(format!("{host}:{}", port.parse::<u16>().ok().filter(|p| *p > 0)?)),
        None => Some(host.to_owned()),
    }
}

fn host_limits(table: &Table<'_>, base: &HostLimits) -> HostLimits {
    let mut limits = base.clone();
    table.set("per_host", &mut limits.per_host, count);
    table.set("rate", &mut limits.rate, or_off(rate));
    limits
}

/// `[hosts.*]`, each with the defaults of `[http]`.
pub(super) fn hosts(root: &Table<'_>, each: HostLimits) -> HostSettings {
    let mut matching = Vec::new();
    for (pattern, table) in root.entries("hosts", |_| super::ProblemScope::Fatal) {
        let host = host_pattern(&pattern);
        let unquoted = table.keys().any(|key| table.peek(key).is_some_and(|value| value.dict().is_some()));
        match host {
            // `[hosts.example.org]` without quotes is a table `org` in a table `example`.
            _ if unquoted => {
                table
                    .problem_here("must hold values only; a host is written in quotes: [hosts.\"example.org\"]".into());
                continue;
            }
            Some(host) => matching.push((host, host_limits(&table, &each))),
            None => {
                let message = "must be named \"example.org\", \"example.org:8443\" or \"*.example.org\"";
                table.problem_here(message.to_owned());
                host_limits(&table, &each);
            }
        }
        table.finish();
    }
    HostSettings { each, matching }
}

fn host_pattern(pattern: &str) -> Option<String> {
    match pattern.strip_prefix("*.") {
        Some(rest) => host_and_port(rest).map(|host| format!("*.{host}")),
        None => host_and_port(pattern),
    }
}

/// `[keep]`; [`check_tombstones`] checks `tombstones` once the feeds are known.
pub(super) fn keep(table: Table<'_>) -> RetentionSettings {
    let mut keep = RetentionSettings::default();
    table.set("quarantine", &mut keep.quarantine, or_off(duration));
    table.set("findings", &mut keep.findings, or_off(duration));
    table.set("events", &mut keep.events, or_off(duration));
    table.set("refusals", &mut keep.refusals, or_off(duration));
    table.set("tombstones", &mut keep.tombstones, or_off(duration));
    table.set("forgotten", &mut keep.forgotten, or_off(duration));
    table.finish();
    keep
}

/// A late update could revive an item whose tombstone is removed before its publisher has forgotten the deletion.
pub(super) fn check_tombstones(root: &Table<'_>, keep: &RetentionSettings, feeds: &[Result<FeedSettings, FailedFeed>]) {
    let Some(kept) = keep.tombstones else { return };
    let Some(feed) = feeds.iter().flatten().max_by_key(|feed| feed.retention) else { return };
    let least = feed.retention + TOMBSTONE_MARGIN;
    if kept < least {
        let message = format!(
            "{} is under {}, the retention of {:?} and 30d: a late update could revive what was deleted",
            duration_text(kept),
            duration_text(least),
            feed.name.as_str()
        );
        root.table("keep").problem("tombstones", message);
    }
}

pub(super) fn ops(table: Table<'_>) -> OpsSettings {
    let mut ops = OpsSettings::default();
    table.set("listen", &mut ops.listen, listen);
    ops.token = guarded_secret(&table, "token");
    table.finish();
    ops
}

/// Address and port.
pub(super) fn listen(value: &ConfigValue<'_>) -> Result<SocketAddr, String> {
    let address = value.text().and_then(|text| text.parse().ok());
    address.ok_or_else(|| "must be an address and a port, as \"127.0.0.1:8470\" or \"[::1]:8470\"".to_owned())
}

pub(super) fn log(table: Table<'_>) -> LogSettings {
    let mut log = LogSettings::default();
    table.set("format", &mut log.format, word(LogFormat::from_word, "\"text\" or \"json\""));
    table.set("level", &mut log.level, level);
    table.finish();
    log
}

fn level(value: &ConfigValue<'_>) -> Result<String, String> {
    let right =
        "must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or a filter as \"warn,feedmirror=debug\"";
    let level = value.text().map(str::trim).filter(|text| !text.is_empty()).ok_or(right)?;
    // Any word is a valid filter for the library: the name of a target.
    let filter = level.contains(['=', ',']) && EnvFilter::try_new(level).is_ok();
    let named = ["error", "warn", "info", "debug", "trace", "off"].contains(&level.to_ascii_lowercase().as_str());
    if !filter && !named {
        return Err(right.to_owned());
    }
    Ok(level.to_owned())
}
