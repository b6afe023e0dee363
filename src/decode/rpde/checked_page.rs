//! A page, checked whole before anything of it is used, and handed over in parts.

use super::super::{DecodeError, beginning};
use super::page_part::{CrossPartState, PagePartBuilder};
use super::{DecodeSettings, record};
use crate::feed::{BodyText, Page};
use crate::json::{self, JsonError, Scanner};

/// The longest `license`, in bytes.
const LICENSE: usize = 4 << 10;
/// After so many records it is asked whether anybody still waits for the page.
const ASK_AFTER: u64 = 4_096;

/// Why a page was not read to its end.
enum CheckError {
    Problem(JsonError),
    Stopped,
}

impl From<JsonError> for CheckError {
    fn from(problem: JsonError) -> Self {
        Self::Problem(problem)
    }
}

/// A page that has been read to its last byte. What it keeps beside the text doesn't grow with its records, but for eight
/// bytes an item, to notice those that come twice.
pub struct CheckedPage {
    text: BodyText,
    settings: DecodeSettings,
    cross_part: CrossPartState,
    /// What goes for the whole page: all but its records.
    page: Page,
    records: u64,
    /// The first part, decoded while the page was checked.
    first: Option<Page>,
    /// Where the record stands that the next part begins with.
    next_part_at: Option<usize>,
}

impl CheckedPage {
    /// Reads a poll response or webhook body to its end, unless nobody waits for it any more. Its first part is decoded on
    /// the way.
    ///
    /// # Errors
    /// [`Refused`] when the body as a whole can't be read; single bad records land in [`Page::unreadable`].
    pub fn check(bytes: Vec<u8>, reading: &DecodeSettings, is_stopped: &dyn Fn() -> bool) -> Result<Self, DecodeError> {
        let mut text = utf8(bytes)?;
        let marked = text.starts_with('\u{feff}');
        if marked {
            text.drain(..'\u{feff}'.len_utf8());
        }
        let mut body = Self {
            text: text.into(),
            settings: reading.clone(),
            cross_part: CrossPartState::default(),
            page: Page::default(),
            records: 0,
            first: None,
            next_part_at: None,
        };
        if marked {
            body.page.add_finding("bom", || "the page begins with a byte order mark (RFC 8259 §8.1)".into());
        }
        let text = body.text.clone();
        let read = body.read(&text, is_stopped).map_err(|ended| match (ended, beginning(text.as_bytes())) {
            (CheckError::Stopped, _) => DecodeError::Stopped,
            (_, beginning) if beginning.starts_with('<') => DecodeError::Html { beginning },
            (CheckError::Problem(problem), beginning) => {
                DecodeError::NotJson { problem: problem.to_string(), beginning }
            }
        });
        if body.first.is_none() {
            read?;
            return Err(DecodeError::NoItems { beginning: beginning(text.as_bytes()) });
        }
        read.map(|()| body)
    }

    /// Records on the page, those that can't be understood included.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Whether the page's `items` were empty.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The publisher's `next`, verbatim.
    pub fn next(&self) -> Option<&str> {
        self.page.next.as_deref()
    }

    /// Whether a part is left.
    pub fn has_more(&self) -> bool {
        self.first.is_some() || self.next_part_at.is_some()
    }

    /// The next part: at most 2,000 records, equal bad ones counted as one, and 4 MiB of records, though always one. A
    /// page without records is one part. Findings of the page itself are the first part's; `next` and `license` are
    /// every part's. The last part may be the last to hold the text.
    pub fn next_part(&mut self) -> Option<Page> {
        let mut part = match self.first.take() {
            Some(first) => first,
            None => self.decode(self.next_part_at?),
        };
        part.findings.splice(..0, self.page.findings.drain(..));
        part.next = self.page.next.clone();
        part.license = self.page.license.clone();
        part.null_items = self.page.null_items;
        part.text = if self.has_more() { self.text.clone() } else { std::mem::take(&mut self.text) };
        Some(part)
    }

    /// The part that begins at the byte `from`. The text has been checked: what can't be read any more isn't there.
    fn decode(&mut self, from: usize) -> Page {
        let text = self.text.clone();
        let mut part = PagePartBuilder::new(&text, &self.settings, &mut self.cross_part);
        let mut scanner = Scanner::new(&text, from);
        self.next_part_at = None;
        while let Ok(record) = record::read(&mut scanner) {
            if !part.has_room(&record) {
                self.next_part_at = Some(record.at);
                break;
            }
            part.add_record(&record);
            if !scanner.element(false).unwrap_or(false) {
                break;
            }
        }
        part.finish()
    }

    fn read(&mut self, text: &str, is_stopped: &dyn Fn() -> bool) -> Result<(), CheckError> {
        let mut scanner = Scanner::new(text, 0);
        if !scanner.consume(b'{') {
            scanner.value()?;
            return Ok(scanner.end()?);
        }
        let mut first = true;
        while let Some(key) = scanner.key(first)? {
            first = false;
            match json::unescape_strict(key).as_deref() {
                Some("items") => self.items(&mut scanner, text, is_stopped)?,
                Some("next") => self.page.next = json::unescape_strict(scanner.value()?.text).map(Into::into),
                Some("license") => self.license(scanner.value()?.text),
                _ => {
                    scanner.value()?;
                }
            }
        }
        Ok(scanner.end()?)
    }

    /// As everywhere, the last of several counts.
    fn items(
        &mut self,
        scanner: &mut Scanner<'_>,
        text: &str,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<(), CheckError> {
        (self.first, self.next_part_at, self.records, self.cross_part) = (None, None, 0, CrossPartState::default());
        self.page.null_items = false;
        if !scanner.consume(b'[') {
            self.page.null_items = scanner.value()?.text == "null";
            if self.page.null_items {
                self.page.add_finding("items-null", || "a page has null in place of a list of items".into());
                self.first = Some(Page::default());
            }
            return Ok(());
        }
        let mut part = PagePartBuilder::new(text, &self.settings, &mut self.cross_part);
        while scanner.element(self.records == 0)? {
            self.records += 1;
            if self.records.is_multiple_of(ASK_AFTER) && is_stopped() {
                return Err(CheckError::Stopped);
            }
            if self.next_part_at.is_some() {
                scanner.value()?;
                continue;
            }
            let record = record::read(scanner)?;
            if part.has_room(&record) {
                part.add_record(&record);
            } else {
                self.next_part_at = Some(record.at);
            }
        }
        self.first = Some(part.finish());
        Ok(())
    }

    fn license(&mut self, raw: &str) {
        let text = if raw.len() <= 6 * LICENSE + 2 { json::unescape_strict(raw) } else { None };
        let text = text.filter(|text| text.len() <= LICENSE);
        if text.is_none() && raw.starts_with('"') && raw.len() > LICENSE {
            let detail = || format!("`license` has {} bytes; {LICENSE} are read", raw.len());
            self.page.add_finding("license-too-long", detail);
        }
        self.page.license = text.map(Into::into);
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String, DecodeError> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        DecodeError::Encoding { at, beginning: beginning(error.as_bytes()) }
    })
}
