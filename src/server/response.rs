//! Responses: a text in JSON, `{"done": …}`, or a problem (RFC 9457) whose text is in `error` too.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::output::OutputError;
use crate::store::read::StoreError;
use crate::supervisor::control::ControlError;

/// The media type of a problem (RFC 9457 §6.1).
const PROBLEM: &str = "application/problem+json";

/// Why a request fails: a status and a text.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    words: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self { status, words: words.into() }
    }

    /// 400: the request is malformed.
    pub(super) fn bad_request(words: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, words)
    }

    /// 404: the requested thing does not exist.
    pub(super) fn not_found(words: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, words)
    }

    /// 503: it is not available at the moment.
    pub(super) fn unavailable(words: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, words.to_string())
    }

    /// The problem's text.
    pub(super) fn words(&self) -> &str {
        &self.words
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        let status = match error {
            ControlError::Unknown(_) => StatusCode::NOT_FOUND,
            ControlError::Refused(_) => StatusCode::CONFLICT,
            ControlError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            // A reader refuses only a feed that does not exist.
            StoreError::Refused(words) => Self::not_found(words),
            error => Self::unavailable(error),
        }
    }
}

impl From<OutputError> for Problem {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Store(error) => error.into(),
            OutputError::ReadAgain(_) => Self::new(StatusCode::GONE, error.to_string()),
            OutputError::Write(_) => Self::unavailable(error),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let (status, words) = (self.status.as_u16(), &self.words);
        let problem = json!({ "title": title, "status": status, "detail": words, "error": words });
        let mut response = typed(PROBLEM, format!("{problem}\n"));
        *response.status_mut() = self.status;
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"feedmirror\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

/// An order was carried out; with the supervisor's text.
pub(super) fn done_response(words: &str) -> Response {
    json(&json!({ "done": words }))
}

/// An order is being carried out, or will be as soon as possible; with the supervisor's text.
pub(super) fn accepted(words: &str) -> Response {
    let mut response = json(&json!({ "accepted": words }));
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// One JSON document.
pub(super) fn json(value: &serde_json::Value) -> Response {
    typed("application/json", format!("{value}\n"))
}

/// A body with its media type.
pub(super) fn typed(media_type: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, media_type)], body.into()).into_response()
}
