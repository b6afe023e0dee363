use super::*;

#[test]
fn a_page_is_slow_while_its_publisher_is_waited_for_and_not_while_it_waits_for_us() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut ledger = MemoryLedger::new(1 << 20);
    let (page, _) = ledger.open_page(Some("a"), 0);
    assert_eq!(ledger.grow(page, 1 << 19, at(0)), GrowResult::Granted);
    let is_slow = |ledger: &MemoryLedger, ms| ledger.pages[&page].transfer_rate.is_slow(at(ms));
    // Nothing is read of the page for a minute.
    assert!(!is_slow(&ledger, 60_000));
    ledger.set_receiving(page, true, at(60_000));
    assert!(!is_slow(&ledger, 60_999));
    assert!(is_slow(&ledger, 61_000));
    // Bytes that arrive at the least rate keep it from being slow, whatever arrived before.
    ledger.set_receiving(page, false, at(61_000));
    assert!(is_slow(&ledger, 61_000));
    for n in 1..=40 {
        assert_eq!(ledger.grow(page, (1 << 19) + n * 8192, at(61_000 + n * 250)), GrowResult::Granted);
        ledger.set_receiving(page, true, at(61_000 + n * 250));
        assert!(!is_slow(&ledger, 61_240 + n * 250), "{n}");
        ledger.set_receiving(page, false, at(61_250 + n * 250));
    }
    ledger.set_receiving(page, true, at(71_250));
    assert!(is_slow(&ledger, 71_260));
}

#[test]
fn all_held_bytes_are_released_whatever_the_order_of_calls() {
    // Given: pages that open, grow, exceed the budget, shrink, split and close in a pseudo-random order.
    let now = Instant::now();
    let mut ledger = MemoryLedger::new(1 << 20);
    let (mut pages, mut seed) = (Vec::new(), 7_u64);
    for _ in 0..20_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (what, which, bytes) = (seed >> 60, (seed >> 40) as usize, (seed >> 20) % (300 << 10));
        let page = if pages.is_empty() { None } else { Some(which % pages.len()) };
        match (what, page) {
            (0..=3, _) | (_, None) => {
                pages.push(ledger.open_page(["a", "b", "c"].get(which % 4).copied(), bytes).0);
            }
            (4..=8, Some(at)) => {
                let held = ledger.held_bytes(pages[at]);
                if ledger.grow(pages[at], held + bytes, now) == GrowResult::Waiting && bytes % 2 == 0 {
                    ledger.withdraw(pages[at], now);
                }
            }
            (9, Some(at)) => ledger.mark_arrived(pages[at]),
            (10, Some(at)) => ledger.shrink(pages[at], bytes, now),
            (11, Some(at)) => pages.push(ledger.split(pages[at], bytes).0),
            (12, Some(at)) => ledger.preempt_others(pages[at], now + Duration::from_secs(9)),
            (_, Some(at)) => ledger.close_page(pages.swap_remove(at), now),
        }
        let pool = ledger.pages.iter().filter(|(at, _)| ledger.over_budget != Some(**at));
        let (used, ours) = pool.fold((0, 0), |(used, ours), (_, page)| {
            (used + page.held_bytes, ours + if page.is_local { page.held_bytes } else { 0 })
        });
        assert_eq!((ledger.used, ledger.local_bytes), (used, ours));
        let may = |rank: &QueueRank| {
            let page = &ledger.pages[&rank.number];
            page.host.is_some() || page.held_bytes > 0
        };
        assert!(ledger.over_budget.is_some() || !ledger.waiting.iter().any(may));
    }
    // Then
    for page in pages {
        ledger.close_page(page, now);
    }
    assert_eq!((ledger.used, ledger.local_bytes, ledger.over_budget), (0, 0, None));
    assert_eq!((ledger.hosts.len(), ledger.waiting.len(), ledger.pending_by_size.iter().sum::<u64>()), (0, 0, 0));
}
