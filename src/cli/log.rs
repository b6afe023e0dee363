//! The log: one line per event on standard error, as text or as JSON.
//!
//! Where standard error is systemd's journal, each line begins with its priority as sd-daemon(3) defines it (`<4>`),
//! which the journal strips, and text carries no time: the journal keeps both. There is no log file, so none to rotate.

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

/// Starts the log; flags overrule the configuration.
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
    let started = match (settings.format, is_journal()) {
        (LogFormat::Json, false) => log.json().flatten_event(true).try_init(),
        (LogFormat::Json, true) => log.json().flatten_event(true).map_event_format(PriorityPrefix).try_init(),
        (LogFormat::Text, true) => log.with_ansi(false).without_time().map_event_format(PriorityPrefix).try_init(),
        (LogFormat::Text, false) => log.with_ansi(coloured).with_timer(SystemTime).try_init(),
    };
    // A test that runs two verbs in one process has started the log already.
    drop(started);
    Ok(())
}

/// Standard error, one event at a time: text from a publisher can neither command a terminal nor forge a log line.
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

/// Whether standard error itself is the journal's stream, by systemd.exec(5). The variable alone proves nothing: every
/// process that a service starts inherits it, also where its standard error leads elsewhere.
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    // Where that can't be found out, it counts as no journal: the lines are complete either way.
    let Ok(metadata) = stderr.and_then(|file| file.metadata()) else { return false };
    stream.to_str() == Some(&format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// Writes an event's priority in front of its line.
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

/// Priorities as syslog(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
