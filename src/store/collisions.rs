//! What stands when the keys of many items collide: two ids are two rows, always.

#![allow(clippy::unwrap_used)]

use rusqlite::Connection;

use super::apply::{Applied, Delivery, Held, Purpose, Redactor, Step};
use super::feeds::Registration;
use super::resync::{Ended, Trust};
use super::{Closing, Store};
use crate::feed::{FeedName, Item, Modified, Order, Page, State, Ties, Transport};

/// Leaves the sign alone: every item has one of two keys.
const SIGN_ONLY: u32 = 63;
/// More than two steps of a sweep.
const ITEMS: usize = 2_500;

struct Crowded {
    store: Store,
    _closing: Closing,
    runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
}

impl Crowded {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, closing) = Store::open_with(&directory.path().join("mirror.db"), SIGN_ONLY).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let url = "https://acme.example/".to_owned();
        let feed =
            Registration { name: Self::name(), provider: None, url, attribution: Default::default(), broken: None };
        runtime.block_on(store.register(1, vec![feed], true)).unwrap();
        Self { store, _closing: closing, runtime, directory }
    }

    fn name() -> FeedName {
        FeedName::new("acme").unwrap()
    }

    fn apply(&self, purpose: Purpose, modified: i64, state: State, ids: impl Iterator<Item = usize>) -> Applied {
        let feed = self.runtime.block_on(self.store.feed(&Self::name())).unwrap();
        let (mut page, mut text) = (Page::default(), String::new());
        for id in ids {
            let from = text.len();
            if state == State::Updated {
                text.push_str(&format!("{{\"n\":{id}}}"));
            }
            let data = from..text.len();
            let (kind, id) = (if id % 2 == 0 { "Session" } else { "Slot" }, (id / 2).to_string());
            let (modified, record) = (Modified::Int(modified), data.clone());
            page.items.push(Item { kind: kind.into(), id: id.into(), modified, state, data, record });
        }
        page.text = text.into();
        let delivery = Delivery {
            feed: feed.id,
            generation: feed.generation,
            transport: Transport::Poll,
            at: 1,
            page,
            purpose,
            order: Order::Standard,
            ties: Ties::Keep,
            stood: i64::MAX,
            follows: false,
            held: Held::default(),
            redactor: Redactor::default(),
            origin: Default::default(),
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
    let mirror = Crowded::new();
    let few = 300;

    assert_eq!(mirror.apply(Purpose::Again, 10, State::Updated, 0..few).new, few as u64);
    assert_eq!(mirror.apply(Purpose::Again, 10, State::Updated, 0..few).same, few as u64);
    assert_eq!(mirror.apply(Purpose::Again, 11, State::Deleted, (0..few).step_by(3)).changed, 100);
    assert_eq!(mirror.apply(Purpose::Again, 9, State::Updated, 0..few).older, few as u64);

    assert_eq!(mirror.count("state = 'deleted' AND modified = 11"), 100);
    let own = "state = 'updated' AND data ->> '$.n' = CAST(id AS INTEGER) * 2 + (kind = 'Slot')";
    assert_eq!(mirror.count(own), 200, "each keeps its own data");
}

#[test]
fn a_sweep_in_steps_finds_its_place_among_colliding_keys() {
    let mirror = Crowded::new();
    mirror.apply(Purpose::Again, 10, State::Updated, 0..ITEMS);
    let (store, name) = (&mirror.store, Crowded::name());
    let feed = mirror.runtime.block_on(store.begin_resync(&name, 1, Trust::No, false)).unwrap();
    let resync = feed.resync.unwrap();
    let step = Step { asked: resync.cursor, cursor: "https://acme.example/end".into(), level: true, clean: true };
    mirror.apply(Purpose::Resync(step), 10, State::Updated, (0..ITEMS).step_by(5));

    let ended = mirror.runtime.block_on(store.end_resync(feed.id, resync.walk, 1, 1.0, Default::default())).unwrap();

    assert_eq!(ended, Ended::Done(2_000));
    assert_eq!((mirror.count("swept"), mirror.count("state = 'updated'")), (2_000, 500));
}
