//! The one writer: runs the queued jobs in groups, one commit per group; where a job fails, with a savepoint for each
//! job too.
//!
//! Small jobs go first and close a group of large jobs, so that a push delivery never waits for a refresh. A group that
//! the environment refuses is run again, whole, until it is committed; a job that fails is rolled back alone. Which job
//! waits in which order is the queue's matter, not the writer's.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::watch;

use super::checkpoint::CheckpointGate;
use super::keys::SaltedHasher;
pub(super) use super::write_queue::JobClass;
use super::write_queue::{QueuedJob, WriteQueue};
use super::{Intake, StoreError};
use crate::feed::Seq;

/// A group of large jobs closes at this many items. Index pages are written once per commit, so larger groups cost less
/// per item; but memory and latency grow with the group.
const GROUP_ITEMS: usize = 10_000;
const GROUP_TIME: Duration = Duration::from_millis(150);
/// While small deliveries arrive, groups of large jobs close at this many items: a small delivery waits for as long as
/// a commit takes.
const SHORT_GROUP_ITEMS: usize = 1_000;
/// Small deliveries count as arriving until none has arrived for this long.
const SHORT_GROUPS_FOR: Duration = Duration::from_secs(5);
/// Change numbers are reserved in durable blocks of this size; a restart skips the rest of a block.
const SEQ_BLOCK: Seq = 1 << 20;
const BLOCKED_RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What a job may use: the open transaction, the next change number, and ids of kinds.
pub(super) struct WriteTx<'a> {
    pub(super) db: &'a Connection,
    next_seq: &'a mut Seq,
    kinds: &'a mut KindCache,
    pub(super) keys: SaltedHasher,
}

impl WriteTx<'_> {
    pub(super) fn allocate_seq(&mut self) -> Seq {
        let seq = *self.next_seq;
        *self.next_seq += 1;
        seq
    }

    /// The last change number given.
    pub(super) fn last_seq(&self) -> Seq {
        *self.next_seq - 1
    }

    /// The kind's id, made when the kind is new; it also records that the feed has this kind.
    pub(super) fn feed_kind_id(&mut self, feed: i64, name: &str) -> rusqlite::Result<i64> {
        // Mostly the kind is the previous item's.
        if let Some((last_feed, last, id)) = &self.kinds.last
            && *last_feed == feed
            && last == name
        {
            return Ok(*id);
        }
        let id = self.kind_id(name)?;
        if self.kinds.feed_kinds.insert((feed, id)) {
            self.db.prepare_cached("INSERT OR IGNORE INTO feed_kind VALUES (?1, ?2)")?.execute([feed, id])?;
        }
        self.kinds.last = Some((feed, name.to_owned(), id));
        Ok(id)
    }

    /// Whether the feed has the kind, or has fewer than `max_kinds` kinds; then the kind is recorded for the feed.
    pub(super) fn admit_kind(&mut self, feed: i64, name: &str, max_kinds: i64) -> rusqlite::Result<bool> {
        let id = self.kinds.ids.get(name);
        if id.is_some_and(|id| self.kinds.feed_kinds.contains(&(feed, *id))) {
            return Ok(true);
        }
        let sql = "SELECT (SELECT count(*) FROM feed_kind WHERE feed = ?1) < ?3 OR EXISTS (
                       SELECT 1 FROM kind k JOIN feed_kind f ON f.kind = k.id WHERE k.name = ?2 AND f.feed = ?1)";
        let admitted = self.db.prepare_cached(sql)?.query_row((feed, name, max_kinds), |row| row.get(0))?;
        if admitted {
            self.feed_kind_id(feed, name)?;
        }
        Ok(admitted)
    }

    /// Empties the cache of kinds, which may no longer be as the file has them.
    pub(super) fn clear_kind_cache(&mut self) {
        self.kinds.clear();
    }

    fn kind_id(&mut self, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.kinds.ids.get(name) {
            return Ok(*id);
        }
        let id = self
            .db
            .prepare_cached(
                "INSERT INTO kind (name) VALUES (?1) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id",
            )?
            .query_row([name], |row| row.get(0))?;
        self.kinds.ids.insert(name.to_owned(), id);
        Ok(id)
    }
}

/// Kinds as the file has them, cached until something is rolled back.
#[derive(Default)]
struct KindCache {
    ids: HashMap<String, i64>,
    feed_kinds: HashSet<(i64, i64)>,
    /// Feed, kind and id of the last look-up.
    last: Option<(i64, String, i64)>,
}

impl KindCache {
    fn clear(&mut self) {
        self.ids.clear();
        self.feed_kinds.clear();
        self.last = None;
    }
}

/// Why a whole group was rolled back.
enum GroupError {
    /// A statement failed, or the environment refused.
    Failed(StoreError),
    /// A job failed by itself: the group is run again with a savepoint for each job. Most groups need none, and a
    /// savepoint costs a copy of every page that is changed under it.
    NeedsSavepoints,
}

impl From<StoreError> for GroupError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<rusqlite::Error> for GroupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.into())
    }
}

pub(super) struct Writer {
    db: Connection,
    queue: Arc<WriteQueue>,
    gate: Arc<CheckpointGate>,
    intake: watch::Sender<Intake>,
    next_seq: Seq,
    committed_seq: Seq,
    reserved: Seq,
    kinds: KindCache,
    full_sync: bool,
    keys: SaltedHasher,
    last_small_at: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        mut db: Connection,
        queue: Arc<WriteQueue>,
        gate: Arc<CheckpointGate>,
        intake: watch::Sender<Intake>,
        key_shift: u32,
    ) -> rusqlite::Result<Self> {
        let reserved: Seq = db.query_row("SELECT reserved FROM mirror_state", [], |row| row.get(0))?;
        // A new run starts at the end of the last block: a number that was given before a power loss is never given
        // again.
        db.execute("UPDATE mirror_state SET seq = reserved", [])?;
        let keys = SaltedHasher::load(&db)?.with_shift(key_shift);
        let pages = Arc::clone(&gate);
        db.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, count: i32| {
            pages.committed(count);
            Ok(())
        }))?;
        Ok(Self {
            db,
            queue,
            gate,
            intake,
            next_seq: reserved + 1,
            committed_seq: reserved,
            reserved,
            kinds: KindCache::default(),
            full_sync: true,
            keys,
            last_small_at: None,
        })
    }

    /// Runs until the queue is closed and empty, or the file is found to be damaged.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.wait_pop() {
            if let Err(error) = self.commit_group(first) {
                tracing::error!(%error, "the database is damaged: nothing is written any more");
                self.intake.send_replace(Intake::Broken(error.to_string()));
                self.queue.close();
                while let Some(job) = self.queue.wait_pop() {
                    job.job.answer(Err(error.clone()));
                }
            }
        }
        self.gate.close();
    }

    /// Takes jobs while they fit, and commits them; an error is fatal.
    fn commit_group(&mut self, first: QueuedJob) -> Result<(), StoreError> {
        let mut jobs: Vec<QueuedJob> = vec![first];
        let mut with_savepoints = false;
        loop {
            match self.try_commit(&mut jobs, with_savepoints) {
                Ok(results) => {
                    self.report_unblocked();
                    for (job, result) in jobs.into_iter().zip(results) {
                        job.job.answer(result);
                    }
                    return Ok(());
                }
                Err(GroupError::NeedsSavepoints) => with_savepoints = true,
                Err(GroupError::Failed(error)) if error.is_environment() => {
                    self.report_blocked(&error);
                    // A closed queue ends the retries: nothing of the group was acknowledged, so nothing is lost.
                    if !self.queue.wait_unless_closed(BLOCKED_RETRY_PAUSE) && self.queue.is_closed() {
                        self.give_up(jobs, &error);
                        return Ok(());
                    }
                }
                Err(GroupError::Failed(error)) => {
                    jobs.into_iter().for_each(|job| job.job.answer(Err(error.clone())));
                    return if error.is_fatal() { Err(error) } else { Ok(()) };
                }
            }
        }
    }

    /// Answers all jobs with the error. Those that still wait are not run: each attempt at a locked file takes as long
    /// as SQLite waits for the lock.
    fn give_up(&self, jobs: Vec<QueuedJob>, error: &StoreError) {
        jobs.into_iter().for_each(|job| job.job.answer(Err(error.clone())));
        while let Some(job) = self.queue.wait_pop() {
            job.job.answer(Err(error.clone()));
        }
    }

    fn try_commit(
        &mut self,
        jobs: &mut Vec<QueuedJob>,
        with_savepoints: bool,
    ) -> Result<Vec<Result<(), StoreError>>, GroupError> {
        let durable = jobs.iter().any(|job| job.class.durable);
        let needed_seqs: usize = jobs.iter().map(|job| job.class.max_seqs).sum();
        let (start, gate) = (Instant::now(), Arc::clone(&self.gate));
        let _group_guard = gate.enter();
        self.reserve(needed_seqs)?;
        self.set_synchronous(durable)?;
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let first_seq = self.next_seq;
        let outcome = self.run_group(jobs, durable, needed_seqs, with_savepoints).and_then(|results| {
            if self.next_seq != self.committed_seq + 1 {
                let seq = self.next_seq - 1;
                self.db.prepare_cached("UPDATE mirror_state SET seq = ?1")?.execute([seq])?;
            }
            self.db.execute_batch("COMMIT")?;
            Ok(results)
        });
        match outcome {
            Ok(results) => {
                self.committed_seq = self.next_seq - 1;
                self.queue.commits.observe(start.elapsed());
                Ok(results)
            }
            Err(error) => {
                self.next_seq = first_seq;
                self.kinds.clear();
                if !self.db.is_autocommit() {
                    self.db.execute_batch("ROLLBACK")?;
                }
                Err(error)
            }
        }
    }

    /// Runs the given jobs, then the waiting ones that fit. An error rolls back the whole group.
    fn run_group(
        &mut self,
        jobs: &mut Vec<QueuedJob>,
        durable: bool,
        mut needed_seqs: usize,
        with_savepoints: bool,
    ) -> Result<Vec<Result<(), StoreError>>, GroupError> {
        let start = Instant::now();
        let room = usize::try_from(self.reserved + 1 - self.next_seq).unwrap_or(0);
        let mut results = Vec::new();
        let mut next_job = 0;
        loop {
            while let Some(job) = jobs.get_mut(next_job) {
                results.push(self.run_job(job, with_savepoints)?);
                next_job += 1;
            }
            // A caller outside waits for a small delivery; health notes and look-ups can wait for a group to fill.
            let callers_wait = jobs.iter().any(|job| !job.class.large && job.class.max_seqs > 0);
            if callers_wait {
                self.last_small_at = Some(start);
            }
            let short_groups = self.last_small_at.is_some_and(|last| last.elapsed() < SHORT_GROUPS_FOR);
            let full = needed_seqs >= if short_groups { SHORT_GROUP_ITEMS } else { GROUP_ITEMS };
            let open = !full && start.elapsed() < GROUP_TIME;
            let popped = self.queue.try_pop(|class| {
                let waits_for_next_group = callers_wait && class.large;
                class.durable == durable
                    && needed_seqs + class.max_seqs <= room
                    && (open || !class.large)
                    && !waits_for_next_group
            });
            let Some(job) = popped else { return Ok(results) };
            needed_seqs += job.class.max_seqs;
            jobs.push(job);
        }
    }

    /// Runs one job. The job's own failure, a panic too, rolls back this job alone when it has a savepoint.
    fn run_job(&mut self, job: &mut QueuedJob, with_savepoints: bool) -> Result<Result<(), StoreError>, GroupError> {
        let first_seq = self.next_seq;
        if with_savepoints {
            self.db.prepare_cached("SAVEPOINT work")?.execute([])?;
        }
        let mut tx = WriteTx { db: &self.db, next_seq: &mut self.next_seq, kinds: &mut self.kinds, keys: self.keys };
        let outcome = catch_unwind(AssertUnwindSafe(|| job.job.run(&mut tx)));
        let result =
            outcome.unwrap_or_else(|_| Err(StoreError::Refused("the writer panicked over this delivery".into())));
        match result {
            Ok(()) => {
                if with_savepoints {
                    self.db.prepare_cached("RELEASE work")?.execute([])?;
                }
                Ok(Ok(()))
            }
            Err(error) if error.is_environment() || error.is_fatal() => Err(GroupError::Failed(error)),
            Err(_) if !with_savepoints => Err(GroupError::NeedsSavepoints),
            Err(error) => {
                self.next_seq = first_seq;
                self.kinds.clear();
                self.db.execute_batch("ROLLBACK TO work; RELEASE work")?;
                Ok(Err(error))
            }
        }
    }

    /// Makes sure that `needed_seqs` change numbers lie within a block that is on the disk.
    fn reserve(&mut self, needed_seqs: usize) -> Result<(), StoreError> {
        let needed_seqs = Seq::try_from(needed_seqs.max(GROUP_ITEMS)).unwrap_or(SEQ_BLOCK);
        if self.next_seq + needed_seqs <= self.reserved + 1 {
            return Ok(());
        }
        self.set_synchronous(true)?;
        let reserved = self.next_seq - 1 + SEQ_BLOCK.max(needed_seqs);
        self.db.execute("UPDATE mirror_state SET reserved = ?1", [reserved])?;
        self.reserved = reserved;
        Ok(())
    }

    fn set_synchronous(&mut self, full: bool) -> Result<(), StoreError> {
        if self.full_sync != full {
            self.db.pragma_update(None, "synchronous", if full { "FULL" } else { "NORMAL" })?;
            self.full_sync = full;
        }
        Ok(())
    }

    fn report_blocked(&self, error: &StoreError) {
        let reason = format!("the database can't be written: {error}");
        let first = self.intake.send_if_modified(|intake| {
            let first = *intake == Intake::Open;
            *intake = Intake::Blocked(reason.clone());
            first
        });
        if first {
            tracing::error!(%error, "the database can't be written: intake stops until it can");
        }
    }

    fn report_unblocked(&self) {
        let was_blocked = self.intake.send_if_modified(|intake| {
            let was_blocked = *intake != Intake::Open;
            *intake = Intake::Open;
            was_blocked
        });
        if was_blocked {
            tracing::info!("the database can be written again");
        }
    }
}
