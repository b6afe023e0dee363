//! A correct feed (RPDE 0.2.1 parameters): a list sorted by `modified` then `id`, where a changed record moves to the
//! end; it also knows what a mirror of it must hold.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Reply, Request, data, deleted, item, page};

/// Id, and `modified` with the data of a live record.
pub(crate) type LiveItems = BTreeMap<String, (i64, String)>;

#[derive(Default)]
pub(crate) struct TestFeed {
    records: Mutex<BTreeMap<String, (i64, bool)>>,
    page_size: AtomicUsize,
}

impl TestFeed {
    pub(crate) fn new(page_size: usize) -> Arc<Self> {
        let test_feed = Self::default();
        test_feed.page_size.store(page_size, Ordering::SeqCst);
        Arc::new(test_feed)
    }

    /// With records `id-0` … of `modified` 1, 2, …
    pub(crate) fn of(count: usize, page_size: usize) -> Arc<Self> {
        let test_feed = Self::new(page_size);
        for n in 0..count {
            test_feed.put(&format!("id-{n}"));
        }
        test_feed
    }

    /// Adds or changes a record: it moves to the end.
    pub(crate) fn put(&self, id: &str) -> i64 {
        let modified = self.newest() + 1;
        self.put_at(id, modified);
        modified
    }

    /// Adds or changes a record at the position of `modified`.
    pub(crate) fn put_at(&self, id: &str, modified: i64) {
        self.records.lock().unwrap().insert(id.to_owned(), (modified, true));
    }

    pub(crate) fn delete(&self, id: &str) {
        let modified = self.newest() + 1;
        self.delete_at(id, modified);
    }

    /// Deletes a record; its tombstone is at the position of `modified`.
    pub(crate) fn delete_at(&self, id: &str, modified: i64) {
        self.records.lock().unwrap().insert(id.to_owned(), (modified, false));
    }

    /// Forgets a record as if it had never existed.
    pub(crate) fn forget(&self, id: &str) {
        self.records.lock().unwrap().remove(id);
    }

    pub(crate) fn clear(&self) {
        self.records.lock().unwrap().clear();
    }

    pub(crate) fn newest(&self) -> i64 {
        self.records.lock().unwrap().values().map(|(modified, _)| *modified).max().unwrap_or(0)
    }

    /// The items that a mirror must hold.
    pub(crate) fn live(&self) -> LiveItems {
        let records = self.records.lock().unwrap();
        let live = records.iter().filter(|(_, (_, live))| *live);
        live.map(|(id, (modified, _))| (id.clone(), (*modified, data(id, *modified)))).collect()
    }

    /// The page for this request.
    pub(crate) fn page(&self, request: &Request) -> Reply {
        Reply::page(self.json(request))
    }

    pub(crate) fn json(&self, request: &Request) -> String {
        let parameter = |wanted: &str| {
            let pairs = request.query().split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned()).next()
        };
        let from: i64 = parameter("from").map_or(i64::MIN, |from| from.parse().unwrap());
        let position = (from, parameter("after").unwrap_or_default());
        let mut after: Vec<(i64, String, bool)> = Vec::new();
        for (id, (modified, live)) in &*self.records.lock().unwrap() {
            if (*modified, id) > (position.0, &position.1) {
                after.push((*modified, id.clone(), *live));
            }
        }
        after.sort();
        after.truncate(self.page_size.load(Ordering::SeqCst));
        let next = match after.last() {
            Some((modified, id, _)) => format!("{}?from={modified}&after={id}", request.path()),
            None => request.target.clone(),
        };
        let records: Vec<String> = after
            .iter()
            .map(|(modified, id, live)| if *live { item(id, *modified) } else { deleted(id, *modified) })
            .collect();
        page(&records, &next)
    }
}
