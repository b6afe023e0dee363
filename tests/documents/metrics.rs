//! The table of metrics, the dashboard and the alert rules: they name metrics and labels that the code exports.

use std::collections::{BTreeMap, BTreeSet};

use feedmirror::output::metrics::{METRICS, MetricType};
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::document::{same, spans, table, text};

const RULES: &str = "contrib/prometheus/feedmirror.rules.yml";
const DASHBOARD: &str = "contrib/grafana/feedmirror.json";

/// What Prometheus adds itself.
const SCRAPED: [&str; 2] = ["job", "instance"];

/// PromQL's words that the rules and the dashboard use.
const WORDS: &[&str] = &[
    "absent",
    "and",
    "bool",
    "by",
    "changes",
    "count",
    "group_left",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "min_over_time",
    "offset",
    "on",
    "or",
    "predict_linear",
    "rate",
    "sum",
    "topk",
    "unless",
    "vector",
];

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What an expression may name: series with their labels.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let mut series = BTreeMap::from([("up".to_owned(), set(&SCRAPED))]);
    for metric in METRICS {
        let labels: BTreeSet<String> = set(&SCRAPED).into_iter().chain(set(metric.labels)).collect();
        if metric.kind != MetricType::Histogram {
            series.insert(metric.name.to_owned(), labels);
            continue;
        }
        for part in ["sum", "count"] {
            series.insert(format!("{}_{part}", metric.name), labels.clone());
        }
        let with_bounds = labels.into_iter().chain(set(&["le"])).collect();
        series.insert(format!("{}_bucket", metric.name), with_bounds);
    }
    series
}

/// What an expression names.
#[derive(Debug, Default, PartialEq)]
struct ExpressionNames {
    /// Series, each with the labels it is asked by.
    series: Vec<(String, BTreeSet<String>)>,
    /// Labels that series are joined or grouped by.
    grouped: BTreeSet<String>,
    /// Everything else that is a word.
    words: BTreeSet<String>,
}

/// Reads an expression; what stands in quotes is no name.
fn named(expression: &str) -> ExpressionNames {
    let mut named = ExpressionNames::default();
    let is_name = |sign: char| sign.is_ascii_alphanumeric() || "_:$".contains(sign);
    let mut rest = expression;
    while let Some(at) = rest.find(is_name) {
        rest = &rest[at..];
        let end = rest.find(|sign| !is_name(sign)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        let follows = after.trim_start();
        if word.starts_with(|first: char| first.is_ascii_digit() || first == '$') {
            continue;
        }
        if ["by", "on", "group_left"].contains(&word) && follows.starts_with('(') {
            let (inside, after) = follows[1..].split_once(')').unwrap_or_else(|| panic!("no end: {expression}"));
            named.grouped.extend(inside.split(',').map(|label| label.trim().to_owned()));
            rest = after;
        } else if let Some(asked) = follows.strip_prefix('{') {
            let (labels, after) = matchers(asked);
            named.series.push((word.to_owned(), labels));
            rest = after;
        } else if word.contains(':') || word.starts_with("feedmirror_") || word == "up" {
            named.series.push((word.to_owned(), BTreeSet::new()));
        } else {
            named.words.insert(word.to_owned());
        }
    }
    named
}

/// `a="x",b=~"y"} rest` → the labels, and the rest.
fn matchers(text: &str) -> (BTreeSet<String>, &str) {
    let (mut labels, mut rest) = (BTreeSet::new(), text);
    loop {
        let (label, value) = rest.split_once(['=', '!']).unwrap_or_else(|| panic!("no matcher: {text}"));
        labels.insert(label.trim().to_owned());
        let (_, value) = value.split_once('"').unwrap();
        let (_, after) = value.split_once('"').unwrap();
        match after.trim_start().strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, after.trim_start().strip_prefix('}').unwrap_or_else(|| panic!("no end: {text}"))),
        }
    }
}

/// Fails where an expression names what is not there.
fn check(expression: &str, series: &BTreeMap<String, BTreeSet<String>>) {
    let named = named(expression);
    assert!(!named.series.is_empty(), "names no series: {expression}");
    let mut known = set(&["le"]);
    for (name, asked) in &named.series {
        let labels = series.get(name).unwrap_or_else(|| panic!("there is no {name}: {expression}"));
        let strange: Vec<&String> = asked.difference(labels).collect();
        assert!(strange.is_empty(), "{name} has no {strange:?}: {expression}");
        known.extend(labels.iter().cloned());
    }
    let strange: Vec<&String> = named.grouped.difference(&known).collect();
    assert!(strange.is_empty(), "none of its series has {strange:?}: {expression}");
    let strange: Vec<&String> = named.words.iter().filter(|word| !is_promql(word)).collect();
    assert!(strange.is_empty(), "{strange:?} is no word of PromQL: {expression}");
}

fn is_promql(word: &str) -> bool {
    WORDS.contains(&word)
}

/// The rules, each as its mapping.
fn rules() -> Vec<Yaml> {
    let whole = YamlLoader::load_from_str(&text(RULES)).unwrap_or_else(|error| panic!("{RULES}: {error}"));
    let groups = whole[0]["groups"].as_vec().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_vec().expect("rules").clone()).collect()
}

/// What is exported, and what the rules record; a recorded series may have any label of what it is made from.
fn exported_and_recorded() -> BTreeMap<String, BTreeSet<String>> {
    let mut series = exported();
    for rule in rules() {
        let Some(record) = rule["record"].as_str() else { continue };
        let made_of = named(rule["expr"].as_str().unwrap());
        let labels = made_of.series.iter().filter_map(|(name, _)| series.get(name)).flatten().cloned().collect();
        series.insert(record.to_owned(), labels);
    }
    series
}

#[test]
fn every_metric_is_listed_with_its_labels() {
    let written = |name: &str, labels: &[String]| format!("{name} {}", labels.join(", "));
    let documented = table(&text("docs/reference/metrics.md"), "metric")
        .iter()
        .map(|row| written(&spans(&row[0])[0], &spans(&row[1])))
        .collect();
    let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
    let real = METRICS.iter().map(|metric| written(metric.name, &labels(metric.labels))).collect();
    same("metrics", &documented, &real);
}

#[test]
fn a_metric_s_name_says_its_unit_and_type() {
    for metric in METRICS {
        let counter = metric.kind == MetricType::Counter;
        assert_eq!(metric.name.ends_with("_total"), counter, "{}", metric.name);
        assert_eq!(metric.name.ends_with("_info"), metric.kind == MetricType::Info, "{}", metric.name);
        assert!(metric.name.starts_with("feedmirror_"), "{}", metric.name);
        assert!(!metric.help.ends_with('.') && metric.help.len() > 10, "{}", metric.name);
    }
}

#[test]
fn every_alert_asks_for_what_is_exported_and_says_whom_it_wakes_and_why() {
    let series = exported_and_recorded();
    let mut alerts = BTreeSet::new();
    for rule in rules() {
        check(rule["expr"].as_str().unwrap_or_else(|| panic!("no expr: {rule:?}")), &series);
        let Some(alert) = rule["alert"].as_str() else { continue };
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["page", "digest"].contains(&severity), "{alert}: {severity}");
        for words in ["summary", "description"] {
            assert!(rule["annotations"][words].as_str().is_some_and(|words| !words.is_empty()), "{alert}: {words}");
        }
        assert!(alerts.insert(alert.to_owned()), "{alert} stands twice");
    }
    let documented =
        table(&text("docs/operating/monitoring.md"), "alert").iter().map(|row| spans(&row[0]).remove(0)).collect();
    same("alerts", &documented, &alerts);
}

#[test]
fn no_alert_about_a_feed_ignores_an_ack() {
    let acked = |expression: &str| expression.contains("unless on (instance, feed) feedmirror_feed_acked == 1");
    let rules = rules();
    let of = |rule: &Yaml| rule["expr"].as_str().unwrap().to_owned();
    let recorded: Vec<(String, String)> =
        rules.iter().filter_map(|rule| Some((rule["record"].as_str()?.to_owned(), of(rule)))).collect();
    let heeds = |expression: &str| {
        acked(expression) || recorded.iter().any(|(name, made_of)| expression.contains(name.as_str()) && acked(made_of))
    };
    for rule in rules.iter().filter(|rule| rule["alert"].as_str().is_some()) {
        let expression = of(rule);
        let about_feeds = ["feedmirror_feed_", "feedmirror_endpoint_"].iter().any(|name| expression.contains(name));
        let counted = expression.contains("instance:feedmirror_level_broken:ratio");
        assert!(!about_feeds || counted || heeds(&expression), "{:?} heeds no ack", rule["alert"]);
    }
    let ratio = recorded.iter().find(|(name, _)| name == "instance:feedmirror_level_broken:ratio").unwrap();
    assert!(heeds(&ratio.1), "the share counts acked feeds");
}

#[test]
fn every_panel_and_variable_of_the_dashboard_asks_for_what_is_exported() {
    let dashboard: Value = serde_json::from_str(&text(DASHBOARD)).unwrap();
    let series = exported();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut expressions) = (BTreeSet::new(), 0);
    for panel in panels {
        assert!(ids.insert(panel["id"].as_i64().unwrap()), "{}: its id stands twice", panel["title"]);
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        assert!(!targets.is_empty() || panel["type"] == "row", "{} shows nothing", panel["title"]);
        for target in targets {
            check(target["expr"].as_str().unwrap(), &series);
            expressions += 1;
        }
    }
    assert!(expressions > 20, "only {expressions} expressions were found");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let query = variable["definition"].as_str().unwrap();
        let (asked, label) =
            query.strip_prefix("label_values(").unwrap().trim_end_matches(')').rsplit_once(", ").unwrap();
        check(asked, &series);
        assert!(series[&named(asked).series[0].0].contains(label), "{query}");
    }
}

#[test]
fn names_are_found_in_expressions() {
    let found =
        named(r#"sum by (le, a) (rate(feedmirror_x_bucket{a="b{c",d=~"e"}[$__rate_interval])) > 0.2 * up or x:y:z"#);
    let series = [("feedmirror_x_bucket", vec!["a", "d"]), ("up", vec![]), ("x:y:z", vec![])];
    assert_eq!(found.series, series.map(|(name, labels)| (name.to_owned(), set(&labels))));
    assert_eq!(found.grouped, set(&["a", "le"]));
    assert_eq!(found.words, set(&["sum", "rate", "or"]));
}

#[test]
#[should_panic(expected = "there is no feedmirror_nothing")]
fn a_metric_that_is_not_exported_is_noticed() {
    check("feedmirror_nothing == 1", &exported());
}

#[test]
#[should_panic(expected = "has no")]
fn a_label_that_a_metric_does_not_have_is_noticed() {
    check(r#"feedmirror_feed_items{health="ok"} == 1"#, &exported());
}
