//! Builds one part of a page: its items, its unreadable records, each once, and its findings. Never reads JSON itself.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use super::DecodeSettings;
use super::record::{self, RawRecord, RecordFault, RecordFields, record_fault};
use crate::feed::{Finding, Item, ItemState, Modified, Page, UnreadableRecord, truncate_text};

/// A part has at most so many records, equal bad ones counted as one, and so many bytes of records, but at least one
/// record.
const RECORDS: usize = 2_000;
const BYTES: usize = 4 << 20;
/// A feed has at most so many kinds, so a page has no more.
const KINDS: usize = 1_000;
/// The limits of a feed's quarantine: more of a page need not be kept.
const QUARANTINE_ROWS: usize = 10_000;
const QUARANTINE_BYTES: usize = 64 << 20;

/// What later parts of a page must know of earlier ones.
#[derive(Default)]
pub(super) struct CrossPartState {
    /// Index in `seen_kinds` by name: each kind's name is allocated once a page.
    kinds: HashMap<Arc<str>, usize>,
    seen_kinds: Vec<SeenKind>,
    last_kind: usize,
    /// Hashes of the items' kinds and ids.
    items: HashSet<u64, BuildHasherDefault<IdentityHasher>>,
    hasher: RandomState,
    quarantine_rows: usize,
    quarantine_bytes: usize,
}

struct SeenKind {
    name: Arc<str>,
    previous: PreviousItem,
}

/// The last item of a kind.
enum PreviousItem {
    None,
    EarlierPart(Modified),
    /// Its index in the part that is being built.
    ThisPart(usize),
}

/// Hashes a value that already is a hash under a secret key.
#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// A part that is being built.
pub(super) struct PagePartBuilder<'a> {
    text: &'a str,
    settings: &'a DecodeSettings,
    cross_part: &'a mut CrossPartState,
    page: Page,
    bad: HashMap<&'a str, usize>,
    last_bad: Option<(&'a str, usize)>,
    records: usize,
    bytes: usize,
    out_of_order: FindingCount,
    duplicates: FindingCount,
}

#[derive(Default)]
struct FindingCount {
    count: u64,
    detail: String,
}

impl<'a> PagePartBuilder<'a> {
    pub(super) fn new(text: &'a str, settings: &'a DecodeSettings, cross_part: &'a mut CrossPartState) -> Self {
        Self {
            text,
            settings,
            cross_part,
            page: Page::default(),
            bad: HashMap::new(),
            last_bad: None,
            records: 0,
            bytes: 0,
            out_of_order: FindingCount::default(),
            duplicates: FindingCount::default(),
        }
    }

    /// Whether the record belongs to this part, and not to the next.
    pub(super) fn has_room(&self, record: &RawRecord<'_>) -> bool {
        self.records == 0 || self.records < RECORDS && self.bytes + record.raw.len() <= BYTES
    }

    pub(super) fn add_record(&mut self, record: &RawRecord<'a>) {
        self.bytes += record.raw.len();
        let Some(fields) = &record.fields else {
            return self.add_unreadable(record.raw, record_fault("not-an-object", "the record is not an object"), None);
        };
        let id = match record::id(fields) {
            Ok((id, at_id)) => {
                if at_id {
                    self.page.add_finding("at-id", || format!("item {id} carries `@id` in place of `id`"));
                }
                id
            }
            Err(fault) => return self.add_unreadable(record.raw, fault, None),
        };
        match self.parse_fields(fields, &id) {
            Ok((kind, modified, state, data)) => {
                let name = Arc::clone(&self.cross_part.seen_kinds[kind].name);
                let data = data.map_or(0..0, |data| range_in(self.text, data));
                let record = record.at..record.at + record.raw.len();
                self.page.items.push(Item { kind: name, id, modified, state, data_range: data, record_range: record });
                self.records += 1;
                self.check_order(kind);
            }
            Err(fault) => self.add_unreadable(record.raw, fault, Some(id)),
        }
    }

    fn parse_fields(
        &mut self,
        fields: &RecordFields<'a>,
        id: &str,
    ) -> Result<(usize, Modified, ItemState, Option<&'a str>), RecordFault> {
        let modified = record::modified(fields)?;
        let kind = match record::kind(fields)? {
            Some(kind) => self.kind(&kind)?,
            None => {
                let default = self.settings.kind.clone();
                let default = default.ok_or_else(|| record_fault("no-kind", "`kind` is missing, empty or not text"))?;
                self.page.add_finding("no-kind", || format!("item {id} has no `kind`; read as {default}"));
                self.kind(&default)?
            }
        };
        let state = record::state(fields)?;
        if state == ItemState::Deleted {
            if record::has_data(fields) {
                self.page.add_finding("deleted-with-data", || format!("deleted item {id} carries data"));
            }
            return Ok((kind, modified, state, None));
        }
        let data = record::data(fields)?;
        if !data.starts_with('{') {
            self.page.add_finding("data-not-object", || format!("item {id} has `data` that is no object"));
        }
        Ok((kind, modified, state, Some(data)))
    }

    fn kind(&mut self, name: &str) -> Result<usize, RecordFault> {
        let cross_part = &mut *self.cross_part;
        if cross_part.seen_kinds.get(cross_part.last_kind).is_some_and(|last| &*last.name == name) {
            return Ok(cross_part.last_kind);
        }
        let known = cross_part.kinds.get(name).copied();
        if known.is_none() && cross_part.seen_kinds.len() >= KINDS {
            let detail = format!("the page has more than {KINDS} kinds; this one is {name:?}");
            return Err(record_fault("too-many-kinds", detail));
        }
        cross_part.last_kind = known.unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            cross_part.kinds.insert(Arc::clone(&name), cross_part.seen_kinds.len());
            cross_part.seen_kinds.push(SeenKind { name, previous: PreviousItem::None });
            cross_part.seen_kinds.len() - 1
        });
        Ok(cross_part.last_kind)
    }

    /// Order is promised within a kind; each item appears once in the list (RPDE 1.0 "ordering").
    fn check_order(&mut self, kind: usize) {
        let here = self.page.items.len() - 1;
        let item = &self.page.items[here];
        let detail = || format!("item {} at {}", item.id, item.modified);
        let cross_part = &mut *self.cross_part;
        let last = std::mem::replace(&mut cross_part.seen_kinds[kind].previous, PreviousItem::ThisPart(here));
        let before = match &last {
            PreviousItem::None => None,
            PreviousItem::EarlierPart(modified) => Some(modified),
            PreviousItem::ThisPart(before) => Some(&self.page.items[*before].modified),
        };
        if before.is_some_and(|before| item.modified.compare(before, self.settings.order).is_lt()) {
            self.out_of_order.add(detail);
        }
        if !cross_part.items.insert(cross_part.hasher.hash_one((kind, &*item.id))) {
            self.duplicates.add(detail);
        }
    }

    /// Adds a record that can't be understood, or only counts it: an equal one, or one beyond quarantine's limits.
    pub(super) fn add_unreadable(&mut self, raw: &'a str, fault: RecordFault, id: Option<Box<str>>) {
        let known = match self.last_bad {
            Some((last, known)) if last == raw => Some(known),
            _ => self.bad.get(raw).copied(),
        };
        if let Some(known) = known.and_then(|known| self.page.unreadable.get_mut(known)) {
            known.count += 1;
            return;
        }
        let cross_part = &mut *self.cross_part;
        let (rows, bytes) = (cross_part.quarantine_rows + 1, cross_part.quarantine_bytes + raw.len());
        if rows > QUARANTINE_ROWS || bytes > QUARANTINE_BYTES {
            self.page.overflow.count += 1;
            self.records += usize::from(id.is_some());
            self.page.overflow.ids.extend(id);
            return;
        }
        (cross_part.quarantine_rows, cross_part.quarantine_bytes) = (rows, bytes);
        let index = self.page.unreadable.len();
        let RecordFault { reason, detail } = fault;
        self.page.unreadable.push(UnreadableRecord {
            reason,
            detail: truncate_text(detail),
            raw: raw.to_owned(),
            redacted: None,
            id,
            count: 1,
        });
        self.bad.insert(raw, index);
        self.last_bad = Some((raw, index));
        self.records += 1;
    }

    /// The part, without findings about the order: none is promised.
    pub(super) fn finish_unordered(self) -> Page {
        self.page
    }

    /// The part, with findings about order and duplicates.
    pub(super) fn finish(mut self) -> Page {
        for kind in &mut self.cross_part.seen_kinds {
            if let PreviousItem::ThisPart(at) = kind.previous {
                kind.previous = self
                    .page
                    .items
                    .get(at)
                    .map_or(PreviousItem::None, |item| PreviousItem::EarlierPart(item.modified.clone()));
            }
        }
        for (rule, FindingCount { count, detail }) in
            [("out-of-order", self.out_of_order), ("duplicate", self.duplicates)]
        {
            if count > 0 {
                self.page.findings.push(Finding { rule, detail: truncate_text(detail), count });
            }
        }
        self.page
    }
}

impl FindingCount {
    fn add(&mut self, detail: impl FnOnce() -> String) {
        self.count += 1;
        if self.count == 1 {
            self.detail = detail();
        }
    }
}

/// The range of `part`, a slice of `whole`, in `whole`.
fn range_in(whole: &str, part: &str) -> std::ops::Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}
