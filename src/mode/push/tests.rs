#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(30);
const AUDIT: Duration = Duration::from_secs(900);

fn s(seconds: u64) -> Moment {
    Duration::from_secs(seconds)
}

fn settings() -> PushSettings {
    PushSettings { prove_after: s(60), audit: AUDIT, grace: GRACE }
}

fn version(id: &str, modified: i64) -> ItemVersion {
    pushed_version(id, modified, true)
}

fn pushed_version(id: &str, modified: i64, written: bool) -> ItemVersion {
    ItemVersion { kind: "k".into(), id: id.into(), modified: Modified::Int(modified), written }
}

fn record_poll(ledger: &mut PushLedger, now: Moment, found: &[ItemVersion]) {
    ledger.record_poll(now, PollSummary { began: now, found: found.to_vec() });
}

/// Up at 1 s, proven by an item, polled behind at 2 s.
fn live(transport: Transport) -> PushLedger {
    let mut ledger = PushLedger::new(settings(), ModifiedOrder::Standard, [(transport, PushTrust::Unproven)]);
    record_poll(&mut ledger, s(0), &[]);
    ledger.mark_up(transport, s(1));
    record_poll(&mut ledger, s(2), &[]);
    ledger.record_pushed_items(transport, s(3), &[pushed_version("a", 1, true)]);
    ledger
}

#[test]
fn the_way_from_refresh_to_push_and_back() {
    let mut ledger = PushLedger::new(settings(), ModifiedOrder::Standard, [(Transport::Sse, PushTrust::None)]);
    assert_eq!((ledger.mode(), ledger.best_trust()), (Mode::Refresh, PushTrust::Unproven));
    record_poll(&mut ledger, s(0), &[]);
    assert_eq!(ledger.mode(), Mode::Poll);
    ledger.mark_up(Transport::Sse, s(1));
    assert_eq!(ledger.mode(), Mode::Poll, "up, but nobody has proven anything");
    let change = ledger.record_pushed_items(Transport::Sse, s(2), &[pushed_version("a", 1, true)]).unwrap();
    assert_eq!((change.push, change.why.as_str()), (PushTrust::Proven, "proven: it delivered a"));
    assert_eq!(ledger.mode(), Mode::Poll, "what happened before it was up has not been polled yet");
    record_poll(&mut ledger, s(3), &[]);
    assert_eq!(ledger.mode(), Mode::Sse);
    ledger.mark_down(Transport::Sse);
    assert_eq!((ledger.mode(), ledger.best_trust()), (Mode::Poll, PushTrust::Proven));
    ledger.mark_up(Transport::Sse, s(10));
    assert_eq!(ledger.mode(), Mode::Poll);
    record_poll(&mut ledger, s(11), &[version("b", 5)]);
    assert_eq!(ledger.mode(), Mode::Sse, "the poll after a connect counts no misses");
    assert!(ledger.tick(s(100)).is_empty());
}

#[test]
fn a_stream_that_stays_open_is_proven_and_a_webhook_is_not() {
    for (transport, proven) in [(Transport::Sse, true), (Transport::Webhook, false), (Transport::Amqp, false)] {
        let mut ledger = PushLedger::new(settings(), ModifiedOrder::Standard, [(transport, PushTrust::None)]);
        record_poll(&mut ledger, s(0), &[]);
        ledger.mark_up(transport, s(1));
        assert_eq!(ledger.next_tick(), proven.then_some(s(61)));
        assert!(ledger.tick(s(60)).is_empty());
        assert_eq!(!ledger.tick(s(61)).is_empty(), proven, "{transport}");
    }
}

#[test]
fn what_push_never_brings_is_missed_after_the_grace_and_demotes_it() {
    let mut ledger = live(Transport::Webhook);
    record_poll(&mut ledger, s(900), &[version("b", 5), version("c", 5)]);
    assert_eq!(ledger.mode(), Mode::Webhook);
    assert!(ledger.tick(s(930)).is_empty());
    assert_eq!(ledger.next_tick(), Some(s(930) + Duration::from_millis(1)));
    let changes = ledger.tick(s(931));
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].push, PushTrust::Demoted);
    assert!(changes[0].why.starts_with("missed: a poll found 2 items"), "{}", changes[0].why);
    let counts = |missed, late| vec![MissCounts { transport: Transport::Webhook, missed, late }];
    assert_eq!((ledger.take_miss_counts(), ledger.mode()), (counts(2, 0), Mode::Poll));
    assert!(ledger.tick(s(932)).is_empty(), "counted once");
    // What comes afterwards is late, and no proof; a connection that was lost in between changes nothing.
    ledger.mark_down(Transport::Webhook);
    ledger.mark_up(Transport::Webhook, s(935));
    assert_eq!(ledger.record_pushed_items(Transport::Webhook, s(940), &[pushed_version("b", 5, false)]), None);
    assert_eq!(ledger.take_miss_counts(), counts(0, 1));
    assert_eq!(ledger.take_miss_counts(), []);
}

#[test]
fn a_newer_version_within_the_grace_is_no_miss() {
    let mut ledger = live(Transport::Amqp);
    record_poll(&mut ledger, s(900), &[version("b", 5)]);
    ledger.record_pushed_items(Transport::Amqp, s(920), &[pushed_version("b", 6, true)]);
    assert!(ledger.tick(s(2_000)).is_empty());
    assert_eq!(ledger.take_miss_counts(), []);
}

#[test]
fn an_older_version_is_not_what_was_missed() {
    let mut ledger = live(Transport::Amqp);
    record_poll(&mut ledger, s(900), &[version("b", 5)]);
    ledger.record_pushed_items(Transport::Amqp, s(920), &[pushed_version("b", 4, false)]);
    assert_eq!(ledger.tick(s(931)).len(), 1);
}

#[test]
fn what_push_brought_while_the_poll_was_answered_is_no_miss() {
    let mut ledger = live(Transport::Sse);
    ledger.record_pushed_items(Transport::Sse, s(900), &[pushed_version("b", 5, false)]);
    record_poll(&mut ledger, s(900), &[version("b", 5)]);
    assert!(ledger.tick(s(2_000)).is_empty());
}

#[test]
fn nobody_is_blamed_for_our_own_refusals_or_for_time_spent_down() {
    let misses_after_refusal = |at: u64| {
        let mut ledger = live(Transport::Webhook);
        record_poll(&mut ledger, s(900), &[]);
        ledger.record_refusal(s(at));
        record_poll(&mut ledger, s(1_800), &[version("b", 5)]);
        ledger.tick(s(1_831)).len()
    };
    assert_eq!((misses_after_refusal(950), misses_after_refusal(899)), (0, 1));
    let mut ledger = live(Transport::Webhook);
    record_poll(&mut ledger, s(900), &[version("b", 5)]);
    ledger.record_refusal(s(910));
    assert!(ledger.tick(s(931)).is_empty(), "it may have been among what we refused within the grace");
    let mut ledger = live(Transport::Sse);
    ledger.mark_down(Transport::Sse);
    ledger.mark_up(Transport::Sse, s(10));
    record_poll(&mut ledger, s(900), &[version("b", 5)]);
    assert!(ledger.tick(s(931)).is_empty(), "it was not up since the last poll");
}

#[test]
fn after_a_miss_only_something_new_or_in_time_proves_it_again() {
    let demoted = || {
        let mut ledger = live(Transport::Webhook);
        record_poll(&mut ledger, s(900), &[version("b", 5)]);
        ledger.tick(s(931));
        assert_eq!(ledger.best_trust(), PushTrust::Demoted);
        ledger
    };
    assert_eq!(demoted().record_pushed_items(Transport::Webhook, s(940), &[pushed_version("x", 1, false)]), None);
    let new = demoted().record_pushed_items(Transport::Webhook, s(940), &[pushed_version("x", 9, true)]).unwrap();
    assert_eq!(new.push, PushTrust::Proven);
    let mut ledger = demoted();
    record_poll(&mut ledger, s(940), &[version("y", 9)]);
    let proof = ledger.record_pushed_items(Transport::Webhook, s(960), &[pushed_version("y", 9, false)]).unwrap();
    assert_eq!(proof.push, PushTrust::Proven);
    let mut ledger = demoted();
    record_poll(&mut ledger, s(940), &[version("y", 9)]);
    ledger.tick(s(971));
    assert_eq!(
        ledger.record_pushed_items(Transport::Webhook, s(972), &[pushed_version("y", 9, false)]),
        None,
        "after the grace"
    );
}

/// What an endpoint delivers, and whether that proves it.
#[test]
fn only_news_or_what_a_poll_brought_within_the_grace_proves_an_endpoint() {
    let unproven = |transport| {
        // A stream is given no time to prove itself by staying open.
        let settings = PushSettings { prove_after: s(9_999), ..settings() };
        let mut ledger = PushLedger::new(settings, ModifiedOrder::Standard, [(transport, PushTrust::Unproven)]);
        record_poll(&mut ledger, s(0), &[]);
        ledger.mark_up(transport, s(1));
        // A poll has found y, and x long before.
        record_poll(&mut ledger, s(800), &[version("x", 5)]);
        ledger.tick(s(831));
        record_poll(&mut ledger, s(900), &[version("y", 9)]);
        ledger
    };
    let table = [
        ("news", s(905), pushed_version("z", 1, true), true),
        ("what a poll brought just before", s(930), pushed_version("y", 9, false), true),
        ("a newer version of it, which another endpoint had brought", s(930), pushed_version("y", 10, false), true),
        ("an older version of it", s(905), pushed_version("y", 8, false), false),
        ("the same after the grace", s(931), pushed_version("y", 9, false), false),
        ("a body sent again, of what came long ago", s(905), pushed_version("x", 5, false), false),
        ("one of what was there before anything was up", s(905), pushed_version("w", 1, false), false),
    ];
    for transport in [Transport::Sse, Transport::Webhook, Transport::Amqp] {
        for (what, at, version, proves) in &table {
            let mut ledger = unproven(transport);
            ledger.tick(*at);
            let change = ledger.record_pushed_items(transport, *at, std::slice::from_ref(version));
            assert_eq!(change.is_some_and(|change| change.push == PushTrust::Proven), *proves, "{transport}: {what}");
        }
    }
}

/// The page is committed, push delivers the same item, and only then has the poll seen the end.
#[test]
fn what_push_brought_while_the_poll_that_found_it_ran_proves_it() {
    let changes = |at: u64| {
        let mut ledger =
            PushLedger::new(settings(), ModifiedOrder::Standard, [(Transport::Webhook, PushTrust::Unproven)]);
        record_poll(&mut ledger, s(0), &[]);
        ledger.mark_up(Transport::Webhook, s(1));
        assert_eq!(ledger.record_pushed_items(Transport::Webhook, s(at), &[pushed_version("a", 1, false)]), None);
        ledger.record_poll(s(200), PollSummary { began: s(100), found: vec![version("a", 1)] })
    };
    let why: Vec<String> = changes(101).into_iter().map(|change| change.why).collect();
    assert_eq!(why, ["proven: it delivered a"]);
    assert_eq!(changes(99), [], "it came before the poll, which found it all the same: it was erased in between");
    assert_eq!(changes(131), [], "after the grace");
}

#[test]
fn of_several_endpoints_one_that_works_is_enough() {
    let known = [(Transport::Sse, PushTrust::Proven), (Transport::Amqp, PushTrust::Proven)];
    let mut ledger = PushLedger::new(settings(), ModifiedOrder::Standard, known);
    ledger.mark_up(Transport::Sse, s(0));
    ledger.mark_up(Transport::Amqp, s(0));
    record_poll(&mut ledger, s(1), &[]);
    assert_eq!(ledger.mode(), Mode::Sse);
    ledger.mark_down(Transport::Sse);
    assert_eq!(ledger.mode(), Mode::Amqp);
}

#[derive(Clone, Debug)]
enum Input {
    Up,
    Down,
    Refused,
    Pushed(u8, u8, bool),
    Polled(Vec<(u8, u8)>),
    Wait(u16),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let input = prop_oneof![
        Just(Input::Up),
        Just(Input::Down),
        Just(Input::Refused),
        (0..4u8, 0..9u8, any::<bool>()).prop_map(|(id, modified, new)| Input::Pushed(id, modified, new)),
        prop::collection::vec((0..4u8, 0..9u8), 0..4).prop_map(Input::Polled),
        (1..2_000u16).prop_map(Input::Wait),
    ];
    prop::collection::vec(input, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_feed_is_live_only_by_an_endpoint_that_is_up_and_proven_and_is_never_stuck_waiting(inputs in inputs()) {
        let transport = Transport::Webhook;
        let mut ledger = PushLedger::new(settings(), ModifiedOrder::Standard, [(transport, PushTrust::None)]);
        let (mut now, mut up, mut level, mut polled_since_up, mut ever) = (s(0), false, false, false, false);
        let mut found_at: Option<Moment> = None;
        for input in inputs {
            match input {
                Input::Up if !up => {
                    (up, polled_since_up) = (true, false);
                    ledger.mark_up(transport, now);
                }
                Input::Up => ledger.mark_up(transport, now),
                Input::Down => {
                    up = false;
                    ledger.mark_down(transport);
                }
                Input::Refused => ledger.record_refusal(now),
                Input::Pushed(id, modified, written) => {
                    ever = true;
                    let change = ledger.record_pushed_items(transport, now, &[pushed_version(&id.to_string(), i64::from(modified), written)]);
                    prop_assert!(change.is_none() || written || found_at.is_some_and(|at| now - at <= GRACE));
                }
                Input::Polled(found) => {
                    let found: Vec<ItemVersion> =
                        found.iter().map(|(id, modified)| version(&id.to_string(), i64::from(*modified))).collect();
                    record_poll(&mut ledger, now, &found);
                    found_at = if found.is_empty() { found_at } else { Some(now) };
                    (level, polled_since_up) = (true, up);
                }
                Input::Wait(seconds) => now += s(u64::from(seconds)),
            }
            ledger.tick(now);
            if ledger.take_miss_counts().iter().any(|counts| counts.missed > 0) {
                prop_assert!(up, "only what is up misses anything");
                prop_assert_eq!(ledger.best_trust(), PushTrust::Demoted);
            }
            if ledger.mode() == Mode::Webhook {
                prop_assert!(up && level && ever && polled_since_up && ledger.best_trust() == PushTrust::Proven);
            }
            prop_assert_eq!(ledger.mode() == Mode::Refresh, !level);
            // The next tick lies ahead: a loop that sleeps until then neither spins nor misses it.
            prop_assert!(ledger.next_tick().is_none_or(|at| at > now));
        }
    }
}
