//! `export`: its output in each format, and its memory.

use std::io::{BufRead, BufReader, Read};

use feedmirror::feed::Health;
use feedmirror::store::feeds::HealthNote;

use crate::mirror_file::{AT, MirrorFile, deleted, failed, json_lines, of_kind, updated};

/// A form that no serialiser would write: the bytes must be copied.
const ODD: &str = r#"{ "n":1.50e+2,"big":123456789012345678901234567890 ,"u":"\u00e9é\/", "dup":1,"dup":2 }"#;

fn small_mirror() -> MirrorFile {
    let mirror = MirrorFile::new();
    for name in ["acme", "other"] {
        mirror.feed(name);
    }
    mirror.polled("acme", &[updated("a", 1, ODD), deleted("b", 2), of_kind("Slot", "c", 3, "{\"n\": 3}")]);
    mirror.polled("other", &[updated("d", 4, "{\"geo\":{\"latitude\":\"1.5\",\"longitude\":2}}")]);
    mirror
}

fn ids(text: &str) -> Vec<String> {
    json_lines(text).iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn data_come_out_byte_for_byte() {
    let mirror = small_mirror();
    let text = mirror.says(&["export"]);
    let line = text.lines().next().unwrap();
    let (beginning, rest) = (r#"{"feed":"acme","kind":"Session","id":"a","modified":1,"state":"updated","data":"#, ODD);
    assert!(line.starts_with(&format!("{beginning}{rest},\"seq\":")), "{line}");
    assert!(
        line.ends_with(
            ",\"changed_at\":\"2026-01-02T03:04:05.678Z\",\"publisher\":null,\"license\":null,\"dataset_url\":null}"
        ),
        "{line}"
    );
}

#[test]
fn live_items_are_exported_and_tombstones_when_asked_for() {
    let mirror = small_mirror();
    assert_eq!(ids(&mirror.says(&["export"])), ["a", "c", "d"]);
    assert_eq!(ids(&mirror.says(&["export", "--deleted"])), ["a", "b", "c", "d"]);
    let tombstone = &json_lines(&mirror.says(&["export", "--deleted"]))[1];
    assert_eq!((&tombstone["state"], &tombstone["data"]), (&"deleted".into(), &serde_json::Value::Null));
}

#[test]
fn feeds_kinds_and_a_beginning_can_be_chosen() {
    let mirror = small_mirror();
    assert_eq!(ids(&mirror.says(&["export", "--feed", "other"])), ["d"]);
    assert_eq!(ids(&mirror.says(&["export", "--feed", "other", "--feed", "acme", "--kind", "Slot"])), ["c"]);
    assert_eq!(ids(&mirror.says(&["export", "--kind", "Session", "--kind", "Slot"])), ["a", "c", "d"]);
    assert_eq!(ids(&mirror.says(&["export", "--kind", "None"])), Vec::<String>::new());
    let seq = json_lines(&mirror.says(&["export"]))[0]["seq"].to_string();
    assert_eq!(ids(&mirror.says(&["export", "--since", &seq])), ["c", "d"]);
}

#[test]
fn a_small_feed_beside_a_large_one_comes_out_in_the_same_order() {
    let mirror = MirrorFile::new();
    mirror.feed("large");
    mirror.feed("small");
    for round in 0..10 {
        let items: Vec<String> = (0..40).map(|n| updated(&format!("l{round}-{n}"), round, "{}")).collect();
        mirror.polled("large", &items);
        mirror.polled("small", &[updated(&format!("s{round}"), round, "{}")]);
    }
    let expected: Vec<String> = (0..10).map(|round| format!("s{round}")).collect();
    assert_eq!(ids(&mirror.says(&["export", "--feed", "small"])), expected);
    let seq = json_lines(&mirror.says(&["export", "--feed", "small"]))[4]["seq"].to_string();
    assert_eq!(ids(&mirror.says(&["export", "--feed", "small", "--since", &seq])), expected[5..]);
}

#[test]
fn items_of_a_feed_that_is_gone_are_left_out() {
    let mirror = small_mirror();
    let gone = mirror.feed("other");
    let note = HealthNote { health: Health::Gone, reason: None, failures: 1, next_poll_at: None };
    mirror.runtime.block_on(mirror.store().record_health(gone.id, AT, note)).unwrap();
    assert_eq!(ids(&mirror.says(&["export"])), ["a", "c"]);
}

#[test]
fn the_other_formats_hold_the_same_items() {
    let mirror = small_mirror();
    let lines = json_lines(&mirror.says(&["export"]));
    let array: Vec<serde_json::Value> = serde_json::from_str(&mirror.says(&["export", "--format", "json"])).unwrap();
    assert_eq!(array, lines);
    let csv = mirror.says(&["export", "--format", "csv", "--feed", "acme", "--kind", "Slot"]);
    let seq = &lines[1]["seq"];
    let expected = format!(
        "feed,kind,id,modified,state,data,seq,changed_at,publisher,license,dataset_url\r\n\
         acme,Slot,c,3,updated,\"{{\"\"n\"\": 3}}\",{seq},2026-01-02T03:04:05.678Z,,,\r\n"
    );
    assert_eq!(csv, expected);
    let map: serde_json::Value = serde_json::from_str(&mirror.says(&["export", "--format", "geojson"])).unwrap();
    assert_eq!(map["type"], "FeatureCollection");
    let places: Vec<&serde_json::Value> = map["features"].as_array().unwrap().iter().map(|f| &f["geometry"]).collect();
    let place = serde_json::json!({"type": "Point", "coordinates": [2.0, 1.5]});
    assert_eq!(places[..2], [&serde_json::Value::Null, &serde_json::Value::Null]);
    assert_eq!((places[2]["coordinates"][0].as_f64(), places[2]["coordinates"][1].as_f64()), (Some(2.0), Some(1.5)));
    assert_eq!(places[2]["type"], place["type"]);
}

#[test]
fn nothing_is_valid_in_every_format() {
    let mirror = MirrorFile::new();
    assert_eq!(mirror.says(&["export"]), "");
    assert_eq!(mirror.says(&["export", "--format", "json"]), "[]\n");
    let header = "feed,kind,id,modified,state,data,seq,changed_at,publisher,license,dataset_url\r\n";
    assert_eq!(mirror.says(&["export", "--format", "csv"]), header);
    let map: serde_json::Value = serde_json::from_str(&mirror.says(&["export", "--format", "geojson"])).unwrap();
    assert_eq!(map["features"], serde_json::json!([]));
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let mirror = small_mirror();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("items.ndjson");
    let name = path.to_str().unwrap();
    assert_eq!(mirror.says(&["export", "-o", name]), "");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), mirror.says(&["export"]));
    let (code, _) = failed(&mirror.run(&["export", "-o", name, "--feed", "nonesuch"]));
    assert_eq!(code, Some(1));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), mirror.says(&["export"]));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mirror = MirrorFile::new();
    mirror.feed("acme");
    let data = format!("{{\"text\":\"{}\"}}", "x".repeat(10_000));
    let items: Vec<String> = (0..200).map(|n| updated(&n.to_string(), n, &data)).collect();
    mirror.polled("acme", &items);
    let mut export = mirror.spawn(&["export"]);
    let mut first = String::new();
    BufReader::new(export.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(export.ends(), Some(0));
    let mut errors = String::new();
    export.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "");
}

#[test]
fn memory_stays_the_same_however_many_items_there_are() {
    // given 64 MiB of items
    const ITEMS: usize = 32 * 1024;
    let mirror = MirrorFile::new();
    mirror.feed("acme");
    let data = format!("{{\"text\":\"{}\"}}", "x".repeat(2_048));
    for page in 0..32 {
        let items: Vec<String> = (0..1024).map(|n| updated(&format!("{page}-{n}"), page, &data)).collect();
        mirror.polled("acme", &items);
    }
    for format in ["ndjson", "geojson"] {
        // when all but the last of them have been read, and the process still waits to write those
        let mut export = mirror.spawn(&["export", "--format", format]);
        let mut output = BufReader::new(export.0.stdout.take().unwrap());
        let mut line = String::new();
        for _ in 0..ITEMS - 1024 {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0);
        }
        let process = std::fs::read_to_string(format!("/proc/{}/status", export.0.id())).unwrap();
        // then it never held half of them
        let peak = process.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 32 * 1024, "{format}: {peak} KiB");
        std::io::copy(&mut output, &mut std::io::sink()).unwrap();
        assert_eq!(export.ends(), Some(0));
    }
}
