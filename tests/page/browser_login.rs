//! How a browser logs in where the listener can be reached from another machine.

use serde_json::json;

use crate::browser::Browser;
use crate::harness::{OpsHarness, status_and_text};

#[tokio::test(flavor = "multi_thread")]
async fn off_loopback_the_token_opens_the_page_for_reading_alone() {
    let harness = OpsHarness::listening("0.0.0.0:0", &["acme"], |_| Ok(String::new())).await;
    harness.file.level("acme").await;
    let browser = Browser::start();

    browser.open(&harness.url("/feeds/acme"));
    assert!(!browser.text("document.body.innerText").contains("acme"), "nothing is shown before");
    browser.picture("login");
    browser.evaluate("token.value = 'no such token'");
    browser.follow("button");
    assert!(browser.text("document.body.innerText").contains("That is not the admin token"));

    browser.evaluate(&format!("token.value = {:?}", harness.token));
    browser.follow("button");
    assert_eq!(browser.text("location.pathname"), "/feeds/acme", "it leads on to where one wanted to be");
    assert_eq!(browser.text("document.querySelector('h1').innerText"), "acme");
    assert_eq!(browser.text("document.cookie"), "", "no script sees the session");
    harness.file.write("acme", &[("1", 1, Some("{}"))]).await;
    browser.until("document.querySelector('svg')?.ariaLabel.startsWith('1 change ')");

    let status = |path: &str, method: &str| {
        browser.evaluate(&format!("fetch({path:?}, {{ method: {method:?} }}).then((answer) => answer.status)"))
    };
    assert_eq!(status("/api/feeds", "GET"), json!(200));
    assert_eq!(status("/api/feeds/acme/pause", "POST"), json!(401), "a session changes nothing");
    assert_eq!(harness.received_orders(), []);
}

#[tokio::test]
async fn a_name_that_is_not_known_gets_the_form_and_nothing_else() {
    let harness = OpsHarness::listening("0.0.0.0:0", &["acme"], |_| Ok(String::new())).await;
    let named = |path: &str| harness.get(path).header("host", "mirror.example");
    let (status, text) = status_and_text(named("/")).await;
    assert_eq!((status, text.contains("acme"), text.contains("type=\"password\"")), (401, false, true), "{text}");
    for path in ["/api/feeds", "/live", "/metrics", "/healthz"] {
        assert_eq!(status_and_text(named(path)).await.0, 403, "{path}");
    }

    let form = [("token", harness.token.as_str()), ("to", "//evil.example/")];
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let response = harness.post("/login").header("host", "mirror.example").body(body).send().await.unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert_eq!((response.status().as_u16(), &response.headers()["location"]), (303, &"/".parse().unwrap()));
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains(&harness.token), "{cookie}");

    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(status_and_text(named("/api/feeds").header("cookie", cookie)).await.0, 200);
    let pause = harness.post("/api/feeds/acme/pause").header("cookie", cookie);
    assert_eq!(status_and_text(pause).await.0, 401);
}

#[tokio::test]
async fn on_loopback_reading_needs_no_login_and_a_login_gives_no_session() {
    let harness = OpsHarness::with(&["acme"]).await;
    assert_eq!(harness.get_text("/").await.0, 200);
    let posted = harness.post("/login").body(format!("token={}", harness.token));
    assert_eq!(status_and_text(posted).await.0, 401, "a session would open nothing that is not open");
    assert_eq!(harness.get_text("/feeds/nope").await.0, 404);
}

#[tokio::test]
async fn only_so_many_pages_are_kept_current_and_a_permit_is_released() {
    let harness = OpsHarness::with(&["acme"]).await;
    let mut open = Vec::new();
    for _ in 0..32 {
        let mut response = harness.get("/live").send().await.unwrap();
        assert_eq!(response.status(), 200);
        let first = response.chunk().await.unwrap().unwrap();
        assert!(first.starts_with(b"retry: "), "{first:?}");
        open.push(response);
    }
    assert_eq!(harness.get_text("/live").await.0, 503);

    open.clear();
    let free = async {
        while harness.get("/live").send().await.unwrap().status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::harness::DEADLINE, free).await.expect("a permit is free again");
}
