//! The limit that the file itself sets: a bare writer with the mirror's own tables and settings, without any of its
//! rules.

use std::path::Path;
use std::time::{Duration, Instant};

use feedmirror::store::Store;
use rusqlite::{Connection, params};
use xxhash_rust::xxh3::xxh3_64;

use crate::publisher::item;

const GROUP: u64 = 10_000;

/// Inserts `items` items, made beforehand in groups; returns how long the inserts took.
pub(crate) fn write(path: &Path, items: u64) -> Result<Duration, Box<dyn std::error::Error>> {
    let (store, store_guard) = Store::open(path)?;
    drop(store);
    store_guard.finish();
    let db = Connection::open(path)?;
    db.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA cache_size = -49152; PRAGMA wal_autocheckpoint = 4096;")?;
    let mut spent = Duration::ZERO;
    for start in (0..items).step_by(GROUP as usize) {
        let group: Vec<_> = (start..(start + GROUP).min(items)).map(item).collect();
        let began = Instant::now();
        db.execute_batch("BEGIN IMMEDIATE")?;
        let mut insert = db.prepare_cached("INSERT INTO item VALUES (?1, 1, ?2, 1, 0, ?3, ?4, ?5, ?6, ?7)")?;
        for (n, bench_item) in group.iter().enumerate() {
            let seq = start as i64 + n as i64 + 1;
            let key = (xxh3_64(bench_item.id.as_bytes()) as i64) >> 16;
            let deleted = i64::from(bench_item.data.is_none());
            insert.execute(params![
                seq,
                key,
                deleted,
                1_700_000_000_000_i64,
                bench_item.id,
                bench_item.modified as i64,
                bench_item.data
            ])?;
        }
        drop(insert);
        db.execute_batch("COMMIT")?;
        spent += began.elapsed();
    }
    Ok(spent)
}
