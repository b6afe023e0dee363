//! Where secrets come from: files, the environment, systemd's credentials. No message shows one.

use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;

/// Where a secret comes from; read again on SIGHUP and on a 401.
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
pub enum Value {
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
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The variable is not set, or is not UTF-8.
    #[error("environment variable {0} is not set")]
    Env(String),
    /// Not started by systemd with credentials.
    #[error("no credential directory for credential {0}: start under systemd with LoadCredential={0}:…")]
    NoCredentials(String),
    /// Nothing in it.
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
