//! The hashes by which items and quarantined records are found: each mirror has its own, so that no publisher can make
//! them collide.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hasher;

use feedmirror::feed::Transport;
use feedmirror::store::apply::Purpose;
use siphasher::sip::SipHasher13;

use crate::test_store::{TestStore, many, page, unreadable};

const ITEMS: usize = 2_000;

/// A mirror with the same items as every other one here.
fn filled_mirror() -> TestStore {
    let mirror = TestStore::with(&["acme"]);
    let mut delivery = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[]);
    delivery.page = page(&many("item-", ITEMS, 1), &[unreadable("no-kind", "{\"id\":1}", None)]);
    assert_eq!(mirror.apply(delivery).new, ITEMS as u64);
    mirror
}

fn salt(mirror: &TestStore) -> [u8; 16] {
    mirror.value::<Vec<u8>>("SELECT salt FROM mirror_state").try_into().unwrap()
}

fn keys(mirror: &TestStore) -> BTreeMap<String, i64> {
    let connection = mirror.sql();
    let mut select = connection.prepare("SELECT id, key FROM item").unwrap();
    select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

fn siphash(salt: &[u8; 16], parts: [&str; 2]) -> i64 {
    let mut hasher = SipHasher13::new_with_key(salt);
    hasher.write(parts.join("\0").as_bytes());
    hasher.finish().cast_signed()
}

#[test]
fn two_mirrors_know_the_same_items_and_records_by_different_hashes() {
    let (one, other) = (filled_mirror(), filled_mirror());

    assert_ne!(salt(&one), salt(&other));
    let (ours, theirs) = (keys(&one), keys(&other));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    assert_eq!(
        ours.iter().filter(|(id, key)| theirs[*id] == **key).count(),
        0,
        "what collides in one does not in another"
    );
    let digest = "SELECT digest FROM quarantined";
    assert_ne!(one.value::<i64>(digest), other.value::<i64>(digest));
}

#[test]
fn the_hashes_are_keyed_with_the_mirrors_salt_and_stay_when_it_is_opened_again() {
    let mut mirror = filled_mirror();
    let (salt, known) = (salt(&mirror), keys(&mirror));
    for (id, key) in &known {
        assert_eq!(*key, siphash(&salt, ["Session", id]) >> 16, "{id}");
    }
    assert_eq!(known.values().collect::<HashSet<_>>().len(), ITEMS);
    assert_eq!(mirror.value::<i64>("SELECT digest FROM quarantined"), siphash(&salt, ["no-kind", "{\"id\":1}"]));

    mirror.reopen();

    assert_eq!(mirror.push("acme", &many("item-", ITEMS, 1)).same, ITEMS as u64);
    assert_eq!(keys(&mirror), known);
}
