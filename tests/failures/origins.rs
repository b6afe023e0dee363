//! Other origins: refused unless allowed, and never sent a secret.

use std::sync::Arc;

use crate::support::{MirrorProcess, Reply, ScriptedPublisher, TestFeed, item, page};

const SECRETS: &str = r#"headers = { X-Api-Key = { file = "header-secret" } }
query = { api_key = { file = "query-secret" }, limit = "500" }"#;
const HEADER_SECRET: &str = "hush-header-4711";
const QUERY_SECRET: &str = "hush&query/0815+";
/// As it must be encoded in a query (RFC 3986 §2.1).
const QUERY_ESCAPED: &str = "hush%26query%2F0815%2B";

fn with_secrets(mirror: MirrorProcess) -> MirrorProcess {
    mirror.write("header-secret", HEADER_SECRET);
    mirror.write("query-secret", QUERY_SECRET);
    mirror
}

fn assert_no_secret_is_kept(mirror: &MirrorProcess) {
    for secret in [HEADER_SECRET, QUERY_SECRET, QUERY_ESCAPED, "hush"] {
        assert_eq!(mirror.holds_bytes(secret, &["header-secret", "query-secret"]), [] as [&str; 0], "{secret}");
    }
}

#[test]
fn next_and_redirects_to_another_origin_are_refused_and_nothing_is_asked_there() {
    // Given
    let elsewhere = ScriptedPublisher::start(|request| Reply::page(page(&[item("stolen", 9)], &request.target)));
    let target = elsewhere.url("/feed?from=1");
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/next" => Reply::page(page(&[item("own", 1)], &target)),
        "/redirect" => Reply::redirect(302, &target),
        "/scheme" => Reply::redirect(302, "file:///etc/passwd"),
        "/next-scheme" => Reply::page(page(&[item("own", 1)], "ftp://127.0.0.1/feed")),
        _ => Reply::page(page(&[], &request.target)),
    });
    let mirror = MirrorProcess::new()
        .http("per_host = 8")
        .feed("next", &publisher.url("/next"))
        .feed("redirect", &publisher.url("/redirect"))
        .feed("scheme", &publisher.url("/scheme"))
        .feed("next-scheme", &publisher.url("/next-scheme"))
        .feed("sound", &publisher.url("/sound"))
        .start();

    // Then: the operator is needed; the items that its own origin sent were taken.
    for (name, word, items) in [
        ("next", "foreign-next", 1),
        ("redirect", "foreign-redirect", 0),
        ("scheme", "foreign-redirect", 0),
        ("next-scheme", "bad-url", 1),
    ] {
        let row = mirror.until_health(name, "failed", word);
        assert_eq!((row.items, row.cursor), (items, publisher.url(&format!("/{name}"))), "{name}");
        assert!((3_500.0..4_320.0).contains(&row.next_poll_in_s), "{name}: {} s", row.next_poll_in_s);
    }
    let reason = mirror.row("next").reason;
    assert!(reason.contains(&elsewhere.address().to_string()) && reason.contains("allow_hosts"), "{reason}");
    mirror.until_level("sound");
    assert_eq!(elsewhere.requests().len(), 0);
}

#[test]
fn https_of_the_same_host_is_no_other_origin_and_broken_tls_needs_the_operator() {
    // Given: a publisher that redirects to https at its own host and port, at another port, and at another host; none
    // of them speaks TLS.
    let elsewhere = ScriptedPublisher::start(|_| Reply::status(500));
    let port = elsewhere.address().port();
    let publisher = ScriptedPublisher::start(move |request| {
        let own = format!("https://{}/feed", request.header("host").unwrap());
        match request.path() {
            "/redirect" => Reply::redirect(301, &own),
            "/next" => Reply::page(page(&[item("a", 1)], &own)),
            "/port" => Reply::page(page(&[item("a", 1)], &format!("https://127.0.0.1:{port}/feed"))),
            _ => Reply::redirect(301, &format!("https://127.0.0.2:{port}/feed")),
        }
    });
    let own = format!("https://{}/feed", publisher.address());
    let mirror = MirrorProcess::new()
        .http("per_host = 4")
        .feed("redirect", &publisher.url("/redirect"))
        .feed("next", &publisher.url("/next"))
        .feed("other", &publisher.url("/other"))
        .feed("port", &publisher.url("/port"))
        .feed("direct", &own)
        .start();

    // Then: followed there, and what fails there is the TLS.
    for name in ["redirect", "next", "direct"] {
        mirror.until_health(name, "failed", "tls");
    }
    assert_eq!(mirror.row("next").cursor, own);
    mirror.until_health("other", "failed", "foreign-redirect");
    mirror.until_health("port", "failed", "foreign-next");
    assert_eq!(elsewhere.requests().len(), 0);
}

#[test]
fn an_allowed_origin_is_followed_and_never_sees_a_credential() {
    // Given: a feed that goes on at another origin, by `next` and by redirect, echoing the secret all the way.
    let elsewhere = ScriptedPublisher::start(|request| match request.query().contains("from=2") {
        false => Reply::page(page(&[item("there", 2)], &format!("{}?from=2", request.path()))),
        true => Reply::page(page(&[], &request.target)),
    });
    let (by_next, by_redirect) = (elsewhere.url("/by-next?from=1"), elsewhere.url("/by-redirect?from=1"));
    let publisher = ScriptedPublisher::start(move |request| match request.path() {
        "/next" => Reply::page(page(&[item("here", 1)], &by_next)),
        _ => Reply::redirect(307, &by_redirect),
    });
    let allowed = format!("http.allow_hosts = [\"{}\"]\n{SECRETS}", elsewhere.address());

    let mirror = with_secrets(MirrorProcess::new().feed_with("next", &publisher.url("/next"), &allowed).feed_with(
        "redirect",
        &publisher.url("/redirect"),
        &allowed,
    ))
    .start();

    // Then
    mirror.until_level("next");
    mirror.until("the redirected page", |mirror| mirror.ids("redirect") == ["there"]);
    assert_eq!(mirror.ids("next"), ["here", "there"]);
    for request in publisher.requests() {
        assert_eq!(request.header("x-api-key"), Some(HEADER_SECRET));
        assert!(request.query().contains(&format!("api_key={QUERY_ESCAPED}")), "{}", request.target);
        assert!(request.query().contains("limit=500"), "{}", request.target);
    }
    for request in elsewhere.requests() {
        assert_eq!(request.header("x-api-key"), None);
        assert!(!request.target.contains("hush") && !request.target.contains("api_key"), "{}", request.target);
        assert!(!format!("{:?}", request.headers).contains("hush"), "{:?}", request.headers);
    }
    assert!(!elsewhere.requests().is_empty());
    assert_no_secret_is_kept(&mirror);
}

#[test]
fn a_secret_that_the_publisher_echoes_is_stored_as_a_placeholder_and_sent_in_full() {
    // Given: ways to echo a parameter; the end echoes the requested URL, too.
    let publisher = ScriptedPublisher::start(|request| {
        let key = request.query().split('&').find(|pair| pair.starts_with("api_key=")).unwrap_or("api_key=none");
        let key = match request.path() {
            "/plain" => format!("api_key={QUERY_SECRET}").replace('&', "%26"),
            "/lower" => "api_key=hush%26query%2f0815%2b".to_owned(),
            _ => key.to_owned(),
        };
        if request.query().contains("from=1") {
            return Reply::page(page(&[], &format!("{}?from=1&{key}", request.path())));
        }
        Reply::page(page(&[item("a", 1)], &format!("{}?from=1&{key}", request.path())))
    });
    let mirror = with_secrets(
        MirrorProcess::new()
            .feed_with("same", &publisher.url("/same"), SECRETS)
            .feed_with("plain", &publisher.url("/plain"), SECRETS)
            .feed_with("lower", &publisher.url("/lower"), SECRETS)
            .feed_with("stated", &publisher.url("/stated?api_key={api_key}"), SECRETS),
    )
    .start();

    // Then
    for name in ["same", "plain", "lower", "stated"] {
        let row = mirror.until_level(name);
        assert_eq!(row.cursor, publisher.url(&format!("/{name}?from=1&api_key={{api_key}}")));
        assert_eq!(row.reason, "", "{name}: the end is recognised through the placeholder");
    }
    for request in publisher.requests() {
        assert_eq!(request.query().matches("api_key=").count(), 1, "{}", request.target);
        assert!(request.query().contains(&format!("api_key={QUERY_ESCAPED}")), "{}", request.target);
    }
    assert_no_secret_is_kept(&mirror);
}

#[test]
fn an_error_that_shows_the_url_or_the_secret_does_not_give_it_away() {
    // Given: publishers that repeat the request in their error pages, and one that breaks the connection.
    let publisher = ScriptedPublisher::start(|request| match request.path() {
        "/echo" => Reply::status(500).body(format!("bad request {}", request.target)),
        "/page" => Reply::page(format!("you asked for {}", request.target)),
        "/broken" => Reply::reset(),
        _ => Reply::redirect(302, &format!("http://127.0.0.9/{}", request.target)),
    });
    let mut mirror = MirrorProcess::new().http("per_host = 4");
    for name in ["echo", "page", "broken", "away"] {
        mirror = mirror.feed_with(name, &publisher.url(&format!("/{name}")), SECRETS);
    }
    let mirror = with_secrets(mirror).start();

    // Then
    for (name, health, word) in [
        ("echo", "retrying", "http-500"),
        ("page", "retrying", "not-json"),
        ("broken", "retrying", "broken-response"),
        ("away", "failed", "foreign-redirect"),
    ] {
        mirror.until_health(name, health, word);
    }
    assert!(mirror.row("echo").reason.contains("api_key={api_key}"), "{}", mirror.row("echo").reason);
    assert_no_secret_is_kept(&mirror);
}

#[test]
fn redirects_within_the_origin_are_followed_and_endless_ones_given_up() {
    // Given
    let test_feed = TestFeed::of(5, 2);
    let serving = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| {
        let query = if request.query().is_empty() { String::new() } else { format!("?{}", request.query()) };
        match request.path() {
            "/301" | "/302" | "/303" | "/307" | "/308" => {
                Reply::redirect(request.path()[1..].parse().unwrap(), &format!("/at{}{query}", request.path()))
            }
            "/round" => Reply::redirect(302, "/round"),
            "/nowhere" => Reply::status(302),
            _ => Reply::page(serving.json(request).replace("/at/", "/")),
        }
    });
    let mut mirror = MirrorProcess::new().http("per_host = 8");
    for name in ["301", "302", "303", "307", "308", "round", "nowhere"] {
        mirror = mirror.feed(&format!("r-{name}"), &publisher.url(&format!("/{name}")));
    }
    let mirror = mirror.start();

    // Then
    for name in ["301", "302", "303", "307", "308"] {
        let name = format!("r-{name}");
        mirror.until_level(&name);
        assert_eq!(mirror.live(&name), test_feed.live(), "{name}");
    }
    for name in ["r-round", "r-nowhere"] {
        mirror.until_health(name, "failed", "redirect");
    }
    assert!(publisher.count("/round") <= 7, "{}", publisher.count("/round"));
}
