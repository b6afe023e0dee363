//! `sync`: feeds given by URL or by name, the summary, and what is refused before anything is read.

use crate::support::{Reply, ScriptedPublisher, page};
use crate::workspace::{SimulatorProcess, Workspace};

/// The name that `sync` makes of a URL's host and path.
fn made_name(url: &str) -> String {
    url.trim_start_matches("http://").replace([':', '/'], "-")
}

#[test]
fn feeds_given_by_url_get_level_and_are_summed_up() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(2));

    let ran = workspace.run(&["sync", publisher.url(0), publisher.url(1)]);

    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    let [head, rows @ .., last_line] = &lines[..] else { panic!("{}", ran.out) };
    assert_eq!(head.split_whitespace().next(), Some("feed"));
    let mut names = [made_name(publisher.url(0)), made_name(publisher.url(1))];
    names.sort();
    let expected = names.map(|name| vec![name, "level".to_owned()]);
    let first_columns = |row: &&str| row.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rows.iter().map(first_columns).collect::<Vec<_>>(), expected);
    assert!(last_line.starts_with("2 of 2 feeds level in "), "{last_line}");
    assert!(last_line.contains(" 60 records, ") && last_line.ends_with("; mirror.db"), "{last_line}");
    assert_eq!(workspace.sql("mirror.db", "SELECT DISTINCT mode || ' ' || health FROM feeds"), ["poll ok"]);
    assert_eq!(workspace.sql("mirror.db", "SELECT CAST(count(*) AS TEXT) FROM items"), ["60"]);
}

#[test]
fn json_is_a_row_a_feed_and_nothing_else() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    let feed = format!("acme={}", publisher.url(0));

    let rows = workspace.run(&["sync", &feed, "--json"]).rows();

    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!((row["feed"].as_str(), row["result"].as_str()), (Some("acme"), Some("level")));
    assert_eq!((&row["read"], &row["written"], &row["quarantined"]), (&30.into(), &30.into(), &0.into()));
    let counts = workspace.sql("mirror.db", "SELECT items || ' ' || tombstones FROM feeds");
    assert_eq!(counts, [format!("{} {}", row["items"], row["tombstones"])]);
    assert!(row["trouble"].is_null() && row["remark"].is_null(), "{row}");
}

#[test]
fn a_second_run_goes_on_from_the_first() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    assert_eq!(workspace.run(&["sync", publisher.url(0)]).code, Some(0));

    let again = workspace.run(&["sync", publisher.url(0), "--json"]).rows();

    assert_eq!((&again[0]["read"], &again[0]["pages"]), (&0.into(), &1.into()), "{again:?}");
}

#[test]
fn a_bad_feed_is_named_with_its_reason_and_the_good_one_gets_level() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(1));
    let good = format!("good={}", publisher.url(0));
    let bad = format!("bad={}", publisher.url(0).replace("/sessions-1", "/nothing"));

    let ran = workspace.run(&["sync", &good, &bad, "--json"]);

    assert_eq!(ran.code, Some(3), "{ran:?}");
    let rows = ran.rows();
    let results: Vec<_> = rows.iter().map(|row| (row["feed"].as_str(), row["result"].as_str())).collect();
    assert_eq!(results, [(Some("bad"), Some("given-up")), (Some("good"), Some("level"))]);
    assert!(rows[0]["trouble"].as_str().unwrap().starts_with("http-404: "), "{}", rows[0]);
    // and the text for people says the same
    let ran = workspace.run(&["sync", &good, &bad]);
    assert_eq!(ran.code, Some(3));
    assert!(ran.out.contains("\nbad: given-up: http-404: ") && ran.out.contains("\n1 of 2 feeds level"), "{}", ran.out);
}

#[test]
fn a_feed_is_given_up_after_as_many_failures_as_told() {
    let publisher = ScriptedPublisher::start(|_| Reply::status(500));
    for tries in [1, 2] {
        let (workspace, before) = (Workspace::new(), publisher.requests().len());
        let ran = workspace.run(&["sync", &publisher.url("/feed"), "--tries", &tries.to_string()]);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert_eq!(publisher.requests().len() - before, tries);
    }
    assert_eq!(Workspace::new().run(&["sync", &publisher.url("/feed"), "--tries", "0"]).code, Some(2));
}

#[test]
fn a_publisher_that_asks_for_a_day_is_given_up_within_a_minute_with_the_time_it_may_come_back() {
    let (workspace, publisher) =
        (Workspace::new(), ScriptedPublisher::start(|_| Reply::status(429).header("Retry-After", "86400")));
    let began = std::time::Instant::now();

    let ran = workspace.run(&["sync", &publisher.url("/feed"), "--json"]);

    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(began.elapsed() < std::time::Duration::from_secs(60));
    let reason = ran.rows()[0]["trouble"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("http-429: ") && reason.contains("for 24 h: try again then, at 20"), "{reason}");
    assert_eq!(publisher.requests().len(), 1);
}

#[test]
fn what_is_waited_for_is_told_meanwhile() {
    // Given: a publisher that asks for a wait of 12 s, longer than the interval of progress lines.
    let publisher = ScriptedPublisher::start(|request| match request.count {
        1 => Reply::status(503).header("Retry-After", "12").body("down for a moment"),
        _ => Reply::page(page(&[], &request.target)),
    });

    let ran = Workspace::new().run(&["sync", &format!("own={}", publisher.url("/feed"))]);

    assert_eq!(ran.code, Some(0), "{ran:?}");
    let line =
        ran.err.lines().find(|line| line.starts_with("own: asked again in ")).unwrap_or_else(|| panic!("{ran:?}"));
    assert!(line.contains(" s: http-503: ") && line.contains("down for a moment"), "{line}");
}

#[test]
fn what_can_not_be_meant_is_refused_before_anything_is_made() {
    let (one, other) = ("https://acme.example/a?x=1", "https://acme.example/a?x=2");
    for (feeds, hint) in [
        (&["acme", one][..], "either URLs or names"),
        (&[one, other], "two feeds would be named acme.example-a: give each a name, as other-name="),
        (&["Acme=https://acme.example/a"], "can't name a feed"),
        (&["https://user:secret@acme.example/"], "no credentials"),
    ] {
        let workspace = Workspace::new();
        let ran = workspace.run(&[&["sync"], feeds].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.err.contains(hint), "{hint}: {}", ran.err);
        assert!(!ran.err.contains("secret"), "{}", ran.err);
        assert!(workspace.files().is_empty(), "{:?}", workspace.files());
    }
}

#[test]
fn configured_feeds_are_brought_level_by_name_and_an_unknown_one_is_told_the_known() {
    let (workspace, publisher) = (Workspace::new(), SimulatorProcess::of(2));
    let feed = |n: usize| format!("[feeds.{}]\nurl = \"{}\"\n", publisher.feeds[n].0, publisher.url(n));
    workspace.write("feedmirror.toml", &format!("database = \"own.db\"\n{}{}", feed(0), feed(1)));

    let one = workspace.run(&["sync", "sessions-1", "--json"]).rows();
    let unknown = workspace.run(&["sync", "session-1"]);
    let all = workspace.run(&["sync", "--json", "--db", "other.db"]).rows();

    assert_eq!(one.len(), 1, "{one:?}");
    assert_eq!(workspace.sql("own.db", "SELECT name FROM feeds WHERE level_at IS NOT NULL"), ["sessions-1"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.err.contains("facilities-2, sessions-1"), "{}", unknown.err);
    assert_eq!(all.iter().map(|row| row["result"].as_str()).collect::<Vec<_>>(), [Some("level"); 2]);
    assert!(workspace.path("other.db").exists());
}
