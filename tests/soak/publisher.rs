//! `feedmirror simulate` as a process of its own, and what it says of itself.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// An item as the publisher has it now.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct PublishedItem {
    pub(crate) kind: String,
    pub(crate) id: serde_json::Value,
    pub(crate) modified: serde_json::Value,
    pub(crate) state: String,
    pub(crate) data: Option<Box<serde_json::value::RawValue>>,
}

/// Killed when dropped.
pub(crate) struct SoakPublisher {
    child: Child,
    urls: BTreeMap<String, String>,
    names: Vec<String>,
    address: String,
}

impl SoakPublisher {
    /// Posts each feed's changes to `webhooks`/FEED with `token`, beside streaming them.
    pub(crate) fn start(feeds: usize, webhooks: &str, token: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_feedmirror"))
            .args(["simulate", "--listen", "127.0.0.1:0", "--items", "600", "--page", "40", "--rate", "2"])
            .args(["--all-faults=0.02", "--hold", "4", "--seed", "7", "--feeds", &feeds.to_string()])
            // A stream's beginning is rare: it fails more often.
            .args(["--fault", "sse-wrong-type=0.15", "--fault", "sse-unavailable=0.15"])
            .args(["--webhook", &format!("{webhooks}/{{feed}}"), "--webhook-token", token])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(feeds);
        let urls: BTreeMap<String, String> = lines
            .map(|line| line.unwrap().split_once('\t').map(|(name, url)| (name.to_owned(), url.to_owned())).unwrap())
            .collect();
        let first = urls.values().next().expect("a feed");
        let address = first.trim_start_matches("http://").split('/').next().unwrap().to_owned();
        Self { child, names: urls.keys().cloned().collect(), urls, address }
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn url(&self, feed: &str) -> &str {
        &self.urls[feed]
    }

    pub(crate) fn published_items(&self, feed: &str) -> Vec<PublishedItem> {
        let text = self.ask("GET", &format!("/_truth/{feed}"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn fault_counts(&self) -> BTreeMap<String, u64> {
        serde_json::from_str(&self.ask("GET", "/_fired")).unwrap()
    }

    pub(crate) fn post(&self, path: &str) {
        self.ask("POST", path);
    }

    /// HTTP/1.0, so that the answer ends with the connection.
    fn ask(&self, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Length: 0\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        assert!(head.contains(" 200 "), "{method} {path}: {head}");
        body.to_owned()
    }
}

impl Drop for SoakPublisher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
