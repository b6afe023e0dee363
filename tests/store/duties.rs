//! Duties are stored until they are done: a resync that is due, and one whose cursor is dead.

use feedmirror::store::forget::ItemSelector;
use feedmirror::store::resync::{ResyncEnd, SourceTrust};

use crate::resync::{END, begin, finish, resync};
use crate::test_store::{AT, TestStore, deleted, name, updated};

#[test]
fn a_feed_that_was_away_too_long_stays_to_be_read_anew_until_a_resync_has_ended() {
    // Given: a resync that is due.
    let mirror = TestStore::with(&["acme"]);
    mirror.poll("acme", &[updated("1", 10, "{}")]);
    let id = mirror.feed("acme").id;
    mirror.wait(mirror.store().resolve_away(id, AT, Some("away".into()))).unwrap();

    // When it has begun, and the operator asks for another
    begin(&mirror, SourceTrust::No);
    assert!(!mirror.feed("acme").stale, "it is being seen to");
    begin(&mirror, SourceTrust::Requested);
    // and the feed is away again meanwhile
    mirror.walk("acme", END, &[updated("1", 10, "{}")]);
    mirror.wait(mirror.store().resolve_away(id, AT, Some("away".into()))).unwrap();
    assert_eq!(finish(&mirror), ResyncEnd::Done(0));

    // Then: what was read before is not enough.
    assert!(mirror.feed("acme").stale);
    assert_eq!(resync(&mirror, SourceTrust::No, &[updated("1", 10, "{}")]), ResyncEnd::Done(0));
    assert!(!mirror.feed("acme").stale);
}

#[test]
fn a_resync_with_a_dead_cursor_begins_again_at_once_and_then_after_ever_longer_waits() {
    let mut mirror = TestStore::with(&["acme"]);
    let store = mirror.store().clone();
    begin(&mirror, SourceTrust::Requested);
    let id = mirror.feed("acme").id;
    let walk_id = |mirror: &TestStore| mirror.feed("acme").resync.unwrap().walk_id;
    let note_dead_cursor_seconds =
        |mirror: &TestStore| mirror.wait(mirror.store().note_dead_cursor(id, walk_id(mirror), AT)).unwrap().as_secs();

    assert_eq!(note_dead_cursor_seconds(&mirror), 0);
    mirror.wait(store.restart_resync(&name("acme"), walk_id(&mirror), AT)).unwrap();
    let mut waits = Vec::new();
    for _ in 0..7 {
        waits.push(note_dead_cursor_seconds(&mirror) / 3_600);
        mirror.reopen();
        let resync = mirror.feed("acme").resync.unwrap();
        assert_eq!(
            (resync.restart_wait_left(AT).as_secs() / 3_600, resync.trust),
            (*waits.last().unwrap(), SourceTrust::Requested)
        );
        assert_eq!(
            resync.restart_wait_left(AT - 100 * 3_600_000).as_secs(),
            0,
            "a clock that was set back holds nothing up"
        );
        mirror.wait(mirror.store().restart_resync(&name("acme"), resync.walk_id, AT)).unwrap();
    }

    assert_eq!(waits, [1, 2, 4, 8, 16, 24, 24]);
    assert_eq!(mirror.feed("acme").resync.unwrap().restart_wait_left(AT).as_secs(), 0);
}

#[test]
fn after_a_trusted_walk_streams_resume_after_its_last_item() {
    let mirror = TestStore::with(&["acme"]);
    mirror.poll("acme", &[updated("polled", 900, "{}")]);
    let last_item = "SELECT coalesce(modified || '/' || id, '-') FROM endpoints WHERE feed = 'acme'";
    assert_eq!(mirror.value::<String>(last_item), "900/polled");

    begin(&mirror, SourceTrust::Requested);
    assert_eq!(mirror.value::<String>(last_item), "-", "the source may not know it any more");
    mirror.walk("acme", END, &[updated("polled", 5, "{}"), updated("last", 6, "{}")]);
    finish(&mirror);

    assert_eq!(mirror.value::<String>(last_item), "6/last");
}

#[test]
fn a_publishers_own_tombstone_outlives_that_the_item_was_forgotten_and_is_remembered() {
    // Given: one item that its publisher deleted, and one that it didn't.
    let mirror = TestStore::with(&["acme"]);
    mirror.poll("acme", &[deleted("gone", 50), updated("there", 50, "{}")]);
    let selector = |id: &str| ItemSelector { kind: None, id: id.into() };

    // When
    for id in ["gone", "there"] {
        mirror.wait(mirror.store().forget(&name("acme"), AT, selector(id))).unwrap();
        assert!(mirror.wait(mirror.store().unforget(&name("acme"), AT, selector(id))).unwrap());
    }

    // Then: a late older update revives the one as little as ever, and the other may come again.
    let late = mirror.push("acme", &[updated("gone", 40, "{}"), updated("there", 50, "{}")]);
    assert_eq!((late.older, late.new), (1, 1));
    assert_eq!((mirror.item("gone"), mirror.item("there")), ("50 deleted -".into(), "50 updated {}".into()));
    assert_eq!(mirror.value::<i64>("SELECT tombstones FROM feeds"), 1);
}
