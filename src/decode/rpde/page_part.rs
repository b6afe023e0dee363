//! A part of a page under way: its items, and its bad records, each once.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use super::DecodeSettings;
use super::record::{self, RawRecord, RecordFault, RecordFields, record_fault};
use crate::feed::{Finding, Item, ItemState, Modified, Page, UnreadableRecord, truncate_text};

/// A part has at most so many records, equal bad ones counted as one, and so many bytes of records, though always one.
const RECORDS: usize = 2_000;
const BYTES: usize = 4 << 20;
/// A feed has at most so many kinds, so a page has no more.
const KINDS: usize = 1_000;
/// What quarantine holds of a feed: more of a page need not be kept.
const QUARANTINE_ROWS: usize = 10_000;
const QUARANTINE_BYTES: usize = 64 << 20;

/// What the parts of a page know of those before them.
#[derive(Default)]
pub(super) struct CrossPartState {
    /// Kinds repeat: each is allocated once a page.
    kinds: HashMap<Arc<str>, usize>,
    seen_kinds: Vec<SeenKind>,
    last_kind: usize,
    /// Items by hash.
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
    /// It is this one of the part under way.
    ThisPart(usize),
}

/// The hash of what is a hash under a secret key.
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

/// A part under way.
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
    pub(super) fn new(text: &'a str, reading: &'a DecodeSettings, memory: &'a mut CrossPartState) -> Self {
        Self {
            text,
            settings: reading,
            cross_part: memory,
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
        let memory = &mut *self.cross_part;
        if memory.seen_kinds.get(memory.last_kind).is_some_and(|last| &*last.name == name) {
            return Ok(memory.last_kind);
        }
        let known = memory.kinds.get(name).copied();
        if known.is_none() && memory.seen_kinds.len() >= KINDS {
            let detail = format!("the page has more than {KINDS} kinds; this one is {name:?}");
            return Err(record_fault("too-many-kinds", detail));
        }
        memory.last_kind = known.unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            memory.kinds.insert(Arc::clone(&name), memory.seen_kinds.len());
            memory.seen_kinds.push(SeenKind { name, previous: PreviousItem::None });
            memory.seen_kinds.len() - 1
        });
        Ok(memory.last_kind)
    }

    /// Order is promised within a kind; each item appears once in the list (RPDE 1.0 "ordering").
    fn check_order(&mut self, kind: usize) {
        let here = self.page.items.len() - 1;
        let item = &self.page.items[here];
        let detail = || format!("item {} at {}", item.id, item.modified);
        let memory = &mut *self.cross_part;
        let last = std::mem::replace(&mut memory.seen_kinds[kind].previous, PreviousItem::ThisPart(here));
        let before = match &last {
            PreviousItem::None => None,
            PreviousItem::EarlierPart(modified) => Some(modified),
            PreviousItem::ThisPart(before) => Some(&self.page.items[*before].modified),
        };
        if before.is_some_and(|before| item.modified.compare(before, self.settings.order).is_lt()) {
            self.out_of_order.add(detail);
        }
        if !memory.items.insert(memory.hasher.hash_one((kind, &*item.id))) {
            self.duplicates.add(detail);
        }
    }

    /// Keeps a record that can't be understood, or only counts it.
    pub(super) fn add_unreadable(&mut self, raw: &'a str, fault: RecordFault, id: Option<Box<str>>) {
        let known = match self.last_bad {
            Some((last, known)) if last == raw => Some(known),
            _ => self.bad.get(raw).copied(),
        };
        if let Some(known) = known.and_then(|known| self.page.unreadable.get_mut(known)) {
            known.count += 1;
            return;
        }
        let memory = &mut *self.cross_part;
        let (rows, bytes) = (memory.quarantine_rows + 1, memory.quarantine_bytes + raw.len());
        if rows > QUARANTINE_ROWS || bytes > QUARANTINE_BYTES {
            self.page.overflow.count += 1;
            self.records += usize::from(id.is_some());
            self.page.overflow.ids.extend(id);
            return;
        }
        (memory.quarantine_rows, memory.quarantine_bytes) = (rows, bytes);
        let place = self.page.unreadable.len();
        let RecordFault { reason, detail } = fault;
        self.page.unreadable.push(UnreadableRecord {
            reason,
            detail: truncate_text(detail),
            raw: raw.to_owned(),
            redacted: None,
            id,
            count: 1,
        });
        self.bad.insert(raw, place);
        self.last_bad = Some((raw, place));
        self.records += 1;
    }

    /// The part, of records whose order is nobody's promise.
    pub(super) fn finish_unordered(self) -> Page {
        self.page
    }

    /// The part.
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

/// Where `part`, a slice of `whole`, stands in it.
fn range_in(whole: &str, part: &str) -> std::ops::Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}
