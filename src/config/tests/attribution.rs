//! A feed's publisher and license.

use super::*;
use crate::feed::Attribution;

#[test]
fn a_provider_says_who_publishes_its_feeds_and_a_feed_about_how_many_items_it_has() {
    let text = "[providers.acme]\npublisher = \"Acme\"\nlicense = \"https://l.example/\"\n\
                dataset_url = \"https://acme.example/\"\n\
                [feeds.a]\nurl = \"https://a.example/\"\nprovider = \"acme\"\ntotal_items = 12\n\
                [feeds.b]\nurl = \"https://b.example/\"\nprovider = \"acme\"\npublisher = \"Other\"\n";
    let config = load(text).1.unwrap();
    let expected = Attribution {
        publisher: Some("Acme".into()),
        license: Some("https://l.example/".into()),
        dataset_url: Some("https://acme.example/".into()),
        total_items: Some(12),
    };
    assert_eq!(feed(&config, "a").attribution, expected);
    let other = Attribution { publisher: Some("Other".into()), total_items: None, ..expected };
    assert_eq!(feed(&config, "b").attribution, other);
    assert_eq!(
        messages(
            "[providers.acme]\ntotal_items = 12\ndataset_url = \"acme\"\n[feeds.a]\nurl = \"https://a.example/\"\n"
        ),
        [
            "providers.acme.total_items: belongs to a feed, [feeds.NAME]",
            "providers.acme.dataset_url: must be an absolute http or https URL, as \
             \"https://example.org/feed\" (relative URL without a base), not \"acme\"",
        ]
    );
}
