//! A panic in one feed's loops affects no other feed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::fleet::Supervisor;
use super::{ConfiguredFeed, FeedSettings, FleetSettings, control};
use crate::feed::{Attribution, FeedName, Health};
use crate::source::budget::MemoryBudget;
use crate::source::decoder_pool::DecoderPool;
use crate::store::read::Reader;
use crate::store::{Store, now};
use crate::worker::WorkerContext;

const DEADLINE: Duration = Duration::from_secs(30);

/// A publisher of empty pages; counts its requests.
async fn publisher(listener: TcpListener, requests: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let requests = Arc::clone(&requests);
        connections.spawn(async move {
            let mut request = vec![0; 64 << 10];
            while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                requests.add_permits(1);
                let page = r#"{"items":[],"next":"/sound"}"#;
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}", page.len());
                if stream.write_all(format!("{head}\r\n\r\n{page}").as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn quick(name: &str, url: String) -> ConfiguredFeed {
    let mut settings = FeedSettings::with_defaults(FeedName::new(name).unwrap(), url);
    (settings.poll.min, settings.poll.max) = (Duration::from_millis(20), Duration::from_millis(20));
    ConfiguredFeed::Ready(Box::new(settings))
}

#[tokio::test]
async fn a_feed_that_panics_is_started_again_and_the_others_never_notice() {
    // Given
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mirror.db");
    let (store, store_guard) = Store::open(&path).unwrap();
    store.record_start(now(), None, None).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Semaphore::new(0));
    let publisher_task = tokio::spawn(publisher(listener, Arc::clone(&requests)));
    let worker_context = WorkerContext { store, budget: MemoryBudget::new(1 << 20), decoders: DecoderPool::new(1) };
    let mut supervisor = Supervisor::new(worker_context, Default::default());
    let feeds = vec![quick("panics", format!("{base}/panics")), quick("sound", format!("{base}/sound"))];

    // When
    supervisor.load(FleetSettings { feeds, ..FleetSettings::default() }).await.unwrap();
    let (shutdown, (control, orders)) = (CancellationToken::new(), control::channel());
    let (_reloads, reloaded) = mpsc::channel(1);
    let running = tokio::spawn(supervisor.run(orders, reloaded, shutdown.clone()));

    // Then: it panics, is started again, panics again; each restart is an event.
    let restarts = async {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            let events = Reader::open(&path).unwrap().events(Some("panics"), 100).unwrap();
            if events.iter().filter(|event| event.what == "restarted").count() >= 2 {
                return events;
            }
        }
    };
    let events = tokio::time::timeout(DEADLINE, restarts).await.expect("it was started again");
    assert!(
        events.iter().any(|event| event.detail.as_deref().is_some_and(|words| words.contains("as the test wants it"))),
        "{events:?}"
    );
    let rows = Reader::open(&path).unwrap().feeds(&[]).unwrap();
    let health = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.health.clone());
    assert_eq!(health("panics").as_deref(), Some(Health::Retrying.as_str()));
    assert_eq!(health("sound").as_deref(), Some(Health::Ok.as_str()));
    // The other feed is still polled, and orders are still carried out.
    let so_far = u32::try_from(requests.available_permits()).unwrap();
    tokio::time::timeout(DEADLINE, requests.acquire_many(so_far + 10)).await.expect("polled on").unwrap().forget();
    assert!(control.order_feed("sound", control::Order::PollNow).await.is_ok());

    shutdown.cancel();
    running.await.unwrap();
    publisher_task.abort();
    tokio::task::spawn_blocking(move || store_guard.finish()).await.unwrap();
}

#[test]
fn who_publishes_a_feed_changes_nothing_about_how_it_works() {
    let plain = FeedSettings::with_defaults(FeedName::new("acme").unwrap(), "https://acme.example/".into());
    let attribution = Attribution { publisher: Some("Acme".into()), total_items: Some(12), ..Attribution::default() };
    let ready = |settings: FeedSettings| ConfiguredFeed::Ready(Box::new(settings));
    let with_attribution = ready(FeedSettings { attribution: attribution.clone(), ..plain.clone() });
    assert!(ready(plain.clone()).runs_same_as(&with_attribution));
    let moved = ready(FeedSettings { attribution, url: "https://acme.example/b".into(), ..plain });
    assert!(!with_attribution.runs_same_as(&moved));
}
