//! A page before it is text: records and `next` as JSON texts, which faults can still change.

use super::dialect::Dialect;
use super::feed::{FeedModel, ListedRecord};

/// The license every page of a 1.0 feed carries.
const LICENSE: &str = "https://creativecommons.org/licenses/by/4.0/";

/// A page that is not text yet.
pub(super) struct DraftPage {
    pub(super) items: Vec<DraftItem>,
    pub(super) next: Option<String>,
    license: bool,
}

/// An item of such a page.
pub(super) enum DraftItem {
    Record(JsonMembers),
    /// Some other JSON value.
    Raw(String),
}

/// A record's members, each as JSON text; a `None` is left out.
#[derive(Clone, Debug)]
pub(super) struct JsonMembers {
    pub(super) state: Option<String>,
    pub(super) kind: Option<String>,
    /// The member's name, `id` by the standard.
    pub(super) id_name: &'static str,
    pub(super) id: Option<String>,
    pub(super) modified: Option<String>,
    pub(super) data: Option<String>,
}

impl DraftPage {
    /// The page without faults.
    pub(super) fn new(feed: &FeedModel, records: &[ListedRecord], next: String) -> Self {
        let items = records.iter().map(|record| DraftItem::Record(JsonMembers::new(feed, record))).collect();
        Self { items, next: Some(next), license: feed.dialect != Dialect::Draft }
    }

    /// The body of a webhook's page: without `next` (0.2.1 §3b).
    pub(super) fn webhook_body(items: &[DraftItem]) -> String {
        format!(r#"{{"items":[{}]}}"#, items.iter().map(DraftItem::text).collect::<Vec<_>>().join(","))
    }

    /// The page as JSON text.
    pub(super) fn text(&self) -> String {
        let items: Vec<String> = self.items.iter().map(DraftItem::text).collect();
        let mut members = Vec::with_capacity(3);
        if let Some(next) = &self.next {
            members.push(format!(r#""next":{}"#, quoted(next)));
        }
        members.push(format!(r#""items":[{}]"#, items.join(",")));
        if self.license {
            members.push(format!(r#""license":{}"#, quoted(LICENSE)));
        }
        format!("{{{}}}", members.join(","))
    }
}

impl DraftItem {
    /// The item as JSON text.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Record(members) => members.text(""),
            Self::Raw(text) => text.clone(),
        }
    }
}

impl JsonMembers {
    /// The record without faults.
    pub(super) fn new(feed: &FeedModel, record: &ListedRecord) -> Self {
        let id = match &record.at.id {
            super::value_forms::Id::Number(number) => number.to_string(),
            super::value_forms::Id::Text(text) => quoted(text),
        };
        Self {
            state: Some(quoted(feed.dialect.state(record.deleted))),
            kind: Some(quoted(record.kind)),
            id_name: "id",
            id: Some(id),
            modified: Some(record.at.modified.to_string()),
            data: (!record.deleted).then(|| feed.data(record.number, record.version)),
        }
    }

    /// The record as JSON text; `between` is inserted between its members, beside the comma.
    pub(super) fn text(&self, between: &str) -> String {
        let members = [
            ("state", &self.state),
            ("kind", &self.kind),
            (self.id_name, &self.id),
            ("modified", &self.modified),
            ("data", &self.data),
        ];
        let mut out = String::with_capacity(160 + self.data.as_ref().map_or(0, String::len));
        for (name, value) in members {
            let Some(value) = value else { continue };
            out.push_str(if out.is_empty() { "{" } else { "," });
            for part in [if out.len() > 1 { between } else { "" }, "\"", name, "\":", value] {
                out.push_str(part);
            }
        }
        out.push_str(if out.is_empty() { "{}" } else { "}" });
        out
    }
}

/// A string as JSON text.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
