//! The admin token that is made when the configuration names none: a file beside the database.
//!
//! Guarantees: nobody but the file's owner can read it, not for a moment; it appears whole or not at all; one that is
//! there stays. It is made by whoever holds the database, so that two never make it at once.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::TryRng;
use secrecy::SecretString;

use crate::source::secret::{SecretError, SecretSource};

const BYTES: usize = 32;
const OWNER_ONLY: u32 = 0o600;
const OTHERS: u32 = 0o007;

/// Why there is no token. No message shows one.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The one that the configuration names can't be read.
    #[error("ops.token: {0}")]
    Given(#[from] SecretError),
    /// The one beside the database can't be read or made.
    #[error("admin token {path}: {source}")]
    File {
        /// Where it stands.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

/// Where a database's token stands: its path with `.token` behind it.
pub fn path(database: &Path) -> PathBuf {
    beside(database, ".token")
}

/// The token that the configuration names, or the database's own, which is made where there is none: 32 random bytes in
/// hex. Blocking: a small local file.
///
/// # Errors
/// When it can't be read or made, is empty, or can be read by others.
pub fn token(given: Option<&SecretSource>, database: &Path) -> Result<SecretString, TokenError> {
    match read(given, database) {
        Err(TokenError::File { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            make(&path, &beside(database, ".token.new")).map_err(|source| TokenError::File { path, source })
        }
        read => read,
    }
}

/// The token that the configuration names, or the database's own. Blocking: a small local file.
///
/// # Errors
/// When there is none, it can't be read, is empty, or can be read by others.
pub fn read(given: Option<&SecretSource>, database: &Path) -> Result<SecretString, TokenError> {
    if let Some(given) = given {
        return Ok(given.read()?);
    }
    let path = path(database);
    read_own(&path).map_err(|source| TokenError::File { path, source })
}

fn read_own(path: &Path) -> io::Result<SecretString> {
    let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem);
    if fs::metadata(path)?.permissions().mode() & OTHERS != 0 {
        return Err(invalid("others can use it: chmod 600"));
    }
    match fs::read_to_string(path)?.trim() {
        "" => Err(invalid("it is empty: remove it, and the next start makes another")),
        token => Ok(SecretString::from(token)),
    }
}

/// Written under another name first: whoever looks finds a whole token or none, also after a crash in between.
fn make(path: &Path, draft: &Path) -> io::Result<SecretString> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let token = random()?;
    write_new(draft, &token)?;
    fs::rename(draft, path)?;
    Ok(SecretString::from(token))
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
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn the_token_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("mirror.db");
        assert!(read(None, &database).is_err(), "reading makes none");

        let made = token(None, &database).unwrap();

        assert_eq!(made.expose_secret().len(), 64);
        assert!(made.expose_secret().bytes().all(|byte| byte.is_ascii_hexdigit()));
        let file = folder.path().join("mirror.db.token");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(token(None, &database).unwrap().expose_secret(), made.expose_secret());
        assert_eq!(read(None, &database).unwrap().expose_secret(), made.expose_secret());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn a_torso_of_an_earlier_start_is_made_anew_and_an_empty_token_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("mirror.db");
        fs::write(folder.path().join("mirror.db.token.new"), "half").unwrap();
        assert_eq!(token(None, &database).unwrap().expose_secret().len(), 64);

        fs::write(path(&database), "\n").unwrap();
        assert!(token(None, &database).unwrap_err().to_string().contains("it is empty"));
    }

    #[test]
    fn the_token_that_is_configured_wins_and_makes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let given = folder.path().join("ops.token");
        fs::write(&given, "chosen\n").unwrap();
        let found = token(Some(&SecretSource::File(given)), &folder.path().join("mirror.db")).unwrap();
        assert_eq!(found.expose_secret(), "chosen");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_token_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("mirror.db");
        token(None, &database).unwrap();
        fs::set_permissions(path(&database), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(token(None, &database).unwrap_err().to_string().contains("chmod 600"));
    }
}
