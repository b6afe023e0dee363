#![allow(clippy::unwrap_used)]
//! Reads every form of page that was ever seen, and some that were not. Recorded pages: tests/discover.

use proptest::prelude::*;

use super::*;

fn at(url: &str) -> Url {
    Url::parse(url).unwrap()
}

fn json(text: &str) -> Listing {
    read(text.as_bytes(), &at("https://acme.example/open/"))
}

fn urls(urls: &[Url]) -> Vec<&str> {
    urls.iter().map(Url::as_str).collect()
}

#[test]
fn the_many_forms_of_one_dataset_are_read_alike() {
    let format = "application/vnd.openactive.rpde+json; version=1";
    let plain = json(&format!(
        r#"{{"@type":"Dataset","@id":"https://acme.example/open/","name":"Acme","publisher":{{"name":"Acme Ltd"}},
            "license":"https://l.example/","distribution":[{{"@type":"DataDownload","name":"Event",
            "contentUrl":"https://acme.example/events","encodingFormat":"{format}","totalItems":12}}]}}"#
    ));
    assert_eq!(plain.datasets[0].feeds[0].total_items, Some(12));
    assert_eq!(plain.problems, [""; 0]);
    let spellings = [
        // ids and types without @, single objects for lists, numbers as text, a relative URL
        format!(
            r#"{{"type":["Thing","Dataset"],"id":"https://acme.example/open/","name":["Acme"],"publisher":["Acme Ltd"],
            "license":{{"id":"https://l.example/"}},"distribution":{{"name":{{"@value":"Event"}},
            "contentUrl":"/events","encodingFormat":["text/plain","{format}"],"totalItems":"12"}}}}"#
        ),
        // a graph with references, prefixed
        format!(
            r##"{{"@graph":[{{"@type":"WebPage"}},{{"@type":"schema:Dataset","schema:url":{{"@id":"https://acme.example/open/"}},
            "schema:name":"Acme","schema:publisher":{{"@id":"#org"}},"schema:license":{{"@id":"https://l.example/"}},
            "schema:distribution":[{{"@id":"#d"}}]}},{{"@id":"#org","schema:legalName":"Acme Ltd"}},{{"@id":"#d",
            "http://schema.org/name":"Event","schema:contentUrl":"https://acme.example/events",
            "schema:encodingFormat":"{format}","schema:totalItems":12.0}}]}}"##
        ),
        // in a page, after another block, one that is broken and one escaped
        format!(
            r#"<script type="application/ld+json">{{"@type":"Organization"}}</script>
            <script type="application/ld+json">{{oops</script>
            <script type="application/ld+json">//<![CDATA[
            [{{"@type":"https://schema.org/Dataset","url":"https://acme.example/open/#top","name":"Ac
me","publisher":{{"name":"Acme Ltd"}},"license":"https://l.example/","distribution":[{{"name":"Event",
            "contentUrl":"https://acme.example/events","encodingFormat":"{format}","totalItems":12}}]}}] //]]></script>"#
        )
        .replace("Ac\nme", "Acme"),
    ];
    for spelling in spellings {
        assert_eq!(json(&spelling).datasets, plain.datasets, "{spelling}");
    }
}

#[test]
fn escaped_blocks_and_urls_of_pages_are_unescaped() {
    let listing = json(
        r#"<script type="application/ld+json">{&quot;@type&quot;:&quot;Dataset&quot;,&quot;publisher&quot;:&quot;A &amp;amp; B&quot;,
        &quot;distribution&quot;:{&quot;contentUrl&quot;:&quot;/f?a=1&amp;b=2&quot;,&quot;encodingFormat&quot;:&quot;RPDE&quot;}}</script>"#,
    );
    assert_eq!(listing.datasets[0].publisher.as_deref(), Some("A & B"));
    assert_eq!(listing.datasets[0].feeds[0].url, "https://acme.example/f?a=1&b=2");
    // a document that is no page is taken at its word
    let listing = json(r#"{"@type":"Dataset","publisher":"A &amp; B"}"#);
    assert_eq!(listing.datasets[0].publisher.as_deref(), Some("A &amp; B"));
}

#[test]
fn what_is_missing_or_wrong_is_left_out_and_reported() {
    let listing = json(
        r#"{"@type":"Dataset","publisher":{"url":"https://x.example/"},"distribution":[42,
        {"contentUrl":"https://acme.example/a.csv","encodingFormat":"text/csv"},
        {"contentUrl":"ftp://acme.example/a","encodingFormat":"application/vnd.openactive.rpde+json"},
        {"encodingFormat":"application/vnd.openactive.rpde+json"},
        {"contentUrl":"https://user:hunter2@acme.example/a","encodingFormat":"application/vnd.openactive.rpde+json"},
        {"contentUrl":"https://acme.example/a","additionalType":"https://openactive.io/Slot"},
        {"contentUrl":"https://acme.example/a","encodingFormat":"APPLICATION/vnd.OpenActive.RPDE+json"}]}"#,
    );
    let dataset = &listing.datasets[0];
    assert_eq!((dataset.publisher.as_deref(), dataset.url.as_str()), (None, "https://acme.example/open/"));
    assert_eq!(dataset.feeds.len(), 1);
    assert_eq!((dataset.feeds[0].name.as_str(), dataset.feeds[0].kind.as_deref()), ("Slot", Some("Slot")));
    assert_eq!(listing.problems.len(), 5, "{:?}", listing.problems);
    assert!(!listing.problems.concat().contains("hunter2"));
}

#[test]
fn misspelt_names_are_read_or_reported_with_the_similar_one_and_templates_are_refused() {
    let listing = json(
        r#"{"@type":"Dataset","name":"{{dataset.name}}","publisher":"<%= org %>","distribution":[
        {"contentURL":"https://acme.example/a","encodingFormat":"rpde"},
        {"schema:contenturl":"https://acme.example/b","EncodingFormat":"rpde"},
        {"contentUlr":"https://acme.example/c","encodingFormat":"rpde"},
        {"contentUrl":"{{feedUrl}}","encodingFormat":"rpde"},
        {"contentUrl":"https://acme.example/${feed}","encodingFormat":"rpde"},
        {"contentUrl":"<%= url %>","encodingFormat":"rpde"}]}"#,
    );
    let dataset = &listing.datasets[0];
    let feeds: Vec<&str> = dataset.feeds.iter().map(|feed| feed.url.as_str()).collect();
    assert_eq!(feeds, ["https://acme.example/a", "https://acme.example/b"]);
    assert_eq!((&dataset.name, &dataset.publisher), (&None, &None), "templates are no names");
    let problems = listing.problems.join("\n");
    for words in [
        "\"contentURL\" is taken for contentUrl",
        "\"schema:contenturl\" is taken for contentUrl",
        "it has no contentUrl: did \"contentUlr\" mean it?",
        "\"{{feedUrl}}\" is a template that was never filled in",
        "/${feed}\" is a template",
        "\"<%= url %>\" is a template",
    ] {
        assert!(problems.contains(words), "{words}: {problems}");
    }
    assert_eq!(listing.problems.len(), 6, "{problems}");
    let listing = json(r#"{"@type":"Dataset","distributions":[{"contentUrl":"/a","encodingFormat":"rpde"}]}"#);
    assert_eq!(listing.problems, ["a dataset has no distribution: did \"distributions\" mean it?"]);
}

#[test]
fn a_page_of_a_feed_is_no_page_that_lists_feeds() {
    assert!(json(r#"{"items":[],"next":"/feed","license":"x"}"#).is_feed);
    assert!(!json(r#"{"@type":"DataCatalog","dataset":["https://a.example/"],"items":[]}"#).is_feed);
    assert!(!json(r#"{"items":7}"#).is_feed);
}

#[test]
fn entries_of_catalogues_that_are_no_strings_are_read_or_reported() {
    let listing = json(
        r#"{"@type":"DataCatalog","dataset":["https://a.example/","https://a.example/#x",null,7,"",
        {"@type":"Dataset","url":"https://b.example/"},{"@id":"https://c.example/"},
        {"@type":"Dataset","url":"https://d.example/","distribution":{"contentUrl":"/d","encodingFormat":"rpde"}}],
        "hasPart":[{"@type":"DataCatalog","@id":"https://e.example/"},{"@type":"Dataset","@id":"https://f.example/"},
        {"dataset":"https://g.example/"},"mailto:a@b.example"]}"#,
    );
    let sites =
        ["https://a.example/", "https://b.example/", "https://c.example/", "https://f.example/", "https://g.example/"];
    assert_eq!(urls(&listing.sites), sites);
    assert_eq!(urls(&listing.catalogues), ["https://e.example/"]);
    assert_eq!(listing.datasets[0].url, "https://d.example/");
    assert_eq!(listing.problems.len(), 4, "{:?}", listing.problems);
}

#[test]
fn a_site_without_json_ld_lists_nothing() {
    for page in ["", "<html><body>Hello</body></html>", "{", "[]", "\u{feff}{}", "null"] {
        let listing = json(page);
        assert!(listing.is_empty() && listing.meta_refresh.is_none(), "{page}: {listing:?}");
    }
}

#[test]
fn the_catalogue_that_a_dataset_names_is_not_read() {
    let listing = json(
        r#"{"@type":"Dataset","includedInDataCatalog":{"@type":"DataCatalog","dataset":["https://other.example/"]}}"#,
    );
    assert_eq!(urls(&listing.sites), [""; 0]);
}

/// JSON made of the terms that are searched for, in random positions.
fn junk() -> impl Strategy<Value = serde_json::Value> {
    let word = prop::sample::select(vec![
        "@graph",
        "@id",
        "@type",
        "Dataset",
        "DataCatalog",
        "dataset",
        "hasPart",
        "distribution",
        "contentUrl",
        "url",
        "encodingFormat",
        "rpde",
        "/x",
        "https://a.example/",
        "totalItems",
        "#d",
        "name",
        "publisher",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        word.clone().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((word.clone(), inner), 0..6).prop_map(|pairs| {
                serde_json::Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn the_result_of_any_page_can_be_configured(tree in junk(), wrapped: bool) {
        let text = tree.to_string();
        let text = if wrapped { format!("<script type=application/ld+json>{text}</script>") } else { text };
        let listing = json(&text);
        let named = names::assign_names(listing.datasets, &names::KnownNames::default(), &mut Vec::new());
        for named in named {
            let tables: toml::Table = toml::from_str(&provider_file::provider_tables(&named, &[])).unwrap();
            prop_assert_eq!(tables["feeds"].as_table().unwrap().len(), named.dataset.feeds.len());
            for name in named.names.iter().chain([&named.provider]) {
                prop_assert!(crate::feed::FeedName::new(name).is_some(), "{}", name);
            }
        }
    }

    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read(&bytes, &at("https://acme.example/"));
    }
}
