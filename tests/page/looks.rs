//! The page for its users: without scripts, in light and dark colours, on a phone, by keyboard and by screen reader.

use serde_json::json;

use crate::browser::Browser;
use crate::fleet::{large, small};

#[tokio::test(flavor = "multi_thread")]
async fn it_is_whole_without_scripts() {
    let (harness, browser) = (small().await, Browser::start());
    browser.scripts(false);
    browser.open(&harness.url("/"));
    let text = browser.text("document.body.innerText");
    for words in ["acme-sessions", "access-refused: 401", "went-back", "Free on its disk", "6 feeds, 2 live items"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    assert_eq!(browser.evaluate("document.querySelectorAll('#rows svg path').length"), 2);
    assert_eq!(browser.evaluate("document.querySelector('meta[http-equiv=refresh]').content"), "10");

    browser.open(&harness.url("/?q=health:failed"));
    let shown = "[...document.querySelectorAll('#rows tr')].filter((row) => row.offsetParent).map((row) => row.id)";
    assert_eq!(browser.evaluate(shown), json!(["feed-failed-feed"]), "the search works");
    assert!(browser.text("document.body.innerText").contains("1 of 6 feeds"));

    browser.open(&harness.url("/feeds/late-feed"));
    assert!(browser.text("document.querySelector('main').innerText").contains("Service Unavailable"));
    assert_eq!(browser.complaints(), [""; 0]);
}

/// The least contrast of text with what is behind it (WCAG 2.2, "contrast ratio"), and the colour behind it all.
const CONTRAST: &str = "(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let least = 21;
  for (const element of document.querySelectorAll('body *')) {
    if (!element.offsetParent || ![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return { least, behind: light(behind(document.body)) };
})()";

#[tokio::test(flavor = "multi_thread")]
async fn it_is_legible_by_day_and_by_night() {
    let (harness, browser) = (small().await, Browser::start());
    for (scheme, is_light) in [("light", true), ("dark", false)] {
        browser.prefer(scheme);
        for (name, path) in [("overview", "/"), ("feed", "/feeds/late-feed"), ("feed-live", "/feeds/acme-sessions")] {
            browser.open(&harness.url(path));
            let seen = browser.evaluate(CONTRAST);
            assert!(seen["least"].as_f64().unwrap() >= 4.5, "{scheme} {path}: {seen}");
            assert_eq!(seen["behind"].as_f64().unwrap() > 0.5, is_light, "{scheme} {path}");
            browser.picture(&format!("{name}-{scheme}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fits_a_phone() {
    let (harness, browser) = (small().await, Browser::start());
    for width in [320, 390, 800] {
        browser.size(width, 844);
        for (name, path) in [("overview", "/"), ("feed", "/feeds/late-feed")] {
            browser.open(&harness.url(path));
            let wide = browser.evaluate("document.documentElement.scrollWidth").as_u64().unwrap();
            assert!(wide <= u64::from(width), "{path} is {wide} wide on {width}");
            browser.picture(&format!("{name}-{width}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_reaches_every_feed() {
    let (harness, browser) = (small().await, Browser::start());
    browser.open(&harness.url("/"));
    let mut reached = Vec::new();
    for _ in 0..20 {
        browser.press("Tab", 9);
        let focused = "document.activeElement.id || document.activeElement.getAttribute('href') || ''";
        reached.push(browser.text(focused));
        let seen = "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== 'none'";
        assert_eq!(browser.evaluate(seen), true, "the focus shows on {reached:?}");
    }
    let feeds: Vec<&String> = reached.iter().filter(|href| href.starts_with("/feeds/")).collect();
    let names = ["failed-feed", "odd-feed", "late-feed", "paused", "acme-sessions", "acme-slots"];
    assert_eq!(feeds, names.map(|name| format!("/feeds/{name}")).iter().collect::<Vec<_>>(), "{reached:?}");
    assert_eq!(reached[0], "#feeds", "the link past the header comes first");
    assert!(reached.contains(&"search".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screen_reader_finds_its_way() {
    let (harness, browser) = (small().await, Browser::start());
    for (path, width) in [("/", 1280), ("/feeds/late-feed", 1280), ("/", 390), ("/feeds/late-feed", 390)] {
        browser.size(width, 900);
        browser.open(&harness.url(path));
        browser.call("Accessibility.enable", json!({}));
        let tree = browser.call("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().unwrap();
        let of = |role: &str| {
            let named = nodes.iter().filter(move |node| node["role"]["value"] == role && node["ignored"] == false);
            named.map(|node| node["name"]["value"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of("main").len(), 1, "{path}");
        for role in ["table", "image", "link", "columnheader", "rowheader", "navigation", "region", "searchbox"] {
            assert!(of(role).iter().all(|name| !name.is_empty()), "{path}: a {role} without a name: {:?}", of(role));
        }
        assert!(!of("table").is_empty() && !of("rowheader").is_empty(), "{path}");
        assert!(of("image").iter().all(|name| name.contains("change")), "{path}: {:?}", of("image"));
        assert_eq!(browser.text("document.documentElement.lang"), "en");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_feeds_fit_a_phone_too() {
    let (harness, browser) = (large(60).await, Browser::start());
    browser.size(360, 800);
    browser.open(&harness.url("/"));
    assert!(browser.evaluate("document.documentElement.scrollWidth").as_u64().unwrap() <= 360);
    browser.picture("many-360");
}
