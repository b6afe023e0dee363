//! Decodes RPDE pages and items, both dialects (0.2.1 draft §2; 1.0 "RPDE page").
//!
//! `data` is never parsed into a tree and never rewritten: an item refers to its bytes in the page's text. A page is
//! read once, from its first byte to its last, and each record by itself.

mod checked_page;
mod page_part;
mod record;

use std::sync::Arc;

pub use checked_page::CheckedPage;

use super::DecodeError;
use crate::feed::{ModifiedOrder, Page, UnreadableRecord};
use crate::json::Scanner;
use page_part::{CrossPartState, PagePartBuilder};

/// A feed's settings for decoding its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodeSettings {
    /// The kind of items without a `kind`.
    pub kind: Option<Arc<str>>,
    /// The order of `modified`, to notice items that are out of it.
    pub order: ModifiedOrder,
}

/// Decodes a poll response or webhook body, all of it at once.
///
/// # Errors
/// [`DecodeError`] when the body as a whole can't be read; single bad records are in [`Page::unreadable`].
pub fn page(bytes: Vec<u8>, settings: &DecodeSettings) -> Result<Page, DecodeError> {
    let mut checked = CheckedPage::check(bytes, settings, &|| false)?;
    let mut page = checked.next_part().unwrap_or_default();
    while let Some(part) = checked.next_part() {
        page.items.extend(part.items);
        page.unreadable.extend(part.unreadable);
        page.overflow.count += part.overflow.count;
        page.overflow.ids.extend(part.overflow.ids);
        for finding in part.findings {
            page.add_finding(finding.rule, || finding.detail);
            if let Some(known) = page.findings.iter_mut().find(|known| known.rule == finding.rule) {
                known.count += finding.count - 1;
            }
        }
    }
    Ok(page)
}

/// Decodes single records, as a stream or a queue delivers them. A record that is no JSON, or not UTF-8, is quarantined
/// as any other that can't be understood. No order of the records is promised, so none is checked.
pub fn records<'a>(records: impl IntoIterator<Item = &'a [u8]>, settings: &DecodeSettings) -> Page {
    let mut text = String::new();
    let mut ranges = Vec::new();
    let mut not_utf8 = Vec::new();
    for record in records {
        match std::str::from_utf8(record) {
            Ok(record) => {
                let start = text.len();
                text.push_str(record.trim_start_matches('\u{feff}'));
                ranges.push(start..text.len());
            }
            Err(error) => not_utf8.push(UnreadableRecord {
                reason: "wrong-encoding",
                detail: format!("the record is not UTF-8 at byte {}", error.valid_up_to()),
                raw: String::from_utf8_lossy(record).into_owned(),
                redacted: None,
                id: None,
                count: 1,
            }),
        }
    }
    let mut cross_part = CrossPartState::default();
    let mut part = PagePartBuilder::new(&text, settings, &mut cross_part);
    for range in ranges {
        let mut scanner = Scanner::new(&text[..range.end], range.start);
        let read = record::read(&mut scanner).and_then(|record| scanner.end().map(|()| record));
        match read {
            Ok(record) => part.add_record(&record),
            Err(problem) => {
                part.add_unreadable(&text[range], record::record_fault("not-json", problem.to_string()), None)
            }
        }
    }
    let mut page = part.finish_unordered();
    page.unreadable.extend(not_utf8);
    page.text = text.into();
    page
}

#[cfg(test)]
mod tests;
