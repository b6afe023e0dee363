//! placeholder
pub mod token;
use crate::output::metrics::FeedCounts;
use crate::supervisor::control::Control;
use secrecy::SecretString;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
/// Ops.
pub struct Ops {
    /// f
    pub database: PathBuf,
    /// f
    pub control: Control,
    /// f
    pub token: SecretString,
    /// f
    pub ready: watch::Receiver<Option<String>>,
    /// f
    pub live: Arc<dyn Fn() -> Vec<FeedCounts> + Send + Sync>,
}
/// Serves.
/// # Errors
/// io
pub async fn serve(_l: tokio::net::TcpListener, _o: Ops, shutdown: CancellationToken) -> std::io::Result<()> {
    shutdown.cancelled().await;
    Ok(())
}
