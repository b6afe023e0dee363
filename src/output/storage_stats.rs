//! The mirror's own state: how large its files are, how much room is left beside them, how long its commits take.
//!
//! Sizes are read from the file system as they are at the moment; what can't be read is not known, and never an error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::commits::CommitTimes;

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageStats {
    /// Bytes of the database file.
    pub database_bytes: Option<u64>,
    /// Bytes of the write-ahead log beside it.
    pub wal_bytes: Option<u64>,
    /// Bytes that the daemon may still write where they are.
    pub free_bytes: Option<u64>,
    /// Transactions committed since the start.
    pub commits: Option<u64>,
    /// What half of them took at most.
    pub commit_p50: Option<Duration>,
    /// What 99 of 100 took at most.
    pub commit_p99: Option<Duration>,
}

impl StorageStats {
    /// What the file system says of a database, and how long its commits took. Blocking.
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
