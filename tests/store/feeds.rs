//! Feeds that come, go, are purged and come back.

use feedmirror::feed::{Attribution, Health, Transport};
use feedmirror::store::StoreError;
use feedmirror::store::apply::{Applied, DeliveryVerdict, Purpose};
use feedmirror::store::feeds::FeedRegistration;
use rusqlite::types::Value;

use crate::test_store::{AT, Record, TestStore, deleted, many, name, registration, start_url, unreadable, updated};

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

#[test]
fn purge_removes_everything_and_leaves_one_purged_change() {
    let mirror = TestStore::with(&["acme", "other"]);
    let mut delivery =
        mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated("1", 10, "{}"), deleted("2", 10)]);
    delivery.page.unreadable.push(unreadable("no-id", "{}", None));
    mirror.apply(delivery);
    mirror.push("acme", &[updated("2", 5, "{}")]);
    mirror.push("other", &[updated("1", 10, "{}")]);
    let last: i64 = mirror.value("SELECT max(seq) FROM changes");

    mirror.wait(mirror.store().purge(&name("acme"), AT)).unwrap();

    for table in ["items", "quarantine", "refusals"] {
        assert_eq!(mirror.value::<i64>(&format!("SELECT count(*) FROM {table} WHERE feed = 'acme'")), 0, "{table}");
    }
    let changes = mirror.rows("SELECT feed, kind, id, modified, state FROM changes WHERE feed = 'acme'");
    assert_eq!(changes, [[text("acme"), Value::Null, Value::Null, Value::Null, text("purged")]]);
    assert!(mirror.value::<i64>("SELECT max(seq) FROM changes WHERE feed = 'acme'") > last);
    let counters = mirror.rows("SELECT items, tombstones, cursor, level_at, health FROM feeds WHERE name = 'acme'");
    assert_eq!(counters, [[Value::Integer(0), Value::Integer(0), Value::Null, Value::Null, text("paused")]]);
    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM items WHERE feed = 'other'"), 1, "others keep theirs");
}

/// What the webhook listener answers with 409: the store takes nothing, whichever generation it is offered.
#[test]
fn a_purged_feed_takes_nothing_until_it_is_resumed_and_then_begins_anew() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 900, "{}")]);
    let late = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[updated("late", 10, "{}")]);
    mirror.wait(mirror.store().purge(&name("acme"), AT)).unwrap();

    let feed = mirror.feed("acme");
    assert!(feed.purged && feed.paused && feed.cursor.is_none());
    assert_eq!(mirror.push("acme", &[updated("1", 900, "{}")]).verdict, DeliveryVerdict::OldGeneration);

    let resumed = mirror.wait(mirror.store().set_paused(&name("acme"), AT, false)).unwrap();
    assert_eq!((resumed.cursor, resumed.health), (Some(start_url("acme")), Health::Ok));
    assert_eq!(mirror.apply(late).verdict, DeliveryVerdict::OldGeneration, "read before the purge");
    assert_eq!(mirror.poll("acme", &[updated("1", 5, "{}")]), Applied { new: 1, ..Applied::default() });
    assert_eq!(mirror.item("1"), "5 updated {}");
}

#[test]
fn a_second_purge_replaces_the_purged_change() {
    let mirror = TestStore::with(&["acme"]);
    for _ in 0..2 {
        mirror.wait(mirror.store().purge(&name("acme"), AT)).unwrap();
        mirror.wait(mirror.store().set_paused(&name("acme"), AT, false)).unwrap();
        mirror.push("acme", &[updated("1", 10, "{}")]);
    }

    let states = mirror.rows("SELECT state FROM changes ORDER BY seq");
    assert_eq!(states, [[text("purged")], [text("updated")]]);
}

#[test]
fn a_feed_taken_out_of_the_configuration_keeps_its_rows_but_not_alive_until_it_is_back() {
    let mirror = TestStore::with(&["acme", "other"]);
    mirror.push("acme", &[updated("1", 10, "{}")]);
    let cursor = mirror.cursor("acme");
    let alive = || mirror.value::<i64>("SELECT count(*) FROM live_items WHERE feed = 'acme'");

    mirror.wait(mirror.store().register(AT, vec![registration("other")], true)).unwrap();
    assert_eq!(mirror.feed("acme").health, Health::Removed);
    assert_eq!((alive(), mirror.item("1")), (0, "10 updated {}".into()));

    mirror.wait(mirror.store().register(AT, vec![registration("other"), registration("acme")], true)).unwrap();
    assert_eq!((mirror.feed("acme").health, mirror.cursor("acme")), (Health::Ok, cursor));
    assert_eq!(alive(), 1);
}

#[test]
fn sync_of_some_feeds_removes_no_others() {
    let mirror = TestStore::with(&["acme", "other"]);

    mirror.wait(mirror.store().register(AT, vec![registration("other")], false)).unwrap();

    assert_eq!(mirror.feed("acme").health, Health::Ok);
}

#[test]
fn a_removed_feed_that_is_purged_goes_altogether() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, "{}")]);
    mirror.wait(mirror.store().register(AT, Vec::new(), true)).unwrap();

    mirror.wait(mirror.store().purge(&name("acme"), AT)).unwrap();

    assert!(matches!(mirror.wait(mirror.store().feed(&name("acme"))), Err(StoreError::Refused(_))));
    assert_eq!(mirror.rows("SELECT state FROM changes"), [[text("purged")]], "its followers are told");
}

#[test]
fn a_pause_survives_restarts_and_new_configurations() {
    let mut mirror = TestStore::with(&["acme"]);
    mirror.wait(mirror.store().set_paused(&name("acme"), AT, true)).unwrap();

    mirror.reopen();
    mirror.wait(mirror.store().register(AT, vec![registration("acme")], true)).unwrap();

    let feed = mirror.feed("acme");
    assert_eq!((feed.paused, feed.health), (true, Health::Paused));
}

#[test]
fn a_feed_whose_settings_are_wrong_is_failed_with_the_reason_and_keeps_its_rows() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &[updated("1", 10, "{}")]);
    let broken = Some("settings: headers.X-Api-Key: no such file".to_owned());

    let wrong = feedmirror::store::feeds::FeedRegistration { config_error: broken.clone(), ..registration("acme") };
    mirror.wait(mirror.store().register(AT, vec![wrong], true)).unwrap();

    let feed = mirror.feed("acme");
    assert_eq!((feed.health, feed.reason), (Health::Failed, broken));
    assert_eq!(mirror.item("1"), "10 updated {}");
}

#[test]
fn who_publishes_a_feed_is_kept_and_a_page_s_licence_comes_before_the_configured_one() {
    // given a feed whose publisher, licence and dataset site are configured
    let mirror = TestStore::with(&["acme"]);
    let attribution = |publisher: &str| Attribution {
        publisher: Some(publisher.into()),
        license: Some("configured".into()),
        dataset_url: Some("https://acme.example/".into()),
        total_items: Some(12),
    };
    let register = |registration| mirror.wait(mirror.store().register(AT, vec![registration], true)).unwrap();
    let row = || mirror.rows("SELECT publisher, license, dataset_url, total_items FROM feeds").remove(0);
    register(FeedRegistration { attribution: attribution("Acme"), ..registration("acme") });
    let expected =
        |publisher, license| [text(publisher), text(license), text("https://acme.example/"), Value::Integer(12)];
    assert_eq!(row(), expected("Acme", "configured"));

    // when a page names a licence, the publisher another name, and then the feed's settings are wrong
    let mut delivery = mirror.delivery("acme", Transport::Webhook, Purpose::Reread, &[]);
    delivery.page.license = Some("published".into());
    mirror.apply(delivery);
    register(FeedRegistration { attribution: attribution("Acme Group"), ..registration("acme") });
    register(FeedRegistration { config_error: Some("settings: wrong".into()), ..registration("acme") });

    // then the page's licence is kept, with the publisher that was configured last
    assert_eq!(row(), expected("Acme Group", "published"));
    register(registration("acme"));
    assert_eq!(row(), [Value::Null, text("published"), Value::Null, Value::Null]);
}

#[test]
fn a_large_purge_goes_in_steps_over_restarts_and_a_resume_waits_for_it() {
    let mut mirror = TestStore::with(&["acme", "other"]);
    mirror.push("acme", &many("n", 1_500, 10));
    mirror.push("other", &many("n", 10, 10));
    let lone = Record { kind: "Lone".into(), ..updated("1", 10, "{}") };
    mirror.push("acme", &[lone]);
    let before = mirror.feed("acme");

    // When
    let left = mirror.wait(mirror.store().purge(&name("acme"), AT)).unwrap();

    // Then: no reader sees a row.
    assert!(left > 1_000, "{left}");
    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM items"), 10);
    assert_eq!(mirror.rows("SELECT state FROM changes WHERE feed = 'acme'"), [[text("purged")]]);
    let feed = mirror.feed("acme");
    assert!(feed.generation > before.generation && feed.id != before.id && feed.paused && feed.purged);

    // When resumed before the rows are gone
    let resumed = mirror.wait(mirror.store().set_paused(&name("acme"), AT, false)).unwrap();
    assert!(resumed.paused, "it waits");
    let reason: String = mirror.value("SELECT reason FROM feeds WHERE name = 'acme'");
    assert!(reason.starts_with("paused: purged; ") && reason.contains("rows"), "{reason}");
    mirror.close();
    mirror.reopen();

    // Then
    let removals = mirror.wait(mirror.store().pending_removals()).unwrap();
    assert_eq!(removals.iter().map(|removal| removal.owner.clone()).collect::<Vec<_>>(), [Some(name("acme"))]);
    assert!(mirror.wait(mirror.store().remove_purged(&removals[0], || AT)).unwrap(), "it goes on");
    let feed = mirror.feed("acme");
    assert!(!feed.paused && !feed.purged && feed.cursor == Some(start_url("acme")));
    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM item"), 10);
    assert_eq!(mirror.rows("SELECT name FROM kind"), [[text("Session")]], "a kind that nothing uses goes too");
    assert!(mirror.wait(mirror.store().pending_removals()).unwrap().is_empty());
    assert_eq!(mirror.push("acme", &[updated("n1", 5, "{}")]).new, 1);
}

#[test]
fn a_pause_takes_a_resume_back_that_waits_for_a_purge() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &many("n", 1_500, 10));
    mirror.wait(mirror.store().purge(&name("acme"), AT)).unwrap();
    for paused in [false, true] {
        mirror.wait(mirror.store().set_paused(&name("acme"), AT, paused)).unwrap();
    }

    let removal = mirror.wait(mirror.store().pending_removals()).unwrap().remove(0);

    assert!(!mirror.wait(mirror.store().remove_purged(&removal, || AT)).unwrap());
    assert!(mirror.feed("acme").purged);
}

#[test]
fn what_a_feed_forgets_it_forgets_after_a_purge_too() {
    let mirror = TestStore::with(&["acme"]);
    mirror.push("acme", &many("n", 1_500, 10));
    let item = feedmirror::store::forget::ItemSelector { id: "n7".into(), kind: None };
    mirror.wait(mirror.store().forget(&name("acme"), AT, item)).unwrap();
    mirror.wait(mirror.store().purge(&name("acme"), AT)).unwrap();
    let removal = mirror.wait(mirror.store().pending_removals()).unwrap().remove(0);
    mirror.wait(mirror.store().remove_purged(&removal, || AT)).unwrap();
    mirror.wait(mirror.store().set_paused(&name("acme"), AT, false)).unwrap();

    assert_eq!(mirror.push("acme", &[updated("n7", 20, "{}"), updated("n8", 20, "{}")]).new, 1);
}
