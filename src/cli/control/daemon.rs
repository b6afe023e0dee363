//! Sends orders to a running daemon: over its ops listener, with the admin token.

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

/// For a whole response: an order that takes longer than a moment is accepted first and carried out later.
const ORDER_TIMEOUT: Duration = Duration::from_secs(30);

/// For the response of `/readyz`.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// A daemon's address and admin token.
pub(super) struct DaemonClient {
    database: PathBuf,
    address: SocketAddr,
    token: SecretString,
    client: reqwest::Client,
}

impl DaemonClient {
    /// The daemon that holds `database`: its address comes from the configuration, or with `--db` from the file alone.
    pub(super) fn of(globals: &GlobalArgs, database_path: &DatabasePath, database: &Path) -> anyhow::Result<Self> {
        let ops = configured_ops(globals, database_path)?;
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

    /// Returns the result as text, and how many records still can't be read, as far as that is known yet.
    pub(super) async fn quarantine_batch(
        &self,
        selection: &QuarantineSelection,
        order: QuarantineOrder,
    ) -> anyhow::Result<(String, u64)> {
        let all = *selection == QuarantineSelection::default();
        let options = json!({ "ids": selection.ids, "feed": selection.feed, "reason": selection.reason, "all": all });
        let response = self.ask(&["quarantine", verb(order)], &options).await?;
        Ok((result_text(&response), response.get("failed").and_then(Value::as_u64).unwrap_or(0)))
    }

    async fn post(&self, path: &[&str], options: &Value) -> anyhow::Result<String> {
        Ok(result_text(&self.ask(path, options).await?))
    }

    /// The whole response, which has at least `done` or `accepted`.
    async fn ask(&self, path: &[&str], options: &Value) -> anyhow::Result<Value> {
        let mut url = url::Url::parse(&format!("http://{}/api", self.address))?;
        url.path_segments_mut().map_err(|()| anyhow!("no path can be made"))?.extend(path);
        let request = self.client.post(url).bearer_auth(self.token.expose_secret()).json(options);
        let no_answer = |error: reqwest::Error| self.no_answer(&error);
        let response = request.send().await.map_err(no_answer)?;
        let status = response.status();
        let body = response.bytes().await.map_err(no_answer)?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text_of = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
        match (status.is_success(), text_of("done").or_else(|| text_of("accepted")), text_of("error")) {
            (true, Some(_), _) => Ok(answer),
            (_, _, Some(error)) => Err(anyhow!(error)),
            _ => bail!("{} answered {status}: it is no feedmirror", self.address),
        }
    }

    fn no_answer(&self, error: &reqwest::Error) -> anyhow::Error {
        let why = if error.is_timeout() { "does not answer in time" } else { "does not answer" };
        anyhow!("{} is held by a feedmirror that {why} at {}", self.database.display(), self.address)
    }
}

/// The response's text: what was done, or is going to be done.
fn result_text(answer: &Value) -> String {
    let text = ["done", "accepted"].iter().find_map(|key| answer.get(key).and_then(Value::as_str));
    text.unwrap_or_default().to_owned()
}

fn verb(order: QuarantineOrder) -> &'static str {
    match order {
        QuarantineOrder::Retry => "retry",
        QuarantineOrder::Drop => "drop",
    }
}

/// Fails, with the daemon's answer, unless the daemon says that it is ready.
pub(super) async fn ready(globals: &GlobalArgs, database_path: &DatabasePath, database: &Path) -> anyhow::Result<()> {
    let address = address(configured_ops(globals, database_path)?.as_ref(), database)?;
    let no_answer = || format!("no feedmirror answers at {address}");
    let request = plain_client(READY_TIMEOUT)?.get(format!("http://{address}/readyz"));
    let response = request.send().await.with_context(no_answer)?;
    let status = response.status();
    if !status.is_success() {
        bail!("{address} answered {status}: {}", response.text().await.with_context(no_answer)?.trim());
    }
    Ok(())
}

/// The configuration's ops listener; none with `--db`.
fn configured_ops(globals: &GlobalArgs, database_path: &DatabasePath) -> anyhow::Result<Option<OpsSettings>> {
    match database_path.db {
        Some(_) => Ok(None),
        None => Ok(Some(config::load(globals.config.as_deref(), &Overrides::default())?.ops)),
    }
}

fn address(ops: Option<&OpsSettings>, database: &Path) -> anyhow::Result<SocketAddr> {
    Ok(reachable(match ops {
        Some(OpsSettings { listen, .. }) if listen.port() != 0 => *listen,
        _ => recorded_address(database)?,
    }))
}

/// The address that the daemon recorded in the database when it started.
fn recorded_address(database: &Path) -> anyhow::Result<SocketAddr> {
    let recorded = Reader::open(database)?.mirror()?.ops_address;
    let no_listener = || format!("{} is held by a feedmirror without an ops listener: a sync?", database.display());
    let recorded = recorded.with_context(no_listener)?;
    recorded.parse().with_context(|| format!("{}: ops_address {recorded:?} is no address", database.display()))
}

/// A listener on every address is reached on loopback.
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
