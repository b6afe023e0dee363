//! Reads one record: its fields as raw JSON, and their values. Never compares records with each other.

use std::borrow::Cow;

use crate::feed::{ItemState, Modified};
use crate::json::{self, JsonError, RawJson, Scanner};

/// The longest `id`, bytes.
const MAX_ID_BYTES: usize = 4 << 10;
/// The longest `kind` and the longest `modified`, bytes.
const MAX_WORD_BYTES: usize = 256;
/// SQLite's JSON functions refuse JSON that nests deeper (`JSON_MAX_DEPTH`).
const MAX_DEPTH: usize = 1_000;

/// A record and its position in the page's text.
pub(super) struct RawRecord<'a> {
    pub(super) raw: &'a str,
    /// The offset of the record in the page's text.
    pub(super) at: usize,
    /// None where the record is no object.
    pub(super) fields: Option<RecordFields<'a>>,
}

#[derive(Default)]
pub(super) struct RecordFields<'a> {
    id: Option<&'a str>,
    at_id: Option<&'a str>,
    kind: Option<&'a str>,
    modified: Option<&'a str>,
    state: Option<&'a str>,
    data: Option<RawJson<'a>>,
}

impl<'a> RecordFields<'a> {
    /// Sets the field of this name; whether there is one.
    fn set(&mut self, name: &str, value: RawJson<'a>) -> bool {
        match name {
            "id" => self.id = Some(value.text),
            "@id" => self.at_id = Some(value.text),
            "kind" => self.kind = Some(value.text),
            "modified" => self.modified = Some(value.text),
            "state" => self.state = Some(value.text),
            "data" => self.data = Some(value),
            _ => return false,
        }
        true
    }
}

/// Why a record can't be understood: a fixed word, and the detail in words.
pub(super) struct RecordFault {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

pub(super) fn record_fault(reason: &'static str, detail: impl Into<String>) -> RecordFault {
    RecordFault { reason, detail: detail.into() }
}

/// Reads the next record, whatever it is.
pub(super) fn read<'a>(scanner: &mut Scanner<'a>) -> Result<RawRecord<'a>, JsonError> {
    if scanner.peek() != Some(b'{') {
        let raw = scanner.value()?.text;
        return Ok(RawRecord { raw, at: scanner.at() - raw.len(), fields: None });
    }
    let at = scanner.at();
    let from = scanner.clone();
    scanner.expect(b'{')?;
    let mut fields = RecordFields::default();
    let mut first = true;
    while let Some(key) = scanner.key(first)? {
        first = false;
        let value = scanner.value()?;
        match key.get(1..key.len() - 1) {
            Some(name) if fields.set(name, value) || !name.contains('\\') => {}
            _ => drop(json::unescape_strict(key).map(|name| fields.set(&name, value))),
        }
    }
    Ok(RawRecord { raw: from.until(scanner), at, fields: Some(fields) })
}

/// The id, and whether its key is `@id`.
pub(super) fn id(fields: &RecordFields<'_>) -> Result<(Box<str>, bool), RecordFault> {
    let (raw, at_id) = match (present(fields.id), present(fields.at_id)) {
        (Some(raw), _) => (raw, false),
        (None, Some(raw)) => (raw, true),
        (None, None) => return Err(record_fault("no-id", "`id` is missing")),
    };
    let too_long = |bytes| record_fault("id-too-long", format!("`id` has {bytes} bytes; {MAX_ID_BYTES} are read"));
    if raw.len() > escaped(MAX_ID_BYTES) {
        return Err(too_long(raw.len()));
    }
    let id: Box<str> = match raw.as_bytes().first() {
        Some(b'"') => {
            json::unescape_strict(raw).ok_or_else(|| record_fault("bad-id", "`id` has half a character"))?.into()
        }
        Some(b'-' | b'0'..=b'9') if is_finite(raw) => raw.into(),
        Some(b'-' | b'0'..=b'9') => return Err(record_fault("bad-id", "`id` is a number beyond all size")),
        _ => return Err(record_fault("bad-id", "`id` is neither number nor text")),
    };
    match id.len() {
        0 => Err(record_fault("no-id", "`id` is empty")),
        1..=MAX_ID_BYTES => Ok((id, at_id)),
        bytes => Err(too_long(bytes)),
    }
}

pub(super) fn modified(fields: &RecordFields<'_>) -> Result<Modified, RecordFault> {
    let Some(raw) = present(fields.modified) else { return Err(record_fault("no-modified", "`modified` is missing")) };
    let too_long =
        |bytes| record_fault("modified-too-long", format!("`modified` has {bytes} bytes; {MAX_WORD_BYTES} are read"));
    if raw.len() > escaped(MAX_WORD_BYTES) {
        return Err(too_long(raw.len()));
    }
    let (modified, bytes) = match raw.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') if is_finite(raw) => (Modified::from_number(raw), raw.len()),
        Some(b'-' | b'0'..=b'9') => return Err(record_fault("bad-modified", "`modified` is a number beyond all size")),
        Some(b'"') => {
            let text = json::unescape_strict(raw)
                .ok_or_else(|| record_fault("bad-modified", "`modified` has half a character"))?;
            let bytes = text.len();
            (Modified::Text(text.into()), bytes)
        }
        _ => return Err(record_fault("bad-modified", "`modified` is neither number nor text")),
    };
    match bytes {
        0 => Err(record_fault("no-modified", "`modified` is empty")),
        1..=MAX_WORD_BYTES => Ok(modified),
        _ => Err(too_long(bytes)),
    }
}

/// None where the record has no kind.
pub(super) fn kind<'a>(fields: &RecordFields<'a>) -> Result<Option<Cow<'a, str>>, RecordFault> {
    let Some(raw) = present(fields.kind).filter(|raw| raw.starts_with('"')) else { return Ok(None) };
    let too_long =
        |bytes| record_fault("kind-too-long", format!("`kind` has {bytes} bytes; {MAX_WORD_BYTES} are read"));
    if raw.len() > escaped(MAX_WORD_BYTES) {
        return Err(too_long(raw.len()));
    }
    let kind = json::unescape_strict(raw).ok_or_else(|| record_fault("bad-kind", "`kind` has half a character"))?;
    match kind.len() {
        0 => Ok(None),
        1..=MAX_WORD_BYTES => Ok(Some(kind)),
        bytes => Err(too_long(bytes)),
    }
}

pub(super) fn state(fields: &RecordFields<'_>) -> Result<ItemState, RecordFault> {
    let text = fields.state.filter(|raw| raw.len() <= MAX_WORD_BYTES).and_then(json::unescape_strict);
    let Some(text) = text else { return Err(record_fault("unknown-state", "`state` is missing or no short text")) };
    let known = ItemState::ALL.iter().copied().find(|state| state.as_str().eq_ignore_ascii_case(&text));
    let shown = || text.chars().take(40).collect::<String>();
    known.ok_or_else(|| record_fault("unknown-state", format!("`state` is {:?}", shown())))
}

pub(super) fn has_data(fields: &RecordFields<'_>) -> bool {
    present(fields.data.map(|raw| raw.text)).is_some()
}

pub(super) fn data<'a>(fields: &RecordFields<'a>) -> Result<&'a str, RecordFault> {
    match fields.data {
        Some(RawJson { depth, .. }) if depth > MAX_DEPTH => {
            let detail = format!("`data` nests {depth} levels deep; SQLite's JSON functions read {MAX_DEPTH}");
            Err(record_fault("data-too-deep", detail))
        }
        Some(RawJson { text, .. }) if text != "null" => Ok(text),
        _ => Err(record_fault("no-data", "an updated item without `data`")),
    }
}

fn present(raw: Option<&str>) -> Option<&str> {
    raw.filter(|raw| *raw != "null")
}

/// The most bytes that a JSON string of so many bytes of text has.
const fn escaped(bytes: usize) -> usize {
    6 * bytes + 2
}

/// Whether the number is finite as an IEEE 754 double, as other programs hold it (RFC 8259 §6).
fn is_finite(number: &str) -> bool {
    let short = number.len() <= 300 && !number.contains(['e', 'E']);
    short || number.parse::<f64>().is_ok_and(f64::is_finite)
}
