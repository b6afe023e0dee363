//! The number of changes per feed and hour: committed with the items that it counts, kept for a week, removed with its
//! feed.

use feedmirror::feed::Transport;
use feedmirror::store::apply::Purpose;
use feedmirror::store::read::{HourlyActivity, Reader};

use crate::test_store::{AT, Record, TestStore, deleted, end, name, start_url, updated};

const HOUR: i64 = 3_600_000;

fn push_at(mirror: &TestStore, feed: &str, at: i64, records: &[Record]) {
    let mut delivery = mirror.delivery(feed, Transport::Webhook, Purpose::Reread, records);
    delivery.at = at;
    mirror.apply(delivery);
}

/// A mirror with feeds whose end was seen.
fn level(feeds: &[&str]) -> TestStore {
    let mirror = TestStore::with(feeds);
    for feed in feeds {
        mirror.apply(mirror.delivery(feed, Transport::Poll, Purpose::Poll(end(&start_url(feed))), &[]));
    }
    mirror
}

/// Feed, hours after [`AT`]'s, changes.
fn hours(mirror: &TestStore, feed: Option<&str>, since: i64) -> Vec<(String, i64, i64)> {
    let first = AT / HOUR;
    let rows = Reader::open(&mirror.path).unwrap().activity(feed, first + since).unwrap();
    rows.into_iter().map(|HourlyActivity { feed, hour, changes }| (feed, hour - first, changes)).collect()
}

#[test]
fn each_hour_counts_what_it_wrote_and_nothing_else() {
    let mirror = level(&["acme", "idle"]);
    push_at(&mirror, "acme", AT, &[updated("1", 1, "{}"), updated("2", 1, "{}")]);
    push_at(&mirror, "acme", AT, &[deleted("2", 2), updated("1", 1, "{}")]);
    push_at(&mirror, "acme", AT + HOUR, &[updated("1", 1, "{}")]);
    push_at(&mirror, "acme", AT + 2 * HOUR, &[updated("1", 3, "{}")]);

    let all = [("acme".to_owned(), 0, 3), ("acme".to_owned(), 2, 1)];
    assert_eq!(hours(&mirror, None, 0), all, "what was held already is no change");
    assert_eq!(hours(&mirror, Some("acme"), 1), all[1..]);
    assert_eq!(hours(&mirror, Some("idle"), 0), []);
}

#[test]
fn what_is_older_than_a_week_goes_when_an_hour_begins() {
    let mirror = level(&["acme", "other"]);
    push_at(&mirror, "other", AT, &[updated("1", 1, "{}")]);
    for (modified, hour) in [(1, 0), (2, 1), (3, 167), (4, 168)] {
        push_at(&mirror, "acme", AT + hour * HOUR, &[updated("1", modified, "{}")]);
    }

    let kept: Vec<i64> = hours(&mirror, Some("acme"), 0).into_iter().map(|(_, hour, _)| hour).collect();
    assert_eq!(kept, [1, 167, 168], "168 hours, the one under way included");
    assert_eq!(hours(&mirror, Some("other"), 0).len(), 1, "others keep theirs");
}

#[test]
fn a_purge_takes_it_along() {
    let mirror = level(&["acme"]);
    push_at(&mirror, "acme", AT, &[updated("1", 1, "{}")]);
    mirror.wait(mirror.store().purge(&name("acme"), AT)).unwrap();
    assert_eq!(mirror.value::<i64>("SELECT count(*) FROM activity"), 0);
}

#[test]
fn the_first_load_is_no_change() {
    let mirror = TestStore::with(&["acme"]);
    push_at(&mirror, "acme", AT, &[updated("1", 1, "{}")]);
    mirror.apply(mirror.delivery("acme", Transport::Poll, Purpose::Poll(end(&mirror.cursor("acme"))), &[]));
    assert_eq!(hours(&mirror, None, 0), []);

    push_at(&mirror, "acme", AT, &[updated("1", 2, "{}")]);
    assert_eq!(hours(&mirror, None, 0), [("acme".to_owned(), 0, 1)]);
}
