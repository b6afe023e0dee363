//! `--add` and `--diff`: discovery's own files are updated, names are stable, and no other file is overwritten.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::Signal;

use crate::support::until;
use crate::web::Web;
use crate::workspace::{RunOutput, SimulatorProcess, Workspace};

/// A folder with a configuration that includes `feeds.d`, and a catalogue of one site.
struct DiscoverWorkspace {
    workspace: Workspace,
    web: Web,
}

const FILE: &str = "feeds.d/acme-leisure.toml";

impl DiscoverWorkspace {
    fn new(feeds: &[(&'static str, &str)]) -> Self {
        let discovery = Self { workspace: Workspace::new(), web: Web::new() };
        discovery.workspace.write("feedmirror.toml", "database = \"mirror.db\"\ninclude = [\"feeds.d/*.toml\"]\n");
        discovery.web.catalogue("/catalogue", &[], &["/acme"]);
        discovery.lists(feeds);
        discovery
    }

    fn lists(&self, feeds: &[(&'static str, &str)]) {
        let feeds = feeds.iter().map(|(name, url)| (*name, (*url).to_owned())).collect();
        self.web.site("/acme", "Acme Leisure", &feeds);
    }

    fn discover(&self, more: &[&str]) -> RunOutput {
        let url = self.web.url("/catalogue");
        let ran = self.workspace.run(&[&["discover", &url, "--allow-private"], more].concat());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran
    }

    fn text(&self) -> String {
        fs::read_to_string(self.workspace.path(FILE)).unwrap()
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
    let discovery =
        DiscoverWorkspace::new(&[("ScheduledSession", publisher.url(0)), ("FacilityUse", publisher.url(1))]);

    // when its feeds are added
    let added = discovery.discover(&["--add"]);

    // then the configuration is valid, and the output says how to go on
    assert_eq!(added.out, format!("{FILE}: written: 2 feeds of {}\n", discovery.web.url("/acme")));
    assert!(added.err.contains("systemctl reload feedmirror"), "{}", added.err);
    let checked = discovery.workspace.run(&["check"]);
    assert_eq!((checked.code, checked.out.as_str()), (Some(0), "2 files, 2 feeds; 0 errors, 0 warnings\n"));
    // and the feeds are synced, each item with its source
    assert_eq!(discovery.workspace.run(&["sync", "-q"]).code, Some(0));
    let query =
        "SELECT name || ' ' || provider || ' ' || publisher || ' ' || dataset_url || ' ' || total_items FROM feeds";
    let site = discovery.web.url("/acme");
    let row = |name: &str| format!("{name} acme-leisure Acme Leisure {site} 30");
    assert_eq!(
        discovery.workspace.sql("mirror.db", &format!("{query} ORDER BY name")),
        [row("acme-leisure-facility-use"), row("acme-leisure-scheduled-session")]
    );
    let exported = discovery.workspace.run(&["export"]).rows();
    assert!(!exported.is_empty());
    for item in exported {
        assert_eq!((&item["publisher"], &item["dataset_url"]), (&"Acme Leisure".into(), &site.as_str().into()));
        assert!(item["license"].is_string(), "{item}");
    }
    let map: serde_json::Value =
        serde_json::from_str(&discovery.workspace.run(&["export", "--format", "geojson"]).out).unwrap();
    assert_eq!(map["features"][0]["properties"]["publisher"], "Acme Leisure");
}

#[test]
fn a_running_daemon_takes_over_what_was_added_when_it_is_told_to_reload() {
    // given a daemon without any feed
    let publisher = SimulatorProcess::of(1);
    let discovery = DiscoverWorkspace::new(&[("ScheduledSession", publisher.url(0))]);
    let settings = "include = [\"feeds.d/*.toml\"]\nops.listen = \"127.0.0.1:0\"\n";
    discovery.workspace.write("feedmirror.toml", settings);
    let daemon = discovery.workspace.start(&["run"]);
    until("it runs", || daemon.err().contains(" running "));

    // when feeds are added and the daemon reloads
    discovery.discover(&["--add"]);
    daemon.signal(Signal::SIGHUP);

    // then it reads them, and takes over later changes of their publisher's name
    let publishers = |sql: &str| discovery.workspace.sql("mirror.db", &format!("SELECT publisher FROM feeds {sql}"));
    until("the feed is level", || publishers("WHERE level_at IS NOT NULL") == ["Acme Leisure"]);
    discovery.web.site("/acme", "Acme Group", &vec![("ScheduledSession", publisher.url(0).to_owned())]);
    discovery.discover(&["--add"]);
    daemon.signal(Signal::SIGHUP);
    until("the publisher is renamed", || publishers("") == ["Acme Group"]);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait_for_exit().code, Some(0));
}

#[test]
fn the_same_again_touches_nothing() {
    let discovery = DiscoverWorkspace::new(&[SESSIONS, SLOTS]);
    discovery.discover(&["--add"]);
    let inode = || fs::metadata(discovery.workspace.path(FILE)).unwrap().ino();
    let before = (discovery.text(), inode());

    let again = discovery.discover(&["--add", "--json"]);

    let row = &again.rows()[0];
    assert_eq!((&row["file"], &row["result"], &row["feeds"]), (&FILE.into(), &"unchanged".into(), &2.into()));
    assert_eq!((discovery.text(), inode()), before);
    assert!(!again.err.contains("reload"), "{}", again.err);
    assert_eq!(fs::read_dir(discovery.workspace.path("feeds.d")).unwrap().count(), 1, "nothing is left lying about");
}

#[test]
fn what_appeared_vanished_and_moved_is_shown_and_then_taken_over() {
    // given feeds that were added, of which one moves, one vanishes and one is new
    let discovery = DiscoverWorkspace::new(&[SESSIONS, SLOTS, ("Event", "https://feeds.example/events")]);
    discovery.discover(&["--add"]);
    assert_eq!(discovery.discover(&["--diff"]).out, "");
    let before = discovery.text();
    discovery.lists(&[SESSIONS, ("Slot", "https://new.example/slots"), ("Course", "https://feeds.example/courses")]);

    // when the difference is requested
    let shown = discovery.discover(&["--diff"]);
    let rows = discovery.discover(&["--diff", "--json"]).rows();

    // then it is shown, and nothing is written
    assert_eq!(
        shown.out,
        "moved: acme-leisure-slot: https://feeds.example/slots → https://new.example/slots\n\
         appeared: acme-leisure-course: https://feeds.example/courses\n\
         vanished: acme-leisure-event: https://feeds.example/events\n"
    );
    let moved = serde_json::json!({
        "change": "moved", "name": "acme-leisure-slot", "url": "https://new.example/slots",
        "before": "https://feeds.example/slots", "dataset_url": discovery.web.url("/acme"),
    });
    assert_eq!((rows.len(), &rows[0]), (3, &moved));
    assert_eq!(discovery.text(), before);

    // and what vanished stays configured until it is pruned
    let added = discovery.discover(&["--add"]);
    assert!(added.out.starts_with(&format!("{FILE}: updated: 4 feeds of ")), "{}", added.out);
    assert!(
        added.err.contains("vanished: acme-leisure-event: https://feeds.example/events; it stays"),
        "{}",
        added.err
    );
    let (course, event, sessions, slot) =
        ("acme-leisure-course", "acme-leisure-event", "acme-leisure-scheduled-session", "acme-leisure-slot");
    assert_eq!(discovery.feeds(), [course, event, sessions, slot]);
    assert!(
        discovery.text().contains("\"https://new.example/slots\"") && !discovery.text().contains("feeds.example/slots")
    );
    discovery.discover(&["--add", "--prune"]);
    assert_eq!(discovery.feeds(), [course, sessions, slot]);
    assert_eq!(discovery.discover(&["--diff"]).out, "");
    assert_eq!(discovery.workspace.run(&["check"]).code, Some(0));
}

#[test]
fn a_site_that_is_listed_no_more_is_told_and_one_out_of_reach_is_not() {
    let discovery = DiscoverWorkspace::new(&[SESSIONS]);
    discovery.discover(&["--add"]);
    // given its page is down, though still listed
    discovery.web.drop_page("/acme");
    assert_eq!(discovery.discover(&["--diff"]).out, "");
    // when the catalogue doesn't list it any more
    discovery.web.catalogue("/catalogue", &[], &["/other"]);
    discovery.web.site("/other", "Other", &vec![("Slot", "https://other.example/slots".to_owned())]);
    // then it has vanished, and its file stays
    let site = discovery.web.url("/acme");
    let expected = format!("appeared: other-slot: https://other.example/slots\nsite vanished: acme-leisure: {site}\n");
    assert_eq!(discovery.discover(&["--diff"]).out, expected);
    discovery.discover(&["--add", "--prune"]);
    assert!(discovery.workspace.path(FILE).exists());
}

#[test]
fn names_stay_when_a_publisher_is_renamed() {
    let discovery = DiscoverWorkspace::new(&[SESSIONS]);
    discovery.discover(&["--add"]);
    let feeds = vec![(SESSIONS.0, SESSIONS.1.to_owned()), ("Slot", SLOTS.1.to_owned())];
    discovery.web.site("/acme", "Acme Group", &feeds);

    let ran = discovery.discover(&["--add"]);

    assert!(ran.out.starts_with(&format!("{FILE}: updated: 2 feeds")), "{}", ran.out);
    assert_eq!(discovery.feeds(), ["acme-leisure-scheduled-session", "acme-leisure-slot"]);
    assert!(discovery.text().contains("publisher = \"Acme Group\""));
}

#[test]
fn nobody_s_work_is_overwritten() {
    // given a file of the same name that discovery didn't write, and a feed that is configured by hand
    let discovery = DiscoverWorkspace::new(&[SESSIONS, SLOTS]);
    let theirs = format!("[feeds.mine]\nurl = \"{}\"\n", SLOTS.1);
    fs::create_dir(discovery.workspace.path("feeds.d")).unwrap();
    fs::write(discovery.workspace.path(FILE), &theirs).unwrap();

    // when the site's feeds are added
    let ran = discovery.discover(&["--add", "--json"]);

    // then they are written to another file, without the feed that is configured
    assert_eq!(discovery.text(), theirs);
    let row = &ran.rows()[0];
    assert_eq!((&row["result"], &row["feeds"]), (&"written".into(), &1.into()));
    let file = row["file"].as_str().unwrap().to_owned();
    assert!(file.starts_with("feeds.d/acme-leisure-127-0-0-1-"), "{file}");

    // and a file of discovery's own that was edited is left unchanged, and reported
    let edited = fs::read_to_string(discovery.workspace.path(&file)).unwrap() + "poll.min = \"1m\"\n";
    fs::write(discovery.workspace.path(&file), &edited).unwrap();
    discovery.lists(&[SESSIONS, SLOTS, ("Event", "https://feeds.example/events")]);
    let ran = discovery.discover(&["--add"]);
    assert!(ran.out.contains(": edited by hand, left as it is: "), "{}", ran.out);
    assert!(ran.err.contains("-event: https://feeds.example/events; its file was edited by hand"), "{}", ran.err);
    assert_eq!(fs::read_to_string(discovery.workspace.path(&file)).unwrap(), edited);
    assert_eq!(discovery.workspace.run(&["check"]).code, Some(0));
}

#[test]
fn a_folder_can_be_named_without_any_configuration() {
    let discovery = DiscoverWorkspace::new(&[SESSIONS]);
    fs::remove_file(discovery.workspace.path("feedmirror.toml")).unwrap();
    let ran = discovery.discover(&["--add", "found"]);
    assert!(ran.out.starts_with("found/acme-leisure.toml: written: 1 feed of "), "{}", ran.out);
    assert!(ran.err.contains("include = [\"found/*.toml\"]"), "{}", ran.err);
    assert_eq!(discovery.discover(&["--add", "found", "--diff"]).out, "");
    // and a folder that the configuration doesn't include is reported
    discovery.workspace.write("feedmirror.toml", "include = [\"feeds.d/*.toml\"]\n");
    let ran = discovery.discover(&["--add", "elsewhere"]);
    assert!(ran.err.contains("feedmirror.toml includes none of elsewhere"), "{}", ran.err);
}
