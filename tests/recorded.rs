//! Pages that real publishers have served, mirrored by the real program through a proxy that plays their hosts, and
//! compared with a separate reading of the same files. Where the files come from: `tests/fixtures/PROVENANCE.md`.
//!
//! Every URL is answered only when it is asked for byte for byte as the publisher wrote it; any other is a 404, and the
//! feed would not get level.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has said so")]

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use rusqlite::types::Value;
use serde::Deserialize;
use serde_json::value::RawValue;

const A_PAGE: usize = 50;

/// What the proxy answers, by the URL asked for.
type Site = HashMap<String, Vec<u8>>;

/// A recorded page or record, its values left as they stand in the text.
#[derive(Deserialize)]
struct Recorded<'a> {
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Record<'a> {
    kind: String,
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow)]
    modified: &'a RawValue,
    state: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// Kind and id → modified as SQLite shows it, state, data.
type Rows = BTreeMap<(String, String), (Value, String, Option<String>)>;

fn unquoted(raw: &RawValue) -> String {
    serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

fn modified_value(raw: &RawValue) -> Value {
    match raw.get().parse() {
        Ok(integer) => Value::Integer(integer),
        Err(_) => Value::Text(unquoted(raw)),
    }
}

/// All recorded values are whole and not negative: more digits are more.
fn newer(a: &Value, b: &Value) -> Ordering {
    let digits = |value: &Value| match value {
        Value::Integer(n) => n.to_string(),
        Value::Text(text) => text.clone(),
        other => panic!("not a modified: {other:?}"),
    };
    let (a, b) = (digits(a), digits(b));
    assert!([&a, &b].iter().all(|digits| digits.bytes().all(|b| b.is_ascii_digit())), "{a}, {b}");
    (a.len(), a).cmp(&(b.len(), b))
}

/// The newest version of each record; of equal ones a deletion, else the first.
fn newest<'a>(records: impl Iterator<Item = &'a str>) -> Rows {
    let mut rows = Rows::new();
    for text in records {
        let record: Record<'_> = serde_json::from_str(text).unwrap();
        let modified = modified_value(record.modified);
        let data = record.data.filter(|_| record.state == "updated").map(|data| data.get().to_owned());
        let row = (modified, record.state, data);
        let key = (record.kind, unquoted(record.id));
        let stands = rows.get(&key).is_some_and(|stored| match newer(&row.0, &stored.0) {
            Ordering::Less => true,
            Ordering::Equal => row.1 != "deleted",
            Ordering::Greater => false,
        });
        if !stands {
            rows.insert(key, row);
        }
    }
    rows
}

fn fixtures(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(directory);
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap().to_str().unwrap().to_lowercase().replace('_', "-")
}

fn end_page(url: &str) -> Vec<u8> {
    serde_json::json!({ "next": url, "items": [], "license": "" }).to_string().into_bytes()
}

/// What is served and configured, and what must be mirrored.
#[derive(Default)]
struct Plan {
    site: Site,
    feeds: BTreeMap<String, (String, Rows)>,
}

impl Plan {
    /// A recorded page at the start of its feed, and the feed's end where it sends to.
    fn page(&mut self, file: &Path) {
        let text = std::fs::read_to_string(file).unwrap();
        let page: Recorded<'_> = serde_json::from_str(&text).unwrap();
        let rows = newest(page.items.iter().map(|item| item.get()));
        let (start, next) = match &page.next {
            Some(next) => {
                let next = next.replacen("https://", "http://", 1);
                let authority = next.split('/').nth(2).unwrap();
                let start = format!("http://{authority}/recorded/{}", stem(file));
                (if page.items.is_empty() { next.clone() } else { start }, next)
            }
            // Without `next` one is made in the dialect of the URL, from the last item.
            None => {
                let last: Record<'_> = serde_json::from_str(page.items.last().unwrap().get()).unwrap();
                let at = |change: &str| format!("http://no-next.example/recorded?afterChangeNumber={change}");
                (at("0"), at(last.modified.get()))
            }
        };
        // The slashes of a URL may stand escaped in JSON: only the scheme's `s` goes.
        let served = text.replacen("\"next\": \"https:", "\"next\": \"http:", 1);
        let served = served.replacen("\"next\":\"https:", "\"next\":\"http:", 1);
        self.site.entry(next.clone()).or_insert_with(|| end_page(&next));
        self.site.insert(start.clone(), served.into_bytes());
        self.feeds.insert(stem(file), (start, rows));
    }

    /// Recorded items as a feed: sorted by `modified` then id, in pages that we make.
    fn items(&mut self, file: &Path) {
        let text = std::fs::read_to_string(file).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        let key = |line: &&str| {
            let record: Record<'_> = serde_json::from_str(line).unwrap();
            (unquoted(record.modified), unquoted(record.id), record.state == "deleted")
        };
        lines.sort_by_cached_key(key);
        let place = |n: usize| format!("http://reference.example/{}?afterTimestamp={n}&afterId=a%3Ab", stem(file));
        let pages: Vec<_> = lines.chunks(A_PAGE).collect();
        for (n, page) in pages.iter().enumerate() {
            let body = format!("{{\"next\":\"{}\",\"items\":[{}]}}", place(n + 1), page.join(",\n"));
            self.site.insert(place(n), body.into_bytes());
        }
        self.site.insert(place(pages.len()), end_page(&place(pages.len())));
        self.feeds.insert(stem(file), (place(0), newest(lines.into_iter())));
    }
}

/// A proxy for plain HTTP that plays the publishers' hosts; the URLs that it could not answer.
fn serve(site: Site) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (site, unknown) = (Arc::new(site), Arc::new(Mutex::new(Vec::new())));
    let told = Arc::clone(&unknown);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (site, unknown) = (Arc::clone(&site), Arc::clone(&unknown));
            std::thread::spawn(move || answer(stream.unwrap(), &site, &unknown));
        }
    });
    (port, told)
}

/// Answers requests of one connection until the client closes it.
fn answer(stream: TcpStream, site: &Site, unknown: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let head = String::from_utf8(head).unwrap();
        // A proxy is asked for the whole URL (RFC 9112 §3.2.2).
        let url = head.split(' ').nth(1).unwrap();
        let (status, body) = match site.get(url) {
            Some(body) => ("200 OK", &body[..]),
            None => {
                unknown.lock().unwrap().push(url.to_owned());
                ("404 Not Found", &b"{}"[..])
            }
        };
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
        if stream.write_all(&[answer.as_bytes(), body].concat()).is_err() {
            return;
        }
    }
}

fn mirrored(file: &Path, feed: &str) -> Rows {
    let db = rusqlite::Connection::open(file).unwrap();
    let mut select = db.prepare("SELECT kind, id, modified, state, data FROM items WHERE feed = ?1").unwrap();
    let rows =
        select.query_map([feed], |row| Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?, row.get(4)?))));
    rows.unwrap().map(Result::unwrap).collect()
}

#[test]
fn recorded_pages_of_real_publishers_are_mirrored_as_they_were_published() {
    let mut plan = Plan::default();
    for file in fixtures("rpde-pages") {
        plan.page(&file);
    }
    for file in fixtures("rpde-items") {
        plan.items(&file);
    }
    let (port, unknown) = serve(plan.site);
    let directory = tempfile::tempdir().unwrap();
    let (config, database) = (directory.path().join("feedmirror.toml"), directory.path().join("mirror.db"));
    let mut settings = format!("database = {database:?}\n[http]\nproxy = \"http://127.0.0.1:{port}\"\n");
    for (name, (url, _)) in &plan.feeds {
        settings.push_str(&format!("[feeds.{name}]\nurl = \"{url}\"\n"));
    }
    std::fs::write(&config, settings).unwrap();

    let sync =
        Command::new(env!("CARGO_BIN_EXE_feedmirror")).arg("--config").arg(&config).arg("sync").output().unwrap();

    let told = [sync.stdout, sync.stderr].map(|told| String::from_utf8(told).unwrap()).concat();
    assert_eq!(*unknown.lock().unwrap(), Vec::<String>::new(), "asked for what no publisher wrote; {told}");
    assert_eq!(sync.status.code(), Some(0), "{told}");
    for (name, (_, expected)) in &plan.feeds {
        assert_eq!(mirrored(&database, name), *expected, "{name}");
    }
    let count: usize = plan.feeds.values().map(|(_, rows)| rows.len()).sum();
    assert!(count > 200, "{count} items were compared");
}
