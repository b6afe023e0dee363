//! Orders for many quarantined records at once.

use feedmirror::source::client::plain_client;

use crate::code_and_output;
use crate::support::{DEADLINE, MirrorProcess, Reply, ScriptedPublisher, item, page};

/// Records without a kind, which a feed's `kind` repairs, and one that nothing repairs.
fn publisher() -> ScriptedPublisher {
    ScriptedPublisher::start(move |request| {
        let records: Vec<String> = match request.query() {
            "" => (0..120)
                .map(|n| format!(r#"{{"state":"updated","id":"n{n}","modified":1,"data":{{}}}}"#))
                .chain([r#"{"state":"odd","kind":"thing","id":"x","modified":1}"#.to_owned(), item("good", 1)])
                .collect(),
            _ => Vec::new(),
        };
        Reply::page(page(&records, &format!("{}?from=1", request.path())))
    })
}

#[test]
fn after_a_fix_all_are_read_again_and_those_that_still_fail_are_told() {
    // given 121 records in quarantine
    let publisher = publisher();
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 121);

    // when the feed's settings are corrected and all records are read again
    mirror.set_feed("f", &publisher.url("/f"), "kind = \"thing\"");
    mirror.stop();
    mirror.start_again();
    let (code, out, error) = code_and_output(mirror.verb(&["quarantine", "retry", "--all"]));

    // then the good ones are items, and the bad one stays and is named
    assert_eq!(code, 1, "{error}");
    assert!(
        out.starts_with("120 records could be read, and left quarantine; still there: 1 record, the first: record "),
        "{out}"
    );
    assert!(out.contains("unknown-state"), "{out}");
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 1);
    assert_eq!(mirror.row("f").items, 121);

    // and it is dropped by its reason
    let (code, out, _) =
        code_and_output(mirror.verb(&["quarantine", "drop", "--feed", "f", "--reason", "unknown-state"]));
    assert_eq!((code, out.as_str()), (0, "1 record dropped\n"));
    assert_eq!(mirror.number("SELECT quarantine_rows + quarantine_bytes FROM feed"), 0);
}

#[test]
fn at_rest_records_are_dropped_and_none_is_read_again() {
    let publisher = publisher();
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    mirror.stop();

    let ids = mirror.column("SELECT id FROM quarantine ORDER BY id LIMIT 2");
    let (code, _, error) = code_and_output(mirror.verb(&["quarantine", "retry", "--all"]));
    assert_eq!((code, error.contains("no daemon is running")), (1, true), "{error}");
    let (code, out, _) = code_and_output(mirror.verb(&["quarantine", "drop", &ids[0], &ids[1]]));
    assert_eq!((code, out.as_str()), (0, "2 records dropped\n"));
    let (code, out, _) = code_and_output(mirror.verb(&["quarantine", "drop", "--reason", "no-kind"]));
    assert_eq!((code, out.as_str()), (0, "118 records dropped\n"));
    let (code, _, error) = code_and_output(mirror.verb(&["quarantine", "drop", "--feed", "nope"]));
    assert_eq!((code, error.contains("no feed nope")), (1, true), "{error}");
    let (code, _, _) = code_and_output(mirror.verb(&["quarantine", "drop"]));
    assert_eq!(code, 2, "nothing is dropped unless something is named");
    assert_eq!(mirror.column("SELECT reason FROM quarantine"), ["unknown-state"]);
}

#[test]
fn the_listener_wants_to_be_told_which() {
    let publisher = publisher();
    let mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    let address = mirror.column("SELECT ops_address FROM mirror").remove(0);
    let token = std::fs::read_to_string(mirror.path("mirror.db.token")).unwrap();
    let post = |body: &str| -> (u16, serde_json::Value) {
        let (body, token, url) =
            (body.to_owned(), token.trim().to_owned(), format!("http://{address}/api/quarantine/drop"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let client = plain_client(DEADLINE).unwrap();
            let response = client.post(url).bearer_auth(token).body(body).send().await.unwrap();
            (response.status().as_u16(), serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
        })
    };
    assert_eq!(post("{}").0, 400);
    assert_eq!(post(r#"{"all":true,"feed":"f"}"#).0, 400);
    let (status, answer) = post(r#"{"feed":"f"}"#);
    assert_eq!((status, answer["gone"].as_u64(), answer["failed"].as_u64()), (200, Some(121), Some(0)));
}
