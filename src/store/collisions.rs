//! Tests with colliding item keys: two ids are always two rows.

#![allow(clippy::unwrap_used)]

use rusqlite::Connection;

use super::apply::{Applied, Delivery, PageStep, Purpose, Redactor, ReleaseOnCommit};
use super::feeds::FeedRegistration;
use super::resync::{ResyncEnd, SourceTrust};
use super::{Store, StoreGuard};
use crate::feed::{FeedName, Item, ItemState, Modified, ModifiedOrder, Page, TiePolicy, Transport};

/// Keeps the sign bit only: every item has one of two keys.
const SIGN_ONLY: u32 = 63;
/// More than two steps of a sweep.
const ITEMS: usize = 2_500;

struct CollidingMirror {
    store: Store,
    _guard: StoreGuard,
    runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
}

impl CollidingMirror {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, guard) = Store::open_with(&directory.path().join("mirror.db"), SIGN_ONLY).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let url = "https://acme.example/".to_owned();
        let feed = FeedRegistration {
            name: Self::name(),
            provider: None,
            url,
            attribution: Default::default(),
            config_error: None,
        };
        runtime.block_on(store.register(1, vec![feed], true)).unwrap();
        Self { store, _guard: guard, runtime, directory }
    }

    fn name() -> FeedName {
        FeedName::new("acme").unwrap()
    }

    fn apply(&self, purpose: Purpose, modified: i64, state: ItemState, ids: impl Iterator<Item = usize>) -> Applied {
        let feed = self.runtime.block_on(self.store.feed(&Self::name())).unwrap();
        let (mut page, mut text) = (Page::default(), String::new());
        for id in ids {
            let from = text.len();
            if state == ItemState::Updated {
                text.push_str(&format!("{{\"n\":{id}}}"));
            }
            let data = from..text.len();
            let (kind, id) = (if id % 2 == 0 { "Session" } else { "Slot" }, (id / 2).to_string());
            let (modified, record) = (Modified::Int(modified), data.clone());
            page.items.push(Item {
                kind: kind.into(),
                id: id.into(),
                modified,
                state,
                data_range: data,
                record_range: record,
            });
        }
        page.text = text.into();
        let delivery = Delivery {
            feed: feed.id,
            generation: feed.generation,
            transport: Transport::Poll,
            at: 1,
            page,
            purpose,
            order: ModifiedOrder::Standard,
            ties: TiePolicy::Keep,
            start_seq: i64::MAX,
            keep_order: false,
            release_on_commit: ReleaseOnCommit::default(),
            redactor: Redactor::default(),
            provenance: Default::default(),
        };
        self.runtime.block_on(self.store.apply(delivery)).unwrap().unwrap()
    }

    fn count(&self, what: &str) -> usize {
        let db = Connection::open(self.directory.path().join("mirror.db")).unwrap();
        let sql = format!("SELECT count(*) FROM items WHERE {what}");
        db.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap()
    }
}

#[test]
fn two_ids_are_two_rows_when_their_keys_collide() {
    let mirror = CollidingMirror::new();
    let few = 300;

    assert_eq!(mirror.apply(Purpose::Reread, 10, ItemState::Updated, 0..few).new, few as u64);
    assert_eq!(mirror.apply(Purpose::Reread, 10, ItemState::Updated, 0..few).same, few as u64);
    assert_eq!(mirror.apply(Purpose::Reread, 11, ItemState::Deleted, (0..few).step_by(3)).changed, 100);
    assert_eq!(mirror.apply(Purpose::Reread, 9, ItemState::Updated, 0..few).older, few as u64);

    assert_eq!(mirror.count("state = 'deleted' AND modified = 11"), 100);
    let own = "state = 'updated' AND data ->> '$.n' = CAST(id AS INTEGER) * 2 + (kind = 'Slot')";
    assert_eq!(mirror.count(own), 200, "each keeps its own data");
}

#[test]
fn a_sweep_in_steps_continues_among_colliding_keys() {
    let mirror = CollidingMirror::new();
    mirror.apply(Purpose::Reread, 10, ItemState::Updated, 0..ITEMS);
    let (store, name) = (&mirror.store, CollidingMirror::name());
    let feed = mirror.runtime.block_on(store.begin_resync(&name, 1, SourceTrust::No, false)).unwrap();
    let resync = feed.resync.unwrap();
    let step = PageStep {
        from_cursor: resync.cursor,
        next_cursor: "https://acme.example/end".into(),
        level: true,
        clean: true,
    };
    mirror.apply(Purpose::Resync(step), 10, ItemState::Updated, (0..ITEMS).step_by(5));

    let ended = mirror.runtime.block_on(store.end_resync(feed.id, resync.walk_id, 1, 1.0, Default::default())).unwrap();

    assert_eq!(ended, ResyncEnd::Done(2_000));
    assert_eq!((mirror.count("swept"), mirror.count("state = 'updated'")), (2_000, 500));
}
