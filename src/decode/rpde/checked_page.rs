//! A page that is checked whole before anything of it is used, and decoded in parts. Never judges where `next` leads.

use super::super::{DecodeError, beginning};
use super::page_part::{CrossPartState, PagePartBuilder};
use super::{DecodeSettings, record};
use crate::feed::{BodyText, Page};
use crate::json::{self, JsonError, Scanner};

/// The longest `license`, bytes.
const MAX_LICENSE_BYTES: usize = 4 << 10;
/// After so many records the check looks whether anybody still waits for the page.
const CHECK_STOP_EVERY: u64 = 4_096;

/// Why a page was not read to its end.
enum CheckError {
    Json(JsonError),
    Stopped,
}

impl From<JsonError> for CheckError {
    fn from(problem: JsonError) -> Self {
        Self::Json(problem)
    }
}

/// A page that has been read to its last byte. Its memory besides the text doesn't grow with its records, but for eight
/// bytes an item, to notice duplicates.
pub struct CheckedPage {
    text: BodyText,
    settings: DecodeSettings,
    cross_part: CrossPartState,
    /// The whole page's fields: all but its records.
    page: Page,
    records: u64,
    /// The first part, decoded while the page was checked.
    first: Option<Page>,
    /// The offset in the text of the next part's first record.
    next_part_at: Option<usize>,
}

impl CheckedPage {
    /// Reads a poll response or webhook body to its end, unless nobody waits for it any more. The first part is decoded
    /// meanwhile.
    ///
    /// # Errors
    /// [`DecodeError`] when the body as a whole can't be read; single bad records are in [`Page::unreadable`].
    pub fn check(
        bytes: Vec<u8>,
        settings: &DecodeSettings,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Self, DecodeError> {
        let mut text = utf8(bytes)?;
        let has_bom = text.starts_with('\u{feff}');
        if has_bom {
            text.drain(..'\u{feff}'.len_utf8());
        }
        let mut checked = Self {
            text: text.into(),
            settings: settings.clone(),
            cross_part: CrossPartState::default(),
            page: Page::default(),
            records: 0,
            first: None,
            next_part_at: None,
        };
        if has_bom {
            checked.page.add_finding("bom", || "the page begins with a byte order mark (RFC 8259 §8.1)".into());
        }
        let text = checked.text.clone();
        let read = checked.read(&text, is_stopped).map_err(|error| match (error, beginning(text.as_bytes())) {
            (CheckError::Stopped, _) => DecodeError::Stopped,
            (_, beginning) if beginning.starts_with('<') => DecodeError::Html { beginning },
            (CheckError::Json(problem), beginning) => DecodeError::NotJson { problem: problem.to_string(), beginning },
        });
        if checked.first.is_none() {
            read?;
            return Err(DecodeError::NoItems { beginning: beginning(text.as_bytes()) });
        }
        read.map(|()| checked)
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

    /// Whether there is another part.
    pub fn has_more(&self) -> bool {
        self.first.is_some() || self.next_part_at.is_some()
    }

    /// The next part: at most 2,000 records, equal bad ones counted as one, and 4 MiB of records, but at least one
    /// record. A page without records is one part. The first part has the findings of the page itself; every part has
    /// `next` and `license`. The last part takes the page's own reference to the text.
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

    /// Decodes the part that begins at the byte `from`. The text has been checked, so reading it can't fail.
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

    /// Reads the list `items`; of several members of this name the last one counts, as everywhere.
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
            if self.records.is_multiple_of(CHECK_STOP_EVERY) && is_stopped() {
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
        let text = if raw.len() <= 6 * MAX_LICENSE_BYTES + 2 { json::unescape_strict(raw) } else { None };
        let text = text.filter(|text| text.len() <= MAX_LICENSE_BYTES);
        if text.is_none() && raw.starts_with('"') && raw.len() > MAX_LICENSE_BYTES {
            let detail = || format!("`license` has {} bytes; {MAX_LICENSE_BYTES} are read", raw.len());
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
