//! `demo`: needs no configuration, and everything that it names exists.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use crate::support::until;
use crate::workspace::Workspace;

const SMALL: [&str; 8] = ["demo", "--feeds", "2", "--items", "200", "--db", "demo.db", "--rate"];

/// The body of a page, as any browser would get it.
fn page(url: &str) -> String {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(host).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn its_feeds_get_level_its_page_answers_and_its_file_stays() {
    let workspace = Workspace::new();
    let running = workspace.start(&[&SMALL[..], &["1"]].concat());
    let level = || workspace.sql("demo.db", "SELECT name FROM feeds WHERE level_at IS NOT NULL ORDER BY name");
    until("both feeds level", || level().len() == 2);
    until("the hints", || running.out().contains("sqlite3 demo.db"));
    let hints = running.out();
    let url =
        hints.split_whitespace().find(|word| word.starts_with("http://127.0.0.1:") && word.ends_with('/')).unwrap();
    let html = page(url);
    assert!(level().iter().all(|name| html.contains(name.as_str())), "{html}");
    // the program that it names is this very program
    assert!(hints.contains(&format!("{} changes --db demo.db", env!("CARGO_BIN_EXE_feedmirror"))), "{hints}");

    running.signal(Signal::SIGINT);
    let ran = running.wait_for_exit();

    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    assert!(ran.out.ends_with("The file stays for you to look at: demo.db\n"), "{}", ran.out);
    let last_line = ran.out.rsplit("2 feeds: 2 ok; ").next().unwrap();
    assert!(last_line.contains("live items") && !last_line.starts_with('0'), "{}", ran.out);
    assert_eq!(workspace.run(&["status", "--db", "demo.db"]).code, Some(0));
}

#[test]
fn one_feed_is_kept_live_by_a_stream_and_one_by_a_webhook() {
    let workspace = Workspace::new();
    let running = workspace.start(&[&SMALL[..], &["5"]].concat());
    let modes = || workspace.sql("demo.db", "SELECT mode || ' ' || push FROM feeds ORDER BY mode");
    until("push keeps both feeds", || modes() == ["sse proven", "webhook proven"]);
    let delivered =
        || workspace.sql("demo.db", "SELECT transport FROM endpoints WHERE delivered > 0 AND missed = 0 ORDER BY 1");
    until("both have brought items", || delivered() == ["sse", "webhook"]);
    let of = |mode: &str| workspace.sql("demo.db", &format!("SELECT name FROM feeds WHERE mode = '{mode}'")).remove(0);
    let texts = [format!("{} is kept live by its stream", of("sse")), format!("{} by the pages", of("webhook"))];
    until("it says so", || texts.iter().all(|words| running.out().contains(words)));
    // only its owner may read the webhook's secret, and it is printed nowhere
    let mode = std::fs::metadata(workspace.path("demo.db.webhook.token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    let secret = std::fs::read_to_string(workspace.path("demo.db.webhook.token")).unwrap();

    running.signal(Signal::SIGINT);
    let ran = running.wait_for_exit();

    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
    assert!(secret.len() >= 32 && !ran.out.contains(&secret), "{}", ran.out);
}

#[test]
fn it_ends_by_itself_when_its_time_is_over() {
    let workspace = Workspace::new();
    let ran = workspace.start(&[&SMALL[..], &["0", "--seconds", "1"]].concat()).wait_for_exit();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(workspace.path("demo.db").exists());
}

#[test]
fn a_file_that_is_there_already_is_left_alone() {
    let workspace = Workspace::new();
    workspace.write("demo.db", "precious");
    let ran = workspace.run(&[&SMALL[..], &["0"]].concat());
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("demo.db is there already"), "{}", ran.err);
    assert_eq!(std::fs::read_to_string(workspace.path("demo.db")).unwrap(), "precious");
    assert_eq!(workspace.files(), ["demo.db"]);
}
