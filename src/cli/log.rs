//! The log: one line an event on standard error, as text or as JSON.
//!
//! Where standard error is systemd's journal, each line begins with its priority as sd-daemon(3) has it (`<4>`), which the
//! journal takes off, and text carries no time: the journal keeps both. There is no log file, so none to rotate.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anyhow::Context;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::GlobalArgs;
use crate::config::{LogFormat, LogSettings};
use crate::terminal;

/// Starts the log; flags overrule what is configured.
///
/// # Errors
/// When the level is no filter.
pub fn start(globals: &GlobalArgs, settings: &LogSettings) -> anyhow::Result<()> {
    let level = globals.log_level(&settings.level);
    let filter = EnvFilter::try_new(&level).with_context(|| format!("log.level = {level:?}"))?;
    let coloured = settings.format == LogFormat::Text && !is_journal() && std::io::stderr().is_terminal();
    let json = settings.format == LogFormat::Json;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    let log = log.with_writer(move || SanitisedStderr { coloured, json });
    let begun = match (settings.format, is_journal()) {
        (LogFormat::Json, false) => log.json().flatten_event(true).try_init(),
        (LogFormat::Json, true) => log.json().flatten_event(true).map_event_format(PriorityPrefix).try_init(),
        (LogFormat::Text, true) => log.with_ansi(false).without_time().map_event_format(PriorityPrefix).try_init(),
        (LogFormat::Text, false) => log.with_ansi(coloured).with_timer(SystemTime).try_init(),
    };
    // A test that runs two verbs in one process has a log already.
    drop(begun);
    Ok(())
}

/// Standard error, an event at a time: what a stranger's text holds neither commands a terminal nor forges a line.
struct SanitisedStderr {
    coloured: bool,
    json: bool,
}

impl Write for SanitisedStderr {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = terminal::log_line(&String::from_utf8_lossy(event), self.coloured, self.json);
        io::stderr().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Whether standard error itself is the journal's stream, as systemd.exec(5) has it told: the variable alone is
/// inherited by whatever a service starts, also where its standard error leads elsewhere.
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    // What can't be looked at is taken for no journal: the lines come whole either way.
    let Ok(metadata) = stderr.and_then(|file| file.metadata()) else { return false };
    stream.to_str() == Some(&format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// An event's line behind its priority.
struct PriorityPrefix<F>(F);

impl<S, N, F> FormatEvent<S, N> for PriorityPrefix<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(line, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, line, event)
    }
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
