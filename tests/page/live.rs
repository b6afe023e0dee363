//! The page while it stays open: changes show by themselves, without disturbing its user.

use crate::browser::Browser;
use crate::fleet::{large, small};

const SHOWN: &str = "[...document.querySelectorAll('#rows tr')].filter((row) => row.offsetParent).map((row) => row.id)";

#[tokio::test(flavor = "multi_thread")]
async fn a_change_shows_and_focus_row_and_search_stay() {
    let (harness, browser) = (small().await, Browser::start());
    browser.open(&harness.url("/"));
    browser.evaluate("window.row = document.getElementById('feed-acme-sessions'); row.querySelector('a').focus()");
    browser.evaluate("search.value = 'acme'; search.dispatchEvent(new Event('input'))");
    assert_eq!(browser.text(&format!("{SHOWN}.join()")), "feed-acme-sessions,feed-acme-slots");

    harness.file.write("acme-sessions", &[("new", 1, Some("{}"))]).await;
    browser.until("row.querySelector('[data-head=Items]').innerText.includes('2')");
    harness.file.set_retrying("acme-slots", "timeout: <i>no answer</i>").await;
    browser.until("document.getElementById('feed-acme-slots').innerText.includes('timeout: <i>no answer</i>')");
    browser.until(&format!("{SHOWN}.join() === 'feed-acme-slots,feed-acme-sessions'"));

    assert_eq!(browser.evaluate("document.activeElement === row.querySelector('a')"), true, "the focus");
    assert_eq!(browser.evaluate("document.getElementById('feed-acme-sessions') === row"), true, "the row itself");
    assert_eq!(browser.text("search.value"), "acme");
    assert_eq!(browser.text("location.search"), "?q=acme", "a search has an address of its own");
    assert_eq!(browser.text("shown.textContent"), "2 of 6 feeds");
    assert!(browser.text("document.title").starts_with("5 of 6 feeds not ok"), "{}", browser.text("document.title"));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_s_page_shows_what_happens_to_it() {
    let (harness, browser) = (small().await, Browser::start());
    browser.open(&harness.url("/"));
    harness.file.write("late-feed", &[("0", 0, Some("{}"))]).await;
    browser.follow("#feed-late-feed a");
    assert_eq!(browser.text("document.querySelector('h1').innerText"), "late-feed");
    browser.evaluate("document.querySelector('details').open = true; document.querySelector('summary').focus()");

    harness.file.write("late-feed", &[("1", 1, Some("{}")), ("2", 2, Some("{}"))]).await;

    browser.until("document.querySelector('svg')?.ariaLabel.startsWith('3 changes in the last 7 days')");
    browser.until("document.querySelector('details td').innerText === '3'");
    assert_eq!(browser.evaluate("document.querySelector('details').open"), true);
    assert_eq!(browser.text("document.activeElement.localName"), "summary");
    harness.ready.send_replace(Some("the disk is full".into()));
    browser.until("trouble.innerText.includes('the disk is full')");
    assert!(browser.text("document.body.innerText").contains("out-of-order"), "its findings");
    assert!(browser.text("document.body.innerText").contains("ok → retrying: http-503"), "its events");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_updated_and_a_mirror_that_does_not_answer_is_reported() {
    let (harness, browser) = (small().await, Browser::start());
    browser.open(&harness.url("/"));
    let next = "document.querySelector('#feed-late-feed [data-head=\"Next poll\"]').innerText.trim()";
    browser.evaluate(&format!("window.before = {next}"));
    browser.until(&format!("/in \\d+ s/.test({next}) && {next} !== before"));
    assert_eq!(browser.evaluate("old.hidden"), true);

    harness.shutdown.cancel();

    browser.until("!old.hidden && old.innerText.startsWith('The mirror does not answer')");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_feeds_are_shown_searched_and_kept_current() {
    let (harness, browser) = (large(500).await, Browser::start());
    browser.open(&harness.url("/"));
    assert_eq!(browser.evaluate("document.querySelectorAll('#rows tr').length"), 500);
    assert_eq!(
        browser.evaluate(&format!(
            "{SHOWN}.slice(0, 20).every((id) => document.getElementById(id).dataset.health === 'retrying')"
        )),
        true
    );
    browser.picture("500-feeds");

    browser.evaluate("search.focus()");
    browser.write("feed-499");
    assert_eq!(browser.text(&format!("{SHOWN}.join()")), "feed-provider-19.feed-499");
    assert_eq!(browser.text("shown.textContent"), "1 of 500 feeds");
    harness.file.set_retrying("provider-19.feed-499", "tls: expired").await;
    browser.until("document.getElementById('feed-provider-19.feed-499').innerText.includes('tls: expired')");
    assert_eq!(browser.text(&format!("{SHOWN}.join()")), "feed-provider-19.feed-499");

    browser.evaluate("document.querySelector('#summary a[href*=retrying]').click()");
    assert_eq!(browser.text("shown.textContent"), "21 of 500 feeds", "a health leads to its feeds");
    assert_eq!(browser.complaints(), [""; 0]);
}
