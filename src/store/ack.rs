//! Acks: the operator silences a feed's alerts until a time, with a note. The feed itself is not changed by an ack.
//!
//! Nothing is written when an ack expires: readers compare its time with the clock.

use rusqlite::params;

use super::writer::JobClass;
use super::{Millis, Store, StoreError, feeds, journal};
use crate::feed::FeedName;

impl Store {
    /// Silences a feed's alerts until a time, in place of an earlier ack; without a time, clears the ack.
    ///
    /// # Errors
    /// When there is no such feed, a statement fails or the writer has stopped.
    pub async fn ack(
        &self,
        name: &FeedName,
        at: Millis,
        until: Option<Millis>,
        note: Option<String>,
    ) -> Result<(), StoreError> {
        let name = name.clone();
        self.submit(JobClass::default(), move |tx| {
            let feed = feeds::read(tx, name.as_str())?.id;
            let sql = "UPDATE feed SET acked_until = ?2, ack_note = ?3 WHERE id = ?1
                       RETURNING strftime('%Y-%m-%dT%H:%M:%fZ', acked_until / 1000.0, 'unixepoch')";
            let note_if_acked = until.and(note.as_deref());
            let until: Option<String> =
                tx.db.prepare_cached(sql)?.query_row(params![feed, until, note_if_acked], |row| row.get(0))?;
            let detail = match (until, note_if_acked) {
                (Some(until), Some(note)) => format!("until {until}: {note}"),
                (Some(until), None) => format!("until {until}"),
                (None, _) => "cleared".to_owned(),
            };
            Ok(journal::record_event(tx, Some(feed), at, "ack", &detail)?)
        })
        .await
    }
}
