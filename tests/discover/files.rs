//! `--add` and `--diff`: files that are discovery's own, stable names, and nobody's work lost.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::Signal;

use crate::support::until;
use crate::web::Web;
use crate::workspace::{RunOutput, SimulatorProcess, Workspace};

/// A folder with a configuration that includes `feeds.d`, and a catalogue of one site.
struct DiscoverWorkspace {
    desk: Workspace,
    web: Web,
}

const FILE: &str = "feeds.d/acme-leisure.toml";

impl DiscoverWorkspace {
    fn new(feeds: &[(&'static str, &str)]) -> Self {
        let place = Self { desk: Workspace::new(), web: Web::new() };
        place.desk.write("feedmirror.toml", "database = \"mirror.db\"\ninclude = [\"feeds.d/*.toml\"]\n");
        place.web.catalogue("/catalogue", &[], &["/acme"]);
        place.lists(feeds);
        place
    }

    fn lists(&self, feeds: &[(&'static str, &str)]) {
        let feeds = feeds.iter().map(|(name, url)| (*name, (*url).to_owned())).collect();
        self.web.site("/acme", "Acme Leisure", &feeds);
    }

    fn discover(&self, more: &[&str]) -> RunOutput {
        let url = self.web.url("/catalogue");
        let ran = self.desk.run(&[&["discover", &url, "--allow-private"], more].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran
    }

    fn text(&self) -> String {
        fs::read_to_string(self.desk.path(FILE)).unwrap()
    }

    fn feeds(&self) -> Vec<String> {
        let tables: toml::Table = toml::from_str(&self.text()).unwrap();
        tables["feeds"].as_table().unwrap().keys().cloned().collect()
    }
}

const SESSIONS: (&str, &str) = ("ScheduledSession", "https://feeds.example/sessions");
const SLOTS: (&str, &str) = ("Slot", "https://feeds.example/slots");

#[test]
fn what_is_added_is_checked_synced_and_exported_with_whom_to_name() {
    // given a dataset site of a publisher that serves feeds
    let publisher = SimulatorProcess::of(2);
    let place = DiscoverWorkspace::new(&[("ScheduledSession", publisher.url(0)), ("FacilityUse", publisher.url(1))]);

    // when its feeds are added
    let added = place.discover(&["--add"]);

    // then the configuration is sound, and says how to go on
    assert_eq!(added.out, format!("{FILE}: written: 2 feeds of {}\n", place.web.url("/acme")));
    assert!(added.err.contains("systemctl reload feedmirror"), "{}", added.err);
    let checked = place.desk.run(&["check"]);
    assert_eq!((checked.code, checked.out.as_str()), (Some(0), "2 files, 2 feeds; 0 errors, 0 warnings\n"));
    // and the feeds are read, each item with its source
    assert_eq!(place.desk.run(&["sync", "-q"]).code, Some(0));
    let told =
        "SELECT name || ' ' || provider || ' ' || publisher || ' ' || dataset_url || ' ' || total_items FROM feeds";
    let site = place.web.url("/acme");
    let row = |name: &str| format!("{name} acme-leisure Acme Leisure {site} 30");
    assert_eq!(
        place.desk.sql("mirror.db", &format!("{told} ORDER BY name")),
        [row("acme-leisure-facility-use"), row("acme-leisure-scheduled-session")]
    );
    let exported = place.desk.run(&["export"]).rows();
    assert!(!exported.is_empty());
    for item in exported {
        assert_eq!((&item["publisher"], &item["dataset_url"]), (&"Acme Leisure".into(), &site.as_str().into()));
        assert!(item["license"].is_string(), "{item}");
    }
    let map: serde_json::Value = serde_json::from_str(&place.desk.run(&["export", "--format", "geojson"]).out).unwrap();
    assert_eq!(map["features"][0]["properties"]["publisher"], "Acme Leisure");
}

#[test]
fn a_running_daemon_takes_over_what_was_added_when_it_is_told_to_reload() {
    // given a daemon without any feed
    let publisher = SimulatorProcess::of(1);
    let place = DiscoverWorkspace::new(&[("ScheduledSession", publisher.url(0))]);
    let settings = "include = [\"feeds.d/*.toml\"]\nops.listen = \"127.0.0.1:0\"\n";
    place.desk.write("feedmirror.toml", settings);
    let daemon = place.desk.start(&["run"]);
    until("it runs", || daemon.err().contains(" running "));

    // when feeds are added and it is told
    place.discover(&["--add"]);
    daemon.signal(Signal::SIGHUP);

    // then it reads them, and takes over whatever is said of them later
    let publishers = |sql: &str| place.desk.sql("mirror.db", &format!("SELECT publisher FROM feeds {sql}"));
    until("the feed is level", || publishers("WHERE level_at IS NOT NULL") == ["Acme Leisure"]);
    place.web.site("/acme", "Acme Group", &vec![("ScheduledSession", publisher.url(0).to_owned())]);
    place.discover(&["--add"]);
    daemon.signal(Signal::SIGHUP);
    until("the publisher is renamed", || publishers("") == ["Acme Group"]);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_for_exit().code, Some(0));
}

#[test]
fn the_same_again_touches_nothing() {
    let place = DiscoverWorkspace::new(&[SESSIONS, SLOTS]);
    place.discover(&["--add"]);
    let inode = || fs::metadata(place.desk.path(FILE)).unwrap().ino();
    let before = (place.text(), inode());

    let again = place.discover(&["--add", "--json"]);

    let row = &again.rows()[0];
    assert_eq!((&row["file"], &row["result"], &row["feeds"]), (&FILE.into(), &"unchanged".into(), &2.into()));
    assert_eq!((place.text(), inode()), before);
    assert!(!again.err.contains("reload"), "{}", again.err);
    assert_eq!(fs::read_dir(place.desk.path("feeds.d")).unwrap().count(), 1, "nothing is left lying about");
}

#[test]
fn what_appeared_vanished_and_moved_is_shown_and_then_taken_over() {
    // given feeds that were added, of which one moves, one vanishes and one is new
    let place = DiscoverWorkspace::new(&[SESSIONS, SLOTS, ("Event", "https://feeds.example/events")]);
    place.discover(&["--add"]);
    assert_eq!(place.discover(&["--diff"]).out, "");
    let before = place.text();
    place.lists(&[SESSIONS, ("Slot", "https://new.example/slots"), ("Course", "https://feeds.example/courses")]);

    // when the difference is asked for
    let shown = place.discover(&["--diff"]);
    let rows = place.discover(&["--diff", "--json"]).rows();

    // then it is told, and nothing is written
    assert_eq!(
        shown.out,
        "moved: acme-leisure-slot: https://feeds.example/slots → https://new.example/slots\n\
         appeared: acme-leisure-course: https://feeds.example/courses\n\
         vanished: acme-leisure-event: https://feeds.example/events\n"
    );
    let moved = serde_json::json!({
        "change": "moved", "name": "acme-leisure-slot", "url": "https://new.example/slots",
        "before": "https://feeds.example/slots", "dataset_url": place.web.url("/acme"),
    });
    assert_eq!((rows.len(), &rows[0]), (3, &moved));
    assert_eq!(place.text(), before);

    // and what vanished stays configured until it is pruned
    let added = place.discover(&["--add"]);
    assert!(added.out.starts_with(&format!("{FILE}: updated: 4 feeds of ")), "{}", added.out);
    assert!(
        added.err.contains("vanished: acme-leisure-event: https://feeds.example/events; it stays"),
        "{}",
        added.err
    );
    let (course, event, sessions, slot) =
        ("acme-leisure-course", "acme-leisure-event", "acme-leisure-scheduled-session", "acme-leisure-slot");
    assert_eq!(place.feeds(), [course, event, sessions, slot]);
    assert!(place.text().contains("\"https://new.example/slots\"") && !place.text().contains("feeds.example/slots"));
    place.discover(&["--add", "--prune"]);
    assert_eq!(place.feeds(), [course, sessions, slot]);
    assert_eq!(place.discover(&["--diff"]).out, "");
    assert_eq!(place.desk.run(&["check"]).code, Some(0));
}

#[test]
fn a_site_that_is_listed_no_more_is_told_and_one_out_of_reach_is_not() {
    let place = DiscoverWorkspace::new(&[SESSIONS]);
    place.discover(&["--add"]);
    // given its page is down, though still listed
    place.web.drop_page("/acme");
    assert_eq!(place.discover(&["--diff"]).out, "");
    // when the catalogue doesn't list it any more
    place.web.catalogue("/catalogue", &[], &["/other"]);
    place.web.site("/other", "Other", &vec![("Slot", "https://other.example/slots".to_owned())]);
    // then it has vanished, and its file stays
    let site = place.web.url("/acme");
    let told = format!("appeared: other-slot: https://other.example/slots\nsite vanished: acme-leisure: {site}\n");
    assert_eq!(place.discover(&["--diff"]).out, told);
    place.discover(&["--add", "--prune"]);
    assert!(place.desk.path(FILE).exists());
}

#[test]
fn names_stay_when_a_publisher_is_renamed() {
    let place = DiscoverWorkspace::new(&[SESSIONS]);
    place.discover(&["--add"]);
    let feeds = vec![(SESSIONS.0, SESSIONS.1.to_owned()), ("Slot", SLOTS.1.to_owned())];
    place.web.site("/acme", "Acme Group", &feeds);

    let ran = place.discover(&["--add"]);

    assert!(ran.out.starts_with(&format!("{FILE}: updated: 2 feeds")), "{}", ran.out);
    assert_eq!(place.feeds(), ["acme-leisure-scheduled-session", "acme-leisure-slot"]);
    assert!(place.text().contains("publisher = \"Acme Group\""));
}

#[test]
fn nobody_s_work_is_overwritten() {
    // given a file of the very name that somebody else wrote, and a feed that is configured by hand
    let place = DiscoverWorkspace::new(&[SESSIONS, SLOTS]);
    let theirs = format!("[feeds.mine]\nurl = \"{}\"\n", SLOTS.1);
    fs::create_dir(place.desk.path("feeds.d")).unwrap();
    fs::write(place.desk.path(FILE), &theirs).unwrap();

    // when the site's feeds are added
    let ran = place.discover(&["--add", "--json"]);

    // then they go elsewhere, without the one that is there
    assert_eq!(place.text(), theirs);
    let row = &ran.rows()[0];
    assert_eq!((&row["result"], &row["feeds"]), (&"written".into(), &1.into()));
    let file = row["file"].as_str().unwrap().to_owned();
    assert!(file.starts_with("feeds.d/acme-leisure-127-0-0-1-"), "{file}");

    // and a file of discovery's own that was edited is left, and told of
    let edited = fs::read_to_string(place.desk.path(&file)).unwrap() + "poll.min = \"1m\"\n";
    fs::write(place.desk.path(&file), &edited).unwrap();
    place.lists(&[SESSIONS, SLOTS, ("Event", "https://feeds.example/events")]);
    let ran = place.discover(&["--add"]);
    assert!(ran.out.contains(": edited by hand, left as it is: "), "{}", ran.out);
    assert!(ran.err.contains("-event: https://feeds.example/events; its file was edited by hand"), "{}", ran.err);
    assert_eq!(fs::read_to_string(place.desk.path(&file)).unwrap(), edited);
    assert_eq!(place.desk.run(&["check"]).code, Some(0));
}

#[test]
fn a_folder_can_be_named_without_any_configuration() {
    let place = DiscoverWorkspace::new(&[SESSIONS]);
    fs::remove_file(place.desk.path("feedmirror.toml")).unwrap();
    let ran = place.discover(&["--add", "found"]);
    assert!(ran.out.starts_with("found/acme-leisure.toml: written: 1 feed of "), "{}", ran.out);
    assert!(ran.err.contains("include = [\"found/*.toml\"]"), "{}", ran.err);
    assert_eq!(place.discover(&["--add", "found", "--diff"]).out, "");
    // and one that the configuration doesn't include is told of
    place.desk.write("feedmirror.toml", "include = [\"feeds.d/*.toml\"]\n");
    let ran = place.discover(&["--add", "elsewhere"]);
    assert!(ran.err.contains("feedmirror.toml includes none of elsewhere"), "{}", ran.err);
}
