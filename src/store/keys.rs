//! Keyed hashes of publishers' ids and records, by which a table or a set is searched.
//!
//! Hashes in the file are keyed with the mirror's own salt, which no publisher knows; hashes in memory with a random
//! number drawn at the start. Without a key, ids or records that share one hash can be made in seconds, and the cost of
//! a search among them grows with their number. The stored hash is SipHash-1-3, since the standard library may change
//! its own between releases. A hash never decides alone: equal hashes are compared by the texts.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

use rusqlite::Connection;
use siphasher::sip::SipHasher13;

/// An item's key is 48 bits of its hash, which SQLite stores in six bytes; tests use fewer, to make keys collide.
pub(super) const KEY_SHIFT: u32 = 16;

/// The hashes of one mirror.
#[derive(Clone, Copy, Debug)]
pub(super) struct SaltedHasher {
    salt: [u8; 16],
    shift: u32,
}

impl SaltedHasher {
    /// The hasher of the mirror in this file.
    pub(super) fn load(db: &Connection) -> rusqlite::Result<Self> {
        let salt = db.prepare_cached("SELECT salt FROM mirror_state")?.query_row([], |row| row.get(0))?;
        Ok(Self { salt, shift: KEY_SHIFT })
    }

    pub(super) fn with_shift(self, shift: u32) -> Self {
        Self { shift, ..self }
    }

    /// An item's key in the index. Not unique: kind and id decide.
    pub(super) fn item_key(&self, kind: &str, id: &str) -> i64 {
        self.hash([kind, id]) >> self.shift
    }

    /// A quarantined record's digest. Not unique: reason and text decide.
    pub(super) fn record_digest(&self, reason: &str, raw: &str) -> i64 {
        self.hash([reason, raw])
    }

    fn hash(&self, parts: [&str; 2]) -> i64 {
        let mut hasher = SipHasher13::new_with_key(&self.salt);
        hasher.write(parts[0].as_bytes());
        hasher.write_u8(0);
        hasher.write(parts[1].as_bytes());
        hasher.finish() as i64
    }
}

/// A hash that is comparable only within this process.
pub(super) fn process_hash(bytes: &[u8]) -> i64 {
    static STATE: OnceLock<RandomState> = OnceLock::new();
    STATE.get_or_init(RandomState::new).hash_one(bytes) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation's SipHash-1-3 of "Slot", 0, "1" under 0x07 sixteen times.
    const KNOWN: u64 = 0x23E8_B1C9_CDA0_A9B8;

    fn keys(salt: u8) -> SaltedHasher {
        SaltedHasher { salt: [salt; 16], shift: KEY_SHIFT }
    }

    #[test]
    fn the_stored_hash_is_siphash_1_3_under_the_salt() {
        assert_eq!(keys(7).record_digest("Slot", "1") as u64, KNOWN);
        assert_eq!(keys(7).item_key("Slot", "1"), (KNOWN as i64) >> 16);
    }

    #[test]
    fn another_salt_gives_another_hash() {
        assert_ne!(keys(1).item_key("Slot", "1"), keys(2).item_key("Slot", "1"));
    }
}
