//! Browser sessions, where the listener can be reached from another machine: the admin token, typed into a form,
//! becomes a session.
//!
//! Guarantees: a session reads and changes nothing, so that a foreign page has nothing to forge; its cookie is sent to
//! this host alone, with requests from its own pages alone (`SameSite=Strict`), and no script can read it. The cookie
//! contains no token: a time and a signature over that, under a key that each run makes anew. Comparisons take constant
//! time.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use rand::RngExt;
use sha2::Sha256;
use tokio::time::{sleep, timeout};

use super::AppState;
use super::response::Problem;
use super::show::document;
use crate::feed::FeedName;
use crate::output::page;
use crate::source::webhook::connection_slots::Peer;

const COOKIE: &str = "feedmirror-session";
/// Seconds that a session lasts.
const SESSION_S: i64 = 12 * 3600;
/// How long the answer to a wrong token is delayed.
const WRONG_TOKEN_WAIT: Duration = Duration::from_secs(1);
const MAX_FORM_BYTES: usize = 4 << 10;
const BODY_WAIT: Duration = Duration::from_secs(10);

/// Makes session cookies and verifies them.
pub(super) struct Sessions {
    key: [u8; 64],
}

impl Sessions {
    /// Sessions with a new key.
    pub(super) fn new() -> Self {
        Self { key: rand::rng().random() }
    }

    /// Whether a request has the cookie of a session that is still valid.
    pub(super) fn has_session(&self, headers: &HeaderMap, now: Timestamp) -> bool {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut session_cookies = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| {
            let (name, value) = cookie.trim().split_once('=')?;
            (name == COOKIE).then_some(value)
        });
        session_cookies.any(|value| self.is_good(value, now))
    }

    fn is_good(&self, value: &str, now: Timestamp) -> bool {
        let Some((until, signature)) = value.split_once('.') else { return false };
        let signed = unhex(signature).is_some_and(|given| self.mac(until).verify_slice(&given).is_ok());
        signed && until.parse::<i64>().is_ok_and(|until| until > now.as_second())
    }

    /// A new session, as the value of `Set-Cookie`; without an expiry, so that it ends with the browser.
    fn cookie(&self, now: Timestamp, secure: bool) -> String {
        let until = (now.as_second() + SESSION_S).to_string();
        let signature: String =
            self.mac(&until).finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let secure = if secure { "; Secure" } else { "" };
        format!("{COOKIE}={until}.{signature}; Path=/; HttpOnly; SameSite=Strict{secure}")
    }

    fn mac(&self, until: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new(&self.key.into());
        mac.update(until.as_bytes());
        mac
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair.filter(|pair| pair.len() == 2)?, 16).ok()).collect()
}

/// The login form: for `GET /login`, or for any page that was requested without a session.
pub(super) fn login_form(target: &str, wrong: bool) -> Result<Response, Problem> {
    let mut response = document(|nonce| page::login(nonce, redirect_target(target), wrong))?;
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    Ok(response)
}

/// `GET /login`.
pub(super) async fn ask() -> Result<Response, Problem> {
    login_form("/", false)
}

/// `POST /login`: with the token makes a session; otherwise answers with the form again.
pub(super) async fn log_in(
    State(app_state): State<AppState>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let timed_out = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the form did not come in time");
    let bytes = timeout(BODY_WAIT, to_bytes(body, MAX_FORM_BYTES)).await.map_err(timed_out)?;
    let bytes = bytes.map_err(|_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the form is too large"))?;
    let (mut token, mut target) = (String::new(), String::new());
    for (name, value) in url::form_urlencoded::parse(&bytes) {
        match &*name {
            "token" => token = value.trim().to_owned(),
            "to" => target = value.into_owned(),
            _ => {}
        }
    }
    if !app_state.access_control.is_token(token.as_bytes()) {
        tokio::join!(sleep(WRONG_TOKEN_WAIT), app_state.access_control.record_wrong_token(Some(&peer)));
        return login_form(&target, true);
    }
    // A proxy that terminates TLS says so; a false header only keeps the client's own cookie from being sent back.
    let secure = headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
    let cookie = app_state.access_control.sessions.cookie(Timestamp::now(), secure);
    let mut response = Redirect::to(redirect_target(&target)).into_response();
    response.headers_mut().insert(header::SET_COOKIE, HeaderValue::try_from(cookie).map_err(Problem::unavailable)?);
    Ok(response)
}

/// Where to redirect after the login: always to a page of this listener.
fn redirect_target(target: &str) -> &str {
    if is_page(target) { target } else { "/" }
}

/// Whether a path is that of a status page.
pub(super) fn is_page(path: &str) -> bool {
    path == "/" || path.strip_prefix("/feeds/").is_some_and(|name| FeedName::new(name).is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn is_known(sessions: &Sessions, cookies: &str, now: i64) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, cookies.parse().unwrap());
        sessions.has_session(&headers, Timestamp::from_second(now).unwrap())
    }

    #[test]
    fn a_session_is_good_for_its_time_and_for_the_run_that_made_it() {
        let (sessions, others) = (Sessions::new(), Sessions::new());
        let made = sessions.cookie(Timestamp::from_second(1_000).unwrap(), false);
        let cookie = made.split(';').next().unwrap();
        let value = cookie.split_once('=').unwrap().1;
        assert!(is_known(&sessions, cookie, 1_000));
        assert!(is_known(&sessions, &format!("a=b; {cookie}"), 1_000 + SESSION_S - 1));
        assert!(!is_known(&sessions, cookie, 1_000 + SESSION_S), "it has ended");
        assert!(!is_known(&others, cookie, 1_000), "another run knows it not");
        let (until, signature) = value.split_once('.').unwrap();
        for forged in [
            format!("{}.{signature}", until.parse::<i64>().unwrap() + 1),
            format!("{until}.{}", &signature[2..]),
            format!("{until}."),
            format!("{until}.{}", "0".repeat(64)),
            format!("{until}.{signature}0"),
            until.to_owned(),
        ] {
            assert!(!is_known(&sessions, &format!("{COOKIE}={forged}"), 1_000), "{forged}");
        }
        for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
            assert!(made.contains(attribute), "{made}");
        }
        assert!(!made.contains("Secure") && sessions.cookie(Timestamp::UNIX_EPOCH, true).contains("; Secure"));
    }

    #[test]
    fn a_form_leads_to_our_own_pages_alone() {
        for ours in ["/", "/feeds/acme-1"] {
            assert_eq!(redirect_target(ours), ours);
        }
        for foreign in ["", "//evil.example", "https://evil.example/", "/feeds/../login", "/feeds/", "/\\evil.example"]
        {
            assert_eq!(redirect_target(foreign), "/", "{foreign}");
        }
    }
}
