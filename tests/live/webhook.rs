//! Posts: a 2xx means committed, any other response means that the publisher has to post again.

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

fn publisher_of(test_feed: &Arc<TestFeed>) -> ScriptedPublisher {
    let served_feed = Arc::clone(test_feed);
    ScriptedPublisher::start(move |request| served_feed.page(request))
}

/// A mirror of this feed that takes posts, not started yet.
fn mirror_with_webhook(publisher: &ScriptedPublisher, keys: &str) -> MirrorProcess {
    let mirror = mirror(&publisher.url("/feed"), keys);
    mirror.write("secret", SECRET);
    mirror
}

#[test]
fn what_got_a_2xx_can_be_read_at_once() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mirror = mirror_with_webhook(&publisher, KEYS).start();
    mirror.until_level("f");
    assert!(!post::address(&mirror).ends_with(":0"));

    for n in 0..20 {
        // When
        let id = format!("posted-{n}");
        let answer = post::page(&mirror, &[item(&id, 100 + n)]);

        // Then: the item is in the file already, for any reader
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
    // Given: the posted items were in the mirror before it was started
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mut mirror = mirror_with_webhook(&publisher, KEYS).start();
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

    // When: a post has a new item
    assert_eq!(post::page(&mirror, &[item("news", 9_000)]).status, 204);

    // Then
    until_mode(&mirror, "webhook");
    assert_eq!(endpoint(&mirror, "webhook", "push"), "proven");
}

#[test]
fn what_got_a_2xx_outlives_a_kill_right_after_it() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mut mirror = mirror_with_webhook(&publisher, KEYS).start();
    mirror.until_level("f");
    let mut accepted_ids = Vec::new();

    for round in 0..10 {
        // When
        for n in 0..3 {
            let id = format!("posted-{round}-{n}");
            let answer = post::page(&mirror, &[item(&id, 100 + round * 10 + n)]);
            assert_eq!(answer.status, 204);
            accepted_ids.push(id);
        }
        mirror.kill();

        // Then: all of them are there, although polling never finds them
        mirror.start_again();
        let stored_ids = mirror.ids("f");
        let lost: Vec<&String> = accepted_ids.iter().filter(|id| !stored_ids.contains(id)).collect();
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
    let mirror = mirror_with_webhook(&publisher, keys).start();

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
    let mirror = mirror_with_webhook(&publisher, KEYS).start();
    assert_eq!(post::page(&mirror, &[item("early", 9_000)]).status, 204);
    assert_eq!(mirror.ids("f").iter().filter(|id| *id == "early").count(), 1);
    assert_eq!(mirror.row("f").mode, "refresh");
}

#[test]
fn what_is_refused_is_refused_whole_and_says_why() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mirror = mirror_with_webhook(&publisher, KEYS).tables("max_body_bytes = \"64KiB\"\n").start();
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
    assert_eq!(mirror.live("f"), test_feed.live());
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 0);

    // A bad record in a good page is another matter.
    let mixed = page_without_next(&[r#"{"id":"bad"}"#.to_owned(), item("good", 99)]);
    assert_eq!(status("f", SECRET, &mixed), 204);
    assert!(mirror.ids("f").contains(&"good".to_owned()));
    assert_eq!(mirror.column("SELECT raw FROM quarantine"), [r#"{"id":"bad"}"#]);
}

#[test]
fn a_body_posted_for_the_fifth_time_is_quarantined_and_a_look_back_follows() {
    // Given
    let test_feed = TestFeed::of(6, 2);
    let publisher = publisher_of(&test_feed);
    let mirror = mirror_with_webhook(&publisher, KEYS).start();
    mirror.until_level("f");
    let poison = "<html>try later</html>";

    // When
    for time in 1..=4 {
        assert_eq!(post::body(&mirror, "f", SECRET, poison).status, 400, "time {time}");
    }
    let requests_before = look_back_requests(&publisher);
    // Committed late, behind the cursor: no poll from the cursor finds the item.
    test_feed.put_at("committed-late", 3);
    assert_eq!(post::body(&mirror, "f", SECRET, poison).status, 204);

    // Then
    let kept = mirror.rows("SELECT transport, raw FROM quarantine WHERE feed = 'f'");
    assert_eq!(kept, [["webhook", poison]]);
    until("a walk from a while ago", || look_back_requests(&publisher) > requests_before);
    until_has(&mirror, "committed-late");
    // And the publisher's queue goes on.
    assert_eq!(post::page(&mirror, &[item("next-in-queue", 99)]).status, 204);
}

/// How many requests were for positions before the cursor.
fn look_back_requests(publisher: &ScriptedPublisher) -> usize {
    publisher.requests_to("/feed").iter().filter(|request| !request.target.contains("from=6&")).count()
}

#[test]
fn two_secrets_are_valid_during_a_rotation_and_files_are_read_again_on_sighup() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mirror = mirror_with_webhook(&publisher, r#"webhook = { secret_file = ["new", "secret"] }"#);
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
    // None of them is stored anywhere but where the operator put it.
    for secret in [SECRET, "first-new", "second-new", "guessed"] {
        assert_eq!(mirror.holds_bytes(secret, &["secret", "new"]), [] as [&str; 0], "{secret}");
    }
}

#[test]
fn a_purged_feed_takes_nothing_until_it_is_resumed() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mirror = mirror_with_webhook(&publisher, KEYS).start();
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
    mirror.until("the feed read again", |mirror| mirror.ids("f") == ["id-0", "id-1", "id-2", "posted-again"]);
    until_mode(&mirror, "webhook");
}

#[test]
fn a_paused_feed_takes_nothing_until_it_is_resumed() {
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mirror = mirror_with_webhook(&publisher, KEYS).start();
    mirror.until_level("f");
    assert!(mirror.verb(&["pause", "f"]).status.success());
    assert_eq!(post::page(&mirror, &[item("posted", 99)]).status, 409);
    assert!(mirror.verb(&["resume", "f"]).status.success());
    assert_eq!(post::page(&mirror, &[item("posted", 99)]).status, 204);
}

#[test]
fn posts_of_many_publishers_at_once_are_all_answered() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let mirror = mirror_with_webhook(&publisher, KEYS).start();
    mirror.until_level("f");
    let address = post::address(&mirror);

    // When: twice as many at once as may wait; a publisher that gets a 503 posts again
    let accepted_ids: Vec<String> = std::thread::scope(|scope| {
        let post_ten = |publisher_number: i64| {
            let address = &address;
            scope.spawn(move || {
                let mut ids = Vec::new();
                for n in 0..10 {
                    let id = format!("p{publisher_number}-{n}");
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
        let threads: Vec<_> = (0..16).map(post_ten).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });

    // Then
    let stored_ids = mirror.ids("f");
    let mut lost = String::new();
    accepted_ids.iter().filter(|id| !stored_ids.contains(id)).for_each(|id| write!(lost, "{id} ").unwrap());
    assert_eq!((accepted_ids.len(), lost.as_str()), (160, ""));
}

/// Answers each request with the next status, the last one for good, and sends on each request: its head and its body.
fn registrar(statuses: &'static [u16]) -> (String, std::sync::mpsc::Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/subscriptions", listener.local_addr().unwrap());
    let (request_channel, answers) =
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
            if request_channel.0.send((head, String::from_utf8(body).unwrap())).is_err() {
                return;
            }
        }
    });
    (url, request_channel.1)
}

#[test]
fn a_registration_is_repeated_until_it_succeeds_and_again_when_due() {
    // Given
    let test_feed = TestFeed::of(3, 2);
    let publisher = publisher_of(&test_feed);
    let (url, requests) = registrar(&[500, 201]);
    let register = format!(
        "webhook.secret_file = \"secret\"\nwebhook.register = {{ url = {url:?}, method = \"PUT\", body = '{{\"to\":\"{{callback}}\"}}', \
         renew = \"1s\", headers = {{ X-Key = {{ file = \"secret\" }} }} }}\nretry = {{ min = \"50ms\", max = \"1s\" }}"
    );
    let mirror = MirrorProcess::new().feed_with("f", &publisher.url("/feed"), &register);
    let mirror = mirror.tables(&format!("{PUSH}public_url = \"https://mirror.example\"\n"));
    mirror.write("secret", SECRET);

    // When
    let mirror = mirror.start();

    // Then: the registration is repeated after a 500, and renewed after a 201
    for _ in 0..3 {
        let (head, body) = requests.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(head.starts_with("PUT /subscriptions HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("x-key: {SECRET}\r\n")), "{head}");
        assert_eq!(body, r#"{"to":"https://mirror.example/webhooks/f"}"#);
    }
    mirror.until("the webhook well again", |mirror| endpoint(mirror, "webhook", "health") == "ok");
    let events = mirror.events("f", "health").join("\n");
    assert!(events.contains("webhook: ok → retrying: registration: http-500"), "{events}");
    assert!(!mirror.log().contains(SECRET));
}
