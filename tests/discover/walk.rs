//! Crawls from a collection to configuration on standard output.

use crate::support::{Reply, page};
use crate::web::Web;
use crate::workspace::Workspace;

fn feeds(names: &[&'static str]) -> Vec<(&'static str, String)> {
    names.iter().map(|name| (*name, format!("https://feeds.example/{name}"))).collect()
}

#[test]
fn a_collection_s_catalogues_and_sites_become_configuration_that_check_accepts() {
    // given a collection whose catalogues refer to each other in a circle, and sites of every kind
    let web = Web::new();
    web.catalogue("/collection", &["/one", "/two"], &[]);
    web.catalogue("/one", &["/collection"], &["/acme", "/moved"]);
    web.json("/two", r#"{"type":"DataCatalog","dataset":["{here}/acme",42,{"id":"{here}/plain"}]}"#);
    web.site("/acme", "Acme Leisure", &feeds(&["SessionSeries", "ScheduledSession"]));
    web.html("/moved", "<meta http-equiv=refresh content='0;url=/club'>");
    web.site("/club", "The Club", &feeds(&["FacilityUse"]));
    web.json(
        "/plain",
        r#"{"@type":"Dataset","distribution":{"contentUrl":"https://feeds.example/rides","encodingFormat":"rpde"}}"#,
    );
    let workspace = Workspace::new();

    // when it is crawled
    let ran = workspace.run(&["discover", &web.url("/collection"), "--allow-private"]);

    // then each feed has its publisher's provider, once, and the configuration is valid
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let host = web.publisher.address().to_string().replace(['.', ':'], "-");
    let tables: toml::Table = toml::from_str(&ran.out).unwrap();
    let names: Vec<&String> = tables["feeds"].as_table().unwrap().keys().collect();
    let rides = format!("{host}-rides");
    let mut expected =
        vec!["acme-leisure-scheduled-session", "acme-leisure-session-series", "the-club-facility-use", &rides];
    expected.sort_unstable();
    assert_eq!(names, expected);
    let acme = &tables["providers"]["acme-leisure"];
    assert_eq!(acme["publisher"].as_str(), Some("Acme Leisure"));
    assert_eq!(acme["license"].as_str(), Some("https://creativecommons.org/licenses/by/4.0/"));
    assert_eq!(acme["dataset_url"].as_str(), Some(web.url("/acme").as_str()));
    let sessions = &tables["feeds"]["acme-leisure-scheduled-session"];
    assert_eq!(sessions["url"].as_str(), Some("https://feeds.example/ScheduledSession"));
    assert_eq!(sessions["total_items"].as_integer(), Some(30));
    assert_eq!(web.publisher.count("/acme"), 1, "a site that two catalogues list is read once");
    assert!(ran.err.contains(": an entry of `dataset` was left out: it is a number"), "{}", ran.err);
    assert!(ran.err.contains("\nfeedmirror: 6 pages, 3 datasets, 4 feeds, 1 problem\n"), "{}", ran.err);
    workspace.write("feedmirror.toml", &ran.out);
    let checked = workspace.run(&["check"]);
    assert_eq!(
        (checked.code, checked.out.as_str()),
        (Some(0), "1 file, 4 feeds; 0 errors, 0 warnings\n"),
        "{checked:?}"
    );
    // and the same crawl has the same output
    assert_eq!(workspace.run(&["discover", &web.url("/collection"), "--allow-private"]).out, ran.out);
}

#[test]
fn bad_pages_are_told_and_the_rest_is_found() {
    let web = Web::new();
    let bad = ["/nothing", "/torso", "/bomb", "/reset", "/loop", "/plain", "/ftp"];
    web.catalogue("/catalogue", &[], &[&bad[..], &["/good"]].concat());
    web.json("/torso", r#"{"@type":"Dataset","#);
    web.reply("/bomb", Reply::bomb(1 << 30));
    web.reply("/reset", Reply::reset());
    web.reply("/loop", Reply::redirect(302, "/loop"));
    web.html("/plain", "<h1>Welcome</h1>");
    web.reply("/ftp", Reply::redirect(302, "ftp://127.0.0.1/"));
    web.site("/good", "Acme", &feeds(&["Slot"]));
    let workspace = Workspace::new();

    let ran = workspace.run(&["discover", &web.url("/catalogue"), "--allow-private", "--json"]);

    assert_eq!(ran.code, Some(0), "{ran:?}");
    let rows = ran.rows();
    assert_eq!(rows.len(), 1);
    let expected = serde_json::json!({
        "feed": "acme-slot", "provider": "acme", "url": "https://feeds.example/Slot", "kind": "Slot", "total_items": 30,
        "publisher": "Acme", "license": "https://creativecommons.org/licenses/by/4.0/", "dataset": "Acme Sessions",
        "dataset_url": web.url("/good"),
    });
    assert_eq!(rows[0], expected);
    let words = [
        "http-404: ",
        "the page is not JSON: ",
        "too-large: ",
        "broken-response: ",
        "redirect: more than ",
        "no dataset",
        "redirect: to ftp",
    ];
    for (path, word) in bad.iter().zip(words) {
        let line = ran.err.lines().find(|line| line.contains(&format!("{}: ", web.url(path)))).unwrap_or_default();
        assert!(line.starts_with("feedmirror: problem: ") && line.contains(word), "{path}: {line}\n{}", ran.err);
    }
    // with -q there is no progress, and problems are shown all the same
    let quiet = workspace.run(&["discover", &web.url("/catalogue"), "--allow-private", "-q"]);
    assert!(quiet.err.lines().all(|line| line.starts_with("feedmirror: problem: ")), "{}", quiet.err);
    assert!(workspace.files().is_empty(), "nothing is written unasked");
}

#[test]
fn nobody_speaks_for_another_s_site() {
    // given a page that claims to describe a dataset whose own site exists too
    let (web, other) = (Web::new(), Web::new());
    let (acme, imitation) = (web.url("/acme"), other.url("/imitation"));
    other.json(
        "/imitation",
        &format!(
            r#"{{"@type":"Dataset","url":"{acme}","publisher":"Imitation","distribution":[
            {{"contentUrl":"https://imitation.example/feed","encodingFormat":"rpde"}}]}}"#
        ),
    );
    web.site("/acme", "Acme", &feeds(&["Slot"]));
    for order in [[&acme, &imitation], [&imitation, &acme]] {
        web.json("/catalogue", &serde_json::json!({"@type": "DataCatalog", "dataset": order}).to_string());
        let ran = Workspace::new().run(&["discover", &web.url("/catalogue"), "--allow-private", "--json"]);
        let rows = ran.rows();
        assert_eq!((rows.len(), &rows[0]["feed"], &rows[0]["publisher"]), (1, &"acme-slot".into(), &"Acme".into()));
        assert!(ran.err.contains(&format!("{imitation}: 1 feed of {acme} left out")), "{}", ran.err);
    }
}

#[test]
fn a_walk_is_no_longer_than_its_limit() {
    let web = Web::new();
    let sites: Vec<String> = (0..20).map(|n| format!("/site-{n}")).collect();
    let paths: Vec<&str> = sites.iter().map(String::as_str).collect();
    web.catalogue("/catalogue", &[], &paths);
    for (n, site) in sites.iter().enumerate() {
        web.site(site, "Acme", &vec![("Slot", format!("https://feeds.example/{n}"))]);
    }
    let ran = Workspace::new().run(&["discover", &web.url("/catalogue"), "--allow-private", "--limit", "6", "--json"]);
    assert_eq!((ran.code, ran.rows().len(), web.publisher.requests().len()), (Some(0), 5, 6), "{ran:?}");
    assert!(ran.err.contains("the limit of pages is reached (--limit): 15 pages left unread"), "{}", ran.err);
    assert_eq!(web.publisher.most_at_once(), 1, "one request at a time to a host");
}

#[test]
fn a_walk_takes_no_longer_than_its_time_and_keeps_what_it_found() {
    let (web, other) = (Web::new(), Web::new());
    other.reply("/silent", Reply::silence());
    let silent = other.url("/silent");
    web.json("/catalogue", &format!(r#"{{"@type":"DataCatalog","dataset":["{silent}","{{here}}/acme"]}}"#));
    web.site("/acme", "Acme", &feeds(&["Slot"]));
    let ran =
        Workspace::new().run(&["discover", &web.url("/catalogue"), "--allow-private", "--timeout", "2", "--json"]);
    assert_eq!((ran.code, ran.rows().len()), (Some(0), 1), "{ran:?}");
    assert!(ran.err.contains("the time is up (--timeout): 1 page left unread"), "{}", ran.err);
}

#[test]
fn catalogues_without_end_are_left() {
    let web = Web::new();
    for n in 0..20 {
        let (here, next) = (format!("/{n}"), format!("/{}", n + 1));
        web.json(&here, &format!(r#"{{"@type":"DataCatalog","hasPart":"{{here}}{next}","dataset":"{{here}}/site"}}"#));
    }
    web.site("/site", "Acme", &feeds(&["Slot"]));
    let ran = Workspace::new().run(&["discover", &web.url("/0"), "--allow-private", "--json"]);
    assert_eq!((ran.code, ran.rows().len()), (Some(0), 1), "{ran:?}");
    assert_eq!((web.publisher.count("/5"), web.publisher.count("/6")), (1, 0));
}

#[test]
fn what_tells_of_no_feed_fails_and_what_can_not_be_meant_is_refused() {
    let web = Web::new();
    web.reply("/feed", Reply::page(page(&[], "/feed")));
    let workspace = Workspace::new();
    let itself = format!(
        "no feeds were found: it is a feed itself, and tells of no others: feedmirror sync {}",
        web.url("/feed")
    );
    for (path, word) in [("/feed", itself.as_str()), ("/nothing", "http-404: ")] {
        let ran = workspace.run(&["discover", &web.url(path), "--allow-private"]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{ran:?}");
        assert!(ran.err.lines().last().unwrap().contains(word), "{}", ran.err);
    }
    for (arguments, word) in [
        (&["discover", "ftp://acme.example/"][..], "neither http nor https"),
        (&["discover", "acme.example"], "is not a URL: it has no scheme; did you mean https://acme.example/?"),
        (&["discover", "acme.example:8443/open"], "did you mean https://acme.example:8443/open?"),
        (&["discover", "acme"], "is not a URL"),
        (&["discover", "https://user:secret@acme.example/"], "no credentials"),
        (&["discover", "https://acme.example/", "--add", "https://acme.example/"], "is no folder"),
        (&["discover", "https://acme.example/", "--add"], "no configuration"),
        (&["discover", "https://acme.example/", "--diff"], "no configuration"),
    ] {
        let ran = workspace.run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.err.contains(word) && !ran.err.contains("secret"), "{word}: {}", ran.err);
    }
    workspace.write("feedmirror.toml", "database = \"mirror.db\"\n");
    let ran = workspace.run(&["discover", "https://acme.example/", "--add"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("includes no folder of files"), "{}", ran.err);
}
