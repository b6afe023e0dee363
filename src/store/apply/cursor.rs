//! The cursors that a delivery is asked with and moves: one an endpoint, and one a resync.

use rusqlite::{OptionalExtension, params};

use super::{Delivery, Feed, Position, Purpose, SqlModified};
use crate::feed::{Item, State};
use crate::store::writer::Bench;
use crate::store::{StoreError, positions, resync};

/// Whether a polled page was asked for where the stored cursor still is.
pub(super) fn cursor_stands(bench: &Bench<'_>, delivery: &Delivery) -> Result<bool, StoreError> {
    let (sql, step) = match &delivery.purpose {
        Purpose::Poll(step) => ("SELECT cursor FROM endpoint WHERE feed = ?1 AND transport = 0", step),
        Purpose::Resync(step) => ("SELECT cursor FROM resync WHERE feed = ?1 AND stage = 'walk'", step),
        Purpose::Push(Position { after: Some(after), .. }) => {
            let sql = "SELECT cursor FROM endpoint WHERE feed = ?1 AND transport = ?2";
            let stored = bench
                .db
                .prepare_cached(sql)?
                .query_row(params![delivery.feed, delivery.transport.code()], |row| row.get::<_, Option<String>>(0));
            return Ok(stored.optional()?.flatten().as_deref() == Some(after.as_str()));
        }
        Purpose::Push(_) | Purpose::Again => return Ok(true),
    };
    let stored = bench.db.prepare_cached(sql)?.query_row([delivery.feed], |row| row.get::<_, Option<String>>(0));
    Ok(stored.optional()?.flatten().as_deref() == Some(step.asked.as_str()))
}

/// Moves the cursor that the delivery belongs to.
pub(super) fn move_cursor(bench: &Bench<'_>, delivery: &Delivery, feed: &Feed) -> Result<(), StoreError> {
    match &delivery.purpose {
        Purpose::Poll(step) => {
            let last = delivery.page.items.last();
            bench
                .db
                .prepare_cached(
                    "UPDATE endpoint SET cursor = ?2, updated_at = ?3,
                         modified = coalesce(?4, modified), id = coalesce(?5, id),
                         item_at = iif(?5 IS NULL, item_at, ?3)
                     WHERE feed = ?1 AND transport = 0",
                )?
                .execute(params![
                    feed.id,
                    step.cursor,
                    delivery.at,
                    last.map(|item| SqlModified(&item.modified)),
                    last.map(|item| &*item.id)
                ])?;
            if let Some(item) = witness(delivery) {
                positions::record(bench, feed.id, delivery.at, &step.asked, item)?;
            }
        }
        Purpose::Resync(step) => {
            bench
                .db
                .prepare_cached("UPDATE resync SET cursor = ?2, clean = min(clean, ?3) WHERE feed = ?1")?
                .execute(params![feed.id, step.cursor, step.clean])?;
            resync::note_read(bench, delivery)?;
            if let Some(item) = witness(delivery) {
                bench
                    .db
                    .prepare_cached("UPDATE resync SET asked = ?2, kind = ?3, id = ?4 WHERE feed = ?1")?
                    .execute(params![feed.id, step.asked, &*item.kind, &*item.id])?;
            }
        }
        Purpose::Push(position) => move_position(bench, delivery, feed, position)?,
        Purpose::Again => {}
    }
    Ok(())
}

fn move_position(bench: &Bench<'_>, delivery: &Delivery, feed: &Feed, position: &Position) -> rusqlite::Result<()> {
    let last = delivery.page.items.last();
    bench
        .db
        .prepare_cached(
            "UPDATE endpoint SET cursor = coalesce(?3, cursor), event_id = coalesce(?4, event_id),
                 updated_at = ?5, modified = coalesce(?6, modified), id = coalesce(?7, id),
                 item_at = iif(?7 IS NULL, item_at, ?5),
                 delivered = delivered + ?8
             WHERE feed = ?1 AND transport = ?2",
        )?
        .execute(params![
            feed.id,
            delivery.transport.code(),
            position.cursor,
            position.event_id,
            delivery.at,
            last.map(|item| SqlModified(&item.modified)),
            last.map(|item| &*item.id),
            i64::try_from(delivery.page.items.len()).unwrap_or(i64::MAX)
        ])?;
    Ok(())
}

/// The last updated item of a page: while it is live, there is something to find from where the page was asked for.
fn witness(delivery: &Delivery) -> Option<&Item> {
    delivery.page.items.iter().rev().find(|item| item.state == State::Updated)
}
