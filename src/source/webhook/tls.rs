//! The webhook listener's certificate: read from files, and read again on reload. Never watches the files.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsFiles;

/// Why a certificate can't be used; names the file, never its content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read, or holds no certificate or key.
    #[error("{path} cannot be used: {problem}")]
    File { path: PathBuf, problem: String },
    /// Certificate and key don't match, or are of a kind that TLS doesn't support.
    #[error("certificate and key cannot be used together: {0}")]
    Pair(#[from] rustls::Error),
}

impl TlsFiles {
    /// Reads certificate and key. Blocking: small local files.
    ///
    /// # Errors
    /// When a file can't be read, or the two can't be used together.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let file_error = |path: &PathBuf| {
            let path = path.clone();
            move |error: pem::Error| TlsError::File { path, problem: describe(&error) }
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate).map_err(file_error(&self.certificate))?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(file_error(&self.certificate))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(file_error(&self.key))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let mut config =
            builder.with_safe_default_protocol_versions()?.with_no_client_auth().with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The problem with a file, without any of its content.
fn describe(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "nothing of the sort is in it".to_owned(),
        _ => "it is no PEM".to_owned(),
    }
}

/// The certificate in use, replaced on reload.
#[derive(Clone)]
pub struct ReloadableTls {
    files: TlsFiles,
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl ReloadableTls {
    /// Reads the files. Blocking: small local files.
    ///
    /// # Errors
    /// As [`TlsFiles::load`].
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = files.load()?;
        Ok(Self { files, current: Arc::new(RwLock::new(current)) })
    }

    /// Reads the files again, for the connections that follow; on an error the old certificate stays. Blocking.
    ///
    /// # Errors
    /// As [`TlsFiles::load`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let next = self.files.load()?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// The configuration for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/certificate").join(name)
    }

    #[test]
    fn a_certificate_is_read_again_and_a_wrong_one_leaves_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles { certificate: folder.path().join("c"), key: folder.path().join("k") };
        std::fs::copy(fixture("localhost.pem"), &files.certificate).unwrap();
        std::fs::copy(fixture("localhost.key"), &files.key).unwrap();
        let tls = ReloadableTls::load(files.clone()).unwrap();
        let first = tls.current();
        tls.reload().unwrap();
        assert!(!Arc::ptr_eq(&first, &tls.current()));

        let second = tls.current();
        std::fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n").unwrap();
        let error = tls.reload().unwrap_err().to_string();
        assert!(Arc::ptr_eq(&second, &tls.current()));
        assert!(!error.contains("hunter2"), "{error}");
    }
}
