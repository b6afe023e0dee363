//! Orders to a running daemon: over its ops listener, with the admin token.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use super::super::GlobalArgs;
use super::super::database_path::DatabasePath;
use crate::config::{self, OpsSettings, Overrides};
use crate::server::token;
use crate::source::client::plain_client;
use crate::store::read::Reader;
use crate::supervisor::control::{Order, QuarantineOrder, QuarantineSelection};

/// For a whole answer: an order that takes longer than a moment is accepted, and carried out later.
const ORDER_TIMEOUT: Duration = Duration::from_secs(30);

/// For a word on readiness.
const READY_WITHIN: Duration = Duration::from_secs(5);

/// Where a daemon listens, and what opens its door.
pub(super) struct DaemonClient {
    database: PathBuf,
    address: SocketAddr,
    token: SecretString,
    client: reqwest::Client,
}

impl DaemonClient {
    /// The daemon that holds `database`: found by the configuration, or with `--db` by the file alone.
    pub(super) fn of(globals: &GlobalArgs, place: &DatabasePath, database: &Path) -> anyhow::Result<Self> {
        let ops = configured(globals, place)?;
        let address = address(ops.as_ref(), database)?;
        let token = token::read(ops.and_then(|ops| ops.token).as_ref(), database)?;
        Ok(Self { database: database.to_owned(), address, token, client: plain_client(ORDER_TIMEOUT)? })
    }

    pub(super) async fn feed(&self, name: &str, order: &Order) -> anyhow::Result<String> {
        let (verb, options) = match order {
            Order::Pause => ("pause", json!({})),
            Order::Resume => ("resume", json!({})),
            Order::PollNow => ("poll-now", json!({})),
            Order::Purge => ("purge", json!({})),
            Order::Resync { trust_source, accept } => {
                ("resync", json!({ "trust_source": trust_source, "accept": accept }))
            }
            Order::AcceptSweep => ("resync", json!({ "accept": true })),
            Order::Seek(url) => ("seek", json!({ "url": url })),
            Order::Ack(Some(ack)) => ("ack", json!({ "until": ack.until_text(), "note": ack.note })),
            Order::Ack(None) => ("ack", json!({ "clear": true })),
            Order::Forget { item, undo } => ("forget", json!({ "id": item.id, "kind": item.kind, "undo": undo })),
        };
        self.post(&["feeds", name, verb], &options).await
    }

    pub(super) async fn quarantine(&self, id: i64, order: QuarantineOrder) -> anyhow::Result<String> {
        self.post(&["quarantine", &id.to_string(), verb(order)], &json!({})).await
    }

    /// What came of it in words, and how many records stay that were to be read, as far as that is known yet.
    pub(super) async fn sort(
        &self,
        chosen: &QuarantineSelection,
        order: QuarantineOrder,
    ) -> anyhow::Result<(String, u64)> {
        let all = *chosen == QuarantineSelection::default();
        let options = json!({ "ids": chosen.ids, "feed": chosen.feed, "reason": chosen.reason, "all": all });
        let answer = self.ask(&["quarantine", verb(order)], &options).await?;
        Ok((words(&answer), answer.get("failed").and_then(Value::as_u64).unwrap_or(0)))
    }

    async fn post(&self, path: &[&str], options: &Value) -> anyhow::Result<String> {
        Ok(words(&self.ask(path, options).await?))
    }

    /// The whole answer, which says at least what was done.
    async fn ask(&self, path: &[&str], options: &Value) -> anyhow::Result<Value> {
        let mut url = url::Url::parse(&format!("http://{}/api", self.address))?;
        url.path_segments_mut().map_err(|()| anyhow!("no path can be made"))?.extend(path);
        let request = self.client.post(url).bearer_auth(self.token.expose_secret()).json(options);
        let silent = |error: reqwest::Error| self.silent(&error);
        let response = request.send().await.map_err(silent)?;
        let status = response.status();
        let body = response.bytes().await.map_err(silent)?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let words = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
        match (status.is_success(), words("done").or_else(|| words("accepted")), words("error")) {
            (true, Some(_), _) => Ok(answer),
            (_, _, Some(error)) => Err(anyhow!(error)),
            _ => bail!("{} answered {status}: it is no feedmirror", self.address),
        }
    }

    fn silent(&self, error: &reqwest::Error) -> anyhow::Error {
        let why = if error.is_timeout() { "does not answer in time" } else { "does not answer" };
        anyhow!("{} is held by a feedmirror that {why} at {}", self.database.display(), self.address)
    }
}

/// What was done, or is going to be.
fn words(answer: &Value) -> String {
    let words = ["done", "accepted"].iter().find_map(|key| answer.get(key).and_then(Value::as_str));
    words.unwrap_or_default().to_owned()
}

fn verb(order: QuarantineOrder) -> &'static str {
    match order {
        QuarantineOrder::Retry => "retry",
        QuarantineOrder::Drop => "drop",
    }
}

/// Fails unless the daemon says that it is ready, with its words.
pub(super) async fn ready(globals: &GlobalArgs, place: &DatabasePath, database: &Path) -> anyhow::Result<()> {
    let address = address(configured(globals, place)?.as_ref(), database)?;
    let silent = || format!("no feedmirror answers at {address}");
    let request = plain_client(READY_WITHIN)?.get(format!("http://{address}/readyz"));
    let response = request.send().await.with_context(silent)?;
    let status = response.status();
    if !status.is_success() {
        bail!("{address} answered {status}: {}", response.text().await.with_context(silent)?.trim());
    }
    Ok(())
}

/// The configuration's listener; none where the file alone is told.
fn configured(globals: &GlobalArgs, place: &DatabasePath) -> anyhow::Result<Option<OpsSettings>> {
    match place.db {
        Some(_) => Ok(None),
        None => Ok(Some(config::load(globals.config.as_deref(), &Overrides::default())?.ops)),
    }
}

fn address(ops: Option<&OpsSettings>, database: &Path) -> anyhow::Result<SocketAddr> {
    Ok(reachable(match ops {
        Some(OpsSettings { listen, .. }) if listen.port() != 0 => *listen,
        _ => noted_address(database)?,
    }))
}

/// What the daemon wrote down when it started.
fn noted_address(database: &Path) -> anyhow::Result<SocketAddr> {
    let noted = Reader::open(database)?.mirror()?.ops_address;
    let held = || format!("{} is held by a feedmirror without an ops listener: a sync?", database.display());
    let noted = noted.with_context(held)?;
    noted.parse().with_context(|| format!("{}: ops_address {noted:?} is no address", database.display()))
}

/// A listener on every address is asked on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_asked_on_loopback() {
        let reached = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:8470"), "127.0.0.1:8470");
        assert_eq!(reached("[::]:8470"), "[::1]:8470");
        assert_eq!(reached("10.0.0.1:8470"), "10.0.0.1:8470");
    }
}
