//! A snapshot's manifest: a JSON file beside the snapshot. It describes the snapshot; checking one against the other is
//! `restore`'s.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::path_error;
use crate::store::read::Reader;
use crate::store::{Millis, SCHEMA_VERSION, StoreError, files};

/// The largest manifest that is read: one feed takes about 200 bytes.
const MAX_BYTES: u64 = 64 << 20;

/// What a snapshot contains, and its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The snapshot's file name.
    pub file: String,
    /// Version of the program that made it.
    pub version: String,
    /// When its content was read, RFC 3339 UTC.
    pub created_at: String,
    /// The mirror's epoch.
    pub epoch: String,
    /// The last change number in the snapshot.
    pub seq: i64,
    /// The `user_version` of the snapshot's layout.
    pub schema_version: i32,
    /// Live items of all feeds.
    pub items: i64,
    /// Tombstones of all feeds.
    pub tombstones: i64,
    /// Counts of each feed, by name.
    pub feeds: Vec<FeedCount>,
    /// The file's size in bytes.
    pub bytes: u64,
    /// The file's SHA-256, hexadecimal.
    pub sha256: String,
}

fn read_to_end(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.by_ref().take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a snapshot contains of one feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedCount {
    pub feed: String,
    /// Live items.
    pub items: i64,
    /// Tombstones.
    pub tombstones: i64,
}

impl Manifest {
    /// The path of a snapshot's manifest.
    pub fn path(snapshot: &Path) -> PathBuf {
        snapshot.with_extension("json")
    }

    /// The manifest of this snapshot.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when there is no manifest that can be read.
    pub fn read(snapshot: &Path) -> Result<Self, StoreError> {
        let path = Self::path(snapshot);
        let text = files::open(&path).and_then(read_to_end).map_err(|error| {
            let (snapshot, path) = (snapshot.display(), path.display());
            StoreError::Refused(format!("{snapshot} can't be trusted without its manifest {path}: {error}"))
        })?;
        serde_json::from_slice(&text).map_err(|error| path_error(&path, format!("it is no manifest, {error}")))
    }

    /// The manifest of a copy, except for file name, size and digest.
    pub(super) fn of(copy: &Reader, at: Millis) -> Result<Self, StoreError> {
        let mirror = copy.mirror()?;
        let feeds: Vec<FeedCount> = copy
            .feeds(&[])?
            .into_iter()
            .map(|feed| FeedCount { feed: feed.name, items: feed.items, tombstones: feed.tombstones })
            .collect();
        Ok(Self {
            file: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: jiff::Timestamp::from_millisecond(at).unwrap_or_default().to_string(),
            epoch: mirror.epoch,
            seq: mirror.seq,
            schema_version: SCHEMA_VERSION,
            items: feeds.iter().map(|feed| feed.items).sum(),
            tombstones: feeds.iter().map(|feed| feed.tombstones).sum(),
            feeds,
            bytes: 0,
            sha256: String::new(),
        })
    }
}
