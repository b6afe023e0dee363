//! Orders for many quarantined records at once.

use feedmirror::source::client::plain_client;
use feedmirror::store::Store;
use feedmirror::store::quarantine_batch::QuarantineSelection;

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
fn an_order_that_the_end_of_a_run_cut_short_is_shown_and_carried_out_by_the_next() {
    // given 121 records in quarantine, and an order to read them again that was stored before the daemon was killed
    let publisher = publisher();
    let mut mirror = MirrorProcess::running("f", &publisher.url("/f"));
    mirror.until_level("f");
    mirror.kill();
    let db = rusqlite::Connection::open(mirror.path("mirror.db")).unwrap();
    let newest = mirror.number("SELECT max(id) FROM quarantine");
    let order =
        "INSERT INTO quarantine_order (at, retry, ids, feed, reason, newest) VALUES (0, 1, '[]', 'f', NULL, ?1)";
    db.execute(order, [newest]).unwrap();
    drop(db);
    let (_, out, _) = code_and_output(mirror.verb(&["status"]));
    assert!(out.contains("quarantine retry of f: under way"), "{out}");

    // when the feed was put right
    mirror.set_feed("f", &publisher.url("/f"), "kind = \"thing\"");
    mirror.start_again();

    // then
    mirror.until("carried out", |mirror| mirror.number("SELECT count(*) FROM quarantine_order") == 0);
    assert_eq!(mirror.number("SELECT count(*) FROM quarantine"), 1);
    assert_eq!(mirror.row("f").items, 121);
    assert!(!code_and_output(mirror.verb(&["status"])).1.contains("under way"));
}

#[test]
fn an_order_is_stored_from_its_beginning_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = directory.path().join("mirror.db");
    let (store, guard) = Store::open(&path).unwrap();
    let selection = QuarantineSelection { ids: vec![3, 5], feed: None, reason: Some("bad-json".into()) };

    let stored = runtime.block_on(store.begin_quarantine_order(0, selection.clone(), true)).unwrap();
    drop(store);
    guard.finish();

    let (store, guard) = Store::open(&path).unwrap();
    let orders = runtime.block_on(store.quarantine_orders()).unwrap();
    assert_eq!(orders, std::slice::from_ref(&stored));
    assert_eq!((&orders[0].selection, orders[0].retry), (&selection, true));
    runtime.block_on(store.end_quarantine_order(stored.number)).unwrap();
    assert_eq!(runtime.block_on(store.quarantine_orders()).unwrap(), []);
    drop(store);
    guard.finish();
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
