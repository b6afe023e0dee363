//! `changes`: positions, filters, following, and positions of another mirror.

use std::io::{BufRead, BufReader, Read};
use std::process::ChildStdout;

use feedmirror::store::read::{FeedKindFilter, Reader};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::mirror_file::{AT, MirrorFile, deleted, failed, json_lines, of_kind, updated};

fn small_mirror() -> MirrorFile {
    let mirror = MirrorFile::new();
    for name in ["acme", "other"] {
        mirror.feed(name);
    }
    mirror.polled("acme", &[updated("a", 1, "{\"n\": 1.0}"), deleted("b", 2), of_kind("Slot", "c", 3, "{}")]);
    mirror.polled("other", &[updated("d", 4, "{}")]);
    mirror
}

/// The changes and the last position printed.
fn log(mirror: &MirrorFile, more: &[&str]) -> (Vec<Value>, Value) {
    let arguments: Vec<&str> = ["changes"].iter().chain(more).copied().collect();
    let mut lines = json_lines(&mirror.says(&arguments));
    let last = lines.pop().unwrap();
    lines.retain(|line| line.get("last_seq").is_none());
    (lines, last)
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["id"].as_str().unwrap_or("-")).collect()
}

fn mirror_row(mirror: &MirrorFile) -> (String, i64) {
    let db = rusqlite::Connection::open(mirror.path()).unwrap();
    db.query_row("SELECT epoch, seq FROM mirror", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

#[test]
fn the_log_ends_with_the_position_read_up_to() {
    let mirror = small_mirror();
    let (epoch, seq) = mirror_row(&mirror);
    let (lines, last) = log(&mirror, &[]);
    assert_eq!(ids(&lines), ["a", "b", "c", "d"]);
    assert_eq!(last, serde_json::json!({"epoch": epoch, "last_seq": seq}));
    let keys = ["seq", "feed", "kind", "id", "modified", "state", "changed_at"];
    let text = mirror.says(&["changes", "--limit", "1"]);
    let places: Vec<usize> = keys.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
    assert_eq!(lines[0].as_object().unwrap().len(), keys.len());
}

#[test]
fn data_come_along_when_asked_for() {
    let mirror = small_mirror();
    assert!(mirror.says(&["changes", "--data"]).contains("\"data\":{\"n\": 1.0}}\n"));
    assert_eq!(log(&mirror, &["--data"]).0[1]["data"], Value::Null);
}

#[test]
fn coming_back_with_a_position_misses_and_repeats_nothing() {
    let mirror = small_mirror();
    let (first, last) = log(&mirror, &["--limit", "2"]);
    assert_eq!(ids(&first), ["a", "b"]);
    let position = format!("{}:{}", last["epoch"].as_str().unwrap(), last["last_seq"]);
    let (rest, last) = log(&mirror, &["--since", &position]);
    assert_eq!(ids(&rest), ["c", "d"]);
    let (nothing, again) = log(&mirror, &["--since", &last["last_seq"].to_string()]);
    assert_eq!((ids(&nothing), &again), (vec![], &last));
}

#[test]
fn with_a_filter_the_position_moves_on_all_the_same() {
    let mirror = small_mirror();
    let (_, seq) = mirror_row(&mirror);
    let (lines, last) = log(&mirror, &["--feed", "acme", "--kind", "Session"]);
    assert_eq!(ids(&lines), ["a", "b"]);
    assert_eq!(last["last_seq"], seq);
    let (lines, last) = log(&mirror, &["--kind", "None"]);
    assert_eq!((lines.len(), &last["last_seq"]), (0, &Value::from(seq)));
}

#[test]
fn a_page_that_finds_nothing_is_bounded_and_says_how_far_it_came() {
    let mirror = MirrorFile::new();
    mirror.feed("acme");
    mirror.feed("empty");
    for page in 0..12 {
        let items: Vec<String> = (0..1000).map(|n| updated(&format!("{page}-{n}"), page, "{}")).collect();
        mirror.polled("acme", &items);
    }
    let reader = Reader::open(&mirror.path()).unwrap();
    let filter = FeedKindFilter { feeds: vec!["empty".into()], kinds: Vec::new() };
    let (_, seq) = mirror_row(&mirror);
    let first = reader.changes(0, 10, &filter, false).unwrap();
    assert!(first.rows.is_empty() && !first.end && first.last_seq < seq, "{first:?}");
    let second = reader.changes(first.last_seq, 10, &filter, false).unwrap();
    assert!(second.rows.is_empty() && second.end, "{second:?}");
    assert_eq!(second.last_seq, seq);
    let items = reader.items(0, 10, &filter, true).unwrap();
    assert_eq!((items.rows.len(), items.last_seq, items.end), (0, first.last_seq, false));
}

#[test]
fn a_purge_is_told_to_those_who_follow_its_feed() {
    let mirror = small_mirror();
    mirror.runtime.block_on(mirror.store().purge(&mirror.name("acme"), AT)).unwrap();
    for arguments in [&[][..], &["--feed", "acme"], &["--feed", "acme", "--kind", "Slot", "--data"]] {
        let (lines, _) = log(&mirror, arguments);
        let purge = lines.last().unwrap();
        assert_eq!((&purge["state"], &purge["feed"]), (&"purged".into(), &"acme".into()), "{arguments:?}");
        assert_eq!((&purge["kind"], &purge["id"], &purge["modified"]), (&Value::Null, &Value::Null, &Value::Null));
    }
    assert_eq!(ids(&log(&mirror, &["--feed", "other"]).0), ["d"]);
}

#[test]
fn a_feed_that_was_purged_for_good_can_still_be_asked_for() {
    let mirror = small_mirror();
    let kept = feedmirror::store::feeds::FeedRegistration {
        name: mirror.name("other"),
        provider: None,
        url: "https://acme.example/other".into(),
        attribution: Default::default(),
        config_error: None,
    };
    mirror.runtime.block_on(mirror.store().register(AT, vec![kept], true)).unwrap();
    mirror.runtime.block_on(mirror.store().purge(&mirror.name("acme"), AT)).unwrap();
    let (lines, _) = log(&mirror, &["--feed", "acme"]);
    assert_eq!(lines.iter().map(|line| line["state"].as_str().unwrap()).collect::<Vec<_>>(), ["purged"]);
}

#[test]
fn positions_of_another_mirror_get_read_everything_again() {
    let mirror = small_mirror();
    let (_, seq) = mirror_row(&mirror);
    let ahead = (seq + 1).to_string();
    for more in [&["--since", "0123456789abcdef:0"][..], &["--since", &ahead], &["--since", &ahead, "--follow"]] {
        let arguments: Vec<&str> = ["changes"].iter().chain(more).copied().collect();
        let (code, errors) = failed(&mirror.run(&arguments));
        assert_eq!(code, Some(1));
        assert!(errors.ends_with(": read everything again\n"), "{errors}");
    }
    assert_eq!(failed(&mirror.run(&["changes", "--since", "yesterday"])).0, Some(2));
}

/// Reads lines until one matches.
fn wait_for(output: &mut BufReader<ChildStdout>, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "it ended first");
        let line: Value = serde_json::from_str(&line).unwrap();
        if wanted(&line) {
            return line;
        }
    }
}

#[test]
fn following_sees_what_is_committed_later_and_ends_well_on_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mirror = small_mirror();
        let mut follower = mirror.spawn(&["changes", "--follow", "--data"]);
        let mut output = BufReader::new(follower.0.stdout.take().unwrap());
        wait_for(&mut output, |line| line["id"] == "d");
        wait_for(&mut output, |line| line.get("last_seq").is_some());
        // when something is committed while it waits
        mirror.polled("other", &[updated("later", 5, "{\"n\":5}")]);
        // then it comes, and after it the position
        let line = wait_for(&mut output, |line| line["id"] == "later");
        assert_eq!(line["data"], serde_json::json!({"n": 5}));
        let mark = wait_for(&mut output, |line| line.get("last_seq").is_some());
        assert_eq!(mark["last_seq"], line["seq"]);
        // and a signal ends it, which is no failure
        kill(Pid::from_raw(follower.0.id() as i32), signal).unwrap();
        assert_eq!(follower.ends(), Some(0));
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert!(rest.is_empty() || rest.ends_with('\n'), "{rest}");
    }
}

#[test]
fn following_ends_at_once_when_its_reader_goes_away_though_nothing_changes() {
    let mirror = small_mirror();
    let mut follower = mirror.spawn(&["changes", "--follow"]);
    let mut output = BufReader::new(follower.0.stdout.take().unwrap());
    wait_for(&mut output, |line| line.get("last_seq").is_some());
    drop(output);
    assert_eq!(follower.ends(), Some(0));
}

#[test]
fn following_ends_after_the_changes_that_were_wanted() {
    let mirror = small_mirror();
    let text = mirror.says(&["changes", "--follow", "--limit", "3"]);
    let lines = json_lines(&text);
    assert_eq!(ids(&lines[..3]), ["a", "b", "c"]);
    assert_eq!(lines.len(), 4);
}

#[test]
fn a_restored_file_is_noticed_while_following() {
    let mirror = small_mirror();
    let mut follower = mirror.spawn(&["changes", "--follow"]);
    let mut output = BufReader::new(follower.0.stdout.take().unwrap());
    wait_for(&mut output, |line| line.get("last_seq").is_some());
    // when another mirror's file replaces it, as a restore does
    let mut other = MirrorFile::new();
    other.stop();
    for companion in ["-wal", "-shm"] {
        std::fs::remove_file(format!("{}{companion}", mirror.path().display())).unwrap();
    }
    std::fs::rename(other.path(), mirror.path()).unwrap();
    // then the reader learns that its position means nothing any more
    assert_eq!(follower.ends(), Some(1));
    let mut errors = String::new();
    follower.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(errors.ends_with(": read everything again\n"), "{errors}");
}
