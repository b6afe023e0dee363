//! Comparing and moving the cursors: each endpoint has one, and each resync.

use rusqlite::{OptionalExtension, params};

use super::{Delivery, FeedState, Purpose, PushPosition, SqlModified};
use crate::feed::{Item, ItemState};
use crate::store::writer::WriteTx;
use crate::store::{StoreError, positions, resync};

/// Whether the delivery was requested with the cursor that is still stored.
pub(super) fn cursor_matches(tx: &WriteTx<'_>, delivery: &Delivery) -> Result<bool, StoreError> {
    let (sql, step) = match &delivery.purpose {
        Purpose::Poll(step) => ("SELECT cursor FROM endpoint WHERE feed = ?1 AND transport = 0", step),
        Purpose::Resync(step) => ("SELECT cursor FROM resync WHERE feed = ?1 AND stage = 'walk'", step),
        Purpose::Push(PushPosition { from_cursor: Some(from_cursor), .. }) => {
            let sql = "SELECT cursor FROM endpoint WHERE feed = ?1 AND transport = ?2";
            let stored = tx
                .db
                .prepare_cached(sql)?
                .query_row(params![delivery.feed, delivery.transport.code()], |row| row.get::<_, Option<String>>(0));
            return Ok(stored.optional()?.flatten().as_deref() == Some(from_cursor.as_str()));
        }
        Purpose::Push(_) | Purpose::Reread => return Ok(true),
    };
    let stored = tx.db.prepare_cached(sql)?.query_row([delivery.feed], |row| row.get::<_, Option<String>>(0));
    Ok(stored.optional()?.flatten().as_deref() == Some(step.from_cursor.as_str()))
}

/// Moves the delivery's cursor.
pub(super) fn move_cursor(tx: &WriteTx<'_>, delivery: &Delivery, feed: &FeedState) -> Result<(), StoreError> {
    match &delivery.purpose {
        Purpose::Poll(step) => {
            let last = delivery.page.items.last();
            tx.db
                .prepare_cached(
                    "UPDATE endpoint SET cursor = ?2, updated_at = ?3,
                         modified = coalesce(?4, modified), id = coalesce(?5, id),
                         item_at = iif(?5 IS NULL, item_at, ?3)
                     WHERE feed = ?1 AND transport = 0",
                )?
                .execute(params![
                    feed.id,
                    step.next_cursor,
                    delivery.at,
                    last.map(|item| SqlModified(&item.modified)),
                    last.map(|item| &*item.id)
                ])?;
            if let Some(item) = last_updated_item(delivery) {
                positions::record(tx, feed.id, delivery.at, &step.from_cursor, item)?;
            }
        }
        Purpose::Resync(step) => {
            tx.db
                .prepare_cached("UPDATE resync SET cursor = ?2, clean = min(clean, ?3) WHERE feed = ?1")?
                .execute(params![feed.id, step.next_cursor, step.clean])?;
            resync::record_progress(tx, delivery)?;
            if let Some(item) = last_updated_item(delivery) {
                tx.db
                    .prepare_cached("UPDATE resync SET asked = ?2, kind = ?3, id = ?4 WHERE feed = ?1")?
                    .execute(params![feed.id, step.from_cursor, &*item.kind, &*item.id])?;
            }
        }
        Purpose::Push(position) => move_push_position(tx, delivery, feed, position)?,
        Purpose::Reread => {}
    }
    Ok(())
}

fn move_push_position(
    tx: &WriteTx<'_>,
    delivery: &Delivery,
    feed: &FeedState,
    position: &PushPosition,
) -> rusqlite::Result<()> {
    let last = delivery.page.items.last();
    tx.db
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

/// The last updated item of a page: while it is live, a look-back from the page's URL must find an item.
fn last_updated_item(delivery: &Delivery) -> Option<&Item> {
    delivery.page.items.iter().rev().find(|item| item.state == ItemState::Updated)
}
