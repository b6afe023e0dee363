//! The admin token that is made when the configuration names none: a file beside the database.
//!
//! Guarantees: nobody but the file's owner can read it, not for a moment; it appears whole or not at all; one that is
//! there stays. It is made by whoever holds the database, so that two never make it at once.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::TryRng;
use rustix::fs::OFlags;
use secrecy::{ExposeSecret, SecretString};

use crate::source::secret::{SecretError, SecretSource};

const BYTES: usize = 32;
const OWNER_ONLY: u32 = 0o600;
/// Whoever can write the file chooses the token, and the database's group may read and not rule.
const OTHERS: u32 = 0o077;

/// Why there is no token. No message shows one.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The one that the configuration names can't be read.
    #[error("ops.token: {0}")]
    Configured(#[from] SecretError),
    /// The one beside the database can't be read or made.
    #[error("admin token {path}: {source}")]
    File {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

impl TokenError {
    /// Whether there is only no room for it.
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::File { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// Where a database's token stands: its path with `.token` behind it.
pub fn path(database: &Path) -> PathBuf {
    beside(database, ".token")
}

/// The token that the configuration names, or the database's own, which is made where there is none: 32 random bytes in
/// hex. Blocking: a small local file.
///
/// # Errors
/// When it can't be read or made, is empty, or can be used by others.
pub fn read_or_create(given: Option<&SecretSource>, database: &Path) -> Result<SecretString, TokenError> {
    match read(given, database) {
        Err(TokenError::File { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            make(&path, &beside(database, ".token.new")).map_err(|source| TokenError::File { path, source })
        }
        read => read,
    }
}

/// A token for a daemon that begins on a full disk: nobody knows it before [`keep`] has found room for it.
///
/// # Errors
/// When the system gives no random bytes.
pub fn generate() -> io::Result<SecretString> {
    random().map(SecretString::from)
}

/// Writes such a token down as the database's own. Blocking: a small local file.
///
/// # Errors
/// While there is no room.
pub fn save(database: &Path, token: &SecretString) -> io::Result<()> {
    write(&path(database), &beside(database, ".token.new"), token.expose_secret())
}

/// The token that the configuration names, or the database's own. Blocking: a small local file.
///
/// # Errors
/// When there is none, it can't be read, is empty, or can be used by others.
pub fn read(given: Option<&SecretSource>, database: &Path) -> Result<SecretString, TokenError> {
    if let Some(given) = given {
        return Ok(given.read_guarded()?);
    }
    let path = path(database);
    read_own(&path).map_err(|source| TokenError::File { path, source })
}

fn read_own(path: &Path) -> io::Result<SecretString> {
    let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(invalid("it is not a file"));
    }
    if found.permissions().mode() & OTHERS != 0 {
        return Err(invalid("others can use it: chmod 600"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    match text.trim() {
        "" => Err(invalid("it is empty: remove it, and the next start makes another")),
        token => Ok(SecretString::from(token)),
    }
}

/// Written under another name first: whoever looks finds a whole token or none, also after a crash in between.
fn make(path: &Path, draft: &Path) -> io::Result<SecretString> {
    let token = random()?;
    write(path, draft, &token)?;
    Ok(SecretString::from(token))
}

fn write(path: &Path, draft: &Path, token: &str) -> io::Result<()> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_new(draft, token)?;
    fs::rename(draft, path)
}

fn write_new(path: &Path, token: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(OWNER_ONLY).open(path)?;
    writeln!(file, "{token}")?;
    file.sync_all()
}

fn random() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(database);
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_token_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("mirror.db");
        assert!(read(None, &database).is_err(), "reading makes none");

        let made = read_or_create(None, &database).unwrap();

        assert_eq!(made.expose_secret().len(), 64);
        assert!(made.expose_secret().bytes().all(|byte| byte.is_ascii_hexdigit()));
        let file = folder.path().join("mirror.db.token");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_create(None, &database).unwrap().expose_secret(), made.expose_secret());
        assert_eq!(read(None, &database).unwrap().expose_secret(), made.expose_secret());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_torso_of_an_earlier_start_is_made_anew_and_an_empty_token_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("mirror.db");
        fs::write(folder.path().join("mirror.db.token.new"), "half").unwrap();
        assert_eq!(read_or_create(None, &database).unwrap().expose_secret().len(), 64);

        fs::write(path(&database), "\n").unwrap();
        assert!(read_or_create(None, &database).unwrap_err().to_string().contains("it is empty"));
    }

    #[test]
    fn the_token_that_is_configured_wins_and_makes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let given = folder.path().join("ops.token");
        fs::write(&given, "chosen\n").unwrap();
        fs::set_permissions(&given, fs::Permissions::from_mode(0o600)).unwrap();
        let found = read_or_create(Some(&SecretSource::File(given)), &folder.path().join("mirror.db")).unwrap();
        assert_eq!(found.expose_secret(), "chosen");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_others_can_use_is_refused_wherever_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("mirror.db");
        read_or_create(None, &database).unwrap();
        let own = path(&database);
        let given = folder.path().join("ops.token");
        fs::copy(&own, &given).unwrap();
        let chosen = SecretSource::File(given.clone());
        for mode in [0o644, 0o640, 0o660, 0o620, 0o604, 0o602] {
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(&given, fs::Permissions::from_mode(mode)).unwrap();
            assert!(read_or_create(None, &database).unwrap_err().to_string().contains("chmod 600"), "{mode:o}");
            assert!(read(None, &database).is_err(), "{mode:o}");
            let words = read_or_create(Some(&chosen), &database).unwrap_err().to_string();
            assert!(words.contains("can be used by others than its owner") && words.contains("ops.token"), "{words}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(&given, fs::Permissions::from_mode(mode)).unwrap();
            assert!(
                read_or_create(None, &database).is_ok() && read_or_create(Some(&chosen), &database).is_ok(),
                "{mode:o}"
            );
        }
    }

    /// As a service is given one: root's, and read by a group of its own. Only root can make such a file.
    #[test]
    fn a_token_that_root_lets_a_service_s_group_read_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ops.token");
        fs::write(&file, "chosen").unwrap();
        if std::os::unix::fs::chown(&file, Some(0), Some(54_321)).is_err() {
            return;
        }
        let chosen = SecretSource::File(file.clone());
        for (mode, taken) in [(0o640, true), (0o440, true), (0o660, false), (0o644, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_or_create(Some(&chosen), Path::new("mirror.db")).is_ok(), taken, "{mode:o}");
        }
    }

    #[test]
    fn a_link_in_the_token_s_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("mirror.db");
        let other = folder.path().join("other");
        fs::write(&other, "another's").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&other, path(&database)).unwrap();
        assert!(read(None, &database).is_err() && read_or_create(None, &database).is_err());
        assert_eq!(fs::read_to_string(other).unwrap(), "another's");
    }
}
