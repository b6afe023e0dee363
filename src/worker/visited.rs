//! The URLs that a walk has visited and the records it received there, to notice a walk without progress. The memory is
//! bounded, whatever a publisher sends; hashes are keyed anew in each process, so that nobody can choose colliding
//! ones.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use crate::feed::{Item, Modified, Page};

/// URLs kept to notice a walk that comes to a page a second time.
const URLS: usize = 2_000_000;
/// Pages whose records are kept.
const PAGES: usize = 16;
/// Up to this many records of a page are kept one by one; of a larger page only one hash over all of them.
const RECORDS: usize = 100;

/// The URLs that a walk has visited, as hashes.
#[derive(Debug, Default)]
pub(super) struct VisitedUrls {
    hashes: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl VisitedUrls {
    pub(super) fn insert(&self, url: &str) {
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if hashes.len() >= URLS {
            hashes.clear();
        }
        hashes.insert(self.hasher.hash_one(url));
    }

    pub(super) fn contains(&self, url: &str) -> bool {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).contains(&self.hasher.hash_one(url))
    }
}

/// The versions of records on the last pages, as hashes: a page whose records are all among them is a repeat.
#[derive(Debug, Default)]
pub(super) struct RecentPages {
    pages: VecDeque<Vec<u64>>,
    /// How often each hash occurs on those pages.
    counts: HashMap<u64, u32>,
    hasher: RandomState,
}

/// The hashes of the records of one page, collected part by part.
#[derive(Debug, Default)]
pub(super) struct PageFingerprint {
    count: usize,
    first: Vec<u64>,
    /// The sum over all records of the page, whatever their order.
    sum: u64,
}

impl PageFingerprint {
    fn add(&mut self, hash: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash);
        if self.first.len() < RECORDS {
            self.first.push(hash);
        }
    }

    fn into_hashes(self) -> Vec<u64> {
        if self.count <= RECORDS { self.first } else { vec![self.sum] }
    }
}

impl RecentPages {
    /// Adds a part of a page.
    pub(super) fn add_part(&self, fingerprint: &mut PageFingerprint, part: &Page) {
        part.items.iter().for_each(|item| fingerprint.add(self.version(item)));
        part.unreadable.iter().for_each(|record| fingerprint.add(self.hasher.hash_one((&record.raw, record.count))));
        part.overflow.ids.iter().for_each(|id| fingerprint.add(self.hasher.hash_one(id)));
    }

    fn version(&self, item: &Item) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        (&*item.kind, &*item.id, item.state as u8).hash(&mut hasher);
        match &item.modified {
            Modified::Int(n) => n.hash(&mut hasher),
            Modified::Number(text) | Modified::Text(text) => text.hash(&mut hasher),
        }
        hasher.finish()
    }

    /// Ends a page; returns whether it contained records, all of them known from the last pages.
    pub(super) fn finish_page(&mut self, page: PageFingerprint) -> bool {
        let hashes = page.into_hashes();
        if hashes.is_empty() {
            return false;
        }
        let is_repeat = hashes.iter().all(|hash| self.counts.contains_key(hash));
        if self.pages.len() >= PAGES
            && let Some(oldest) = self.pages.pop_front()
        {
            self.remove_page(&oldest);
        }
        for hash in &hashes {
            *self.counts.entry(*hash).or_default() += 1;
        }
        self.pages.push_back(hashes);
        is_repeat
    }

    fn remove_page(&mut self, page: &[u64]) {
        for hash in page {
            if let std::collections::hash_map::Entry::Occupied(mut count) = self.counts.entry(*hash) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::ItemState;

    fn page(recent: &RecentPages, ids: std::ops::Range<i64>) -> PageFingerprint {
        let item = |n: i64| Item {
            kind: "k".into(),
            id: n.to_string().into(),
            modified: Modified::Int(n),
            state: ItemState::Deleted,
            data_range: 0..0,
            record_range: 0..0,
        };
        let mut fingerprint = PageFingerprint::default();
        recent.add_part(&mut fingerprint, &Page { items: ids.map(item).collect(), ..Page::default() });
        fingerprint
    }

    #[test]
    fn a_page_repeats_when_all_its_records_were_on_the_last_sixteen() {
        let mut recent = RecentPages::default();
        let mut is_repeat = |ids| {
            let page = page(&recent, ids);
            recent.finish_page(page)
        };
        assert!(!is_repeat(0..10));
        assert!(!is_repeat(5..15), "some are new");
        assert!(is_repeat(0..15), "of two pages");
        assert!(!is_repeat(0..0), "an empty page repeats nothing");
        for n in 0..14 {
            assert!(!is_repeat(100 + n..101 + n));
        }
        assert!(is_repeat(5..15), "the sixteen reach back to 5..15 and 0..15");
        for n in 0..16 {
            assert!(!is_repeat(200 + n..201 + n));
        }
        assert!(!is_repeat(0..1), "forgotten by now");
        assert!(!is_repeat(0..1_000));
        assert!(is_repeat(0..1_000), "a large page as a whole");
    }
}
