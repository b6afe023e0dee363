//! Snapshots, restores and checks of the file, with the real binary over real files.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/mod.rs"]
mod support;

mod epoch;
mod links;
mod restore;
mod schema;
mod snapshot;
mod verify;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use support::{MirrorProcess, ScriptedPublisher, TestFeed};

/// A feed of `count` records, and a mirror that is level with it and still runs.
fn level(count: usize) -> (Arc<TestFeed>, ScriptedPublisher, MirrorProcess) {
    let test_feed = TestFeed::of(count, 50);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mirror = MirrorProcess::running("acme", &publisher.url("/feed"));
    mirror.until_level("acme");
    (test_feed, publisher, mirror)
}

/// A verb's standard output; the verb must have succeeded.
fn stdout_of(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The error of a verb that failed, with its exit code.
fn refusal(output: &Output) -> (i32, String) {
    assert!(!output.status.success(), "{output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// Makes a snapshot and returns its manifest as printed.
fn snapshot(mirror: &MirrorProcess, more: &[&str]) -> serde_json::Value {
    let arguments: Vec<&str> = ["snapshot", "--json"].iter().chain(more).copied().collect();
    serde_json::from_str(&stdout_of(&mirror.verb(&arguments))).unwrap()
}

fn path_of(manifest: &serde_json::Value) -> PathBuf {
    manifest["path"].as_str().unwrap().into()
}

/// All names in a directory, hidden ones too, sorted.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Makes a snapshot's manifest match a changed file.
fn refit(snapshot: &Path) {
    use sha2::{Digest, Sha256};
    let bytes = std::fs::read(snapshot).unwrap();
    let path = snapshot.with_extension("json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    manifest["bytes"] = bytes.len().into();
    manifest["sha256"] = sha256.into();
    std::fs::write(path, manifest.to_string()).unwrap();
}

/// Rows of a kilobyte that stand for much data.
fn fill(rows: u32) -> String {
    format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
         INSERT INTO event (at, what, detail) SELECT 0, 'filler', hex(randomblob(500)) FROM n"
    )
}
