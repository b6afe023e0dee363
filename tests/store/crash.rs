//! SIGKILL at any moment: acknowledged deliveries are stored, the cursor agrees with the data, no change number is
//! given twice.

use std::collections::BTreeMap;
use std::path::Path;

use feedmirror::feed::{ModifiedOrder, TiePolicy, Transport};
use feedmirror::store::Store;
use feedmirror::store::apply::{Delivery, Purpose, Redactor, ReleaseOnCommit};
use rusqlite::Connection;

use crate::program::{ChildProgram, report_line};
use crate::test_store::{AT, Record, page, registration, step, updated};

const ROUNDS: usize = 20;
const POLLED_IDS: i64 = 120;
const PUSHED_IDS: i64 = 7;
const PAGE_ITEMS: i64 = 5;
/// Pages and pushes that are queued at once.
const QUEUED: i64 = 6;

fn cursor(n: i64) -> String {
    format!("https://acme.example/rpde?at={n}")
}

fn cursor_number(cursor: &str) -> i64 {
    cursor.rsplit_once('=').map_or(0, |(_, n)| n.parse().unwrap())
}

fn item(id: &str, round: i64) -> Record {
    updated(id, round, &format!("{{\"round\":{round}}}"))
}

fn polled(round: i64) -> Vec<Record> {
    (0..PAGE_ITEMS).map(|n| item(&format!("p{}", (round * PAGE_ITEMS + n) % POLLED_IDS), round)).collect()
}

/// The child: applies polled pages and pushes until it is killed, and prints a line for each that is acknowledged.
pub(crate) fn child(file: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, _guard) = Store::open(file).unwrap();
    runtime.block_on(async {
        let feed = store.register(AT, vec![registration("acme")], true).await.unwrap().remove(0);
        let delivery = |transport, purpose, records: &[Record]| Delivery {
            feed: feed.id,
            generation: feed.generation,
            transport,
            at: AT,
            page: page(records, &[]),
            purpose,
            order: ModifiedOrder::Standard,
            ties: TiePolicy::Keep,
            start_seq: i64::MAX,
            keep_order: false,
            release_on_commit: ReleaseOnCommit::default(),
            redactor: Redactor::default(),
            provenance: Default::default(),
        };
        let mut round = cursor_number(feed.cursor.as_deref().unwrap());
        loop {
            let mut pending = Vec::new();
            for round in round..round + QUEUED {
                let from_cursor = if round == 0 { registration("acme").url } else { cursor(round) };
                let page = Purpose::Poll(step(&from_cursor, &cursor(round + 1)));
                pending.push(("polled", round, store.apply(delivery(Transport::Poll, page, &polled(round)))));
                let pushed = [item(&format!("w{}", round % PUSHED_IDS), round)];
                pending.push(("pushed", round, store.apply(delivery(Transport::Webhook, Purpose::Reread, &pushed))));
            }
            for (how, round, pending) in pending {
                pending.await.unwrap().unwrap();
                report_line(&format!("{how} {round}"));
            }
            round += QUEUED;
        }
    });
}

/// What the parent knows of the file.
#[derive(Default)]
struct AcknowledgedWrites {
    /// The polled pages of all rounds below this one were acknowledged.
    polled: i64,
    /// The newest acknowledged push of each id.
    pushed: BTreeMap<i64, i64>,
    changes_by_seq: BTreeMap<i64, (String, i64)>,
}

impl AcknowledgedWrites {
    fn record_line(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("polled", round)) => self.polled = round.parse::<i64>().unwrap() + 1,
            Some(("pushed", round)) => {
                let round: i64 = round.parse().unwrap();
                self.pushed.insert(round % PUSHED_IDS, round);
            }
            _ => {}
        }
    }

    /// Reads the changes with new numbers, as a follower of the mirror does.
    fn follow(&mut self, reader: &Connection) {
        let last = self.changes_by_seq.last_key_value().map_or(0, |(seq, _)| *seq);
        // The last numbers are read again, too: a number must still belong to the same change, or be gone.
        let mut changes = reader.prepare_cached("SELECT seq, id, modified FROM items WHERE seq > ?1").unwrap();
        let changes = changes.query_map([last - 1_000], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
        for (seq, change) in changes.map(Result::unwrap) {
            let before = self.changes_by_seq.entry(seq).or_insert_with(|| change.clone());
            assert_eq!(*before, change, "change number {seq} was given twice");
        }
    }

    fn check(&mut self, file: &Path) {
        let db = Connection::open(file).unwrap();
        let one = |sql: &str| -> i64 { db.query_row(sql, [], |row| row.get(0)).unwrap() };
        let integrity: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(integrity, "ok");
        self.follow(&db);

        let cursor: String = db.query_row("SELECT cursor FROM feeds", [], |row| row.get(0)).unwrap();
        let at = cursor_number(&cursor);
        assert!(at >= self.polled, "acknowledged up to {}, the cursor is at {at}", self.polled);
        let rows = |prefix: &str| -> BTreeMap<String, (i64, String)> {
            let sql = format!("SELECT id, modified, data FROM items WHERE id LIKE '{prefix}%'");
            let mut select = db.prepare(&sql).unwrap();
            let rows = select.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
            rows.map(Result::unwrap).collect()
        };
        let expected: BTreeMap<_, _> = (0..at)
            .flat_map(|round| polled(round).into_iter().map(move |record| (record.id, (round, record.data.unwrap()))))
            .collect();
        assert_eq!(
            rows("p"),
            expected,
            "the polled items are those of the pages before the cursor, no more and no less"
        );
        let pushed = rows("w");
        for (id, acknowledged) in &self.pushed {
            let (modified, data) = &pushed[&format!("w{id}")];
            assert!(modified >= acknowledged, "w{id}: {acknowledged} was acknowledged, {modified} is there");
            assert_eq!(*data, format!("{{\"round\":{modified}}}"));
        }
        assert_eq!(one("SELECT items FROM feeds"), one("SELECT count(*) FROM items"), "the counter agrees");
    }
}

#[test]
fn killed_at_any_moment_the_file_has_all_acknowledged_writes_and_the_cursor_is_never_ahead() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mirror.db");
    let mut known = AcknowledgedWrites::default();
    for _ in 0..ROUNDS {
        let mut child = ChildProgram::start(&[], "crash", &file);
        let lines = rand::random_range(1..=120);
        let mut reader = None;
        for lines_read in 0..lines {
            known.record_line(&child.line().expect("it goes on until it is killed"));
            if lines_read % 10 == 0 {
                known.follow(reader.get_or_insert_with(|| Connection::open(&file).unwrap()));
            }
        }
        for line in child.kill() {
            known.record_line(&line);
        }
        known.check(&file);
    }
    assert!(known.polled > 0 && known.pushed.len() == PUSHED_IDS as usize, "something was acknowledged");
}
