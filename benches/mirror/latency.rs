//! How long a small delivery waits beside a running refresh.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use feedmirror::decode::rpde::{self, DecodeSettings};
use feedmirror::feed::{FeedName, ModifiedOrder, TiePolicy, Transport};
use feedmirror::store::apply::{Delivery, Purpose, Redactor, ReleaseOnCommit};
use feedmirror::store::feeds::{FeedRegistration, StoredFeed};
use feedmirror::store::{Store, now};

use crate::publisher::item;

const DELIVERIES: u64 = 1_000;
const EVERY: Duration = Duration::from_millis(10);
/// Pages of the refresh that wait for the writer thread, as many as the daemon allows.
const WINDOW: usize = 12;

/// Prints the times from sending a delivery of one item to its commit, while another feed loads.
pub(crate) fn beside_a_refresh(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    println!("a small delivery beside a running refresh");
    let (store, store_guard) = Store::open(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut waits = runtime.block_on(measure(&store))?;
    drop(store);
    store_guard.finish();
    waits.sort_unstable();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1_000.0;
    println!(
        "  committed in    p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms   (p99 within 50 ms)",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    Ok(())
}

async fn measure(store: &Store) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let feeds = ["large", "small"].map(|name| FeedRegistration {
        name: FeedName::new(name).expect("a plain name"),
        provider: None,
        url: format!("http://{name}.example/"),
        attribution: Default::default(),
        config_error: None,
    });
    let stored = store.register(now(), feeds.to_vec(), true).await?;
    let done = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(load(store.clone(), stored[0].clone(), Arc::clone(&done)));
    let mut waits = Vec::new();
    for n in 0..DELIVERIES {
        tokio::time::sleep(EVERY).await;
        let delivery = delivery(&stored[1], 1_000_000_000 + n..1_000_000_001 + n);
        let began = Instant::now();
        store.apply(delivery).await??;
        waits.push(began.elapsed());
    }
    done.store(true, Ordering::Relaxed);
    let loaded = load.await?;
    println!("  meanwhile       {loaded} items loaded");
    Ok(waits)
}

async fn load(store: Store, feed: StoredFeed, done: Arc<AtomicBool>) -> u64 {
    let mut waiting = std::collections::VecDeque::new();
    let mut n = 0;
    while !done.load(Ordering::Relaxed) {
        waiting.push_back(store.apply(delivery(&feed, n..n + 500)));
        n += 500;
        if waiting.len() >= WINDOW
            && let Some(first) = waiting.pop_front()
        {
            let _ = first.await;
        }
    }
    n
}

fn delivery(feed: &StoredFeed, items: std::ops::Range<u64>) -> Delivery {
    let records: Vec<String> = items
        .map(|n| {
            let bench_item = item(n);
            let data = bench_item.data.unwrap_or_else(|| "{}".to_owned());
            let (id, modified) = (bench_item.id, bench_item.modified);
            format!(r#"{{"state":"updated","kind":"k","id":"{id}","modified":{modified},"data":{data}}}"#)
        })
        .collect();
    let page = format!("{{\"items\":[{}]}}", records.join(","));
    let page = rpde::page(page.into_bytes(), &DecodeSettings::default()).expect("a page of our own");
    Delivery {
        feed: feed.id,
        generation: feed.generation,
        transport: Transport::Poll,
        at: now(),
        page,
        purpose: Purpose::Reread,
        order: ModifiedOrder::Standard,
        ties: TiePolicy::Keep,
        start_seq: i64::MAX,
        keep_order: false,
        release_on_commit: ReleaseOnCommit::default(),
        redactor: Redactor::default(),
        provenance: Default::default(),
    }
}
