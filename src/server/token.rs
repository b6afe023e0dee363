//! The admin token that is made when the configuration names none: a file beside the database.
//!
//! Guarantees: nobody but the file's owner can read it, not for a moment; it appears whole or not at all; an existing
//! file stays. Only the process that holds the database makes it, so that two never make it at once.

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
/// The permissions that nobody else may have: who can write the file chooses the token, and the database's group may
/// read data but not give orders.
const NOT_OWNER_ONLY: u32 = 0o077;

/// Why there is no token. No message contains one.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token that the configuration names can't be read.
    #[error("ops.token: {0}")]
    Configured(#[from] SecretError),
    /// The token beside the database can't be read or made.
    #[error("admin token {path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

impl TokenError {
    /// Whether a full disk is the cause.
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::File { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

/// The path of a database's token: the database's path with `.token` appended.
pub fn path(database: &Path) -> PathBuf {
    beside(database, ".token")
}

/// The token that the configuration names, or the database's own, which is made if it is missing: 32 random bytes in
/// hex. Blocking: a small local file.
///
/// # Errors
/// When it can't be read or made, is empty, or can be used by others.
pub fn read_or_create(configured: Option<&SecretSource>, database: &Path) -> Result<SecretString, TokenError> {
    match read(configured, database) {
        Err(TokenError::File { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            make(&path, &beside(database, ".token.new")).map_err(|source| TokenError::File { path, source })
        }
        read => read,
    }
}

/// A token for a daemon that starts on a full disk: nobody knows it until [`save`] has written it.
///
/// # Errors
/// When the system gives no random bytes.
pub fn generate() -> io::Result<SecretString> {
    random().map(SecretString::from)
}

/// Writes such a token as the database's own. Blocking: a small local file.
///
/// # Errors
/// When it can't be written, as while the disk is full.
pub fn save(database: &Path, token: &SecretString) -> io::Result<()> {
    write(&path(database), &beside(database, ".token.new"), token.expose_secret())
}

/// The token that the configuration names, or the database's own. Blocking: a small local file.
///
/// # Errors
/// When there is none, it can't be read, is empty, or can be used by others.
pub fn read(configured: Option<&SecretSource>, database: &Path) -> Result<SecretString, TokenError> {
    if let Some(configured) = configured {
        return Ok(configured.read_guarded()?);
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
    if found.permissions().mode() & NOT_OWNER_ONLY != 0 {
        return Err(invalid("others can use it: chmod 600"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    match text.trim() {
        "" => Err(invalid("it is empty: remove it, and the next start makes another")),
        token => Ok(SecretString::from(token)),
    }
}

/// Writes under another name first: a reader finds a whole token or none, also after a crash in between.
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

        let token = read_or_create(None, &database).unwrap();

        assert_eq!(token.expose_secret().len(), 64);
        assert!(token.expose_secret().bytes().all(|byte| byte.is_ascii_hexdigit()));
        let file = folder.path().join("mirror.db.token");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_create(None, &database).unwrap().expose_secret(), token.expose_secret());
        assert_eq!(read(None, &database).unwrap().expose_secret(), token.expose_secret());
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
        let configured = folder.path().join("ops.token");
        fs::write(&configured, "chosen\n").unwrap();
        fs::set_permissions(&configured, fs::Permissions::from_mode(0o600)).unwrap();
        let found = read_or_create(Some(&SecretSource::File(configured)), &folder.path().join("mirror.db")).unwrap();
        assert_eq!(found.expose_secret(), "chosen");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_others_can_use_is_refused_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("mirror.db");
        read_or_create(None, &database).unwrap();
        let own = path(&database);
        let configured = folder.path().join("ops.token");
        fs::copy(&own, &configured).unwrap();
        let chosen = SecretSource::File(configured.clone());
        for mode in [0o644, 0o640, 0o660, 0o620, 0o604, 0o602] {
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(&configured, fs::Permissions::from_mode(mode)).unwrap();
            assert!(read_or_create(None, &database).unwrap_err().to_string().contains("chmod 600"), "{mode:o}");
            assert!(read(None, &database).is_err(), "{mode:o}");
            let words = read_or_create(Some(&chosen), &database).unwrap_err().to_string();
            assert!(words.contains("can be used by others than its owner") && words.contains("ops.token"), "{words}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(&configured, fs::Permissions::from_mode(mode)).unwrap();
            assert!(
                read_or_create(None, &database).is_ok() && read_or_create(Some(&chosen), &database).is_ok(),
                "{mode:o}"
            );
        }
    }

    /// A token as a service gets it: owned by root, readable by a group of its own. Only root can make such a file.
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
    fn a_link_instead_of_the_token_is_not_followed() {
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
