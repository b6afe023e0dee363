//! What there is to tell publishers: every word that the code counts has its section of the standard, and no other.

use std::collections::BTreeSet;

use feedmirror::output::rules::{Departure, REASONS, RULES};

use crate::document::same;
use crate::words::{quarantine_reasons, rules};

fn words(table: &[Departure]) -> BTreeSet<String> {
    table.iter().map(|departure| departure.word.to_owned()).collect()
}

#[test]
fn every_rule_has_its_section_of_the_standard() {
    same("rules in src/output/rules.rs", &words(RULES), &rules());
}

#[test]
fn every_reason_for_quarantine_has_its_section_of_the_standard() {
    same("reasons in src/output/rules.rs", &words(REASONS), &quarantine_reasons());
}

#[test]
fn the_validator_s_rules_are_those_it_has() {
    // openactive/rpde-validator, src/rules/index.js: the rules it registers.
    const REGISTERED: &[&str] = &[
        "AfterTimestampRule",
        "AfterChangeNumberRule",
        "MinimumItemsRule",
        "DeletedItemsRule",
        "DuplicateItemsRule",
        "NextPageValidRule",
        "NextPageNotCurrentPageRule",
        "NextUrlBasePathMatchCurrentPage",
        "RequiredPropertiesRule",
        "RequiredItemPropertiesRule",
        "RequiredPropertyValuesRule",
        "ItemDataPromptRule",
        "NoLastPageItemsRule",
        "LastPageUrlIsSelfRule",
        "HttpStatusRule",
        "HttpContentTypeRule",
        "ValidJsonObjectRule",
        "LastPageCheckRule",
    ];
    for departure in RULES.iter().chain(REASONS) {
        for rule in departure.validator {
            assert!(REGISTERED.contains(rule), "{}: the validator has no {rule}", departure.word);
        }
    }
}
