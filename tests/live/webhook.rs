//! What is posted: a 2xx means committed, everything else leaves the page with the publisher.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::post::{self, SECRET};
use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, TestFeed, item, page_without_next, until};
use crate::{PUSH, endpoint, mirror, until_has, until_mode};

const KEYS: &str = r#"webhook = { secret_file = "secret" }"#;

fn shelf_publisher(shelf: &Arc<TestFeed>) -> ScriptedPublisher {
    let serving = Arc::clone(shelf);
    ScriptedPublisher::start(move |request| serving.page(request))
}

/// A mirror of this feed that takes posts, not started yet.
fn taking(publisher: &ScriptedPublisher, keys: &str) -> MirrorProcess {
    let mirror = mirror(&publisher.url("/feed"), keys);
    mirror.write("secret", SECRET);
    mirror
}

#[test]
fn what_got_a_2xx_can_be_read_at_once() {
    // Given
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let mirror = taking(&publisher, KEYS).start();
    mirror.until_level("f");
    assert!(!post::address(&mirror).ends_with(":0"));

    for n in 0..20 {
        // When
        let id = format!("posted-{n}");
        let answer = post::page(&mirror, &[item(&id, 100 + n)]);

        // Then: in the file already, for any reader
        assert_eq!(answer.status, 204);
        let row = mirror.rows(&format!("SELECT modified, transport FROM items WHERE id = '{id}'"));
        assert_eq!(row, [[(100 + n).to_string(), "webhook".to_owned()]]);
    }
    until_mode(&mirror, "webhook");
    assert_eq!(endpoint(&mirror, "webhook", "delivered"), "20");
    assert_eq!(endpoint(&mirror, "webhook", "push"), "proven");
}

#[test]
fn a_body_that_is_only_sent_again_makes_no_webhook_proven() {
    // Given: what is posted was in the mirror before it was started
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let mut mirror = taking(&publisher, KEYS).start();
    mirror.until_level("f");
    mirror.kill();
    mirror.start_again();
    let known = [item("id-0", 1), item("id-1", 2), item("id-2", 3)];

    // When
    for _ in 0..3 {
        assert_eq!(post::page(&mirror, &known).status, 204);
    }

    // Then
    assert_eq!(endpoint(&mirror, "webhook", "push"), "unproven");
    assert_eq!(mirror.row("f").mode, "poll");

    // When: it brings something new
    assert_eq!(post::page(&mirror, &[item("news", 9_000)]).status, 204);

    // Then
    until_mode(&mirror, "webhook");
    assert_eq!(endpoint(&mirror, "webhook", "push"), "proven");
}

#[test]
fn what_got_a_2xx_outlives_a_kill_right_after_it() {
    // Given
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let mut mirror = taking(&publisher, KEYS).start();
    mirror.until_level("f");
    let mut taken = Vec::new();

    for round in 0..10 {
        // When
        for n in 0..3 {
            let id = format!("posted-{round}-{n}");
            let answer = post::page(&mirror, &[item(&id, 100 + round * 10 + n)]);
            assert_eq!(answer.status, 204);
            taken.push(id);
        }
        mirror.kill();

        // Then: the poll side never has it
        mirror.start_again();
        let held = mirror.ids("f");
        let lost: Vec<&String> = taken.iter().filter(|id| !held.contains(id)).collect();
        assert_eq!(lost, [] as [&String; 0], "after kill {round}");
    }
}

/// A feed that goes on until `end` is set, then is level.
fn long_feed(request: &Request, end: bool) -> Reply {
    let at: i64 = request.query().strip_prefix("at=").map_or(0, |at| at.parse().unwrap());
    if end {
        return Reply::page(crate::support::page(&[], &request.target));
    }
    let page = crate::support::page(&[item(&format!("i{at}"), at + 1)], &format!("/feed?at={}", at + 1));
    Reply::page(page).after(Duration::from_millis(20))
}

#[test]
fn a_feed_that_defers_takes_posts_once_it_is_level() {
    // Given
    let end = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ending = Arc::clone(&end);
    let publisher =
        ScriptedPublisher::start(move |request| long_feed(request, ending.load(std::sync::atomic::Ordering::SeqCst)));
    let keys = r#"webhook = { secret_file = "secret", during_refresh = "defer" }"#;
    let mirror = taking(&publisher, keys).start();

    // When
    let early = post::page(&mirror, &[item("early", 9_000)]);

    // Then
    assert_eq!(early.status, 503);
    assert!(early.retry_after().is_some_and(|seconds| seconds > 0), "{early:?}");
    assert_eq!(mirror.row("f").mode, "refresh");

    // When
    end.store(true, std::sync::atomic::Ordering::SeqCst);

    // Then
    mirror.until_level("f");
    assert!(!mirror.ids("f").contains(&"early".to_owned()));
    mirror.until("a post taken", |mirror| post::page(mirror, &[item("late", 9_001)]).status == 204);
    assert!(mirror.ids("f").contains(&"late".to_owned()));
}

#[test]
fn a_feed_that_does_not_defer_takes_posts_while_it_is_read() {
    let publisher = ScriptedPublisher::start(|request| long_feed(request, false));
    let mirror = taking(&publisher, KEYS).start();
    assert_eq!(post::page(&mirror, &[item("early", 9_000)]).status, 204);
    assert_eq!(mirror.ids("f").iter().filter(|id| *id == "early").count(), 1);
    assert_eq!(mirror.row("f").mode, "refresh");
}

#[test]
fn what_is_refused_is_refused_whole_and_says_why() {
    // Given
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let mirror = taking(&publisher, KEYS).tables("max_body_bytes = \"64KiB\"\n").start();
    mirror.until_level("f");
    let good = page_without_next(&[item("never", 99)]);
    let large = page_without_next(&[item(&"x".repeat(100_000), 99)]);

    // When, then
    let status = |feed: &str, secret: &str, body: &str| post::body(&mirror, feed, secret, body).status;
    assert_eq!(status("f", "guessed", &good), 401);
    assert_eq!(status("f", "", &good), 401);
    assert_eq!(status("nobody", SECRET, &good), 404);
    assert_eq!(status("f", SECRET, "<html>no</html>"), 400);
    assert_eq!(status("f", SECRET, &good[..good.len() - 2]), 400);
    assert_eq!(status("f", SECRET, r#"{"records":[]}"#), 400);
    assert_eq!(status("f", SECRET, &large), 413);
    assert_eq!(mirror.live("f"), shelf.live());
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 0);

    // A bad record in a good page is another matter.
    let mixed = page_without_next(&[r#"{"id":"bad"}"#.to_owned(), item("good", 99)]);
    assert_eq!(status("f", SECRET, &mixed), 204);
    assert!(mirror.ids("f").contains(&"good".to_owned()));
    assert_eq!(mirror.column("SELECT raw FROM quarantine"), [r#"{"id":"bad"}"#]);
}

#[test]
fn the_fifth_time_a_body_is_taken_aside_and_the_feed_walked_again() {
    // Given
    let shelf = TestFeed::of(6, 2);
    let publisher = shelf_publisher(&shelf);
    let mirror = taking(&publisher, KEYS).start();
    mirror.until_level("f");
    let poison = "<html>try later</html>";

    // When
    for time in 1..=4 {
        assert_eq!(post::body(&mirror, "f", SECRET, poison).status, 400, "time {time}");
    }
    let walked_before = looked_back(&publisher);
    // Committed late, behind the cursor: no poll at the cursor finds it.
    shelf.put_at("committed-late", 3);
    assert_eq!(post::body(&mirror, "f", SECRET, poison).status, 204);

    // Then
    let kept = mirror.rows("SELECT transport, raw FROM quarantine WHERE feed = 'f'");
    assert_eq!(kept, [["webhook", poison]]);
    until("a walk from a while ago", || looked_back(&publisher) > walked_before);
    until_has(&mirror, "committed-late");
    // And the publisher's queue goes on.
    assert_eq!(post::page(&mirror, &[item("next-in-queue", 99)]).status, 204);
}

/// Requests for places that the cursor had left behind.
fn looked_back(publisher: &ScriptedPublisher) -> usize {
    publisher.requests_to("/feed").iter().filter(|request| !request.target.contains("from=6&")).count()
}

#[test]
fn two_secrets_are_valid_during_a_rotation_and_files_are_read_again_on_sighup() {
    // Given
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let mirror = taking(&publisher, r#"webhook = { secret_file = ["new", "secret"] }"#);
    mirror.write("new", "first-new\n");
    let mirror = mirror.start();
    mirror.until_level("f");
    let page = page_without_next(&[item("a", 99)]);
    let status = |secret: &str| post::body(&mirror, "f", secret, &page).status;
    assert_eq!([status(SECRET), status("first-new"), status("second-new")], [204, 204, 401]);

    // When
    mirror.write("new", "second-new\n");
    mirror.signal(Signal::SIGHUP);

    // Then
    until("the new secret taken", || status("second-new") == 204);
    assert_eq!([status(SECRET), status("first-new")], [204, 401]);
    // None of them is written down anywhere but where the operator put it.
    for secret in [SECRET, "first-new", "second-new", "guessed"] {
        assert_eq!(mirror.holds_bytes(secret, &["secret", "new"]), [] as [&str; 0], "{secret}");
    }
}

#[test]
fn a_purged_feed_takes_nothing_until_it_is_resumed() {
    // Given
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let mirror = taking(&publisher, KEYS).start();
    mirror.until_level("f");
    assert_eq!(post::page(&mirror, &[item("posted", 99)]).status, 204);

    // When
    let purged = mirror.verb(&["purge", "f"]);
    assert!(purged.status.success(), "{purged:?}");

    // Then
    assert_eq!(post::page(&mirror, &[item("posted", 100)]).status, 409);
    assert_eq!(post::body(&mirror, "f", "guessed", "{}").status, 401, "only those with the secret are told");
    assert_eq!(mirror.number("SELECT count(*) FROM items"), 0);

    // When
    let resumed = mirror.verb(&["resume", "f"]);
    assert!(resumed.status.success(), "{resumed:?}");

    // Then
    assert_eq!(post::page(&mirror, &[item("posted-again", 101)]).status, 204);
    mirror.until("the feed read anew", |mirror| mirror.ids("f") == ["id-0", "id-1", "id-2", "posted-again"]);
    until_mode(&mirror, "webhook");
}

#[test]
fn a_paused_feed_takes_nothing_until_it_is_resumed() {
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let mirror = taking(&publisher, KEYS).start();
    mirror.until_level("f");
    assert!(mirror.verb(&["pause", "f"]).status.success());
    assert_eq!(post::page(&mirror, &[item("posted", 99)]).status, 409);
    assert!(mirror.verb(&["resume", "f"]).status.success());
    assert_eq!(post::page(&mirror, &[item("posted", 99)]).status, 204);
}

#[test]
fn posts_of_many_publishers_at_once_are_all_answered() {
    // Given
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let mirror = taking(&publisher, KEYS).start();
    mirror.until_level("f");
    let address = post::address(&mirror);

    // When: twice as many at once as may wait; who is told to come again does
    let taken: Vec<String> = std::thread::scope(|scope| {
        let posting = |who: i64| {
            let address = &address;
            scope.spawn(move || {
                let mut ids = Vec::new();
                for n in 0..10 {
                    let id = format!("p{who}-{n}");
                    let body = page_without_next(&[item(&id, 100 + n)]);
                    until("taken", || match post::to(address, "f", SECRET, &body).unwrap().status {
                        204 => true,
                        503 => false,
                        other => panic!("{other}"),
                    });
                    ids.push(id);
                }
                ids
            })
        };
        let threads: Vec<_> = (0..16).map(posting).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });

    // Then
    let held = mirror.ids("f");
    let mut lost = String::new();
    taken.iter().filter(|id| !held.contains(id)).for_each(|id| write!(lost, "{id} ").unwrap());
    assert_eq!((taken.len(), lost.as_str()), (160, ""));
}

/// Answers each request with the next status, the last for good, and gives what was asked: the head, then the body.
fn registrar(statuses: &'static [u16]) -> (String, std::sync::mpsc::Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/subscriptions", listener.local_addr().unwrap());
    let (asked, answers) =
        (std::sync::mpsc::sync_channel(16), statuses.iter().chain(std::iter::repeat(statuses.last().unwrap())));
    std::thread::spawn(move || {
        for (stream, status) in listener.incoming().zip(answers) {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            let length = head.to_ascii_lowercase().split_once("content-length: ").unwrap().1.to_owned();
            let mut body = vec![0; length.lines().next().unwrap().trim().parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            if asked.0.send((head, String::from_utf8(body).unwrap())).is_err() {
                return;
            }
        }
    });
    (url, asked.1)
}

#[test]
fn the_publisher_is_told_where_to_post_until_it_takes_it_and_again_when_due() {
    // Given
    let shelf = TestFeed::of(3, 2);
    let publisher = shelf_publisher(&shelf);
    let (url, asked) = registrar(&[500, 201]);
    let register = format!(
        "webhook.secret_file = \"secret\"\nwebhook.register = {{ url = {url:?}, method = \"PUT\", body = '{{\"to\":\"{{callback}}\"}}', \
         renew = \"1s\", headers = {{ X-Key = {{ file = \"secret\" }} }} }}\nretry = {{ min = \"50ms\", max = \"1s\" }}"
    );
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), &register);
    let mirror = mirror.tables(&format!("{PUSH}public_url = \"https://mirror.example\"\n"));
    mirror.write("secret", SECRET);

    // When
    let mirror = mirror.start();

    // Then: a 500 is not the end of it, nor is a 201
    for _ in 0..3 {
        let (head, body) = asked.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(head.starts_with("PUT /subscriptions HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("x-key: {SECRET}\r\n")), "{head}");
        assert_eq!(body, r#"{"to":"https://mirror.example/webhooks/f"}"#);
    }
    mirror.until("the webhook well again", |mirror| endpoint(mirror, "webhook", "health") == "ok");
    let events = mirror.events("f", "health").join("\n");
    assert!(events.contains("webhook: ok → retrying: registration: http-500"), "{events}");
    assert!(!mirror.log().contains(SECRET));
}
