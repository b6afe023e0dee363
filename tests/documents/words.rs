//! The documents' lists of words: each is whole, stands once, and has no word that the code lacks.

use std::collections::BTreeSet;

use feedmirror::feed::{Health, Mode};
use feedmirror::simulate::FAULTS;
use feedmirror::store::read::CHECKS;

use crate::document::{manual, marked, same, spans, table, text};
use crate::source::{first_text_of_calls, leading_words, modules, quoted_behind};

fn set<T: ToString>(words: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    words.into_iter().map(|word| word.to_string()).collect()
}

#[test]
fn every_reason_of_a_feed_is_listed() {
    let source = modules(&["source", "decode", "mode", "worker", "supervisor", "store"]);
    let mut real = leading_words(&source);
    // The store's own errors, which stand behind `store:`.
    assert!(real.remove("database"));
    for form in ["TreatedAsLevel(", "AssumedLevel("] {
        real.append(&mut quoted_behind(&source, form));
    }
    same("reasons", &marked(&manual(), "reason"), &real);
}

/// The reasons for quarantine that the code gives.
pub(crate) fn quarantine_reasons() -> BTreeSet<String> {
    let source = modules(&["decode", "worker"]);
    let forms = ["fault(", "reason: ", "Err(("];
    forms.iter().flat_map(|form| quoted_behind(&source, form)).collect()
}

#[test]
fn every_reason_for_quarantine_is_listed() {
    same("quarantine reasons", &marked(&manual(), "quarantine"), &quarantine_reasons());
}

#[test]
fn every_reason_for_a_refusal_is_listed() {
    let source = modules(&["store"]);
    let decided = source.split("let reason = match decision {").nth(1).unwrap().split("};").next().unwrap();
    same("refusals", &marked(&manual(), "refusal"), &quoted_behind(decided, "Some("));
}

/// The rules that the code counts.
pub(crate) fn rules() -> BTreeSet<String> {
    let source = modules(&["source", "decode", "worker", "supervisor", "store"]);
    let forms = ["page.add_finding(", "meta.add_finding(", "rule: "];
    let mut real: BTreeSet<String> = forms.iter().flat_map(|form| quoted_behind(&source, form)).collect();
    for pairs in source.split("for (rule, ").skip(1) {
        real.append(&mut quoted_behind(pairs.split(']').next().unwrap(), "("));
    }
    real
}

#[test]
fn every_rule_that_findings_name_is_listed() {
    same("rules", &marked(&manual(), "rule"), &rules());
}

#[test]
fn everything_that_events_tell_of_is_listed() {
    let source = modules(&["worker", "supervisor", "store", "daemon"]);
    let mut real = first_text_of_calls(&source, "event(");
    for chosen in source.split("let (what, detail) = ").skip(1) {
        real.append(&mut quoted_behind(chosen.split("};").next().unwrap(), "("));
    }
    same("events", &marked(&manual(), "what"), &real);
}

#[test]
fn everything_that_verify_looks_for_is_listed() {
    same("checks", &marked(&manual(), "check"), &set(CHECKS));
}

#[test]
fn every_fault_that_simulate_knows_is_listed() {
    same("faults", &marked(&manual(), "fault"), &set(FAULTS.iter().map(|fault| fault.name)));
}

#[test]
fn every_route_of_the_operators_listener_is_listed() {
    let real = quoted(&modules(&["server"]), ".route(");
    same("routes", &marked(&manual(), "route"), &real);
}

/// Everything in quotes right behind `before`, words or not.
fn quoted(source: &str, before: &str) -> BTreeSet<String> {
    set(source.split(before).skip(1).filter_map(|rest| rest.strip_prefix('"')?.split('"').next()))
}

#[test]
fn every_health_is_explained() {
    let explained = table(&text("docs/operating/health.md"), "health").iter().flat_map(|row| spans(&row[0])).collect();
    same("health", &explained, &set(Health::ALL));
}

#[test]
fn every_mode_is_explained() {
    same("modes", &marked(&manual(), "mode"), &set(Mode::ALL));
}
