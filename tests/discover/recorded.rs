//! Discovery on recorded pages. Expected values were read by eye.

use feedmirror::discover::read;
use url::Url;

fn at(url: &str) -> Url {
    Url::parse(url).unwrap()
}

fn recorded(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/discovery/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn urls(urls: &[Url]) -> Vec<&str> {
    urls.iter().map(Url::as_str).collect()
}

#[test]
fn a_recorded_site_gives_its_dataset_and_feeds() {
    let listing = read(&recorded("sites/1life.html"), &at("https://booking.1life.co.uk/OpenActive/"));
    assert_eq!(listing.problems, [""; 0]);
    let [dataset] = &listing.datasets[..] else { panic!("{listing:?}") };
    assert_eq!(dataset.url, "https://booking.1life.co.uk/OpenActive/");
    assert_eq!(dataset.name.as_deref(), Some("1Life Sessions and Facilities"));
    assert_eq!(dataset.publisher.as_deref(), Some("1Life"));
    assert_eq!(dataset.license.as_deref(), Some("https://creativecommons.org/licenses/by/4.0/"));
    let feeds: Vec<_> = dataset.feeds.iter().map(|feed| (feed.name.as_str(), feed.url.as_str())).collect();
    assert_eq!(
        feeds,
        [
            ("SessionSeries", "https://opendata.leisurecloud.live/api/feeds/1Life-live-session-series"),
            ("ScheduledSession", "https://opendata.leisurecloud.live/api/feeds/1Life-live-scheduled-sessions"),
            ("FacilityUse", "https://opendata.leisurecloud.live/api/feeds/1Life-live-facility-uses"),
            ("Slot", "https://opendata.leisurecloud.live/api/feeds/1Life-live-slots"),
        ]
    );
}

#[test]
fn an_old_site_s_one_feed_without_a_name_is_named_by_its_url() {
    let listing = read(&recorded("sites/british-cycling.html"), &at("http://data.letsride.co.uk/"));
    let feed = &listing.datasets[0].feeds[0];
    assert_eq!((feed.name.as_str(), feed.url.as_str()), ("rides", "http://api.letsride.co.uk/public/v1/rides"));
    assert_eq!(listing.datasets[0].publisher.as_deref(), Some("British Cycling"));
}

#[test]
fn the_meta_refresh_of_a_recorded_page_is_read() {
    let listing = read(&recorded("sites/opensessions-redirect.html"), &at("https://opensessions.github.io/"));
    assert!(listing.is_empty(), "{listing:?}");
    assert_eq!(listing.meta_refresh, Some(at("https://opensessions.io/openactive")));
}

#[test]
fn recorded_catalogues_give_their_parts_and_sites() {
    let collection = read(&recorded("catalog/data-catalog-collection.jsonld"), &at("https://openactive.io/c.jsonld"));
    assert_eq!(
        urls(&collection.catalogues),
        [
            "https://opendata.leisurecloud.live/api/datacatalog",
            "https://openactivedatacatalog.legendonlineservices.co.uk/api/DataCatalog",
            "https://openactive.io/data-catalogs/singular.jsonld",
            "https://app.bookteq.com/api/openactive/catalogue",
        ]
    );
    assert!(collection.sites.is_empty() && collection.datasets.is_empty() && collection.problems.is_empty());
    let catalogue = read(&recorded("catalog/singular-preview.jsonld"), &at("https://openactive.io/s.jsonld"));
    assert_eq!(
        urls(&catalogue.sites),
        [
            "https://betterflow.coursepro.co.uk/odi/feed",
            "https://www.englandsquash.com/openactive",
            "http://www.schools-plus.co.uk/OpenActive.php",
            "https://openactive.goodgym.org/",
            "https://api.findmyfacility.com/v1/openactive",
        ]
    );
}
