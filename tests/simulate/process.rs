//! The command as a process: its output, what it serves, how it ends.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use feedmirror::simulate::FAULTS;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::AsyncBufReadExt;

use crate::reader::{ask, get};

fn simulate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
    command.arg("simulate").args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    simulate(arguments).output().unwrap()
}

/// A running publisher; killed when a test fails.
struct Running(Child, Vec<(String, String)>);

impl Drop for Running {
    fn drop(&mut self) {
        // The process has usually ended by then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn running(arguments: &[&str], feeds: usize) -> Running {
    let arguments = [&["--listen", "127.0.0.1:0", "--rate", "0", "--items", "30"], arguments].concat();
    let mut child = simulate(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(feeds);
    let feeds = lines
        .map(|line| line.unwrap().split_once('\t').map(|(name, url)| (name.to_owned(), url.to_owned())).unwrap())
        .collect();
    Running(child, feeds)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_prints_where_its_feeds_are_serves_them_and_ends_on_sigterm_and_sigint() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut publisher = running(&["--feeds", "2"], 2);
        let names: Vec<&str> = publisher.1.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["sessions-1", "facilities-2"]);
        for (_, url) in &publisher.1 {
            assert!(!get(url).await.page()["items"].as_array().unwrap().is_empty());
        }
        kill(Pid::from_raw(publisher.0.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(publisher.0.wait().unwrap().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_in_another_process_can_ask_for_the_truth_and_steer() {
    let publisher = running(&["--feeds", "1", "--fault", "http-500"], 1);
    let url = &publisher.1[0].1;
    let base = url.strip_suffix("/sessions-1").unwrap();
    let expected = async || {
        let reply = get(&format!("{base}/_truth/sessions-1")).await;
        let lines = String::from_utf8(reply.body).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    // its faults happen, and are counted
    assert_eq!(get(url).await.status, 500);
    assert_eq!(get(&format!("{base}/_fired")).await.page(), serde_json::json!({"http-500": 1}));
    // until they are cleared
    assert_eq!(ask("POST", &format!("{base}/_calm"), &[]).await.status, 200);
    let page = get(url).await.page();
    let before = expected().await;
    assert_eq!(before.len(), 30);
    assert_eq!((&before[0]["id"], &before[0]["data"]), (&page["items"][0]["id"], &page["items"][0]["data"]));
    // changes and a restore are seen
    assert_eq!(ask("POST", &format!("{base}/_change/sessions-1?n=4"), &[]).await.status, 200);
    assert_ne!(expected().await, before);
    assert_eq!(ask("POST", &format!("{base}/_restore/sessions-1"), &[]).await.status, 200);
    assert!(expected().await.len() < 30);
    for steer in ["_freeze", "_thaw"] {
        assert_eq!(ask("POST", &format!("{base}/{steer}"), &[]).await.status, 200);
    }
    assert_eq!(get(&format!("{base}/")).await.page()[0]["url"], url.as_str());
    assert_eq!(ask("POST", &format!("{base}/_change/nobody"), &[]).await.status, 404);
}

#[test]
fn the_faults_are_listed_with_what_they_do() {
    let listed = output(&["--list-faults"]);
    assert!(listed.status.success());
    let lines: Vec<String> = String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), FAULTS.len());
    for (line, fault) in lines.iter().zip(FAULTS) {
        assert!(line.starts_with(&format!("{} ", fault.name)) && line.ends_with(fault.does), "{line}");
    }
}

#[test]
fn a_wrong_command_line_says_what_would_be_right() {
    for (arguments, hint) in [
        (["--fault", "not-jason"], "not-json"),
        (["--fault", "reset=2"], "from 0 to 1"),
        (["--dialect", "0.3"], "0.2.1"),
        (["--page", "0"], "at least 1"),
        (["--webhook", "http://127.0.0.1:1/hook"], "3 feeds need a {feed} in it"),
        (["--webhook", "{feed}"], "webhook url: "),
        (["--webhook-token", "a-token"], "--webhook"),
        (["--amqp", "amqp://127.0.0.1:1"], "--amqp-queue"),
    ] {
        let refused = output(&[&["--listen", "127.0.0.1:0"], &arguments[..]].concat());
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
        let words = String::from_utf8(refused.stderr).unwrap();
        assert!(words.contains(hint), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_named_on_the_command_line_gets_the_feed_s_first_page() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook/{{feed}}", listener.local_addr().unwrap());
    let arguments = ["--feeds", "1", "--webhook", &url, "--webhook-token", "a-token", "--webhook-from-start"];
    let _publisher = running(&arguments, 1);
    let (stream, _) = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await.unwrap().unwrap();
    let mut lines = tokio::io::BufReader::new(stream).lines();
    let mut head = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
        head.push(line.to_lowercase());
    }
    assert_eq!(head[0], "post /hook/sessions-1 http/1.1");
    assert!(head.contains(&"authorization: bearer a-token".to_owned()), "{head:?}");
}

#[test]
fn a_taken_address_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let refused = output(&["--listen", &address]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains(&address));
}
