//! Feeds and their poll endpoints in the store: registering, recording health and mode, pausing, seeking. Nothing is
//! decided here about when or how a feed is read.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::feed_url::{is_moved, rebase_cursor};
use super::resync::{self, ResyncState, SourceTrust};
use super::writer::{JobClass, WriteTx};
use super::{Millis, Store, StoreError, journal, purge};
use crate::feed::{Attribution, FeedName, Generation, Health, Mode, Seq};

/// A feed as configured.
#[derive(Clone, Debug)]
pub struct FeedRegistration {
    pub name: FeedName,
    pub provider: Option<String>,
    /// The poll endpoint's URL.
    pub url: String,
    /// Publisher and terms.
    pub attribution: Attribution,
    /// Why the feed can't run, when its own settings are wrong.
    pub config_error: Option<String>,
}

/// A feed as stored.
#[derive(Clone, Debug)]
pub struct StoredFeed {
    /// The feed's number in this file.
    pub id: i64,
    /// A delivery that was read under an older generation is discarded.
    pub generation: Generation,
    /// The poll cursor; `None` while a resync has to find a new one, or after a purge.
    pub cursor: Option<String>,
    /// What keeps the feed current.
    pub mode: Mode,
    /// The poll endpoint's health.
    pub health: Health,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    pub since: Option<Millis>,
    /// Stopped by the operator.
    pub paused: bool,
    /// Purged, and not read until resumed.
    pub purged: bool,
    /// Errors in a row.
    pub failures: u32,
    /// When the feed's end was last seen.
    pub level_at: Option<Millis>,
    /// When a poll last succeeded.
    pub polled_at: Option<Millis>,
    /// When the next poll is due.
    pub next_poll_at: Option<Millis>,
    /// When the last automatic resync began.
    pub resynced_at: Option<Millis>,
    /// When the feed was last read from beginning to end.
    pub read_anew_at: Option<Millis>,
    /// When the last completed look-back began.
    pub looked_back_at: Option<Millis>,
    /// Number of look-backs that are due at once.
    pub look_back_due: i64,
    /// The publisher asked for no request before this time.
    pub held_until: Option<Millis>,
    /// How long the feed has been gone, as the sum of the waits between probes.
    pub gone_for: Duration,
    /// When the feed was last read before an absence about which nothing is decided yet ([`Store::resolve_away`]).
    pub away_since: Option<Millis>,
    /// The last change number given when this row was read.
    pub last_seq: Seq,
    /// Not read for longer than the publisher keeps tombstones: to be resynced once level.
    pub stale: bool,
    /// The resync under way.
    pub resync: Option<ResyncState>,
}

/// A poll endpoint's health now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthNote {
    pub health: Health,
    /// Why.
    pub reason: Option<String>,
    /// Errors in a row.
    pub failures: u32,
    /// When the next poll is due.
    pub next_poll_at: Option<Millis>,
}

impl Store {
    /// Records a start of this program.
    ///
    /// # Errors
    /// When the statement fails or the writer has stopped.
    pub async fn record_start(
        &self,
        at: Millis,
        ops_address: Option<String>,
        webhooks_address: Option<String>,
    ) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let version = env!("CARGO_PKG_VERSION");
            let sql = "UPDATE mirror_state SET version = ?1, started_at = ?2, ops_address = ?3, webhooks_address = ?4";
            tx.db.execute(sql, params![version, at, ops_address, webhooks_address])?;
            Ok(journal::record_event(tx, None, at, "started", &format!("feedmirror {version}"))?)
        })
        .await
    }

    /// Stores the address of the webhook listener.
    ///
    /// # Errors
    /// When the statement fails or the writer has stopped.
    pub async fn set_webhooks_address(&self, address: Option<String>) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            tx.db.execute("UPDATE mirror_state SET webhooks_address = ?1", params![address])?;
            Ok(())
        })
        .await
    }

    /// Stores the configured feeds; with `all`, stored feeds that are not among them become `removed`.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn register(
        &self,
        at: Millis,
        feeds: Vec<FeedRegistration>,
        all: bool,
    ) -> Result<Vec<StoredFeed>, StoreError> {
        self.submit(JobClass::default(), move |tx| register_all(tx, at, &feeds, all)).await
    }

    /// The feed as stored now.
    ///
    /// # Errors
    /// When there is no such feed, a statement fails or the writer has stopped.
    pub async fn feed(&self, name: &FeedName) -> Result<StoredFeed, StoreError> {
        let name = name.clone();
        self.submit(JobClass::default(), move |tx| read(tx, name.as_str())).await
    }

    /// Records a poll endpoint's health. A suspect feed stays suspect while it answers; a late note for a feed that was
    /// paused or purged meanwhile changes nothing.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn record_health(&self, feed: i64, at: Millis, note: HealthNote) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let updated = tx
                .db
                .prepare_cached("UPDATE feed SET failures = ?2, next_poll_at = ?3 WHERE id = ?1 AND paused = 0")?
                .execute(params![feed, note.failures, note.next_poll_at])?;
            if updated == 0 {
                return Ok(());
            }
            set_health(tx, feed, at, note.health, note.reason.as_deref())
        })
        .await
    }

    /// Stores why a healthy feed waits, until the next health note.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn note_waiting(&self, feed: i64, reason: String) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let sql = "UPDATE endpoint SET reason = ?2 WHERE feed = ?1 AND transport = 0 AND health = 'ok'";
            tx.db.prepare_cached(sql)?.execute(params![feed, reason])?;
            Ok(())
        })
        .await
    }

    /// Marks a feed whose publisher contradicts the mirror as suspect; only a resync ends this.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn mark_suspect(&self, feed: i64, at: Millis, reason: String) -> Result<(), StoreError> {
        self.submit(JobClass::default(), move |tx| {
            let sql = "UPDATE feed SET suspect = ?2 WHERE id = ?1 AND suspect IS NULL";
            if tx.db.prepare_cached(sql)?.execute(params![feed, reason])? > 0 {
                journal::record_event(tx, Some(feed), at, "suspect", &reason)?;
            }
            set_health(tx, feed, at, Health::Ok, None)
        })
        .await
    }

    /// Records another mode.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn set_mode(&self, feed: i64, at: Millis, mode: Mode, why: &str) -> Result<(), StoreError> {
        let why = why.to_owned();
        self.submit(JobClass::default(), move |tx| {
            let old_mode: String = tx.db.query_row("SELECT mode FROM feed WHERE id = ?1", [feed], |row| row.get(0))?;
            if old_mode == mode.as_str() {
                return Ok(());
            }
            tx.db.execute("UPDATE feed SET mode = ?2 WHERE id = ?1", params![feed, mode.as_str()])?;
            Ok(journal::record_event(tx, Some(feed), at, "mode", &format!("{old_mode} → {mode}: {why}"))?)
        })
        .await
    }

    /// Pauses or resumes a feed for the operator; a purged feed is read from its beginning when resumed, once its rows
    /// are removed.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn set_paused(&self, name: &FeedName, at: Millis, paused: bool) -> Result<StoredFeed, StoreError> {
        let name = name.clone();
        self.submit(JobClass::default(), move |tx| set_paused(tx, name.as_str(), at, paused)).await
    }

    /// Sets the poll cursor to another URL.
    ///
    /// # Errors
    /// When a statement fails or the writer has stopped.
    pub async fn seek(&self, name: &FeedName, at: Millis, url: String) -> Result<StoredFeed, StoreError> {
        let name = name.clone();
        self.submit(JobClass::default(), move |tx| {
            let feed = read(tx, name.as_str())?;
            let sql = "UPDATE endpoint SET cursor = ?2, updated_at = ?3 WHERE feed = ?1 AND transport = 0";
            tx.db.execute(sql, params![feed.id, url, at])?;
            journal::record_event(tx, Some(feed.id), at, "seek", &url)?;
            read(tx, name.as_str())
        })
        .await
    }
}

pub(super) fn set_paused(tx: &mut WriteTx<'_>, name: &str, at: Millis, paused: bool) -> Result<StoredFeed, StoreError> {
    let feed = read(tx, name)?;
    if purge::set_resume_after(tx, feed.id, !paused)? {
        return Ok(feed);
    }
    tx.db.execute("UPDATE feed SET paused = ?2 WHERE id = ?1", params![feed.id, paused])?;
    if !paused && feed.purged {
        let reset_cursor =
            "UPDATE endpoint SET cursor = (SELECT url FROM feed WHERE id = ?1) WHERE feed = ?1 AND transport = 0";
        tx.db.execute(reset_cursor, [feed.id])?;
        let refresh = "UPDATE feed SET purged = 0, mode = 'refresh', began_at = ?2 WHERE id = ?1";
        tx.db.execute(refresh, params![feed.id, at])?;
    }
    let health = if paused { Health::Paused } else { Health::Ok };
    set_health(tx, feed.id, at, health, paused.then_some("paused: by the operator"))?;
    read(tx, name)
}

pub(super) fn register_all(
    tx: &mut WriteTx<'_>,
    at: Millis,
    feeds: &[FeedRegistration],
    all: bool,
) -> Result<Vec<StoredFeed>, StoreError> {
    for feed in feeds {
        register(tx, at, feed)?;
    }
    if all {
        remove_others(tx, at, feeds)?;
    }
    feeds.iter().map(|feed| read(tx, feed.name.as_str())).collect()
}

fn register(tx: &mut WriteTx<'_>, at: Millis, feed: &FeedRegistration) -> Result<(), StoreError> {
    let name = feed.name.as_str();
    let known = tx
        .db
        .prepare_cached("SELECT id, url, configured FROM feed WHERE name = ?1")?
        .query_row([name], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, bool>(2)?)))
        .optional()?;
    let id = match known {
        None => {
            let sql = "INSERT INTO feed (name, provider, url, began_at) VALUES (?1, ?2, ?3, ?4)";
            tx.db.execute(sql, params![name, feed.provider, feed.url, at])?;
            let id = tx.db.last_insert_rowid();
            let sql = "INSERT INTO endpoint (feed, transport, cursor, since) VALUES (?1, 0, ?2, ?3)";
            tx.db.execute(sql, params![id, feed.url, at])?;
            id
        }
        Some((id, url, configured)) => {
            let sql = "UPDATE feed SET provider = ?2, configured = 1 WHERE id = ?1";
            tx.db.execute(sql, params![id, feed.provider])?;
            if feed.config_error.is_none() && url != feed.url {
                change_url(tx, id, at, &url, feed)?;
            }
            if !configured {
                set_health(tx, id, at, Health::Ok, Some("configured: again"))?;
            }
            id
        }
    };
    if feed.config_error.is_none() {
        set_attribution(tx, id, &feed.attribution)?;
    }
    let stored = read(tx, name)?;
    if stored.paused {
        set_health(tx, id, at, Health::Paused, Some("paused: by the operator"))?;
    } else if let Some(reason) = &feed.config_error {
        set_health(tx, id, at, Health::Failed, Some(reason))?;
    }
    Ok(())
}

fn set_attribution(tx: &WriteTx<'_>, id: i64, attribution: &Attribution) -> Result<(), StoreError> {
    let sql = "UPDATE feed SET publisher = ?2, told_license = ?3, dataset_url = ?4, total_items = ?5 WHERE id = ?1";
    let total = attribution.total_items.map(|total| i64::try_from(total).unwrap_or(i64::MAX));
    tx.db.prepare_cached(sql)?.execute(params![
        id,
        attribution.publisher,
        attribution.license,
        attribution.dataset_url,
        total
    ])?;
    Ok(())
}

/// A URL with another path or host may be another feed: it is resynced, trusting the source, and its rows are kept
/// meanwhile.
fn change_url(
    tx: &mut WriteTx<'_>,
    id: i64,
    at: Millis,
    before: &str,
    feed: &FeedRegistration,
) -> Result<(), StoreError> {
    tx.db.execute("UPDATE feed SET url = ?2 WHERE id = ?1", params![id, feed.url])?;
    let cursor: Option<String> =
        tx.db.query_row("SELECT cursor FROM endpoint WHERE feed = ?1 AND transport = 0", [id], |row| row.get(0))?;
    let untouched = before.is_empty() || cursor.as_deref() == Some(before) && !has_items(tx, id)?;
    let moved = is_moved(before, &feed.url);
    if untouched || !moved && cursor.as_deref() == Some(before) {
        let sql = "UPDATE endpoint SET cursor = ?2 WHERE feed = ?1 AND transport = 0";
        tx.db.execute(sql, params![id, feed.url])?;
    }
    if untouched {
        return Ok(());
    }
    if !moved {
        return rebase(tx, id, before, &feed.url);
    }
    if cursor.is_some() {
        let sql = "UPDATE endpoint SET cursor = NULL WHERE feed = ?1 AND transport = 0";
        tx.db.execute(sql, [id])?;
    }
    journal::record_event(tx, Some(id), at, "moved", &format!("{before} → {}", feed.url))?;
    resync::begin(tx, id, at, &feed.url, SourceTrust::UrlMoved, false)
}

/// Rebases all of the feed's stored cursors after a change of its URL's scheme or query.
fn rebase(tx: &WriteTx<'_>, id: i64, before: &str, after: &str) -> Result<(), StoreError> {
    for (table, column) in [("endpoint", "cursor"), ("resync", "cursor"), ("resync", "asked"), ("position", "cursor")] {
        let poll_only = if table == "endpoint" { " AND transport = 0" } else { "" };
        let select =
            format!("SELECT DISTINCT {column} FROM {table} WHERE feed = ?1 AND {column} IS NOT NULL{poll_only}");
        let cursors: Vec<String> = {
            let mut select = tx.db.prepare(&select)?;
            let rows = select.query_map([id], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let update = format!("UPDATE {table} SET {column} = ?3 WHERE feed = ?1 AND {column} = ?2{poll_only}");
        for cursor in &cursors {
            if let Some(rebased) = rebase_cursor(cursor, before, after) {
                tx.db.execute(&update, params![id, cursor, rebased])?;
            }
        }
    }
    Ok(())
}

fn has_items(tx: &WriteTx<'_>, id: i64) -> rusqlite::Result<bool> {
    tx.db.query_row("SELECT items + tombstones > 0 FROM feed WHERE id = ?1", [id], |row| row.get(0))
}

fn remove_others(tx: &mut WriteTx<'_>, at: Millis, feeds: &[FeedRegistration]) -> Result<(), StoreError> {
    let configured: Vec<(i64, String)> = {
        let mut select = tx.db.prepare("SELECT id, name FROM feed WHERE configured = 1")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<_>>()?
    };
    let names: std::collections::HashSet<&str> = feeds.iter().map(|feed| feed.name.as_str()).collect();
    for (id, _) in configured.iter().filter(|(_, name)| !names.contains(name.as_str())) {
        tx.db.execute("UPDATE feed SET configured = 0, next_poll_at = NULL WHERE id = ?1", [id])?;
        set_health(tx, *id, at, Health::Removed, Some("removed: no longer configured"))?;
    }
    Ok(())
}

/// Sets the poll endpoint's health; a change of it is an event.
pub(super) fn set_health(
    tx: &mut WriteTx<'_>,
    feed: i64,
    at: Millis,
    health: Health,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    let stored: Option<(String, Option<String>, Option<String>)> = tx
        .db
        .prepare_cached(
            "SELECT e.health, e.reason, f.suspect FROM endpoint e JOIN feed f ON f.id = e.feed
             WHERE e.feed = ?1 AND e.transport = 0",
        )?
        .query_row([feed], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    // The feed was purged meanwhile: this health comes too late.
    let Some((old_health, old_reason, suspect)) = stored else { return Ok(()) };
    let (health, reason) = match (health, suspect.as_deref()) {
        (Health::Ok, Some(suspect)) => (Health::Suspect, Some(suspect)),
        _ => (health, reason),
    };
    let reason = reason.map(journal::truncate_text);
    let reason = reason.as_deref();
    if old_health == health.as_str() && old_reason.as_deref() == reason {
        return Ok(());
    }
    let changed = old_health != health.as_str();
    tx
        .db
        .prepare_cached(
            "UPDATE endpoint SET health = ?2, reason = ?3, since = iif(?4, ?5, since) WHERE feed = ?1 AND transport = 0",
        )?
        .execute(params![feed, health.as_str(), reason, changed, at])?;
    if changed {
        let detail = match reason {
            Some(reason) => format!("{old_health} → {health}: {reason}"),
            None => format!("{old_health} → {health}"),
        };
        journal::record_event(tx, Some(feed), at, "health", &detail)?;
    }
    Ok(())
}

pub(super) fn read(tx: &WriteTx<'_>, name: &str) -> Result<StoredFeed, StoreError> {
    let found = tx
        .db
        .prepare_cached(
            "SELECT f.id, f.generation, e.cursor, f.mode, e.health, e.reason, e.since, f.paused, f.purged, f.failures,
                    f.level_at, f.polled_at, f.next_poll_at, f.resynced_at, f.read_anew_at, f.stale = 1,
                    f.looked_back_at, f.look_back_due, f.held_until, f.gone_ms, f.away_since
             FROM feed f JOIN endpoint e ON e.feed = f.id AND e.transport = 0 WHERE f.name = ?1",
        )?
        .query_row([name], |row| {
            Ok(StoredFeed {
                id: row.get(0)?,
                generation: row.get(1)?,
                cursor: row.get(2)?,
                mode: Mode::from_word(row.get_ref(3)?.as_str()?).unwrap_or(Mode::Refresh),
                health: Health::from_word(row.get_ref(4)?.as_str()?).unwrap_or(Health::Ok),
                reason: row.get(5)?,
                since: row.get(6)?,
                paused: row.get(7)?,
                purged: row.get(8)?,
                failures: row.get(9)?,
                level_at: row.get(10)?,
                polled_at: row.get(11)?,
                next_poll_at: row.get(12)?,
                resynced_at: row.get(13)?,
                read_anew_at: row.get(14)?,
                stale: row.get(15)?,
                looked_back_at: row.get(16)?,
                look_back_due: row.get(17)?,
                held_until: row.get(18)?,
                gone_for: Duration::from_millis(u64::try_from(row.get::<_, i64>(19)?).unwrap_or(0)),
                away_since: row.get(20)?,
                last_seq: tx.last_seq(),
                resync: None,
            })
        })
        .optional()?;
    let mut feed = found.ok_or_else(|| StoreError::Refused(format!("there is no feed {name} in the mirror")))?;
    feed.resync = resync::read(tx, feed.id)?;
    Ok(feed)
}
