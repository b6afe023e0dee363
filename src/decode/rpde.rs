//! RPDE pages and items, both dialects (0.2.1 draft §2; 1.0 "RPDE page").
//!
//! `data` is never parsed into a tree and never re-written: an item points at its bytes in the page's text.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Refused, beginning};
use crate::feed::{Item, Modified, Order, Page, State, Unreadable};

/// What a feed's configuration says about reading its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The kind of items that carry none.
    pub kind: Option<Arc<str>>,
    /// The order of `modified`, to notice items that are out of it.
    pub order: Order,
}

/// Reads a poll response or webhook body.
///
/// # Errors
/// [`Refused`] when the body as a whole can't be read; single bad records land in [`Page::unreadable`].
pub fn page(bytes: Vec<u8>, reading: &Reading) -> Result<Page, Refused> {
    let mut page = Page { text: utf8(bytes)?, ..Page::default() };
    if page.text.starts_with('\u{feff}') {
        page.text.drain(..'\u{feff}'.len_utf8());
        page.find("bom", || "the page begins with a byte order mark (RFC 8259 §8.1)".into());
    }
    let text = std::mem::take(&mut page.text);
    read(&text, reading, &mut page)?;
    page.text = text;
    notice_order(&mut page, reading.order);
    Ok(page)
}

/// Reads records that came one by one, as a stream's or a queue's do. One that is no JSON, or no text, is quarantined as
/// any other that can't be understood. In which order they come is nobody's promise.
pub fn records<'a>(records: impl IntoIterator<Item = &'a [u8]>, reading: &Reading) -> Page {
    let mut page = Page::default();
    let mut places = Vec::new();
    for record in records {
        match std::str::from_utf8(record) {
            Ok(text) => {
                let start = page.text.len();
                page.text.push_str(text.trim_start_matches('\u{feff}'));
                places.push(start..page.text.len());
            }
            Err(error) => page.unreadable.push(Unreadable {
                reason: "wrong-encoding",
                detail: format!("the record is not UTF-8 at byte {}", error.valid_up_to()),
                raw: String::from_utf8_lossy(record).into_owned(),
                id: None,
            }),
        }
    }
    let text = std::mem::take(&mut page.text);
    let mut kinds = Kinds::default();
    for place in places {
        let raw = &text[place];
        let understood = match serde_json::from_str::<RawRecord<'_>>(raw) {
            Ok(record) => understand(record, &text, reading, &mut kinds, &mut page),
            Err(error) => Err(Fault { reason: "not-json", detail: error.to_string(), id: None }),
        };
        match understood {
            Ok(item) => page.items.push(item),
            Err(Fault { reason, detail, id }) => {
                page.unreadable.push(Unreadable { reason, detail, raw: raw.to_owned(), id });
            }
        }
    }
    page.text = text;
    page
}

fn utf8(bytes: Vec<u8>) -> Result<String, Refused> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Refused::Encoding { at, beginning: beginning(error.as_bytes()) }
    })
}

fn read(text: &str, reading: &Reading, page: &mut Page) -> Result<(), Refused> {
    let envelope: Envelope<'_, RawRecord<'_>> = parse(text)?;
    let Some(records) = envelope.items else { return Err(Refused::NoItems { beginning: beginning(text.as_bytes()) }) };
    page.next = envelope.next;
    page.license = envelope.license;
    page.items.reserve(records.len());
    let mut bad: Vec<(usize, Fault)> = Vec::new();
    let mut kinds = Kinds::default();
    for (index, record) in records.into_iter().enumerate() {
        match understand(record, text, reading, &mut kinds, page) {
            Ok(item) => page.items.push(item),
            Err(fault) => bad.push((index, fault)),
        }
    }
    if !bad.is_empty() {
        quarantine(text, bad, page)?;
    }
    Ok(())
}

/// Bad records are rare: their source text is found by a second reading, so that the first need not keep it.
fn quarantine(text: &str, bad: Vec<(usize, Fault)>, page: &mut Page) -> Result<(), Refused> {
    let envelope: Envelope<'_, &RawValue> = parse(text)?;
    let raws = envelope.items.unwrap_or_default();
    for (index, fault) in bad {
        let raw = raws.get(index).map_or("", |raw| raw.get()).to_owned();
        page.unreadable.push(Unreadable { reason: fault.reason, detail: fault.detail, raw, id: fault.id });
    }
    Ok(())
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<Envelope<'a, T>, Refused> {
    serde_json::from_str(text).map_err(|error| {
        let beginning = beginning(text.as_bytes());
        match (error.classify(), beginning.starts_with('<')) {
            (_, true) => Refused::Html { beginning },
            (serde_json::error::Category::Data, false) => Refused::NoItems { beginning },
            _ => Refused::NotJson { problem: error.to_string(), beginning },
        }
    })
}

/// Kinds repeat: each is allocated once a page.
#[derive(Default)]
struct Kinds(Vec<Arc<str>>);

impl Kinds {
    fn intern(&mut self, kind: &str) -> Arc<str> {
        if let Some(known) = self.0.iter().rev().find(|known| &***known == kind) {
            return Arc::clone(known);
        }
        let kind: Arc<str> = kind.into();
        self.0.push(Arc::clone(&kind));
        kind
    }
}

struct Fault {
    reason: &'static str,
    detail: String,
    id: Option<Box<str>>,
}

fn understand(
    record: RawRecord<'_>,
    text: &str,
    reading: &Reading,
    kinds: &mut Kinds,
    page: &mut Page,
) -> Result<Item, Fault> {
    let RawRecord::Object(fields) = record else {
        return Err(Fault { reason: "not-an-object", detail: "the record is not an object".into(), id: None });
    };
    let id = read_id(&fields, page)?;
    let fault = |reason, detail: String| Fault { reason, detail, id: Some(id.clone()) };
    let modified = read_modified(fields.modified).map_err(|(reason, detail)| fault(reason, detail))?;
    let kind = match text_of(fields.kind) {
        Some(kind) if !kind.is_empty() => kinds.intern(&kind),
        _ => {
            let default = reading.kind.clone();
            let default = default.ok_or_else(|| fault("no-kind", "`kind` is missing, empty or not text".into()))?;
            page.find("no-kind", || format!("item {id} has no `kind`; read as {default}"));
            default
        }
    };
    let state = read_state(fields.state).map_err(|detail| fault("unknown-state", detail))?;
    let data = present(fields.data);
    let data = match (state, data) {
        (State::Updated, Some(data)) => range_in(text, data.get()),
        (State::Updated, None) => return Err(fault("no-data", "an updated item without `data`".into())),
        (State::Deleted, Some(_)) => {
            page.find("deleted-with-data", || format!("deleted item {id} carries data"));
            0..0
        }
        (State::Deleted, None) => 0..0,
    };
    Ok(Item { kind, id, modified, state, data })
}

fn read_id(fields: &Fields<'_>, page: &mut Page) -> Result<Box<str>, Fault> {
    let fault = |reason, detail: String| Fault { reason, detail, id: None };
    let (raw, name) = match (present(fields.id), present(fields.at_id)) {
        (Some(raw), _) => (raw, "id"),
        (None, Some(raw)) => (raw, "@id"),
        (None, None) => return Err(fault("no-id", "`id` is missing".into())),
    };
    let id: Box<str> = match raw.get().as_bytes().first() {
        Some(b'"') => {
            text_of(Some(raw)).ok_or_else(|| fault("bad-id", "`id` is no valid text".into()))?.into_owned().into()
        }
        Some(b'-' | b'0'..=b'9') => raw.get().into(),
        _ => return Err(fault("bad-id", format!("`{name}` is neither number nor text"))),
    };
    if id.is_empty() {
        return Err(fault("no-id", "`id` is empty".into()));
    }
    if name == "@id" {
        page.find("at-id", || format!("item {id} carries `@id` in place of `id`"));
    }
    Ok(id)
}

fn read_modified(raw: Option<&RawValue>) -> Result<Modified, (&'static str, String)> {
    let Some(raw) = present(raw) else { return Err(("no-modified", "`modified` is missing".into())) };
    match raw.get().as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => Ok(Modified::from_number(raw.get())),
        Some(b'"') => match text_of(Some(raw)) {
            Some(text) if text.is_empty() => Err(("no-modified", "`modified` is empty".into())),
            Some(text) => Ok(Modified::Text(text.into_owned().into())),
            None => Err(("bad-modified", "`modified` is no valid text".into())),
        },
        _ => Err(("bad-modified", "`modified` is neither number nor text".into())),
    }
}

fn read_state(raw: Option<&RawValue>) -> Result<State, String> {
    let Some(text) = text_of(raw) else { return Err("`state` is missing or not text".into()) };
    State::ALL
        .iter()
        .copied()
        .find(|state| state.as_str().eq_ignore_ascii_case(&text))
        .ok_or_else(|| format!("`state` is {:?}", text.chars().take(40).collect::<String>()))
}

fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

/// The text of a JSON string; `None` for anything else, lone surrogates included.
fn text_of(raw: Option<&RawValue>) -> Option<Cow<'_, str>> {
    let json = raw?.get();
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(json).ok().map(Cow::Owned)
}

/// Where `part`, a slice of `whole`, stands in it.
fn range_in(whole: &str, part: &str) -> std::ops::Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

/// Order is promised within a kind; each item appears once in the list (RPDE 1.0 "ordering").
fn notice_order(page: &mut Page, order: Order) {
    let mut last: Vec<(Arc<str>, usize)> = Vec::new();
    let mut met: HashSet<(&str, &str)> = HashSet::with_capacity(page.items.len());
    let (mut late, mut twice): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    for (i, item) in page.items.iter().enumerate() {
        if !met.insert((&item.kind, &item.id)) {
            twice.push(i);
        }
        match last.iter_mut().find(|(kind, _)| *kind == item.kind) {
            Some((_, previous)) => {
                if item.modified.compare(&page.items[*previous].modified, order).is_lt() {
                    late.push(i);
                }
                *previous = i;
            }
            None => last.push((Arc::clone(&item.kind), i)),
        }
    }
    for (rule, at) in [("out-of-order", late), ("duplicate", twice)] {
        let Some(first) = at.first().map(|i| &page.items[*i]) else { continue };
        let detail = format!("item {} at {}", first.id, first.modified);
        page.findings.push(crate::feed::Finding { rule, detail, count: at.len() as u64 });
    }
}

struct Envelope<'a, T> {
    items: Option<Vec<T>>,
    next: Option<String>,
    license: Option<String>,
    borrowed: PhantomData<&'a str>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Envelope<'de, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EnvelopeVisitor(PhantomData))
    }
}

struct EnvelopeVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for EnvelopeVisitor<T> {
    type Value = Envelope<'de, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an RPDE page")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut page = Envelope { items: None, next: None, license: None, borrowed: PhantomData };
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match key.as_ref() {
                "items" => page.items = map.next_value::<Option<Vec<T>>>()?,
                "next" => page.next = text_of(Some(map.next_value()?)).map(Cow::into_owned),
                "license" => page.license = text_of(Some(map.next_value()?)).map(Cow::into_owned),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(page)
    }
}

enum RawRecord<'a> {
    Object(Fields<'a>),
    Other,
}

#[derive(Default)]
struct Fields<'a> {
    id: Option<&'a RawValue>,
    at_id: Option<&'a RawValue>,
    kind: Option<&'a RawValue>,
    modified: Option<&'a RawValue>,
    state: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for RawRecord<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RecordVisitor)
    }
}

struct RecordVisitor;

impl<'de> Visitor<'de> for RecordVisitor {
    type Value = RawRecord<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let field = match key.as_ref() {
                "id" => &mut fields.id,
                "@id" => &mut fields.at_id,
                "kind" => &mut fields.kind,
                "modified" => &mut fields.modified,
                "state" => &mut fields.state,
                "data" => &mut fields.data,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *field = Some(map.next_value()?);
        }
        Ok(RawRecord::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(RawRecord::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(RawRecord::Other)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(RawRecord::Other)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(RawRecord::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(RawRecord::Other)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(RawRecord::Other)
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(RawRecord::Other)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(json: &str) -> Page {
        page(json.as_bytes().to_vec(), &Reading::default()).unwrap()
    }
    fn refusal(bytes: &[u8]) -> String {
        page(bytes.to_vec(), &Reading::default()).unwrap_err().to_string()
    }
    fn word(text: &str) -> &str {
        text.split(':').next().unwrap()
    }

    #[test]
    fn data_keep_their_bytes() {
        let json = r#" {"next":"n","license":"l","items":[
            {"state":"Updated","kind":"a","id":31,"modified":1520343434.0,"data":{ "x" : "\ud800", "n":1.50 }, "extra":[1]},
            {"state":"deleted","kind":"a","id":"\u00e9","modified":"2"}]}"#;
        let page = read(json);
        assert_eq!(page.data(&page.items[0]), r#"{ "x" : "\ud800", "n":1.50 }"#);
        assert_eq!(&*page.items[0].id, "31");
        assert_eq!(page.items[0].modified, Modified::Number("1520343434.0".into()));
        assert_eq!(&*page.items[1].id, "é");
        assert_eq!(page.items[1].state, State::Deleted);
        assert_eq!((page.next.as_deref(), page.license.as_deref()), (Some("n"), Some("l")));
    }

    #[test]
    fn a_bad_record_is_quarantined_whole_and_the_rest_read() {
        let good = r#"{"state":"updated","kind":"k","id":"g","modified":1,"data":{}}"#;
        for (reason, bad) in [
            ("no-id", r#"{"state":"updated","kind":"k","modified":1,"data":{}}"#),
            ("no-id", r#"{"state":"updated","kind":"k","id":"","modified":1,"data":{}}"#),
            ("bad-id", r#"{"state":"updated","kind":"k","id":true,"modified":1,"data":{}}"#),
            ("bad-id", r#"{"state":"updated","kind":"k","id":{},"modified":1,"data":{}}"#),
            ("bad-id", r#"{"state":"updated","kind":"k","id":"\ud800","modified":1,"data":{}}"#),
            ("no-modified", r#"{"state":"updated","kind":"k","id":1,"data":{}}"#),
            ("no-modified", r#"{"state":"updated","kind":"k","id":1,"modified":null,"data":{}}"#),
            ("bad-modified", r#"{"state":"updated","kind":"k","id":1,"modified":[1],"data":{}}"#),
            ("no-kind", r#"{"state":"updated","id":1,"modified":1,"data":{}}"#),
            ("unknown-state", r#"{"state":"Gone","kind":"k","id":1,"modified":1,"data":{}}"#),
            ("unknown-state", r#"{"kind":"k","id":1,"modified":1,"data":{}}"#),
            ("no-data", r#"{"state":"updated","kind":"k","id":1,"modified":1}"#),
            ("no-data", r#"{"state":"updated","kind":"k","id":1,"modified":1,"data":null}"#),
            ("not-an-object", "[1,{}]"),
            ("not-an-object", "7"),
            ("not-an-object", "null"),
            ("not-an-object", "\"x\""),
        ] {
            let page = read(&format!(r#"{{"items":[{good},{bad},{good}],"next":"n"}}"#));
            assert_eq!(page.items.len(), 2, "{bad}");
            assert_eq!((page.unreadable[0].reason, page.unreadable[0].raw.as_str()), (reason, bad));
        }
    }

    #[test]
    fn a_page_that_cannot_be_read_is_refused_whole() {
        assert_eq!(word(&refusal(b"")), "not-json");
        assert_eq!(word(&refusal(b"No ride data found")), "not-json");
        assert_eq!(word(&refusal(br#"{"items":[{"id":1}"#)), "not-json");
        assert_eq!(word(&refusal(br#"{"items":[]} x"#)), "not-json");
        assert_eq!(word(&refusal(b"<!DOCTYPE html><p>hello")), "html");
        assert_eq!(word(&refusal(br#"{"error":"busy"}"#)), "no-items");
        assert_eq!(word(&refusal(br#"{"items":null}"#)), "no-items");
        assert_eq!(word(&refusal(br#"{"items":{"a":1}}"#)), "no-items");
        assert_eq!(word(&refusal(b"[]")), "no-items");
        assert_eq!(word(&refusal(b"{\"items\":[\"\xe9\"]}")), "wrong-encoding");
        assert_eq!(word(&refusal(b"\xff\xfe{\0}\0")), "wrong-encoding");
    }

    #[test]
    fn oddities_are_read_and_found() {
        let reading = Reading { kind: Some("K".into()), order: Order::Standard };
        let json = "\u{feff}{\"items\":[{\"state\":\"updated\",\"@id\":\"a\",\"modified\":5,\"data\":1},\
             {\"state\":\"deleted\",\"id\":\"b\",\"modified\":4,\"data\":{}},\
             {\"state\":\"deleted\",\"id\":\"b\",\"modified\":4}]}";
        let page = page(json.as_bytes().to_vec(), &reading).unwrap();
        let rules: Vec<_> = page.findings.iter().map(|f| (f.rule, f.count)).collect();
        assert_eq!(
            rules,
            [("bom", 1), ("at-id", 1), ("no-kind", 3), ("deleted-with-data", 1), ("out-of-order", 1), ("duplicate", 1)]
        );
        assert_eq!((&*page.items[0].kind, page.data(&page.items[0])), ("K", "1"));
        assert_eq!(page.data(&page.items[1]), "");
    }

    #[test]
    fn very_deep_data_are_no_danger() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let page = read(&format!(
            r#"{{"x":{deep},"items":[{deep},{{"state":"updated","kind":"k","id":1,"modified":1,"data":{deep}}}]}}"#
        ));
        assert_eq!(page.items.len(), 1);
    }
}
