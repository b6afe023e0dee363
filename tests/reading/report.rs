//! `findings` as a report to send: by publisher, with sections, samples and counts, by the real binary over a file.

use feedmirror::feed::Finding;
use feedmirror::store::feeds::FeedRegistration;
use serde_json::{Value, json};

use crate::mirror_file::{AT, MirrorFile, failed, json_lines, updated};

const DAY: i64 = 86_400_000;

/// Two feeds of the provider `acme`, one without provider, and one without findings.
fn mirror() -> MirrorFile {
    let mirror = MirrorFile::new();
    let registration = |name: &str, provider: Option<&str>, url: &str| FeedRegistration {
        name: mirror.name(name),
        provider: provider.map(str::to_owned),
        url: url.to_owned(),
        config_error: None,
        attribution: Default::default(),
    };
    let feeds = vec![
        registration("acme-courses", Some("acme"), "https://one.example/courses"),
        registration("acme-sessions", Some("acme"), "https://two.example/sessions"),
        registration("lone", None, "https://lone.example:8443/rpde"),
        registration("well", Some("tidy"), "https://tidy.example/rpde"),
    ];
    mirror.runtime.block_on(mirror.store().register(AT, feeds, true)).unwrap();
    let nameless =
        |n: u32| format!("{{\"state\":\"updated\",\"kind\":\"Session\",\"modified\":{n},\"data\":{{\"n\":{n}}}}}");
    mirror.polled("acme-sessions", &[nameless(1), nameless(2), updated("a", 3, "{}")]);
    mirror.polled("acme-sessions", &[nameless(2)]);
    for (feed, at, rule, count) in [
        ("acme-courses", AT, "bom", 2),
        ("acme-sessions", AT - DAY, "bom", 1),
        ("acme-sessions", AT + DAY, "bom", 4),
        ("acme-courses", AT, "empty-pages", 90),
        ("lone", AT, "no-next", 1),
    ] {
        finds(&mirror, feed, at, rule, count);
    }
    mirror
}

fn finds(mirror: &MirrorFile, feed: &str, at: i64, rule: &'static str, count: u64) {
    let id = mirror.runtime.block_on(mirror.store().feed(&mirror.name(feed))).unwrap().id;
    let finding = Finding { rule, detail: format!("what {feed} did"), count };
    mirror.runtime.block_on(mirror.store().record_finding(id, at, finding)).unwrap();
}

#[test]
fn a_publisher_s_departures_stand_together_what_loses_records_first() {
    let publishers = json_lines(&mirror().says(&["findings", "--report", "--json"]));

    let names: Vec<&Value> = publishers.iter().map(|publisher| &publisher["publisher"]).collect();
    assert_eq!(names, ["acme", "lone.example:8443", "tidy"]);
    let acme = &publishers[0];
    assert_eq!(acme["feeds"][1], json!({ "feed": "acme-sessions", "url": "https://two.example/sessions" }));
    let findings = acme["findings"].as_array().unwrap();
    let entries: Vec<_> = findings.iter().map(|one| (&one["rule"], &one["severity"], &one["count"])).collect();
    let (failure, warning) = (json!("failure"), json!("warning"));
    assert_eq!(
        entries,
        [
            (&json!("no-id"), &failure, &json!(3)),
            (&json!("bom"), &failure, &json!(7)),
            (&json!("empty-pages"), &warning, &json!(90)),
        ]
    );
    // since when and until when, over both feeds
    assert_eq!(findings[1]["first_at"], "2026-01-01T03:04:05.678Z");
    assert_eq!(findings[1]["last_at"], "2026-01-03T03:04:05.678Z");
    let seen: Vec<&Value> = findings[1]["seen"].as_array().unwrap().iter().map(|seen| &seen["count"]).collect();
    assert_eq!(seen, [2, 5]);
    // quarantine: the newest record, and what the ecosystem's validator calls it
    assert_eq!((&findings[0]["quarantined"], &findings[1]["quarantined"]), (&json!(true), &json!(false)));
    assert!(findings[0]["seen"][0]["sample"].as_str().unwrap().contains("{\"n\":2}"), "{findings:?}");
    assert_eq!(findings[0]["validator_rules"], json!(["RequiredItemPropertiesRule"]));
    assert!(findings[0]["section_url"].as_str().unwrap().ends_with("/realtime-paged-data-exchange/#-item-"));
    assert_eq!(publishers[2]["findings"], json!([]));
}

#[test]
fn the_text_can_be_pasted_into_a_letter() {
    let mirror = mirror();
    let text = mirror.says(&["findings", "--report", "--provider", "acme"]);
    for line in [
        "Realtime Paged Data Exchange (RPDE): 3 points about the feeds of acme",
        "  acme-sessions: https://two.example/sessions",
        "2. pages begin with a byte order mark (bom, failure)",
        "   Standard:   RFC 8259, section 8.1, \"Character Encoding\"",
        "   Seen in acme-sessions: 5 times, first 2026-01-01T03:04:05.678Z, last 2026-01-03T03:04:05.678Z",
        "     what acme-sessions did",
        "1. items have no `id` (no-id, failure; these records could not be taken)",
        "   Validator:  RequiredItemPropertiesRule (openactive/rpde-validator)",
        "     sample: {\"state\":\"updated\",\"kind\":\"Session\",\"modified\":2,\"data\":{\"n\":2}}",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("lone"), "{text}");
    let all = mirror.says(&["findings", "--report"]);
    assert!(all.contains("feeds of lone.example:8443") && all.ends_with("nothing to tell: tidy\n"), "{all}");
    let lone = mirror.says(&["findings", "lone", "--report"]);
    assert!(lone.contains("1 point about") && !lone.contains("acme"), "{lone}");
    assert_eq!(mirror.says(&["findings", "well", "--report"]), "no findings\n");
}

#[test]
fn a_provider_narrows_the_list_and_an_unknown_one_is_named() {
    let mirror = mirror();
    let rows = json_lines(&mirror.says(&["findings", "--provider", "acme", "--json"]));
    let rows: Vec<_> = rows.iter().map(|row| (row["feed"].as_str().unwrap(), row["rule"].as_str().unwrap())).collect();
    assert_eq!(rows, [("acme-courses", "bom"), ("acme-courses", "empty-pages"), ("acme-sessions", "bom")]);
    let by_host = mirror.says(&["findings", "--provider", "lone.example:8443"]);
    assert!(by_host.contains("no-next") && !by_host.contains("bom"), "{by_host}");
    for arguments in [&["findings", "--provider", "nobody"][..], &["findings", "--provider", "nobody", "--report"]] {
        let (code, errors) = failed(&mirror.run(arguments));
        assert_eq!((code, errors.as_str()), (Some(1), "feedmirror: there is no provider nobody in the mirror\n"));
    }
    assert_eq!(failed(&mirror.run(&["findings", "lone", "--provider", "acme"])).0, Some(2));
}

#[test]
fn a_record_too_long_for_a_letter_is_cut_and_a_hostile_one_commands_nothing() {
    let mirror = MirrorFile::new();
    mirror.feed("acme");
    let long = format!(
        "{{\"state\":\"odd\\u001b[2J\",\"id\":1,\"kind\":\"k\",\"modified\":1,\"data\":\"{}\"}}",
        "é".repeat(5_000)
    );
    mirror.polled("acme", std::slice::from_ref(&long));

    let report = json_lines(&mirror.says(&["findings", "--report", "--json"]));
    let sample = report[0]["findings"][0]["seen"][0]["sample"].as_str().unwrap().to_owned();
    assert_eq!(sample.chars().count(), 301);
    assert!(sample.ends_with('…') && long.starts_with(sample.trim_end_matches('…')), "{sample}");
    let text = mirror.says(&["findings", "--report"]);
    assert!(!text.contains('\u{1b}'), "{text}");
}
