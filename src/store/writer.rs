//! The one writer: takes work from the queue in groups and gives each group a commit; where a piece fails, each a
//! savepoint too.
//!
//! Small work goes first and closes a group of large work, so that a push delivery never waits for a refresh. A group
//! that the surroundings refuse is done again, whole, until they don't; one piece that fails is undone alone.

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

/// A group of large work closes at this many items: index pages are written once a commit, so larger groups are
/// cheaper, and memory and latency grow with them.
const GROUP_ITEMS: usize = 10_000;
const GROUP_TIME: Duration = Duration::from_millis(150);
/// While small deliveries come, groups of large work close at this many items: how long a commit takes is what a small
/// delivery waits.
const SHORT_GROUP_ITEMS: usize = 1_000;
/// Small deliveries are said to come until none has for this long.
const SHORT_GROUPS_FOR: Duration = Duration::from_secs(5);
/// Change numbers are reserved in durable blocks of this size; a restart skips what is left of one.
const SEQ_BLOCK: Seq = 1 << 20;
const BLOCKED_RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What a piece of work may use: the open transaction, the next change number, and ids of kinds.
pub(super) struct WriteTx<'a> {
    pub(super) db: &'a Connection,
    next_seq: &'a mut Seq,
    kinds: &'a mut KindCache,
    /// The mirror's hashes.
    pub(super) keys: SaltedHasher,
}

impl WriteTx<'_> {
    /// The next change number.
    pub(super) fn allocate_seq(&mut self) -> Seq {
        let seq = *self.next_seq;
        *self.next_seq += 1;
        seq
    }

    /// The last change number given.
    pub(super) fn last_seq(&self) -> Seq {
        *self.next_seq - 1
    }

    /// The number that stands for a kind, made when it is new; the feed is known to have it from now on.
    pub(super) fn feed_kind_id(&mut self, feed: i64, name: &str) -> rusqlite::Result<i64> {
        // Mostly it is the item before's.
        if let Some((last_feed, last, id)) = &self.kinds.last
            && *last_feed == feed
            && last == name
        {
            return Ok(*id);
        }
        let id = self.kind_id(name)?;
        if self.kinds.of_feeds.insert((feed, id)) {
            self.db.prepare_cached("INSERT OR IGNORE INTO feed_kind VALUES (?1, ?2)")?.execute([feed, id])?;
        }
        self.kinds.last = Some((feed, name.to_owned(), id));
        Ok(id)
    }

    /// Whether the feed has the kind, or still room for it: then it has it from now on.
    pub(super) fn admit_kind(&mut self, feed: i64, name: &str, most: i64) -> rusqlite::Result<bool> {
        let number = self.kinds.numbers.get(name);
        if number.is_some_and(|id| self.kinds.of_feeds.contains(&(feed, *id))) {
            return Ok(true);
        }
        let sql = "SELECT (SELECT count(*) FROM feed_kind WHERE feed = ?1) < ?3 OR EXISTS (
                       SELECT 1 FROM kind k JOIN feed_kind f ON f.kind = k.id WHERE k.name = ?2 AND f.feed = ?1)";
        let takes = self.db.prepare_cached(sql)?.query_row((feed, name, most), |row| row.get(0))?;
        if takes {
            self.feed_kind_id(feed, name)?;
        }
        Ok(takes)
    }

    /// What is remembered of kinds may no longer be so.
    pub(super) fn clear_kind_cache(&mut self) {
        self.kinds.clear();
    }

    fn kind_id(&mut self, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.kinds.numbers.get(name) {
            return Ok(*id);
        }
        let id = self
            .db
            .prepare_cached(
                "INSERT INTO kind (name) VALUES (?1) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id",
            )?
            .query_row([name], |row| row.get(0))?;
        self.kinds.numbers.insert(name.to_owned(), id);
        Ok(id)
    }
}

/// Kinds as the file has them, remembered until something is undone.
#[derive(Default)]
struct KindCache {
    numbers: HashMap<String, i64>,
    of_feeds: HashSet<(i64, i64)>,
    /// Feed, kind and number that were asked for last.
    last: Option<(i64, String, i64)>,
}

impl KindCache {
    fn clear(&mut self) {
        self.numbers.clear();
        self.of_feeds.clear();
        self.last = None;
    }
}

/// Why a whole group was undone.
enum GroupError {
    /// A statement failed, or the surroundings refused.
    Failed(StoreError),
    /// A piece failed by itself: the group is done again with a savepoint for each. Most groups need none, and a
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
        // A new run starts at the end of the last block: what was given before a power loss is never given again.
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

    /// Until the queue is closed and empty, or the file is found damaged.
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

    /// Takes work while it fits, and commits it; the error is fatal.
    fn commit_group(&mut self, first: QueuedJob) -> Result<(), StoreError> {
        let mut jobs: Vec<QueuedJob> = vec![first];
        let mut guarded = false;
        loop {
            match self.try_commit(&mut jobs, guarded) {
                Ok(results) => {
                    self.report_unblocked();
                    for (job, result) in jobs.into_iter().zip(results) {
                        job.job.answer(result);
                    }
                    return Ok(());
                }
                Err(GroupError::NeedsSavepoints) => guarded = true,
                Err(GroupError::Failed(error)) if error.is_environment() => {
                    self.report_blocked(&error);
                    // A closed queue ends the waiting: nothing of the group was acknowledged, so nothing is lost.
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

    /// What else waits is not even tried: each try at a locked file takes as long as SQLite waits for the lock.
    fn give_up(&self, jobs: Vec<QueuedJob>, error: &StoreError) {
        jobs.into_iter().for_each(|job| job.job.answer(Err(error.clone())));
        while let Some(job) = self.queue.wait_pop() {
            job.job.answer(Err(error.clone()));
        }
    }

    fn try_commit(
        &mut self,
        jobs: &mut Vec<QueuedJob>,
        guarded: bool,
    ) -> Result<Vec<Result<(), StoreError>>, GroupError> {
        let durable = jobs.iter().any(|job| job.class.durable);
        let wanted: usize = jobs.iter().map(|job| job.class.max_seqs).sum();
        let (began, gate) = (Instant::now(), Arc::clone(&self.gate));
        let _open = gate.enter();
        self.reserve(wanted)?;
        self.set_synchronous(durable)?;
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let before = self.next_seq;
        let done = self.run_group(jobs, durable, wanted, guarded).and_then(|results| {
            if self.next_seq != self.committed_seq + 1 {
                let seq = self.next_seq - 1;
                self.db.prepare_cached("UPDATE mirror_state SET seq = ?1")?.execute([seq])?;
            }
            self.db.execute_batch("COMMIT")?;
            Ok(results)
        });
        match done {
            Ok(results) => {
                self.committed_seq = self.next_seq - 1;
                self.queue.commits.observe(began.elapsed());
                Ok(results)
            }
            Err(error) => {
                self.next_seq = before;
                self.kinds.clear();
                if !self.db.is_autocommit() {
                    self.db.execute_batch("ROLLBACK")?;
                }
                Err(error)
            }
        }
    }

    /// Runs what is there, then whatever waits and fits. The error undoes the whole group.
    fn run_group(
        &mut self,
        jobs: &mut Vec<QueuedJob>,
        durable: bool,
        mut wanted: usize,
        guarded: bool,
    ) -> Result<Vec<Result<(), StoreError>>, GroupError> {
        let started = Instant::now();
        let room = usize::try_from(self.reserved + 1 - self.next_seq).unwrap_or(0);
        let mut results = Vec::new();
        let mut at = 0;
        loop {
            while let Some(job) = jobs.get_mut(at) {
                results.push(self.run_job(job, guarded)?);
                at += 1;
            }
            // Small deliveries are waited for outside; notes and look-ups can wait for a group to fill.
            let waits = jobs.iter().any(|job| !job.class.large && job.class.max_seqs > 0);
            if waits {
                self.last_small_at = Some(started);
            }
            let short_groups = self.last_small_at.is_some_and(|came| came.elapsed() < SHORT_GROUPS_FOR);
            let full = wanted >= if short_groups { SHORT_GROUP_ITEMS } else { GROUP_ITEMS };
            let open = !full && started.elapsed() < GROUP_TIME;
            let next = self.queue.try_pop(|weight| {
                let kept_apart = waits && weight.large;
                weight.durable == durable && wanted + weight.max_seqs <= room && (open || !weight.large) && !kept_apart
            });
            let Some(job) = next else { return Ok(results) };
            wanted += job.class.max_seqs;
            jobs.push(job);
        }
    }

    /// One piece. Its own failure, a panic too, undoes it alone when it runs under a savepoint of its own.
    fn run_job(&mut self, job: &mut QueuedJob, guarded: bool) -> Result<Result<(), StoreError>, GroupError> {
        let before = self.next_seq;
        if guarded {
            self.db.prepare_cached("SAVEPOINT work")?.execute([])?;
        }
        let mut tx = WriteTx { db: &self.db, next_seq: &mut self.next_seq, kinds: &mut self.kinds, keys: self.keys };
        let ran = catch_unwind(AssertUnwindSafe(|| job.job.run(&mut tx)));
        let result = ran.unwrap_or_else(|_| Err(StoreError::Refused("the writer panicked over this delivery".into())));
        match result {
            Ok(()) => {
                if guarded {
                    self.db.prepare_cached("RELEASE work")?.execute([])?;
                }
                Ok(Ok(()))
            }
            Err(error) if error.is_environment() || error.is_fatal() => Err(GroupError::Failed(error)),
            Err(_) if !guarded => Err(GroupError::NeedsSavepoints),
            Err(error) => {
                self.next_seq = before;
                self.kinds.clear();
                self.db.execute_batch("ROLLBACK TO work; RELEASE work")?;
                Ok(Err(error))
            }
        }
    }

    /// Makes sure that `wanted` change numbers lie within a block that is on the disk.
    fn reserve(&mut self, wanted: usize) -> Result<(), StoreError> {
        let wanted = Seq::try_from(wanted.max(GROUP_ITEMS)).unwrap_or(SEQ_BLOCK);
        if self.next_seq + wanted <= self.reserved + 1 {
            return Ok(());
        }
        self.set_synchronous(true)?;
        let reserved = self.next_seq - 1 + SEQ_BLOCK.max(wanted);
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
        let news = self.intake.send_if_modified(|intake| {
            let news = *intake == Intake::Open;
            *intake = Intake::Blocked(reason.clone());
            news
        });
        if news {
            tracing::error!(%error, "the database can't be written: intake stops until it can");
        }
    }

    fn report_unblocked(&self) {
        let was = self.intake.send_if_modified(|intake| {
            let was = *intake != Intake::Open;
            *intake = Intake::Open;
            was
        });
        if was {
            tracing::info!("the database can be written again");
        }
    }
}
