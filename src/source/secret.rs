//! Reads secrets from files, the environment and systemd's credentials. No message shows a secret; none is cached here.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::http::SECRETS_REREAD_EVERY;

/// A secret's source; read again on SIGHUP and on a 401.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// A file; surrounding white space is dropped.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A systemd credential by name (a file in `$CREDENTIALS_DIRECTORY`).
    Credential(String),
}

/// A header's or query parameter's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConfiguredValue {
    /// Written in the configuration.
    Plain(String),
    /// Read from elsewhere, and never shown.
    Secret(SecretSource),
}

/// Why a secret could not be read; names the source, never the value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read.
    #[error("cannot read secret file {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    /// Users other than its owner can read or write the file.
    #[error("secret file {path} can be used by others than its owner (mode {mode:04o}): chmod 0600 {path}")]
    InsecureMode {
        path: PathBuf,
        /// The file's permission bits.
        mode: u32,
    },
    /// The variable is not set, or is not UTF-8.
    #[error("environment variable {0} is not set")]
    Env(String),
    /// Not started by systemd with credentials.
    #[error("no credential directory for credential {0}: start under systemd with LoadCredential={0}:…")]
    NoCredentials(String),
    /// The source holds nothing but white space.
    #[error("the secret from {0} is empty")]
    Empty(SecretSource),
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Credential(name) => write!(f, "credential {name}"),
        }
    }
}

impl SecretSource {
    /// Reads a secret that gives power over the mirror: only its owner may read or write the file, or it is root's and
    /// a group other than root's may read it, as for a service's secret in `/etc`. Blocking: a small local file at
    /// most.
    ///
    /// # Errors
    /// As [`SecretSource::read`], and [`SecretError::InsecureMode`].
    pub fn read_guarded(&self) -> Result<SecretString, SecretError> {
        if let Self::File(path) = self
            && let Ok(metadata) = std::fs::metadata(path)
        {
            let (mode, is_root_owned) = (metadata.mode() & 0o777, metadata.uid() == 0 && metadata.gid() != 0);
            if mode & if is_root_owned { 0o037 } else { 0o077 } != 0 {
                return Err(SecretError::InsecureMode { path: path.clone(), mode });
            }
        }
        self.read()
    }

    /// Waits until the secret can be read and differs from `known`.
    pub async fn changed(&self, known: Option<&SecretString>) {
        let known = known.map(ExposeSecret::expose_secret);
        while !matches!(self.read(), Ok(secret) if Some(secret.expose_secret()) != known) {
            tokio::time::sleep(SECRETS_REREAD_EVERY).await;
        }
    }

    /// Reads the secret now. Blocking: a small local file at most.
    ///
    /// # Errors
    /// When the source can't be read or is empty.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        let text = match self {
            Self::File(path) => read_file(path)?,
            Self::Env(name) => std::env::var(name).map_err(|_| SecretError::Env(name.clone()))?,
            Self::Credential(name) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY");
                let directory = directory.ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
                read_file(&PathBuf::from(directory).join(name))?
            }
        };
        match text.trim() {
            "" => Err(SecretError::Empty(self.clone())),
            secret => Ok(SecretString::from(secret)),
        }
    }
}

fn read_file(path: &std::path::Path) -> Result<String, SecretError> {
    std::fs::read_to_string(path).map_err(|source| SecretError::File { path: path.to_owned(), source })
}
