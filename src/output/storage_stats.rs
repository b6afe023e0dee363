//! Storage facts: the size of the mirror's files, the space left beside them, and how long commits take.
//!
//! Sizes are read from the file system at the moment; a size that can't be read is unknown, and never an error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::commits::CommitTimes;

/// Sizes and commit times, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageStats {
    /// Bytes of the database file.
    pub database_bytes: Option<u64>,
    /// Bytes of the write-ahead log beside it.
    pub wal_bytes: Option<u64>,
    /// Bytes that the daemon may still write to that file system.
    pub free_bytes: Option<u64>,
    /// Transactions committed since the start.
    pub commits: Option<u64>,
    /// The median time of a commit.
    pub commit_p50: Option<Duration>,
    /// The time within which 99 of 100 commits ended.
    pub commit_p99: Option<Duration>,
}

impl StorageStats {
    /// Reads sizes from the file system and times from `commits`. Blocking.
    pub fn of(database: &Path, commits: &CommitTimes) -> Self {
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        let size = |path: &Path| std::fs::metadata(path).ok().map(|file| file.len());
        Self {
            database_bytes: size(database),
            wal_bytes: size(&PathBuf::from(wal)),
            free_bytes: free(database),
            commits: Some(commits.count()).filter(|count| *count > 0),
            commit_p50: commits.quantile(0.5),
            commit_p99: commits.quantile(0.99),
        }
    }
}

fn free(path: &Path) -> Option<u64> {
    let volume = rustix::fs::statvfs(path).ok()?;
    Some(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// `999 B`, `1.5 KiB`, `12 MiB`: three digits at most, rounded down.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut whole, mut tenths, mut unit) = (bytes, 0, "B");
    for next in UNITS {
        if whole < 1024 {
            break;
        }
        (tenths, whole, unit) = (whole % 1024 * 10 / 1024, whole / 1024, next);
    }
    if unit == "B" || whole >= 10 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 << 20, "10 MiB"),
            ((3 << 30) - 1, "2.9 GiB"),
            (u64::MAX, "15 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn what_is_not_there_is_not_known() {
        assert_eq!(StorageStats::of(Path::new("/nowhere/mirror.db"), &CommitTimes::default()), StorageStats::default());
    }
}
