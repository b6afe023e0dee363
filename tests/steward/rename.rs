//! A feed under another name: it is not read anew, and followers of the change log end with the same items.

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::code_and_output;
use crate::support::{MirrorProcess, Request, ScriptedPublisher, TestFeed};

fn serve(test_feed: &Arc<TestFeed>) -> ScriptedPublisher {
    let test_feed = Arc::clone(test_feed);
    ScriptedPublisher::start(move |request: &Request| test_feed.page(request))
}

/// A follower that upserts by (feed, kind, id) and knows nothing else.
#[derive(Default)]
struct Follower {
    since: String,
    items: BTreeMap<(String, String, String), String>,
}

impl Follower {
    fn catch_up(&mut self, mirror: &MirrorProcess) {
        let since = if self.since.is_empty() { "0" } else { &self.since }.to_owned();
        let (code, out, error) = code_and_output(mirror.verb(&["changes", "--since", &since, "--data"]));
        assert_eq!(code, 0, "{error}");
        for line in out.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            if row.get("epoch").is_some() {
                self.since = format!("{}:{}", text("epoch"), row["last_seq"]);
                continue;
            }
            let key = (text("feed"), text("kind"), text("id"));
            match row["state"].as_str().unwrap() {
                "purged" => self.items.retain(|(feed, _, _), _| *feed != key.0),
                "deleted" => drop(self.items.remove(&key)),
                _ => drop(self.items.insert(key, row["data"].to_string())),
            }
        }
    }

    /// Compares with a follower that begins now.
    fn expect_all_of(&self, mirror: &MirrorProcess) {
        let mut anew = Follower::default();
        anew.catch_up(mirror);
        assert_eq!(self.items, anew.items);
    }
}

fn first_pages(publisher: &ScriptedPublisher) -> usize {
    publisher.requests().iter().filter(|request| request.query().is_empty()).count()
}

#[test]
fn a_live_daemon_renames_on_reload_and_reads_nothing_again() {
    // given a feed of many items, one deleted, and a follower
    let test_feed = TestFeed::of(1_300, 500);
    let publisher = serve(&test_feed);
    let mut mirror = MirrorProcess::running("old", &publisher.url("/f"));
    mirror.until_level("old");
    let mut follower = Follower::default();
    follower.catch_up(&mirror);
    test_feed.delete("id-7");
    mirror.until("the deletion", |mirror| mirror.row("old").tombstones == 1);
    let (read, level) = (first_pages(&publisher), mirror.row("old"));

    // the verb explains how
    let (code, _, error) = code_and_output(mirror.verb(&["rename", "old", "new", "--db", "mirror.db"]));
    assert_eq!((code, error.contains("was = \"old\"")), (1, true), "{error}");

    // when the feed is configured under another name
    mirror.drop_feed("old");
    mirror.set_feed("new", &publisher.url("/f"), "was = \"old\"");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);
    mirror.until("the new name", |mirror| mirror.column("SELECT name FROM feeds") == ["new"]);
    let numbered = "SELECT count(*) FROM feed WHERE renumber_to IS NULL";
    mirror.until("new numbers", |mirror| mirror.number(numbered) == 1);

    // then it goes on from its cursor
    test_feed.put("fresh");
    mirror.until("a change", |mirror| mirror.ids("new").contains(&"fresh".to_owned()));
    assert_eq!(first_pages(&publisher), read, "it is not read anew");
    let row = mirror.row("new");
    assert_eq!((row.items, row.tombstones), (level.items + 1, level.tombstones));
    assert_eq!(mirror.events("new", "renamed"), ["old → new"]);
    assert_eq!(mirror.live("new"), test_feed.live());

    // and the follower holds the same items as one that begins now
    follower.catch_up(&mirror);
    follower.expect_all_of(&mirror);
    assert!(follower.items.keys().all(|(feed, _, _)| feed == "new"));
    assert_eq!(follower.items.len(), 1_300);

    // and a restart with the same configuration changes nothing
    mirror.stop();
    mirror.start_again();
    mirror.until_level("new");
    assert_eq!(first_pages(&publisher), read);
    assert_eq!(mirror.events("new", "renamed").len(), 1);
}

/// Two feeds and a database that accepts no two names of one length; a reload that renames one feed, changes the other
/// and begins a third is refused, and carried out once the database refuses nothing any more.
fn a_refused_reload_changes_nothing(new: &str, third: &str) {
    // given
    let test_feed = TestFeed::of(30, 10);
    let publisher = serve(&test_feed);
    let mirror = MirrorProcess::new().feed("old", &publisher.url("/f")).feed("other", &publisher.url("/g"));
    let mut mirror = mirror.start();
    mirror.until_level("old");
    mirror.until_level("other");
    let operator = rusqlite::Connection::open(mirror.path("mirror.db")).unwrap();
    operator.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    operator.execute_batch("CREATE UNIQUE INDEX lengths ON feed (length(name))").unwrap();
    let read = first_pages(&publisher);

    // when
    mirror.drop_feed("old");
    mirror.set_feed(new, &publisher.url("/f"), "was = \"old\"");
    mirror.set_feed("other", &publisher.url("/g"), "poll = { min = \"60ms\" }");
    mirror.set_feed(third, &publisher.url("/h"), "");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);
    mirror.until("refused", |mirror| mirror.log().contains("the reload failed"));

    // then everything is as before, and goes on
    test_feed.put("fresh");
    for feed in ["old", "other"] {
        mirror.until("a change", |mirror| mirror.ids(feed).contains(&"fresh".to_owned()));
    }
    assert_eq!(mirror.column("SELECT name FROM feeds ORDER BY name"), ["old", "other"]);
    assert_eq!(mirror.column("SELECT DISTINCT health FROM feeds"), ["ok"]);
    assert!(mirror.events("old", "renamed").is_empty());
    assert_eq!((first_pages(&publisher), publisher.count("/h")), (read, 0), "nothing is read anew");
    let (code, _, error) = code_and_output(mirror.verb(&["poll-now", "old"]));
    assert_eq!(code, 0, "{error}");

    // when
    operator.execute_batch("DROP INDEX lengths").unwrap();
    mirror.signal(Signal::SIGHUP);

    // then
    mirror.until_level(third);
    let mut names = [new, "other", third];
    names.sort_unstable();
    assert_eq!(mirror.column("SELECT name FROM feeds ORDER BY name"), names);
    assert_eq!(mirror.live(new), test_feed.live());
    assert!(mirror.stop().success());
}

#[test]
fn a_reload_whose_rename_is_refused_changes_nothing_and_stops_no_feed() {
    a_refused_reload_changes_nothing("newer", "a-third");
}

#[test]
fn a_reload_that_is_refused_after_its_rename_takes_that_back() {
    a_refused_reload_changes_nothing("new", "third");
}

#[test]
fn at_rest_the_verb_renames_what_the_configuration_has_under_the_new_name_alone() {
    let test_feed = TestFeed::of(30, 10);
    let publisher = serve(&test_feed);
    let mut mirror = MirrorProcess::running("old", &publisher.url("/f"));
    mirror.until_level("old");
    mirror.stop();
    let mut follower = Follower::default();
    follower.catch_up(&mirror);
    let read = first_pages(&publisher);

    let (code, _, error) = code_and_output(mirror.verb(&["rename", "old", "new"]));
    assert_eq!((code, error.contains("old is configured")), (1, true), "{error}");
    mirror.drop_feed("old");
    let (code, _, error) = code_and_output(mirror.verb(&["rename", "old", "new"]));
    assert_eq!((code, error.contains("new is not configured")), (1, true), "{error}");
    mirror.set_feed("new", &publisher.url("/f"), "");
    let (code, _, error) = code_and_output(mirror.verb(&["rename", "none", "new"]));
    assert_eq!((code, error.contains("no feed none")), (1, true), "{error}");
    let (code, out, error) = code_and_output(mirror.verb(&["rename", "old", "new"]));
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("30 items have new numbers"), "{out}");

    follower.catch_up(&mirror);
    follower.expect_all_of(&mirror);
    mirror.start_again();
    test_feed.put("fresh");
    mirror.until("a change", |mirror| mirror.ids("new").contains(&"fresh".to_owned()));
    assert_eq!(first_pages(&publisher), read);
    mirror.stop();

    // a name that another feed has stays that feed's
    mirror.set_feed("other", &publisher.url("/f"), "");
    assert_eq!(code_and_output(mirror.verb(&["sync"])).0, 0);
    let (code, _, error) = code_and_output(mirror.verb(&["rename", "new", "other", "--db", "mirror.db"]));
    assert_eq!((code, error.contains("other holds rows of its own")), (1, true), "{error}");
}

#[test]
fn two_feeds_never_share_the_rows_of_one() {
    let mirror = MirrorProcess::new().feed("old", "https://acme.example/a");
    let mirror = mirror.feed_with("new", "https://acme.example/b", "was = \"old\"");
    let (code, out, error) = code_and_output(mirror.verb(&["check"]));
    assert_ne!(code, 0);
    assert!(format!("{out}{error}").contains("is the name of a feed that is configured"), "{out}{error}");
}
