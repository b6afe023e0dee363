//! The log: one line an event on standard error, as text or as JSON.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use super::Globals;
use crate::config::{LogFormat, LogSettings};

/// Starts the log; flags overrule what is configured.
///
/// # Errors
/// When the level is no filter.
pub fn start(globals: &Globals, settings: &LogSettings) -> anyhow::Result<()> {
    let level = globals.log_level(&settings.level);
    let filter = EnvFilter::try_new(&level).with_context(|| format!("log.level = {level:?}"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let begun = match settings.format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        // Under systemd the journal keeps the time, and knows it better.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            log.with_ansi(false).without_time().try_init()
        }
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_timer(SystemTime).try_init(),
    };
    // A test that runs two verbs in one process has a log already.
    drop(begun);
    Ok(())
}
