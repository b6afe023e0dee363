//! Departures from the standard by publisher, as a report to send to the publisher.
//!
//! A publisher is the provider that feeds were configured under, or else the host of their URL. Findings and quarantine
//! reasons are in one list, those that lose records first, each with the standard's section, what to do, a sample, and
//! the feeds that had it. Nothing is computed anew: counts and times are those of the file. Feeds are read one after
//! the other, so that no transaction is long.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use url::Url;

use super::format::{counted, head, number, plain};
use super::rules::{self, Departure, REASONS, RULES};
use crate::store::read::{FeedRow, FindingRow, Reader, StoreError};

/// Characters of a sample.
const MAX_SAMPLE_CHARS: usize = 300;

/// Whose feeds the report covers; all feeds when neither is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReportScope {
    /// This feed alone.
    pub feed: Option<String>,
    /// Feeds of this publisher: a provider's name, or a host's.
    pub provider: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublisherReport {
    /// The provider, or the host.
    pub publisher: String,
    /// The publisher's feeds, with departures or without.
    pub feeds: Vec<ReportFeed>,
    /// Departures: failures before warnings, those that lose records before others, then the most frequent.
    pub findings: Vec<ReportEntry>,
}

/// One feed of a publisher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReportFeed {
    pub feed: String,
    pub url: String,
}

/// One way in which a publisher departs from the standard.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportEntry {
    /// The rule, or the reason for quarantine: a fixed kebab-case word.
    pub rule: String,
    /// Whether the records could not be applied and are in quarantine.
    pub quarantined: bool,
    /// `failure` or `warning`.
    pub severity: &'static str,
    /// What is wrong.
    pub title: &'static str,
    /// The section of the standard that says otherwise.
    pub section: &'static str,
    /// URL of that section.
    pub section_url: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// The rules of `openactive/rpde-validator` for the same departure.
    pub validator_rules: &'static [&'static str],
    /// How often it occurred, over all feeds.
    pub count: i64,
    /// When it was first seen.
    pub first_at: String,
    /// When it was last seen.
    pub last_at: String,
    /// The feeds in which it occurred.
    pub seen: Vec<Occurrence>,
}

/// The occurrences of a departure in one feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Occurrence {
    pub feed: String,
    /// How often it occurred.
    pub count: i64,
    /// When it was first seen.
    pub first_at: String,
    /// When it was last seen.
    pub last_at: String,
    /// The detail of the latest occurrence.
    pub detail: Option<String>,
    /// The beginning of a record in quarantine.
    pub sample: Option<String>,
}

/// Reads the publishers in scope, by name; those without departures have no findings.
///
/// # Errors
/// For a feed or provider that is not in the mirror; when the file can't be read.
pub fn read(reader: &Reader, scope: &ReportScope) -> Result<Vec<PublisherReport>, StoreError> {
    let mut publishers: BTreeMap<String, PublisherReport> = BTreeMap::new();
    for feed in feeds(reader, scope)? {
        let name = publisher(&feed);
        let publisher = publishers.entry(name.clone()).or_insert_with(|| PublisherReport {
            publisher: name,
            feeds: Vec::new(),
            findings: Vec::new(),
        });
        for finding in reader.findings(Some(&feed.name))? {
            let departure = rules::of(RULES, &finding.rule);
            let occurrence = Occurrence {
                feed: finding.feed,
                count: finding.count,
                first_at: finding.first_at,
                last_at: finding.last_at,
                detail: finding.detail,
                sample: None,
            };
            publisher.add_occurrence(finding.rule, false, &departure, occurrence);
        }
        for row in reader.quarantine_reasons(&feed.name)? {
            let departure = rules::of(REASONS, &row.reason);
            let sample = if row.cut { format!("{}…", row.sample) } else { row.sample };
            let occurrence = Occurrence {
                feed: row.feed,
                count: row.count,
                first_at: row.first_at,
                last_at: row.last_at,
                detail: row.detail,
                sample: Some(sample),
            };
            publisher.add_occurrence(row.reason, true, &departure, occurrence);
        }
        publisher.feeds.push(ReportFeed { feed: feed.name, url: feed.url });
    }
    let mut publishers: Vec<PublisherReport> = publishers.into_values().collect();
    for publisher in &mut publishers {
        // `failure` also sorts before `warning` by its letters.
        publisher.findings.sort_by(|a, b| order(a).cmp(&order(b)));
    }
    Ok(publishers)
}

/// The sort key: departures that lose records before others, then the more frequent.
fn order(entry: &ReportEntry) -> (&str, bool, std::cmp::Reverse<i64>, &str) {
    (entry.severity, !entry.quarantined, std::cmp::Reverse(entry.count), &entry.rule)
}

/// The findings alone, as rows, by feed and rule.
///
/// # Errors
/// As [`read`].
pub fn rows(reader: &Reader, scope: &ReportScope) -> Result<Vec<FindingRow>, StoreError> {
    let mut rows = reader.findings(scope.feed.as_deref())?;
    if scope.provider.is_some() {
        let feeds = feeds(reader, scope)?;
        rows.retain(|row| feeds.iter().any(|feed| feed.name == row.feed));
    }
    Ok(rows)
}

/// The feeds in scope, by name.
///
/// # Errors
/// As [`read`].
fn feeds(reader: &Reader, scope: &ReportScope) -> Result<Vec<FeedRow>, StoreError> {
    let named: Vec<String> = scope.feed.iter().cloned().collect();
    let mut feeds = reader.feeds(&named)?;
    if let Some(provider) = &scope.provider {
        feeds.retain(|feed| publisher(feed) == *provider);
        if feeds.is_empty() {
            return Err(StoreError::Refused(format!("there is no provider {provider} in the mirror")));
        }
    }
    Ok(feeds)
}

/// The provider that a feed was configured under, or else the host of its URL.
fn publisher(feed: &FeedRow) -> String {
    if let Some(provider) = &feed.provider {
        return provider.clone();
    }
    let Ok(url) = Url::parse(&feed.url) else { return feed.name.clone() };
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => feed.name.clone(),
    }
}

impl PublisherReport {
    fn add_occurrence(&mut self, rule: String, quarantined: bool, departure: &Departure, occurrence: Occurrence) {
        let known = self.findings.iter().position(|entry| entry.rule == rule && entry.quarantined == quarantined);
        let Some(known) = known else {
            self.findings.push(ReportEntry::new(rule, quarantined, departure, occurrence));
            return;
        };
        let entry = &mut self.findings[known];
        entry.count = entry.count.saturating_add(occurrence.count);
        // RFC 3339 in UTC, all of one length: text compares as time does.
        entry.first_at = entry.first_at.clone().min(occurrence.first_at.clone());
        entry.last_at = entry.last_at.clone().max(occurrence.last_at.clone());
        entry.seen.push(occurrence);
    }
}

impl ReportEntry {
    fn new(rule: String, quarantined: bool, departure: &Departure, occurrence: Occurrence) -> Self {
        Self {
            rule,
            quarantined,
            severity: departure.severity.as_str(),
            title: departure.title,
            section: departure.section.title,
            section_url: departure.section.url,
            remedy: departure.remedy,
            validator_rules: departure.validator,
            count: occurrence.count,
            first_at: occurrence.first_at.clone(),
            last_at: occurrence.last_at.clone(),
            seen: vec![occurrence],
        }
    }
}

/// Writes the report as text to be pasted into an e-mail: lines are no longer than their longest word needs, and
/// contain nothing that commands a terminal.
///
/// # Errors
/// When `out` can't be written.
pub fn text(out: &mut impl Write, publishers: &[PublisherReport]) -> io::Result<()> {
    let (departing, well): (Vec<_>, Vec<_>) = publishers.iter().partition(|publisher| !publisher.findings.is_empty());
    for (at, publisher) in departing.iter().enumerate() {
        if at > 0 {
            writeln!(out, "\n{}\n", "-".repeat(72))?;
        }
        write_publisher(out, publisher)?;
    }
    if departing.is_empty() {
        return writeln!(out, "no findings");
    }
    if well.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = well.iter().map(|publisher| publisher.publisher.as_str()).collect();
    writeln!(out, "\n{}\n\nnothing to tell: {}", "-".repeat(72), plain(&names.join(", ")))
}

fn write_publisher(out: &mut impl Write, publisher: &PublisherReport) -> io::Result<()> {
    let points = publisher.findings.len() as i64;
    writeln!(
        out,
        "Realtime Paged Data Exchange (RPDE): {} about the feeds of {}",
        counted(points, "point"),
        plain(&publisher.publisher)
    )?;
    writeln!(out, "as a consumer saw them; times are UTC, and samples the latest\n")?;
    for feed in &publisher.feeds {
        writeln!(out, "  {}: {}", plain(&feed.feed), plain(&feed.url))?;
    }
    for (at, entry) in publisher.findings.iter().enumerate() {
        writeln!(out)?;
        point(out, at + 1, entry)?;
    }
    Ok(())
}

fn point(out: &mut impl Write, at: usize, entry: &ReportEntry) -> io::Result<()> {
    let lost = if entry.quarantined { "; these records could not be taken" } else { "" };
    writeln!(out, "{at}. {} ({}, {}{lost})", entry.title, plain(&entry.rule), entry.severity)?;
    writeln!(out, "   Standard:   {}", entry.section)?;
    writeln!(out, "               {}", entry.section_url)?;
    if !entry.validator_rules.is_empty() {
        writeln!(out, "   Validator:  {} (openactive/rpde-validator)", entry.validator_rules.join(", "))?;
    }
    writeln!(out, "   What to do: {}", entry.remedy)?;
    for occurrence in &entry.seen {
        writeln!(
            out,
            "   Seen in {}: {}, first {}, last {}",
            plain(&occurrence.feed),
            times(occurrence.count),
            occurrence.first_at,
            occurrence.last_at
        )?;
        if let Some(detail) = &occurrence.detail {
            writeln!(out, "     {}", head(&plain(detail), MAX_SAMPLE_CHARS))?;
        }
        if let Some(sample) = &occurrence.sample {
            writeln!(out, "     sample: {}", plain(sample))?;
        }
    }
    Ok(())
}

fn times(count: i64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{} times", number(count)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn seen(feed: &str, count: i64, first: &str, last: &str) -> Occurrence {
        let at = |day: &str| format!("2026-01-{day}T00:00:00.000Z");
        let sample = Some("{\"a\":1}\u{1b}[2J".to_owned());
        Occurrence {
            feed: feed.into(),
            count,
            first_at: at(first),
            last_at: at(last),
            detail: Some("x".into()),
            sample,
        }
    }

    fn publisher_with(entries: &[(&str, &[Departure], Occurrence)]) -> PublisherReport {
        let mut publisher = PublisherReport { publisher: "acme".into(), feeds: Vec::new(), findings: Vec::new() };
        for (word, table, seen) in entries {
            publisher.add_occurrence((*word).into(), true, &rules::of(table, word), seen.clone());
        }
        publisher
    }

    #[test]
    fn one_departure_of_two_feeds_is_one_point_over_both() {
        let entries = [("no-id", REASONS, seen("a", 2, "03", "05")), ("no-id", REASONS, seen("b", 5, "01", "04"))];
        let publisher = publisher_with(&entries);
        let entry = &publisher.findings[0];
        assert_eq!((publisher.findings.len(), entry.count, entry.seen.len()), (1, 7, 2));
        assert_eq!((&entry.first_at[8..10], &entry.last_at[8..10]), ("01", "05"));
    }

    #[test]
    fn the_text_obeys_nobody_and_says_when_there_is_nothing() {
        let mut out = Vec::new();
        text(&mut out, &[publisher_with(&[("no-id", REASONS, seen("a", 1, "01", "01"))])]).unwrap();
        let letter = String::from_utf8(out).unwrap();
        assert!(letter.contains("sample: {\"a\":1}\u{fffd}[2J\n") && letter.contains(": once, first 2026"), "{letter}");
        let mut out = Vec::new();
        text(&mut out, &[publisher_with(&[])]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "no findings\n");
    }
}
