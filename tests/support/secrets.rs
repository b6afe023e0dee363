//! A feed's secrets in every encoding in which a publisher may show them, and a search for them wherever a mirror
//! stores or shows something.

use std::path::Path;

use rusqlite::Connection;

use super::MirrorProcess;

pub(crate) const HEADER: &str = "hush-header/vwxq+\"x\"";
pub(crate) const QUERY: &str = "hush&query/zkjq+ab";
pub(crate) const POSTED: &str = "hush-posted-wqkz";
pub(crate) const KEYS: &str = r#"headers = { X-Api-Key = { file = "header-secret" } }
query = { api_key = { file = "query-secret" } }
webhook = { secret_file = "hook-secret" }"#;
pub(crate) const FILES: [&str; 3] = ["header-secret", "query-secret", "hook-secret"];
/// Parts of the secrets, in the encodings that the publisher uses: none may be seen anywhere.
pub(crate) const PARTS: [&str; 6] = ["hush", "HUSH", "vwxq", "zkjq", "wqkz", "aHVzaC"];

pub(crate) fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: String = text.bytes().map(|byte| format!("{byte:08b}")).collect();
    let digits = bits.as_bytes().chunks(6).map(|six| {
        let six = format!("{:0<6}", std::str::from_utf8(six).unwrap());
        char::from(DIGITS[usize::from_str_radix(&six, 2).unwrap()])
    });
    digits.collect()
}

pub(crate) fn percent(text: &str, upper: bool) -> String {
    let byte = |byte: u8| match (byte.is_ascii_alphanumeric() || byte == b'-', upper) {
        (true, _) => char::from(byte).to_string(),
        (false, true) => format!("%{byte:02X}"),
        (false, false) => format!("%{byte:02x}"),
    };
    text.bytes().map(byte).collect()
}

/// All secrets in all encodings.
pub(crate) fn all_encodings() -> String {
    let spelt = |secret: &str| {
        let json: String = secret.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
        [secret.to_owned(), percent(secret, true), percent(secret, false), json, base64(secret)].join(" ")
    };
    [HEADER, QUERY, POSTED].map(spelt).join(" ")
}

pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Puts the secrets where [`KEYS`] look for them.
pub(crate) fn write(mirror: &MirrorProcess) {
    for (file, secret) in FILES.into_iter().zip([HEADER, QUERY, POSTED]) {
        mirror.write(file, secret);
    }
}

fn shows_none(where_shown: &str, text: &str) {
    for part in PARTS {
        assert!(!text.contains(part), "{where_shown} shows {part}: {text}");
    }
}

/// Stops the mirror once no part of a secret is in anything that it shows, over HTTP, as a verb or in its files. The
/// one exception: a quarantined record itself, which is kept as received, to be read again.
pub(crate) fn are_hidden(mut mirror: MirrorProcess, feed: &str) {
    let id = mirror.column("SELECT max(id) FROM quarantine").remove(0);
    let key = mirror.rows("SELECT kind, id FROM items LIMIT 1").remove(0);
    for path in [
        "/",
        &format!("/feeds/{feed}"),
        "/readyz",
        "/metrics",
        "/api/feeds",
        &format!("/api/feeds/{feed}"),
        "/api/items",
        &format!("/api/items/{feed}/{}/{}", key[0], key[1]),
        "/api/changes?since=0&data=true",
        "/api/events",
        "/api/refusals",
        "/api/findings",
        &format!("/api/report?feed={feed}"),
        "/api/quarantine",
        &format!("/api/quarantine/{id}"),
    ] {
        let (status, answer) = mirror.get(path);
        assert_eq!(status, 200, "{path}: {answer}");
        shows_none(path, &answer);
    }
    for verb in [
        &["status", "--json"][..],
        &["status", feed],
        &["events", "--json"],
        &["findings", "--json"],
        &["findings", feed, "--report"],
        &["quarantine", "list", "--json"],
        &["quarantine", "show", &id],
        &["explain", feed, &key[1]],
        &["changes", "--data"],
        &["export"],
    ] {
        let ran = mirror.verb(verb);
        let text = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        assert!(ran.status.success(), "{verb:?}: {text}");
        shows_none(&format!("{verb:?}"), &text);
    }
    for view in ["feeds", "quarantine", "findings", "events", "endpoints", "deliveries", "refusals", "changes"] {
        shows_none(view, &format!("{:?}", mirror.rows(&format!("SELECT * FROM {view}"))));
    }
    assert!(mirror.stop().success());
    shows_none("the log", &mirror.log());
    let copy = mirror.path("copy.db");
    let db = Connection::open(mirror.path("mirror.db")).unwrap();
    db.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    drop(db);
    Connection::open(&copy).unwrap().execute_batch("UPDATE quarantined SET raw = ''; VACUUM").unwrap();
    shows_none("the database", &bytes(&copy));
}

fn bytes(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}
