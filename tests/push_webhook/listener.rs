//! The listener: over TLS, at its end, and as part of the daemon.

use std::path::PathBuf;
use std::sync::Arc;

use feedmirror::source::webhook::tls::ReloadableTls;
use feedmirror::source::webhook::{PostAnswer, TlsFiles};
use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::harness::{DEADLINE, NEW, WebhookHarness, ask, bearer, post, reply};
use crate::support::{MirrorProcess, holds_within};

fn files() -> TlsFiles {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/certificate");
    TlsFiles { certificate: folder.join("localhost.pem"), key: folder.join("localhost.key") }
}

fn connector() -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files().certificate).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    TlsConnector::from(Arc::new(config.with_no_client_auth()))
}

#[tokio::test]
async fn over_tls_a_page_is_accepted_while_another_handshake_is_slow() {
    let mut harness = WebhookHarness::with_capacity(8, Some(ReloadableTls::load(files()).unwrap())).await;
    let dragging = TcpStream::connect(harness.address).await.unwrap();
    let stream = TcpStream::connect(harness.address).await.unwrap();
    let connecting = connector().connect(ServerName::try_from("localhost").unwrap(), stream);
    let mut stream = timeout(DEADLINE, connecting).await.unwrap().unwrap();
    let request = post("/in/a", &bearer(NEW), b"page");
    let (reply, ()) = tokio::join!(ask(&mut stream, &request), async {
        let posted = timeout(DEADLINE, harness.posted.recv()).await.unwrap().unwrap();
        assert_eq!(posted.bytes, b"page");
        posted.answer.send(PostAnswer::Committed).unwrap();
    });
    assert_eq!(reply.status, 204);
    drop(dragging);
}

#[tokio::test]
async fn a_page_posted_before_shutdown_is_answered() {
    let mut harness = WebhookHarness::start().await;
    let mut stream = TcpStream::connect(harness.address).await.unwrap();
    stream.write_all(&post("/in/a", &bearer(NEW), b"page")).await.unwrap();
    let posted = timeout(DEADLINE, harness.posted.recv()).await.unwrap().unwrap();
    harness.shutdown.cancel();
    posted.answer.send(PostAnswer::Committed).unwrap();
    assert_eq!(reply(&mut stream).await.status, 204);
    timeout(DEADLINE, harness.serving).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(harness.address).await.is_err());
}

/// The address in the log.
fn address(mirror: &MirrorProcess) -> Option<String> {
    let log = mirror.log();
    Some(log.split_once(" webhooks=")?.1.split_whitespace().next()?.trim_matches('"').to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_listens_for_publishers_only_if_configured() {
    let polled = MirrorProcess::running("a", "http://127.0.0.1:9/");
    assert_eq!(address(&polled), None, "{}", polled.log());

    let mirror = MirrorProcess::new().feed_with("a", "http://127.0.0.1:9/", "webhook.secret_file = \"key\"");
    mirror.write("key", NEW);
    let mut mirror = mirror.tables("[webhooks]\nlisten = \"127.0.0.1:0\"\npath = \"/in\"\n").start();
    assert!(holds_within(DEADLINE, || address(&mirror).is_some()), "{}", mirror.log());
    let mut stream = TcpStream::connect(address(&mirror).unwrap()).await.unwrap();
    let reply = ask(&mut stream, b"GET /in/a HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await;
    assert_eq!(reply.status, 405);
    assert!(!mirror.log().contains(NEW));
    assert!(mirror.stop().success(), "{}", mirror.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_listener_listens_without_a_feed_and_a_reload_can_start_it() {
    // Given: a mirror without webhooks in its configuration
    let mut mirror = MirrorProcess::running("a", "http://127.0.0.1:9/");
    assert_eq!(address(&mirror), None, "{}", mirror.log());

    // When
    mirror = mirror.tables("[webhooks]\nlisten = \"127.0.0.1:0\"\n");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);

    // Then: the listener has the configured address
    assert!(holds_within(DEADLINE, || address(&mirror).is_some()), "{}", mirror.log());
    let sql = "SELECT webhooks_address FROM mirror";
    assert!(holds_within(DEADLINE, || mirror.column(sql) == [address(&mirror).unwrap()]), "{}", mirror.log());
    let mut stream = TcpStream::connect(address(&mirror).unwrap()).await.unwrap();
    assert_eq!(ask(&mut stream, &post("/webhooks/a", &bearer(NEW), b"{}")).await.status, 404);

    // When: a feed has a webhook, after another reload
    mirror.write("key", NEW);
    mirror.set_feed("a", "http://127.0.0.1:9/", "webhook.secret_file = \"key\"");
    mirror.write_config();
    mirror.signal(Signal::SIGHUP);

    // Then
    let body = br#"{"items":[]}"#;
    let accepted = async {
        loop {
            let mut stream = TcpStream::connect(address(&mirror).unwrap()).await.unwrap();
            if ask(&mut stream, &post("/webhooks/a", &bearer(NEW), body)).await.status == 204 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, accepted).await.unwrap_or_else(|_| panic!("never accepted: {}", mirror.log()));

    // When: a restart with this configuration
    assert!(mirror.stop().success(), "{}", mirror.log());
    mirror.start_again();
    assert!(holds_within(DEADLINE, || mirror.log().matches(" webhooks=").count() >= 2), "{}", mirror.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secrets_wrong_tokens_and_evictions_are_logged_at_a_bounded_rate() {
    // Given: a trusted proxy in front
    let mirror = MirrorProcess::new().feed_with("a", "http://127.0.0.1:9/", "webhook.secret_file = \"key\"");
    mirror.write("key", NEW);
    let tables = "[webhooks]\nlisten = \"127.0.0.1:0\"\npath = \"/in\"\ntrusted_proxies = [\"127.0.0.1\"]\n";
    let mut mirror = mirror.tables(tables).start();
    assert!(holds_within(DEADLINE, || address(&mirror).is_some()), "{}", mirror.log());
    let address = address(&mirror).unwrap();

    // When
    for n in 0..4 {
        let headers = format!("{}X-Forwarded-For: 198.51.100.{n}, 203.0.113.9\r\n", bearer("a-wrong-secret"));
        let mut stream = TcpStream::connect(&address).await.unwrap();
        assert_eq!(ask(&mut stream, &post("/in/a", &headers, b"{}")).await.status, 401);
    }
    let ops = mirror.column("SELECT ops_address FROM mirror").remove(0);
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&ops).await.unwrap();
        let wrong =
            format!("POST /api/feeds/a/pause HTTP/1.1\r\nHost: {ops}\r\nConnection: close\r\n{}\r\n", bearer("no"));
        assert_eq!(ask(&mut stream, wrong.as_bytes()).await.status, 401);
    }
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(&address).await.unwrap());
    }

    // Then
    assert!(holds_within(DEADLINE, || mirror.number("SELECT count(*) FROM events WHERE what = 'crowded'") == 1));
    let log = mirror.log();
    let count_lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(count_lines("status=401 why=\"the feed's secret is needed\" from=\"203.0.113.9\""), 1, "{log}");
    assert_eq!(count_lines("a wrong admin token was shown"), 1, "{log}");
    assert_eq!(count_lines("all places are taken"), 1, "{log}");
    assert!(!log.contains("a-wrong-secret"), "{log}");
    drop(crowd);
    assert!(mirror.stop().success(), "{}", mirror.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_ends_the_start() {
    let in_use = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = in_use.local_addr().unwrap();
    let mirror = MirrorProcess::new().feed_with("a", "http://127.0.0.1:9/", "webhook.secret_file = \"key\"");
    let mut mirror = mirror.tables(&format!("[webhooks]\nlisten = \"{listen}\"\n"));
    mirror.write("key", NEW);
    mirror.write_config();
    mirror.spawn();
    assert_eq!(mirror.wait_for_exit().code(), Some(1));
    assert!(mirror.log().contains(&format!("webhooks.listen = {listen}: can't listen there")), "{}", mirror.log());
}
