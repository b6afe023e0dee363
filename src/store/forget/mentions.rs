//! Whether a record or one of feedmirror's own texts names an item. Pure.

use crate::json::{self, JsonToken, Scanner};
use crate::store::quarantine_batch;

/// Whether a record names an item: by an id member where the record is JSON, else by containing the id anywhere.
pub(in crate::store) fn record_names_id(raw: &str, id: &str) -> bool {
    let mut scanner = Scanner::new(raw, 0);
    if scanner.value().and_then(|_| scanner.end()).is_err() {
        return quarantine_batch::contains_id(raw, id);
    }
    let mut scanner = Scanner::new(raw, 0);
    let (mut last, mut is_id_value) = (None, false);
    while let Ok(Some(token)) = scanner.token() {
        let equal = match token {
            JsonToken::Text(text) => json::unescape_strict(text).is_some_and(|text| text == id),
            JsonToken::Number(number) => number == id,
            JsonToken::Punctuation(_) | JsonToken::Literal(_) => false,
        };
        if is_id_value && equal {
            return true;
        }
        is_id_value = matches!((token, last), (JsonToken::Punctuation(b':'), Some(JsonToken::Text(key))) if is_id(key));
        last = Some(token);
    }
    false
}

fn is_id(key: &str) -> bool {
    json::unescape_strict(key).is_some_and(|key| matches!(&*key, "id" | "@id" | "identifier"))
}

/// Whether one of feedmirror's own texts names an item. A short number counts only behind "item" or "id": elsewhere it
/// may be any number.
pub(super) fn text_mentions_id(text: &str, id: &str) -> bool {
    const SHORT: usize = 4;
    let is_short_number = id.len() <= SHORT && id.bytes().all(|byte| byte.is_ascii_digit());
    match is_short_number {
        true => ["item", "id"].iter().any(|what| quarantine_batch::contains_id(text, &format!("{what} {id}"))),
        false => quarantine_batch::contains_id(text, id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_ours_that_only_counts_names_no_item() {
        assert!(text_mentions_id("item 7 has `modified` 3", "7"));
        assert!(!text_mentions_id("7 items swept", "7"));
        assert!(text_mentions_id("person-4711 was late", "person-4711"));
    }

    #[test]
    fn a_record_names_an_item_by_its_id_and_by_nothing_else() {
        assert!(record_names_id(r#"{"id":"7","modified":1}"#, "7"));
        assert!(record_names_id(r#"{"@id":7}"#, "7"));
        assert!(record_names_id(r#"{"items":[{"id":"6"},{"id":"7"}]}"#, "7"));
        assert!(record_names_id(r#"{"id":"a\/b"}"#, "a/b"));
        assert!(!record_names_id(r#"{"id":"6","modified":7}"#, "7"));
        assert!(!record_names_id(r#"{"id":"77"}"#, "7"));
        assert!(record_names_id(r#"{"id":"7","#, "7"), "what can't be read is searched");
        assert!(!record_names_id(r#"{"id":"77","#, "7"));
        assert!(record_names_id(r#"{"x":1e999,"y":"\ud800","id":"\u0037"}"#, "7"), "whatever stands beside it");
    }
}
