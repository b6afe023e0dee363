//! Hostile text as people see it: whatever a publisher puts into a feed, and whoever wrote the file, no verb prints
//! anything that commands a terminal, reverses text, or is invisible.

use std::process::Output;

use serde_json::json;

use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher};

/// An escape sequence, its C1 form, an override, an isolate, zero width, a line separator, a carriage return, a tag.
const HOSTILE: &str = "a\u{1b}[2J\u{9b}31mb\u{202e}c\u{2066}d\u{200b}e\u{2028}f\rg\u{7f}h\u{e0041}i";

fn is_hostile(character: char) -> bool {
    let code = u32::from(character);
    let control = code < 0x20 || (0x7f..0xa0).contains(&code);
    let invisible = [0x200b..=0x200f, 0x2028..=0x202e, 0x2060..=0x206f, 0xfeff..=0xfeff, 0xe0000..=0xe007f];
    (control && character != '\n') || invisible.iter().any(|range| range.contains(&code))
}

fn page(request: &Request) -> Reply {
    let record = |id: &str, modified: i64| {
        json!({"state": "updated", "kind": format!("k{HOSTILE}"), "id": id, "modified": modified,
               "data": {"name": HOSTILE, "url": format!("https://acme.example/{HOSTILE}")}})
    };
    match request.path() {
        "/broken" => Reply::page(format!("<html>{HOSTILE}</html>")),
        "/forbidden" => Reply::status(403).body(HOSTILE),
        // A publisher's license, an unknown kind, a record without an id, and a cursor.
        "/feed" if request.query().is_empty() => {
            let items =
                [record(HOSTILE, 1), json!({"state": HOSTILE, "kind": HOSTILE, "modified": 1, "data": HOSTILE})];
            let next = format!("/feed?at=1&x={HOSTILE}");
            Reply::page(json!({"items": items, "next": next, "license": HOSTILE}).to_string())
        }
        _ => {
            let next = format!("/feed?at=1&x={HOSTILE}");
            Reply::page(json!({"items": [], "next": next}).to_string())
        }
    }
}

/// The output, after checking that no character of it is hostile.
fn seen(what: &str, output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8(text).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found: Vec<&str> = text.lines().filter(|line| line.chars().any(is_hostile)).collect();
    assert!(found.is_empty() && !text.contains('\r'), "{what} prints {found:?}");
    text
}

#[test]
fn no_verb_prints_what_a_terminal_would_obey() {
    // Given: feeds full of hostile text, as `sync` read them
    let publisher = ScriptedPublisher::start(page);
    let mirror = MirrorProcess::new()
        .feed("f", &publisher.url("/feed"))
        .feed("g", &publisher.url("/broken"))
        .feed("h", &publisher.url("/forbidden"));
    seen("sync", &mirror.verb(&["sync", "--tries", "1", "-v"]));
    let ids = mirror.column("SELECT id FROM items WHERE feed = 'f'");
    assert_eq!(ids, [HOSTILE], "{}", seen("status", &mirror.verb(&["status"])));
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 1);

    // When
    let hostile = format!("-{HOSTILE}");
    let verbs: &[&[&str]] = &[
        &["status"],
        &["status", "f", "g", "h"],
        &["status", "--sizes"],
        &["status", &hostile],
        &["events"],
        &["events", "f"],
        &["findings"],
        &["findings", "--report"],
        &["quarantine", "list"],
        &["quarantine", "show", "1"],
        &["explain", "f", HOSTILE],
        &["explain", "f", HOSTILE, "--live"],
        &["explain", "f", "--", &hostile],
        &["verify"],
        &["verify", "--against-source", "f"],
        &["verify", "--against-source", "g"],
        &["check", "--online"],
        &["sync", "g", "h", "--tries", "1"],
        &["pause", "f", &hostile],
        &["resume", "f"],
        &["ack", "f", "--for", "1h", "--note", HOSTILE],
        &["status"],
        &["seek", "f", HOSTILE],
        &["forget", "f", "--yes", "--", &hostile],
        &["rename", HOSTILE, "x"],
        &["snapshot"],
        &["discover", HOSTILE],
        &["restore", HOSTILE],
        &["nonsense"],
    ];
    let mut replaced = 0;
    for verb in verbs {
        // Then
        let text = seen(&format!("{verb:?}"), &mirror.verb(verb));
        replaced += usize::from(text.contains('\u{fffd}'));
    }
    assert!(replaced >= 10, "most of them quote a publisher, and {replaced} did");

    // When: the file itself was made by an attacker
    let file = rusqlite::Connection::open(mirror.path("mirror.db")).unwrap();
    file.execute("UPDATE feed SET name = ?1, provider = ?1, publisher = ?1 WHERE name = 'f'", [HOSTILE]).unwrap();
    file.execute("UPDATE feed SET name = ?1 WHERE name = 'g'", ["b\nforged: ok"]).unwrap();
    drop(file);
    let database = mirror.path("mirror.db");
    let database = database.to_str().unwrap();

    // Then
    for verb in [
        &["status"][..],
        &["status", "--sizes"],
        &["events"],
        &["findings"],
        &["findings", "--report"],
        &["quarantine", "list"],
        &["explain", HOSTILE, HOSTILE],
        &["verify"],
    ] {
        let text = seen(&format!("{verb:?} of a hostile file"), &mirror.verb(&[verb, &["--db", database]].concat()));
        assert!(!text.lines().any(|line| line.starts_with("forged")), "{verb:?}: {text}");
    }
}

#[test]
fn the_log_holds_no_line_that_a_publisher_wrote() {
    // Given
    let publisher = ScriptedPublisher::start(|request| match request.path() {
        "/broken" => Reply::page(format!("<html>\nERROR forged {HOSTILE}</html>")),
        _ => page(request),
    });
    for format in ["text", "json"] {
        let mut mirror = MirrorProcess::new()
            .feed("f", &publisher.url("/feed"))
            .feed("g", &publisher.url("/broken"))
            .env("FEEDMIRROR_LOG__FORMAT", format)
            .env("FEEDMIRROR_LOG__LEVEL", "debug");

        // When
        mirror.write_config();
        mirror.spawn();
        mirror.until("both read", |mirror| !mirror.row("g").reason.is_empty() && !mirror.row("f").level_at.is_empty());
        mirror.stop();

        // Then
        let log = mirror.log();
        assert!(!log.chars().any(is_hostile), "{log:?}");
        assert!(!log.lines().any(|line| line.starts_with("ERROR forged")), "{log}");
        if format == "json" {
            log.lines().for_each(|line| drop(serde_json::from_str::<serde_json::Value>(line).unwrap()));
        }
    }
}
