//! A part of a page under way: its items, and its bad records, each once.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use super::Reading;
use super::record::{self, Fault, Fields, Record, fault};
use crate::feed::{Finding, Item, Modified, Page, State, Unreadable, cut};

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
pub(super) struct Memory {
    /// Kinds repeat: each is allocated once a page.
    kinds: HashMap<Arc<str>, usize>,
    met: Vec<Kind>,
    last_kind: usize,
    /// Items by hash.
    items: HashSet<u64, BuildHasherDefault<Itself>>,
    hasher: RandomState,
    quarantine_rows: usize,
    quarantine_bytes: usize,
}

struct Kind {
    name: Arc<str>,
    last: Last,
}

/// The last item of a kind.
enum Last {
    None,
    Before(Modified),
    /// It is this one of the part under way.
    Here(usize),
}

/// The hash of what is a hash under a secret key.
#[derive(Default)]
struct Itself(u64);

impl Hasher for Itself {
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
pub(super) struct Part<'a> {
    text: &'a str,
    reading: &'a Reading,
    memory: &'a mut Memory,
    page: Page,
    bad: HashMap<&'a str, usize>,
    last_bad: Option<(&'a str, usize)>,
    records: usize,
    bytes: usize,
    late: Found,
    twice: Found,
}

#[derive(Default)]
struct Found {
    count: u64,
    detail: String,
}

impl<'a> Part<'a> {
    pub(super) fn new(text: &'a str, reading: &'a Reading, memory: &'a mut Memory) -> Self {
        Self {
            text,
            reading,
            memory,
            page: Page::default(),
            bad: HashMap::new(),
            last_bad: None,
            records: 0,
            bytes: 0,
            late: Found::default(),
            twice: Found::default(),
        }
    }

    /// Whether the record belongs to this part, and not to the next.
    pub(super) fn has_room(&self, record: &Record<'_>) -> bool {
        self.records == 0 || self.records < RECORDS && self.bytes + record.raw.len() <= BYTES
    }

    pub(super) fn take(&mut self, record: &Record<'a>) {
        self.bytes += record.raw.len();
        let Some(fields) = &record.fields else {
            return self.refuse(record.raw, fault("not-an-object", "the record is not an object"), None);
        };
        let id = match record::id(fields) {
            Ok((id, at_id)) => {
                if at_id {
                    self.page.find("at-id", || format!("item {id} carries `@id` in place of `id`"));
                }
                id
            }
            Err(fault) => return self.refuse(record.raw, fault, None),
        };
        match self.understand(fields, &id) {
            Ok((kind, modified, state, data)) => {
                let name = Arc::clone(&self.memory.met[kind].name);
                let data = data.map_or(0..0, |data| place(self.text, data));
                let record = record.at..record.at + record.raw.len();
                self.page.items.push(Item { kind: name, id, modified, state, data, record });
                self.records += 1;
                self.notice(kind);
            }
            Err(fault) => self.refuse(record.raw, fault, Some(id)),
        }
    }

    fn understand(
        &mut self,
        fields: &Fields<'a>,
        id: &str,
    ) -> Result<(usize, Modified, State, Option<&'a str>), Fault> {
        let modified = record::modified(fields)?;
        let kind = match record::kind(fields)? {
            Some(kind) => self.kind(&kind)?,
            None => {
                let default = self.reading.kind.clone();
                let default = default.ok_or_else(|| fault("no-kind", "`kind` is missing, empty or not text"))?;
                self.page.find("no-kind", || format!("item {id} has no `kind`; read as {default}"));
                self.kind(&default)?
            }
        };
        let state = record::state(fields)?;
        if state == State::Deleted {
            if record::has_data(fields) {
                self.page.find("deleted-with-data", || format!("deleted item {id} carries data"));
            }
            return Ok((kind, modified, state, None));
        }
        let data = record::data(fields)?;
        if !data.starts_with('{') {
            self.page.find("data-not-object", || format!("item {id} has `data` that is no object"));
        }
        Ok((kind, modified, state, Some(data)))
    }

    fn kind(&mut self, name: &str) -> Result<usize, Fault> {
        let memory = &mut *self.memory;
        if memory.met.get(memory.last_kind).is_some_and(|last| &*last.name == name) {
            return Ok(memory.last_kind);
        }
        let known = memory.kinds.get(name).copied();
        if known.is_none() && memory.met.len() >= KINDS {
            let detail = format!("the page has more than {KINDS} kinds; this one is {name:?}");
            return Err(fault("too-many-kinds", detail));
        }
        memory.last_kind = known.unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            memory.kinds.insert(Arc::clone(&name), memory.met.len());
            memory.met.push(Kind { name, last: Last::None });
            memory.met.len() - 1
        });
        Ok(memory.last_kind)
    }

    /// Order is promised within a kind; each item appears once in the list (RPDE 1.0 "ordering").
    fn notice(&mut self, kind: usize) {
        let here = self.page.items.len() - 1;
        let item = &self.page.items[here];
        let detail = || format!("item {} at {}", item.id, item.modified);
        let memory = &mut *self.memory;
        let last = std::mem::replace(&mut memory.met[kind].last, Last::Here(here));
        let before = match &last {
            Last::None => None,
            Last::Before(modified) => Some(modified),
            Last::Here(before) => Some(&self.page.items[*before].modified),
        };
        if before.is_some_and(|before| item.modified.compare(before, self.reading.order).is_lt()) {
            self.late.add(detail);
        }
        if !memory.items.insert(memory.hasher.hash_one((kind, &*item.id))) {
            self.twice.add(detail);
        }
    }

    /// Keeps a record that can't be understood, or only counts it.
    pub(super) fn refuse(&mut self, raw: &'a str, fault: Fault, id: Option<Box<str>>) {
        let known = match self.last_bad {
            Some((last, known)) if last == raw => Some(known),
            _ => self.bad.get(raw).copied(),
        };
        if let Some(known) = known.and_then(|known| self.page.unreadable.get_mut(known)) {
            known.count += 1;
            return;
        }
        let memory = &mut *self.memory;
        let (rows, bytes) = (memory.quarantine_rows + 1, memory.quarantine_bytes + raw.len());
        if rows > QUARANTINE_ROWS || bytes > QUARANTINE_BYTES {
            self.page.beyond.count += 1;
            self.records += usize::from(id.is_some());
            self.page.beyond.ids.extend(id);
            return;
        }
        (memory.quarantine_rows, memory.quarantine_bytes) = (rows, bytes);
        let place = self.page.unreadable.len();
        let Fault { reason, detail } = fault;
        self.page.unreadable.push(Unreadable {
            reason,
            detail: cut(detail),
            raw: raw.to_owned(),
            shown: None,
            id,
            count: 1,
        });
        self.bad.insert(raw, place);
        self.last_bad = Some((raw, place));
        self.records += 1;
    }

    /// The part, of records whose order is nobody's promise.
    pub(super) fn unordered(self) -> Page {
        self.page
    }

    /// The part.
    pub(super) fn end(mut self) -> Page {
        for kind in &mut self.memory.met {
            if let Last::Here(at) = kind.last {
                kind.last = self.page.items.get(at).map_or(Last::None, |item| Last::Before(item.modified.clone()));
            }
        }
        for (rule, Found { count, detail }) in [("out-of-order", self.late), ("duplicate", self.twice)] {
            if count > 0 {
                self.page.findings.push(Finding { rule, detail: cut(detail), count });
            }
        }
        self.page
    }
}

impl Found {
    fn add(&mut self, detail: impl FnOnce() -> String) {
        self.count += 1;
        if self.count == 1 {
            self.detail = detail();
        }
    }
}

/// Where `part`, a slice of `whole`, stands in it.
fn place(whole: &str, part: &str) -> std::ops::Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}
