//! A second implementation, as simple as possible, of what a mirror must hold. It shares no code with the mirror: even
//! `modified` has an order of its own, over values whose rank is known since they are generated here.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use feedmirror::feed::Modified;
use proptest::prelude::*;

/// A `modified` with its rank in the order, and the publisher's spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OracleModified {
    /// As written in JSON, quotes aside.
    pub(crate) text: String,
    /// Whether it is a JSON number.
    pub(crate) number: bool,
    pub(crate) class: ModifiedClass,
}

/// The three classes of the order, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModifiedClass {
    /// Sign, digits before the point without leading zeros, digits after it without trailing ones.
    Number {
        negative: bool,
        whole: String,
        fraction: String,
    },
    /// Milliseconds since 1970 UTC.
    Instant(i64),
    Text(String),
}

impl ModifiedClass {
    fn number(negative: bool, whole: &str, fraction: &str) -> Self {
        let whole = whole.trim_start_matches('0').to_lowercase();
        let fraction = fraction.trim_end_matches('0').to_owned();
        Self::Number { negative: negative && !(whole.is_empty() && fraction.is_empty()), whole, fraction }
    }

    /// The order of `modified`.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        let number = |class: &Self| match class {
            Self::Number { .. } => 1,
            Self::Instant(_) => 2,
            Self::Text(_) => 3,
        };
        match (self, other) {
            (
                Self::Number { negative: a_negative, whole: a_whole, fraction: a_fraction },
                Self::Number { negative: b_negative, whole: b_whole, fraction: b_fraction },
            ) => {
                let a_size = (a_whole.len(), a_whole, a_fraction);
                let b_size = (b_whole.len(), b_whole, b_fraction);
                match (a_negative, b_negative) {
                    (true, false) => Ordering::Less,
                    (false, true) => Ordering::Greater,
                    (false, false) => a_size.cmp(&b_size),
                    (true, true) => b_size.cmp(&a_size),
                }
            }
            (Self::Instant(a), Self::Instant(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            _ => number(self).cmp(&number(other)),
        }
    }
}

impl OracleModified {
    /// The value as the decoder makes it.
    pub(crate) fn to_modified(&self) -> Modified {
        if self.number { Modified::from_number(&self.text) } else { Modified::Text(self.text.as_str().into()) }
    }

    /// The value as the SQLite file must show it: an integer where it fits 64 bits, the publisher's text otherwise.
    pub(crate) fn in_sql(&self) -> rusqlite::types::Value {
        match self.text.parse::<i64>() {
            Ok(integer) if self.number => rusqlite::types::Value::Integer(integer),
            _ => rusqlite::types::Value::Text(self.text.clone()),
        }
    }
}

fn integer(n: i128, number: bool) -> OracleModified {
    let digits = n.unsigned_abs().to_string();
    OracleModified { text: n.to_string(), number, class: ModifiedClass::number(n < 0, &digits, "") }
}

/// 2024-01-01T00:00:00Z plus so many quarters of a second, written in one of two time zones.
fn date(quarters: i64, east: bool) -> OracleModified {
    let (minutes, seconds, millis) = (quarters / 240, quarters / 4 % 60, quarters % 4 * 250);
    let (hour, zone) = if east { (1, "+01:00") } else { (0, "Z") };
    let fraction = if millis == 0 { String::new() } else { format!(".{millis}") };
    let text = format!("2024-01-01T{hour:02}:{minutes:02}:{seconds:02}{fraction}{zone}");
    OracleModified { text, number: false, class: ModifiedClass::Instant(1_704_067_200_000 + quarters * 250) }
}

/// Values of every class, few enough that ties and changes of order are frequent.
pub(crate) fn modified_values() -> impl Strategy<Value = OracleModified> {
    let fraction = (0..4u8, 0..3usize, 0..2usize).prop_map(|(whole, digit, zeros)| {
        let fraction = format!("{}{}", ["0", "25", "5"][digit], "0".repeat(zeros));
        let class = ModifiedClass::number(false, &whole.to_string(), &fraction);
        OracleModified { text: format!("{whole}.{fraction}"), number: true, class }
    });
    let power = (1..4u8, 1..3usize).prop_map(|(digit, zeros)| {
        let class = ModifiedClass::number(false, &format!("{digit}{}", "0".repeat(zeros)), "");
        OracleModified { text: format!("{digit}e{zeros}"), number: true, class }
    });
    let padded = (0..20u8, 0..4usize).prop_map(|(n, zeros)| {
        let text = format!("{}{n}", "0".repeat(zeros));
        OracleModified { class: ModifiedClass::number(false, &text, ""), text, number: false }
    });
    let hex = (0..5usize, any::<bool>()).prop_map(|(at, upper)| {
        let text = ["00a", "0B", "1f", "00FF", "0000000000000a0"][at];
        let text = if upper { text.to_uppercase() } else { text.to_lowercase() };
        OracleModified { class: ModifiedClass::number(false, &text, ""), text, number: false }
    });
    let opaque = (0..6usize).prop_map(|at| {
        let text = ["v1", "v12", "v2", "", "2024-01-01", "été"][at].to_owned();
        OracleModified { class: ModifiedClass::Text(text.clone()), text, number: false }
    });
    prop_oneof![
        6 => (-3..20i128, any::<bool>()).prop_map(|(n, number)| integer(n, number)),
        2 => (0..4i128).prop_map(|n| integer(638_966_025_666_647_075 + n, true)),
        2 => (0..4i128).prop_map(|n| integer(i128::from(i64::MAX) - 1 + n, true)),
        1 => Just(integer(99_999_999_999_999_999_999, false)),
        2 => fraction,
        1 => power,
        2 => padded,
        2 => hex,
        2 => (0..12i64, any::<bool>()).prop_map(|(quarters, east)| date(quarters, east)),
        1 => opaque,
    ]
}

/// JSON texts by number; of each four, the first three have equal content in different bytes.
pub(crate) fn data(number: u8) -> String {
    let n = number / 4;
    match number % 4 {
        0 => format!("{{\"a\":{n},\"b\":[true,null]}}"),
        1 => format!("{{\"b\":[true,null],\"a\":{n}}}"),
        2 => format!("{{ \"a\" : {n}, \"b\" : [ true, null ] }}"),
        _ => format!("{{\"a\":{n}}}"),
    }
}

fn same_data(a: u8, b: u8) -> bool {
    a / 4 == b / 4 && (a % 4 == 3) == (b % 4 == 3)
}

/// A record as the oracle sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentRecord {
    /// Kind and id.
    pub(crate) key: Key,
    pub(crate) modified: OracleModified,
    /// The number of its data; `None` for a deletion.
    pub(crate) data: Option<u8>,
}

/// Kind and id.
pub(crate) type Key = (String, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    No,
    Resync,
    Trust,
}

/// A row that must exist.
#[derive(Clone, Debug)]
pub(crate) struct OracleRow {
    pub(crate) sent: SentRecord,
    pub(crate) swept: Swept,
    pub(crate) transport: &'static str,
    /// When it was written, by the oracle's own clock, which ticks with each change.
    pub(crate) tick: u64,
}

/// How a record is delivered, as far as the rules depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeliveryWay {
    pub(crate) transport: &'static str,
    pub(crate) resync: bool,
    pub(crate) replace_ties: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApplyOutcome {
    New,
    Changed,
    Same,
    Older,
    Tied,
}

/// Newest wins. `trusted`: a trust-source walk reads a row that was stored before the walk began, and for the first time.
pub(crate) fn expected_outcome(
    stored: Option<&OracleRow>,
    incoming: &SentRecord,
    way: DeliveryWay,
    trusted: bool,
) -> ApplyOutcome {
    let Some(stored) = stored else { return ApplyOutcome::New };
    let same_content = match (stored.sent.data, incoming.data) {
        (None, None) => true,
        (Some(a), Some(b)) => same_data(a, b),
        _ => false,
    };
    if trusted {
        let as_sent = (&stored.sent.modified.text, stored.sent.modified.number);
        let unchanged = as_sent == (&incoming.modified.text, incoming.modified.number) && same_content;
        return if unchanged { ApplyOutcome::Same } else { ApplyOutcome::Changed };
    }
    let polled = way.transport == "poll";
    let order = incoming.modified.class.compare(&stored.sent.modified.class);
    if polled && (stored.swept == Swept::Trust || stored.swept == Swept::Resync && order == Ordering::Equal) {
        return ApplyOutcome::Changed;
    }
    match order {
        Ordering::Greater => ApplyOutcome::Changed,
        Ordering::Less => ApplyOutcome::Older,
        Ordering::Equal if same_content => ApplyOutcome::Same,
        Ordering::Equal if incoming.data.is_none() => ApplyOutcome::Changed,
        Ordering::Equal if stored.sent.data.is_none() => ApplyOutcome::Tied,
        Ordering::Equal if way.resync || way.replace_ties => ApplyOutcome::Changed,
        Ordering::Equal => ApplyOutcome::Tied,
    }
}

/// A walk of a resync, as the oracle sees it.
#[derive(Clone, Debug)]
pub(crate) struct OracleWalk {
    pub(crate) cursor: String,
    pub(crate) trust: bool,
    pub(crate) clean: bool,
    pub(crate) held: bool,
    /// The tick at the walk's beginning.
    pub(crate) start_tick: u64,
    /// Rows seen since, by any delivery, and whether by the walk itself.
    pub(crate) seen: BTreeMap<Key, bool>,
    /// Ids of records quarantined during the walk.
    pub(crate) spared: Vec<String>,
    /// The newest of each kind that the walk read.
    pub(crate) newest: BTreeMap<String, OracleModified>,
}

/// A feed as the mirror must have it.
#[derive(Clone, Debug)]
pub(crate) struct OracleFeed {
    pub(crate) name: &'static str,
    pub(crate) generation: i64,
    pub(crate) cursor: Option<String>,
    pub(crate) purged: bool,
    /// The tick of the last purge.
    pub(crate) purge: Option<u64>,
    pub(crate) rows: BTreeMap<Key, OracleRow>,
    pub(crate) quarantine: BTreeMap<String, i64>,
    pub(crate) walk: Option<OracleWalk>,
}

impl OracleFeed {
    pub(crate) fn new(name: &'static str, cursor: String) -> Self {
        Self {
            name,
            generation: 1,
            cursor: Some(cursor),
            purged: false,
            purge: None,
            rows: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            walk: None,
        }
    }

    /// Applies one record; `tick` is the oracle's clock, which ticks when a row is written.
    pub(crate) fn apply(&mut self, sent: &SentRecord, way: DeliveryWay, tick: &mut u64) -> ApplyOutcome {
        if let Some(walk) = self.walk.as_mut().filter(|_| way.resync) {
            let newest = walk.newest.entry(sent.key.0.clone()).or_insert_with(|| sent.modified.clone());
            if sent.modified.class.compare(&newest.class).is_gt() {
                *newest = sent.modified.clone();
            }
        }
        let stored = self.rows.get(&sent.key);
        let trusted = way.resync
            && self.walk.as_ref().is_some_and(|walk| {
                let stored_before = stored.is_some_and(|row| row.tick <= walk.start_tick);
                walk.trust && stored_before && walk.seen.get(&sent.key) != Some(&true)
            });
        let outcome = expected_outcome(stored, sent, way, trusted);
        if matches!(outcome, ApplyOutcome::New | ApplyOutcome::Changed) {
            *tick += 1;
            let row = OracleRow { sent: sent.clone(), swept: Swept::No, transport: way.transport, tick: *tick };
            self.rows.insert(sent.key.clone(), row);
        } else if let Some(walk) = &mut self.walk {
            let by_walk = walk.seen.entry(sent.key.clone()).or_default();
            *by_walk |= way.resync;
        }
        outcome
    }

    /// Live rows that the running walk has not seen.
    pub(crate) fn unseen(&self) -> Vec<Key> {
        let Some(walk) = &self.walk else { return Vec::new() };
        let is_unseen = |(key, row): &(&Key, &OracleRow)| {
            row.sent.data.is_some()
                && row.tick <= walk.start_tick
                && !walk.seen.contains_key(*key)
                && !walk.spared.contains(&key.1)
        };
        self.rows.iter().filter(is_unseen).map(|(key, _)| key.clone()).collect()
    }

    /// Whether the running walk's listing is short: a row of a kind that it read was polled earlier and is newer than
    /// all that it read.
    pub(crate) fn short(&self) -> bool {
        let Some(walk) = self.walk.as_ref().filter(|walk| !walk.trust) else { return false };
        let is_newer = |(key, row): (&Key, &OracleRow)| {
            let newest = walk.newest.get(&key.0);
            let was_polled_before = row.sent.data.is_some() && row.tick <= walk.start_tick && row.transport == "poll";
            was_polled_before && newest.is_some_and(|newest| row.sent.modified.class.compare(&newest.class).is_gt())
        };
        self.rows.iter().any(is_newer)
    }

    pub(crate) fn live(&self) -> usize {
        self.rows.values().filter(|row| row.sent.data.is_some()).count()
    }

    /// Makes tombstones of the rows that the walk has not seen, all in one tick, and ends the walk.
    pub(crate) fn sweep(&mut self, tick: &mut u64) {
        let trust = self.walk.as_ref().is_some_and(|walk| walk.trust);
        *tick += 1;
        for key in self.unseen() {
            if let Some(row) = self.rows.get_mut(&key) {
                row.sent.data = None;
                row.swept = if trust { Swept::Trust } else { Swept::Resync };
                row.transport = "poll";
                row.tick = *tick;
            }
        }
        self.walk = None;
    }
}
