//! The options of a request beyond its path: a JSON object as body, or a query.
//!
//! Guarantees: a key that is unknown or of the wrong type is a 400 that names it, and so is one given twice in a query;
//! an empty body has no options; a body is bounded in size and in time.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::response::Problem;

const MAX_BODY_BYTES: usize = 64 << 10;
const BODY_WAIT: Duration = Duration::from_secs(10);

/// The options in a request's body.
#[derive(Debug)]
pub(super) struct BodyOptions {
    options: Map<String, Value>,
    known: Vec<&'static str>,
}

impl BodyOptions {
    pub(super) async fn read(body: Body) -> Result<Self, Problem> {
        let timed_out = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
        let bytes = timeout(BODY_WAIT, to_bytes(body, MAX_BODY_BYTES)).await.map_err(timed_out)?;
        let too_large =
            |_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body exceeds {MAX_BODY_BYTES} bytes"));
        Self::parse(&bytes.map_err(too_large)?)
    }

    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self { options: Map::new(), known: Vec::new() });
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(options)) => Ok(Self { options, known: Vec::new() }),
            Ok(_) => Err(Problem::bad_request("the body must be a JSON object")),
            Err(error) => Err(Problem::bad_request(format!("the body is not JSON: {error}"))),
        }
    }

    /// A boolean; false when not given.
    pub(super) fn flag(&mut self, key: &'static str) -> Result<bool, Problem> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(on)) => Ok(on),
            Some(_) => Err(Problem::bad_request(format!("{key} must be true or false"))),
        }
    }

    /// A required text.
    pub(super) fn text(&mut self, key: &'static str) -> Result<String, Problem> {
        match self.take(key) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Problem::bad_request(format!("{key} must be text"))),
            None => Err(Problem::bad_request(format!("{key} is missing"))),
        }
    }

    /// An optional text; `null` counts as not given.
    pub(super) fn optional_text(&mut self, key: &'static str) -> Result<Option<String>, Problem> {
        match self.take(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Problem::bad_request(format!("{key} must be text"))),
        }
    }

    /// Whole numbers; none when not given.
    pub(super) fn numbers(&mut self, key: &'static str) -> Result<Vec<i64>, Problem> {
        let value = self.take(key).unwrap_or(Value::Array(Vec::new()));
        serde_json::from_value(value)
            .map_err(|_| Problem::bad_request(format!("{key} must be a list of whole numbers")))
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.options.remove(key)
    }

    /// Refuses keys that no handler has read.
    pub(super) fn finish(self) -> Result<(), Problem> {
        unknown(self.options.keys().map(String::as_str), &self.known)
    }
}

/// The parameters of a query.
pub(super) struct Query {
    parameters: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self { parameters: pairs.into_owned().collect(), known: Vec::new() }
    }

    /// A parameter's value.
    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, Problem> {
        let mut values = self.texts(key);
        if values.len() > 1 {
            return Err(Problem::bad_request(format!("{key} is given twice")));
        }
        Ok(values.pop())
    }

    /// A parameter's values, which may be given more than once.
    pub(super) fn texts(&mut self, key: &'static str) -> Vec<String> {
        self.known.push(key);
        self.parameters.extract_if(.., |(name, _)| name == key).map(|(_, value)| value).collect()
    }

    /// A count or a position.
    pub(super) fn number<T: std::str::FromStr>(&mut self, key: &'static str) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Problem::bad_request(format!("{key} must be a whole number")))
    }

    /// A boolean: true when named without a value, false when not named.
    pub(super) fn flag(&mut self, key: &'static str) -> Result<bool, Problem> {
        match self.text(key)?.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(Problem::bad_request(format!("{key} must be true or false"))),
        }
    }

    /// Refuses keys that no handler has read.
    pub(super) fn finish(self) -> Result<(), Problem> {
        unknown(self.parameters.iter().map(|(key, _)| key.as_str()), &self.known)
    }
}

fn unknown<'a>(unknown_keys: impl Iterator<Item = &'a str>, known: &[&str]) -> Result<(), Problem> {
    let unknown_keys: Vec<&str> = unknown_keys.collect();
    if unknown_keys.is_empty() {
        return Ok(());
    }
    let known = if known.is_empty() { "none is known here".to_owned() } else { format!("known: {}", known.join(", ")) };
    Err(Problem::bad_request(format!("unknown option {}; {known}", unknown_keys.join(", "))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_empty_body_says_nothing() {
        for empty in ["", " \n", "{}"] {
            let mut options = BodyOptions::parse(empty.as_bytes()).unwrap();
            assert!(!options.flag("accept").unwrap(), "{empty:?}");
            options.finish().unwrap();
        }
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_named() {
        let words = |problem: Problem| format!("{problem:?}");
        let mut options = BodyOptions::parse(br#"{"accept": 1, "acept": true}"#).unwrap();
        assert!(words(options.flag("accept").unwrap_err()).contains("accept must be true or false"));
        assert!(words(options.finish().unwrap_err()).contains("unknown option acept; known: accept"));
        assert!(words(BodyOptions::parse(b"[]").unwrap_err()).contains("must be a JSON object"));
        assert!(words(BodyOptions::parse(b"{").unwrap_err()).contains("not JSON"));
        assert!(words(BodyOptions::parse(b"{}").unwrap().text("url").unwrap_err()).contains("url is missing"));

        let mut query = Query::parse(Some("limit=x&data&since=1&since=2&nope="));
        assert!(words(query.number::<u64>("limit").unwrap_err()).contains("limit must be"));
        assert!(query.flag("data").unwrap());
        assert!(words(query.text("since").unwrap_err()).contains("since is given twice"));
        assert!(words(query.finish().unwrap_err()).contains("unknown option nope; known: limit, data, since"));
    }
}
