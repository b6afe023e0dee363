#![allow(clippy::unwrap_used)]
use futures_util::FutureExt;
use tokio::time::sleep;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// How long a slow publisher may delay a feed of another host, 2 s, and what a loaded machine needs.
const SOON: Duration = Duration::from_secs(4);

/// A page whose bytes arrive at once, as far as memory is free.
async fn read(budget: &MemoryBudget, host: &str, bytes: u64) -> Result<Reservation, Preemption> {
    let mut page = budget.open_page(host, bytes);
    let mut arrived = 0;
    while arrived < bytes {
        arrived = (arrived + 64 * KIB).min(bytes);
        page.receive(std::future::ready(())).await?;
        page.grow_to(arrived).await?;
    }
    page.mark_arrived();
    Ok(page)
}

/// A page of which `bytes` arrive at once, and then one every second.
fn slow_page(budget: &MemoryBudget, host: &str, expected: u64, bytes: u64) -> tokio::task::JoinHandle<Preemption> {
    let (budget, host) = (budget.clone(), host.to_owned());
    tokio::spawn(async move {
        let mut page = budget.open_page(&host, expected);
        let mut arrived = bytes;
        loop {
            if let Err(preemption) = page.grow_to(arrived).await {
                return preemption;
            }
            if let Err(preemption) = page.receive(sleep(Duration::from_secs(1))).await {
                return preemption;
            }
            arrived += 1;
        }
    })
}

/// Waits until the pages of a test's publishers hold what the test needs.
async fn until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < end);
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn before_a_response_begins_nothing_is_held() {
    let budget = MemoryBudget::new(MIB);
    let silent: Vec<_> = (0..300).map(|n| budget.open_page(&format!("silent-{n}"), 40 * MIB)).collect();
    assert_eq!(budget.usage(), (MIB, 0));
    assert_eq!(read(&budget, "b", 512 * KIB).now_or_never().unwrap().unwrap().bytes(), 512 * KIB);
    drop(silent);
}

#[tokio::test]
async fn only_arrived_bytes_are_charged() {
    let budget = MemoryBudget::new(MIB);
    let slow_pages = [slow_page(&budget, "a", 900 * KIB, 8 * KIB), slow_page(&budget, "b", 512 * KIB, 8 * KIB)];
    until(|| budget.usage() == (MIB, 16 * KIB)).await;
    // The bytes that they still expect block no smaller page.
    assert!(read(&budget, "c", 400 * KIB).now_or_never().unwrap().is_ok());
    for task in slow_pages {
        task.abort();
    }
}

#[tokio::test]
async fn slow_pages_are_preempted_by_waiting_pages_and_no_others_are() {
    // Given: 220 hosts hold the whole budget, one of them exceeds it, and each sends a byte a second.
    let budget = MemoryBudget::new(8 * MIB);
    let slow_pages: Vec<_> = (0..220).map(|n| slow_page(&budget, &format!("a-{n}"), 64 * KIB, 64 * KIB)).collect();
    until(|| budget.usage().1 == 8 * MIB).await;
    assert!(budget.describe_wait().contains("8 of 8 MiB"), "{}", budget.describe_wait());

    // When: a page of another host, in many steps.
    let began = Instant::now();
    let page = read(&budget, "b", 2 * MIB).await.unwrap();

    // Then
    assert!(began.elapsed() <= SOON, "{:?}", began.elapsed());
    assert_eq!(page.bytes(), 2 * MIB);
    let preempted = slow_pages.iter().filter(|task| task.is_finished()).count();
    assert!(preempted >= 32, "{preempted}");
    for task in slow_pages {
        task.abort();
    }
}

#[tokio::test]
async fn two_slow_responses_that_declare_the_whole_budget_delay_nobody() {
    let budget = MemoryBudget::new(48 * MIB);
    let slow_pages = ["a", "b"].map(|host| slow_page(&budget, host, 40 * MIB, 30 * MIB));
    until(|| budget.usage().1 == 30 * MIB).await;
    for _ in 0..3 {
        let began = Instant::now();
        read(&budget, "c", 24 * MIB).await.unwrap();
        assert!(began.elapsed() <= SOON);
    }
    for task in slow_pages {
        task.abort();
    }
}

#[tokio::test]
async fn one_page_at_a_time_exceeds_the_budget_and_nobody_deadlocks() {
    let budget = MemoryBudget::new(64 * KIB);
    let mut first = budget.open_page("a", 0);
    first.grow_to(32 * KIB).await.unwrap();
    let mut second = budget.open_page("b", 0);
    second.grow_to(32 * KIB).await.unwrap();
    first.grow_to(MIB).now_or_never().unwrap().unwrap();
    // What the first page held is free again, since the whole page exceeds the budget.
    assert_eq!(budget.usage(), (64 * KIB, 32 * KIB));
    first.mark_arrived();
    assert!(second.grow_to(MIB).now_or_never().is_none());
    drop(first);
    second.grow_to(MIB).now_or_never().unwrap().unwrap();
    // Nobody waits for more than the whole budget.
    assert_eq!(budget.reserve(1 << 30).await.bytes(), 64 * KIB);
}

#[tokio::test]
async fn the_host_that_holds_most_is_preempted_even_where_its_pages_arrive_fast() {
    // Given: a host whose pages arrive at several MiB a second and never end.
    let budget = MemoryBudget::new(4 * MIB);
    let endless: Vec<_> = (0..3)
        .map(|_| {
            let budget = budget.clone();
            tokio::spawn(async move {
                let mut page = budget.open_page("a", 0);
                for n in 1.. {
                    page.receive(sleep(Duration::from_millis(10))).await?;
                    page.grow_to(n * 64 * KIB).await?;
                }
                Ok::<(), Preemption>(())
            })
        })
        .collect();
    until(|| budget.describe_wait().ends_with("; 2 wait)")).await;
    // Then
    for _ in 0..3 {
        let began = Instant::now();
        read(&budget, "b", MIB).await.unwrap();
        assert!(began.elapsed() <= SOON, "{:?}", began.elapsed());
    }
    assert!(endless.iter().any(tokio::task::JoinHandle::is_finished));
    for task in endless {
        task.abort();
    }
}

#[tokio::test]
async fn a_local_page_is_never_preempted() {
    let budget = MemoryBudget::new(MIB);
    let local = read(&budget, "a", MIB).await.unwrap();
    let mut waiting = Box::pin(read(&budget, "b", 512 * KIB));
    // The first waiting page exceeds the budget; the second has to wait for as long as it takes.
    let over_budget = waiting.as_mut().now_or_never().unwrap().unwrap();
    let mut waiting = Box::pin(read(&budget, "c", 512 * KIB));
    assert!(timeout(SOON, &mut waiting).await.is_err());
    local.receive(std::future::ready(())).await.unwrap();
    drop(local);
    assert_eq!(timeout(SOON, waiting).await.unwrap().unwrap().bytes(), 512 * KIB);
    drop(over_budget);
}

#[tokio::test]
async fn nothing_is_requested_while_local_pages_leave_no_room() {
    let budget = MemoryBudget::new(MIB);
    let page = budget.open_page("b", 512 * KIB);
    // The memory of a slow page keeps no other page from being requested.
    let slow = slow_page(&budget, "a", 64 * KIB, MIB);
    until(|| budget.usage().1 == MIB).await;
    page.wait_for_admission(512 * KIB).now_or_never().unwrap();
    slow.abort();
    let _ = slow.await;
    let local = read(&budget, "a", 768 * KIB).await.unwrap();
    let mut asking = Box::pin(page.wait_for_admission(512 * KIB));
    assert!(asking.as_mut().now_or_never().is_none());
    assert!(page.watch().is_waiting());
    drop(local);
    timeout(SOON, asking).await.unwrap();
    assert!(!page.watch().is_waiting());
}

#[tokio::test]
async fn pages_that_have_begun_are_completed() {
    // Given: many more pages at once than there is memory for, all of hosts of their own.
    let budget = MemoryBudget::new(4 * MIB);
    let most = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut pages = tokio::task::JoinSet::new();
    for n in 0..500 {
        let (budget, most) = (budget.clone(), Arc::clone(&most));
        pages.spawn(async move {
            let mut page = budget.open_page(&format!("h-{n}"), 500 * KIB);
            page.grow_to(1).await?;
            for step in 1..=10 {
                page.receive(sleep(Duration::from_millis(2))).await?;
                page.grow_to(step * 50 * KIB).await?;
                most.fetch_max(budget.usage().1, std::sync::atomic::Ordering::Relaxed);
            }
            page.mark_arrived();
            sleep(Duration::from_millis(5)).await;
            Ok::<_, Preemption>(())
        });
    }
    // Then: none is preempted, and as many are under way as there is memory for.
    while let Some(done) = pages.join_next().await {
        done.unwrap().unwrap();
    }
    assert!(most.load(std::sync::atomic::Ordering::Relaxed) > 3 * MIB);
    assert_eq!(budget.usage().1, 0);
}

#[tokio::test]
async fn a_wait_that_is_dropped_holds_nothing() {
    let budget = MemoryBudget::new(MIB);
    let mut page = budget.open_page("a", 0);
    page.grow_to(64 * KIB).await.unwrap();
    let local = read(&budget, "b", 960 * KIB).await.unwrap();
    let over_budget = read(&budget, "c", 64 * KIB).await.unwrap();
    assert!(timeout(SOON, page.grow_to(128 * KIB)).await.is_err());
    assert!(!page.watch().is_waiting());
    assert!(page.waited() >= SOON);
    drop((local, over_budget));
    assert_eq!((page.bytes(), budget.usage().1), (64 * KIB, 64 * KIB));
}

#[tokio::test]
async fn a_preempted_page_that_has_released_its_memory_goes_on() {
    // Given: a slow page that is preempted.
    let budget = MemoryBudget::new(MIB);
    let mut slow = budget.open_page("a", 0);
    slow.grow_to(MIB).await.unwrap();
    let _beyond = read(&budget, "c", 64 * KIB).await.unwrap();
    let waiting = tokio::spawn({
        let budget = budget.clone();
        async move { read(&budget, "b", 512 * KIB).await.map(drop) }
    });
    assert!(slow.receive(std::future::pending::<()>()).await.is_err());
    // When
    slow.shrink_to(0);
    // Then
    waiting.await.unwrap().unwrap();
    slow.grow_to(MIB).await.unwrap();
    assert_eq!(slow.receive(std::future::ready(7)).await, Ok(7));
}

#[tokio::test]
async fn what_is_split_off_is_held_until_it_is_dropped() {
    let budget = MemoryBudget::new(MIB);
    let mut page = budget.open_page("a", 0);
    page.grow_to(256 * KIB).await.unwrap();
    let part = page.split(192 * KIB);
    assert_eq!((page.bytes(), part.bytes(), budget.usage().1), (64 * KIB, 192 * KIB, 256 * KIB));
    page.shrink_to(0);
    drop(page);
    assert_eq!(budget.usage().1, 192 * KIB);
    drop(part);
    assert_eq!(budget.usage().1, 0);
}
