//! Access control: checks the `Host` of a request, and the admin token.
//!
//! Guarantees: on loopback only names of this machine's loopback are answered, so that a web site whose name points
//! here (DNS rebinding) reads nothing; a request that changes something needs the token, and off loopback a read does
//! too, except `/healthz` and `/readyz`. The token comes in a header that no browser adds by itself; a browser's
//! session, which it does send by itself, exists off loopback only and allows reading only.
//!
//! Off loopback the names of the machine can't be known: a request for one that is neither an address nor `localhost`
//! is answered when it has the token or a session, and otherwise gets only the form to log in.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::sleep;

use super::response::Problem;
use super::session::{self, Sessions};
use crate::source::webhook::connection_slots::Peer;
use crate::source::webhook::failed_logins::FailedLogins;

/// The token, the sessions and the failed logins.
pub(super) struct AccessControl {
    token: SecretString,
    /// Whether the listener can be reached from this machine alone.
    loopback: bool,
    /// The sessions of logged in browsers.
    pub(super) sessions: Sessions,
    failed_logins: FailedLogins,
}

/// Passes a request on, or answers 403 or 401.
pub(super) async fn check_access(
    State(access_control): State<Arc<AccessControl>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer.clone());
    match access_control.authorize(request.method(), request.uri().path(), request.headers()) {
        Ok(()) => {
            // A client that logs in has sent no token yet.
            if let Some(peer) = peer.filter(|_| request.uri().path() != "/login") {
                peer.mark_authenticated();
            }
            next.run(request).await
        }
        Err(problem)
            if problem.status() == StatusCode::UNAUTHORIZED
                && request.headers().contains_key(header::AUTHORIZATION) =>
        {
            access_control.record_wrong_token(peer.as_ref()).await;
            problem.into_response()
        }
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED && access_control.offers_login(&request) => {
            session::login_form(request.uri().path(), false).unwrap_or_else(IntoResponse::into_response)
        }
        Err(problem) => problem.into_response(),
    }
}

impl AccessControl {
    pub(super) fn new(token: SecretString, loopback: bool) -> Self {
        Self { token, loopback, sessions: Sessions::new(), failed_logins: FailedLogins::default() }
    }

    /// Whether `given` is the admin token.
    pub(super) fn is_token(&self, candidate: &[u8]) -> bool {
        constant_time_eq(candidate, self.token.expose_secret().as_bytes())
    }

    /// A client sent a wrong token: logs it, and delays the answer, the longer the more there were.
    pub(super) async fn record_wrong_token(&self, peer: Option<&Peer>) {
        let from = peer.map(|peer| peer.address.ip().to_canonical());
        let (wait, log_count) = self.failed_logins.record_failure(from, Instant::now());
        if let Some(unlogged) = log_count {
            let from = from.map(|from| from.to_string());
            tracing::warn!(from, untold = unlogged, "a wrong admin token was shown to the operators' listener");
        }
        sleep(wait).await;
    }

    /// Whether a browser requests a page that it may log in for.
    fn offers_login(&self, request: &Request) -> bool {
        !self.loopback && is_read(request.method()) && session::is_page(request.uri().path())
    }

    fn authorize(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Problem> {
        let reads = is_read(method);
        let logs_in = !self.loopback && path == "/login" && (reads || *method == Method::POST);
        if logs_in {
            return Ok(());
        }
        let authenticated = self.has_token(headers)
            || (!self.loopback && reads && self.sessions.has_session(headers, Timestamp::now()));
        let host = host(headers).ok_or_else(|| Problem::new(StatusCode::FORBIDDEN, "one Host header is needed"))?;
        let is_ours = if self.loopback {
            is_loopback(host)
        } else {
            authenticated || is_local(host) || (reads && session::is_page(path))
        };
        if !is_ours {
            let words = "this Host is not answered: ask by address, or by localhost on this machine";
            return Err(Problem::new(StatusCode::FORBIDDEN, words));
        }
        let open = matches!(path, "/healthz" | "/readyz");
        if authenticated || (reads && (self.loopback || open)) {
            return Ok(());
        }
        Err(Problem::new(StatusCode::UNAUTHORIZED, "the admin token is needed, as Authorization: Bearer …"))
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let candidate = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).and_then(bearer);
        candidate.is_some_and(|candidate| self.is_token(candidate))
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Compares in a time that depends on nothing but the length.
fn constant_time_eq(candidate: &[u8], token: &[u8]) -> bool {
    if candidate.len() != token.len() || token.is_empty() {
        return false;
    }
    let differing = candidate.iter().zip(token).fold(0, |differing, (a, b)| std::hint::black_box(differing | (a ^ b)));
    differing == 0
}

/// The single `Host` header, without its port.
fn host(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(header::HOST).iter();
    let host = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let host = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    };
    (!host.is_empty()).then_some(host)
}

fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(bare) => bare.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn is_loopback(host: &str) -> bool {
    address(host).map_or_else(|| is_localhost(host), |address| address.to_canonical().is_loopback())
}

fn is_local(host: &str) -> bool {
    address(host).is_some() || is_localhost(host)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn authorize_status(loopback: bool, method: Method, path: &str, headers: &[(&str, &str)]) -> u16 {
        let access_control = AccessControl::new("secret".into(), loopback);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        access_control.authorize(&method, path, &map).map_or_else(|problem| problem.status().as_u16(), |()| 200)
    }

    #[test]
    fn on_loopback_only_loopback_names_are_answered() {
        let read = |host: &str| authorize_status(true, Method::GET, "/", &[("host", host)]);
        for host in [
            "localhost",
            "LOCALHOST:8470",
            "a.localhost",
            "127.0.0.1",
            "127.8.9.1:80",
            "[::1]",
            "[::1]:8470",
            "localhost.",
        ] {
            assert_eq!(read(host), 200, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evillocalhost",
            "10.0.0.1",
            "[::2]:1",
            "",
            ":80",
            "localhost:80:80",
            "1",
        ] {
            assert_eq!(read(host), 403, "{host}");
        }
        assert_eq!(authorize_status(true, Method::GET, "/", &[]), 403);
        assert_eq!(authorize_status(true, Method::GET, "/", &[("host", "localhost"), ("host", "evil.example")]), 403);
        let token = ("authorization", "Bearer secret");
        assert_eq!(authorize_status(true, Method::GET, "/", &[("host", "evil.example"), token]), 403);
    }

    #[test]
    fn off_loopback_a_foreign_name_needs_the_token() {
        let token = ("authorization", "bearer secret");
        assert_eq!(authorize_status(false, Method::GET, "/metrics", &[("host", "mirror.example:8470"), token]), 200);
        assert_eq!(authorize_status(false, Method::GET, "/healthz", &[("host", "mirror.example:8470")]), 403);
        assert_eq!(authorize_status(false, Method::GET, "/healthz", &[("host", "10.1.2.3:8470")]), 200);
        assert_eq!(authorize_status(false, Method::GET, "/readyz", &[("host", "[fd00::1]:8470")]), 200);
        for path in ["/", "/feeds/a", "/metrics", "/api/feeds", "/healthz/x", "/live"] {
            assert_eq!(authorize_status(false, Method::GET, path, &[("host", "10.1.2.3")]), 401, "{path}");
            assert_eq!(authorize_status(false, Method::GET, path, &[("host", "10.1.2.3"), token]), 200, "{path}");
        }
    }

    #[test]
    fn whatever_changes_something_needs_the_token() {
        let post = |authorization: &str| {
            authorize_status(
                true,
                Method::POST,
                "/api/feeds/a/pause",
                &[("host", "localhost"), ("authorization", authorization)],
            )
        };
        assert_eq!(post("Bearer secret"), 200);
        for wrong in
            ["", "Bearer", "Bearer ", "Bearer secre", "Bearer secrets", "Bearer Secret", "Basic secret", "secret"]
        {
            assert_eq!(post(wrong), 401, "{wrong}");
        }
        assert_eq!(authorize_status(true, Method::POST, "/healthz", &[("host", "localhost")]), 401);
        assert_eq!(authorize_status(true, Method::OPTIONS, "/", &[("host", "localhost")]), 401);
    }
}
