//! The browsers' way in where the listener can be reached from elsewhere: the admin token, typed into a form, becomes a
//! session.
//!
//! Guarantees: a session reads and changes nothing, so that a foreign page has nothing to forge; its cookie is sent to
//! this host alone, with requests from its own pages alone (`SameSite=Strict`), and no script sees it. It holds no
//! token: a time and a signature over it, under a key that is made anew with each run. Comparisons take a time that
//! tells nothing.

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
/// So long does somebody wait who gave a wrong token.
const WRONG_TOKEN_WAIT: Duration = Duration::from_secs(1);
const MOST_BYTES: usize = 4 << 10;
const BODY_WAIT: Duration = Duration::from_secs(10);

/// Makes sessions and knows them again.
pub(super) struct Sessions {
    key: [u8; 64],
}

impl Sessions {
    /// With a key of their own.
    pub(super) fn new() -> Self {
        Self { key: rand::rng().random() }
    }

    /// Whether a request comes with a session that is still good.
    pub(super) fn has_session(&self, headers: &HeaderMap, now: Timestamp) -> bool {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut ours = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|cookie| {
            let (name, value) = cookie.trim().split_once('=')?;
            (name == COOKIE).then_some(value)
        });
        ours.any(|value| self.is_good(value, now))
    }

    fn is_good(&self, value: &str, now: Timestamp) -> bool {
        let Some((until, signature)) = value.split_once('.') else { return false };
        let signed = unhex(signature).is_some_and(|given| self.mac(until).verify_slice(&given).is_ok());
        signed && until.parse::<i64>().is_ok_and(|until| until > now.as_second())
    }

    /// A new one, as `Set-Cookie` has it; without an end of its own, so that it ends with the browser.
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

/// `GET /login`, or any page that was asked for without a session.
pub(super) fn login_form(to: &str, wrong: bool) -> Result<Response, Problem> {
    let mut response = document(|nonce| page::login(nonce, redirect_target(to), wrong))?;
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    Ok(response)
}

/// `GET /login`.
pub(super) async fn ask() -> Result<Response, Problem> {
    login_form("/", false)
}

/// `POST /login`: the token makes a session, anything else the form again.
pub(super) async fn log_in(
    State(shared): State<AppState>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the form did not come in time");
    let bytes = timeout(BODY_WAIT, to_bytes(body, MOST_BYTES)).await.map_err(late)?;
    let bytes = bytes.map_err(|_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the form is too large"))?;
    let (mut token, mut to) = (String::new(), String::new());
    for (name, value) in url::form_urlencoded::parse(&bytes) {
        match &*name {
            "token" => token = value.trim().to_owned(),
            "to" => to = value.into_owned(),
            _ => {}
        }
    }
    if !shared.access_control.is_token(token.as_bytes()) {
        tokio::join!(sleep(WRONG_TOKEN_WAIT), shared.access_control.record_wrong_token(Some(&peer)));
        return login_form(&to, true);
    }
    // A proxy that speaks TLS for us says so; who lies about it only keeps the cookie from coming back.
    let secure = headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
    let cookie = shared.access_control.sessions.cookie(Timestamp::now(), secure);
    let mut response = Redirect::to(redirect_target(&to)).into_response();
    response.headers_mut().insert(header::SET_COOKIE, HeaderValue::try_from(cookie).map_err(Problem::unavailable)?);
    Ok(response)
}

/// Where a form leads: to a page of ours, whatever it says.
fn redirect_target(to: &str) -> &str {
    if is_page(to) { to } else { "/" }
}

/// Whether a path is that of a page.
pub(super) fn is_page(path: &str) -> bool {
    path == "/" || path.strip_prefix("/feeds/").is_some_and(|name| FeedName::new(name).is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn knows(sessions: &Sessions, cookies: &str, now: i64) -> bool {
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
        assert!(knows(&sessions, cookie, 1_000));
        assert!(knows(&sessions, &format!("a=b; {cookie}"), 1_000 + SESSION_S - 1));
        assert!(!knows(&sessions, cookie, 1_000 + SESSION_S), "it has ended");
        assert!(!knows(&others, cookie, 1_000), "another run knows it not");
        let (until, signature) = value.split_once('.').unwrap();
        for forged in [
            format!("{}.{signature}", until.parse::<i64>().unwrap() + 1),
            format!("{until}.{}", &signature[2..]),
            format!("{until}."),
            format!("{until}.{}", "0".repeat(64)),
            format!("{until}.{signature}0"),
            until.to_owned(),
        ] {
            assert!(!knows(&sessions, &format!("{COOKIE}={forged}"), 1_000), "{forged}");
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
