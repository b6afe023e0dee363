//! The verbs that control a daemon, run as the real binary: on a listener, and on a file that no process holds.

use std::net::TcpListener;

use feedmirror::store::now;
use feedmirror::supervisor::ack::Ack;
use feedmirror::supervisor::control::{ControlError, Order, QuarantineOrder, StubRequest};

use crate::harness::{MirrorFixture, OpsHarness, command, exit_and_output, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_verb_reaches_the_daemon_that_holds_the_file() {
    let harness = OpsHarness::with(&["acme", "b"]).await;
    harness.file.store().record_start(now(), Some(harness.address.to_string()), None).await.unwrap();
    let seek = "https://acme.example/rpde?afterId=%7B1%7D";
    let feed_order = |order: Order| StubRequest::Feed("acme".into(), order);
    for (arguments, expected) in [
        (vec!["pause", "acme"], feed_order(Order::Pause)),
        (vec!["resume", "acme"], feed_order(Order::Resume)),
        (vec!["poll-now", "acme"], feed_order(Order::PollNow)),
        (vec!["purge", "acme"], feed_order(Order::Purge)),
        (vec!["resync", "acme"], feed_order(Order::Resync { trust_source: false, accept: false })),
        (vec!["resync", "acme", "--trust-source"], feed_order(Order::Resync { trust_source: true, accept: false })),
        (
            vec!["resync", "acme", "--trust-source", "--accept"],
            feed_order(Order::Resync { trust_source: true, accept: true }),
        ),
        (vec!["resync", "acme", "--accept"], feed_order(Order::AcceptSweep)),
        (vec!["seek", "acme", seek], feed_order(Order::Seek(seek.into()))),
        (vec!["ack", "acme", "--clear"], feed_order(Order::Ack(None))),
        (
            vec!["ack", "acme", "--until", "2100-01-01T00:00:00Z", "--note", "they know"],
            feed_order(Order::Ack(Some(Ack { until: 4_102_444_800_000, note: Some("they know".into()) }))),
        ),
        (vec!["quarantine", "retry", "7"], StubRequest::Quarantine(7, QuarantineOrder::Retry)),
        (vec!["quarantine", "drop", "7"], StubRequest::Quarantine(7, QuarantineOrder::Drop)),
    ] {
        let (exit, out, error) = run(&harness.file.path(), &arguments).await;
        assert_eq!((exit, error.as_str()), (0, ""), "{arguments:?}");
        assert_eq!(out.lines().count(), 1, "{out}");
        assert!(out.starts_with("did "), "the supervisor's words: {out}");
        assert_eq!(harness.received_orders().pop(), Some(expected), "{arguments:?}");
    }

    let before = harness.received_orders().len();
    assert_eq!(run(&harness.file.path(), &["pause", "acme", "b"]).await.1.lines().count(), 2);
    assert_eq!(harness.received_orders().len(), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_leads_to_the_daemon_too() {
    let harness = OpsHarness::with(&["acme"]).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("feedmirror.toml");
    let token = folder.path().join("chosen.token");
    std::fs::write(&token, &harness.token).unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let text = format!(
        "database = {:?}\n[ops]\nlisten = \"{}\"\ntoken_file = \"chosen.token\"\n\
         [feeds.acme]\nurl = \"https://acme.example/\"\n",
        harness.file.path(),
        harness.address
    );
    std::fs::write(&config, text).unwrap();
    let pause = {
        let config = config.clone();
        move || exit_and_output(command().arg("--config").arg(config).args(["pause", "acme"]).output().unwrap())
    };

    let (exit, _, error) = tokio::task::spawn_blocking(pause.clone()).await.unwrap();
    assert_eq!((exit, error.as_str()), (0, ""));
    assert_eq!(harness.received_orders(), [StubRequest::Feed("acme".into(), Order::Pause)]);

    std::fs::write(&token, "another").unwrap();
    let (exit, _, error) = tokio::task::spawn_blocking(pause).await.unwrap();
    assert_eq!(exit, 1);
    assert!(error.contains("admin token") && !error.contains("another"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_reported_and_keeps_no_other_feed_from_its_order() {
    let answer = |request: &StubRequest| match request {
        StubRequest::Feed(name, _) if name == "nope" => Err(ControlError::Unknown("there is no feed nope".into())),
        _ => Ok("done".into()),
    };
    let harness = OpsHarness::listening("127.0.0.1:0", &["acme"], answer).await;
    harness.file.store().record_start(now(), Some(harness.address.to_string()), None).await.unwrap();
    let (exit, out, error) = run(&harness.file.path(), &["pause", "nope", "acme"]).await;
    assert_eq!((exit, out.as_str()), (1, "done\n"));
    assert!(error.contains("there is no feed nope"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_does_not_answer_is_named() {
    let harness = MirrorFixture::with(&["acme"]).await;
    let (exit, _, error) = run(&harness.path(), &["pause", "acme"]).await;
    assert_eq!(exit, 1);
    assert!(error.contains("without an ops listener"), "{error}");

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    harness.store().record_start(now(), Some(closed.clone()), None).await.unwrap();
    feedmirror::server::token::read_or_create(None, &harness.path()).unwrap();
    let (exit, _, error) = run(&harness.path(), &["pause", "acme"]).await;
    assert_eq!(exit, 1);
    assert!(error.contains("does not answer") && error.contains(&closed), "{error}");
    assert!(!harness.feed("acme").await.paused, "what another holds is not touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_the_verbs_act_on_the_file() {
    let mut file = MirrorFixture::with(&["acme"]).await;
    file.write("acme", &[("1", 1, Some("{}"))]).await;
    file.close();
    let run_verb = async |arguments: &[&str]| {
        let (exit, out, error) = run(&file.path(), arguments).await;
        assert_eq!((exit, error.as_str()), (0, ""), "{arguments:?}");
        assert!(out.starts_with("acme: ") && out.lines().count() == 1, "{out}");
    };

    run_verb(&["pause", "acme"]).await;
    assert_eq!(file.value::<String>("SELECT health FROM feeds"), "paused");
    run_verb(&["resume", "acme"]).await;
    assert_eq!(file.value::<String>("SELECT health FROM feeds"), "ok");
    let url = "https://acme.example/rpde?afterId=%7B1%7D";
    run_verb(&["seek", "acme", url]).await;
    assert_eq!(file.value::<String>("SELECT cursor FROM feeds"), url);
    run_verb(&["resync", "acme"]).await;
    assert_eq!(file.value::<i64>("SELECT trust FROM resync"), 0);
    run_verb(&["resync", "acme", "--trust-source"]).await;
    assert_eq!(file.value::<i64>("SELECT trust FROM resync"), 1);
    let until = "SELECT coalesce(acked_until, '') || ' ' || coalesce(ack_note, '') FROM feeds";
    run_verb(&["ack", "acme", "--until", "2100-01-01T00:00:00Z", "--note", "they know"]).await;
    assert_eq!(file.value::<String>(until), "2100-01-01T00:00:00.000Z they know");
    run_verb(&["ack", "acme"]).await;
    let hours = "SELECT round((julianday(acked_until) - julianday('now')) * 24) FROM feeds";
    assert_eq!(file.value::<f64>(hours), 24.0, "a day if not said, in place of the earlier one");
    assert_eq!(
        file.value::<String>("SELECT detail FROM events WHERE what = 'ack'"),
        "until 2100-01-01T00:00:00.000Z: they know"
    );
    run_verb(&["ack", "acme", "--clear"]).await;
    assert_eq!(file.value::<String>(until), " ");
    run_verb(&["purge", "acme"]).await;
    assert_eq!(file.value::<i64>("SELECT count(*) FROM items"), 0);
    assert_eq!(file.value::<String>("SELECT state FROM changes"), "purged");
    assert_eq!(file.value::<String>("SELECT health FROM feeds"), "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_sweep_is_accepted_in_the_file() {
    let mut file = MirrorFixture::with(&["acme"]).await;
    file.write("acme", &[("1", 1, Some("{}"))]).await;
    file.hold_a_sweep("acme").await;
    file.close();
    let (exit, out, error) = run(&file.path(), &["resync", "acme", "--accept"]).await;
    assert_eq!((exit, error.as_str()), (0, ""), "{out}");
    assert_eq!(file.value::<String>("SELECT stage FROM resync"), "sweep");

    let (exit, _, error) = run(&file.path(), &["resync", "acme", "--accept"]).await;
    assert_eq!((exit, error.contains("no held sweep")), (1, true), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_daemon_or_a_feed_says_so() {
    let mut file = MirrorFixture::with(&["acme"]).await;
    file.close();
    for (arguments, code, words) in [
        (vec!["poll-now", "acme"], 1, "no daemon is running"),
        (vec!["quarantine", "retry", "7"], 1, "no daemon is running"),
        (vec!["quarantine", "drop", "7"], 1, "no quarantine row 7"),
        (vec!["pause", "nope"], 1, "no feed nope"),
        (vec!["pause", "../x"], 1, "no feed ../x"),
        (vec!["ack", "nope"], 1, "no feed nope"),
        (vec!["ack", "acme", "--until", "tomorrow"], 2, "until must be a time like"),
        (vec!["ack", "acme", "--until", "2020-01-01T00:00:00Z"], 2, "must lie ahead"),
        (vec!["ack", "acme", "--clear", "--note", "x"], 2, "cannot be used with"),
        (vec!["seek", "acme", "/relative"], 1, "no URL"),
        (vec!["pause"], 2, "FEED"),
    ] {
        let (exit, out, error) = run(&file.path(), &arguments).await;
        assert_eq!((exit, out.as_str()), (code, ""), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
    let nowhere = file.path().with_file_name("nowhere.db");
    let (exit, _, error) = run(&nowhere, &["pause", "acme"]).await;
    assert_eq!((exit, error.contains("no mirror at")), (1, true), "{error}");
    assert!(!nowhere.exists(), "and makes none");
}
