//! The command line: parses the arguments, runs one verb, and maps its result to an exit code.
//!
//! Only results go to standard output; an error goes to standard error in one line that names its cause.

pub mod ack;
pub mod changes;
pub mod check;
pub mod compare;
pub mod control;
pub mod demo;
pub mod discover;
pub mod events;
pub mod explain;
pub mod export;
pub mod findings;
pub mod forget;
mod stop_signal;
pub mod log;
pub mod database_path;
pub mod quarantine;
pub mod rename;
pub mod restore;
pub mod run;
pub mod shell;
pub mod simulate;
pub mod snapshot;
pub mod status;
pub mod sync;
pub mod verify;
mod read_only_walk;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::ConfigErrors;
use crate::output::{self, OutputError};
use crate::store::StoreError;
use crate::terminal::{self, SanitisingWriter};

/// The process's exit codes; `systemd/feedmirror.service` and docs/reference/exit-codes.md list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// The verb failed; standard error says why.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// Some feeds did not become level.
    NotLevel,
    /// The database is unusable: damaged, foreign, or from a newer version.
    DatabaseUnusable,
    /// Another daemon holds the database.
    DatabaseInUse,
}

/// The command line is wrong in a way that clap can't see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

impl Exit {
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotLevel => 3,
            Self::DatabaseUnusable => 4,
            Self::DatabaseInUse => 5,
        }
    }

    fn of(error: &anyhow::Error) -> Self {
        if broken_pipe(error) {
            return Self::Done;
        }
        if error.is::<ConfigErrors>() || error.is::<UsageError>() {
            return Self::Usage;
        }
        match error.downcast_ref::<StoreError>() {
            Some(StoreError::InUse(_)) => Self::DatabaseInUse,
            Some(StoreError::Unavailable { .. }) => Self::DatabaseUnusable,
            Some(error) if error.is_fatal() => Self::DatabaseUnusable,
            _ => Self::Failed,
        }
    }
}

/// Cursor home, then clear to the end of the screen: clearing the whole screen would flicker.
const TO_THE_TOP: &str = "\x1b[H\x1b[J";

/// Options that every verb takes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct GlobalArgs {
    /// The configuration; by default feedmirror.toml here, else /etc/feedmirror/config.toml
    #[arg(long, global = true, value_name = "FILE", env = "FEEDMIRROR_CONFIG")]
    pub config: Option<PathBuf>,
    /// Log more; twice for all of it
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Log errors only, and show no progress
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// Keeps a local, always-current, queryable copy of other people's change feeds in one SQLite file.
#[derive(Debug, Parser)]
#[command(name = "feedmirror", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    globals: GlobalArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon: bring every configured feed level and keep it so
    Run(run::Args),
    /// Bring feeds level once, and exit
    Sync(sync::Args),
    /// Show how each feed is doing; needs no daemon
    Status(status::Args),
    /// Check the configuration: every mistake at once
    Check(check::Args),
    /// Write items to standard output or a file
    Export(export::Args),
    /// Print or follow the change log
    Changes(changes::Args),
    /// Stop reading feeds, restarts included
    Pause(control::FeedsArgs),
    /// Go on with paused feeds; a purged one begins anew
    Resume(control::FeedsArgs),
    /// Ask feeds now, whatever they wait for
    PollNow(control::FeedsArgs),
    /// Read feeds anew, and sweep what is gone
    Resync(control::ResyncArgs),
    /// Put a feed's poll cursor at a URL
    Seek(control::SeekArgs),
    /// Remove a feed's rows, quarantine and cursors
    Purge(control::PurgeArgs),
    /// Silence feeds' alerts for a while, without pausing them
    Ack(ack::Args),
    /// Records that could not be understood
    Quarantine(quarantine::Args),
    /// Forget an item for good: for erasure requests
    Forget(forget::Args),
    /// Give a feed another name, its rows and cursors kept
    Rename(rename::Args),
    /// Ways in which publishers depart from the standard
    Findings(findings::Args),
    /// What happened: mode and health changes, resyncs, restarts
    Events(events::Args),
    /// Find feeds from a dataset site or a catalogue, as configuration
    Discover(discover::Args),
    /// Tell where an item came from, and why it is as it is
    Explain(explain::Args),
    /// Make a consistent, checked copy of the database, beside a running daemon or without one
    Snapshot(snapshot::Args),
    /// Put a snapshot in the database's place; those who follow it are told to read everything again
    Restore(restore::Args),
    /// Check the database: its integrity, and what must hold between its rows
    Verify(verify::Args),
    /// A publisher to test against, with every misbehaviour on demand
    Simulate(simulate::Args),
    /// See it at work: a simulated publisher, mirrored before your eyes
    Demo(demo::Args),
    /// Print a completion script for a shell
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write all of them to a directory
    Man(shell::ManArgs),
}

/// Runs the command line that the process was given.
pub fn main() -> ExitCode {
    let cli = match parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help that was asked for is a result; anything else is a wrong command line.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // When standard error is closed, nobody can be shown the message.
            let _ = error.print();
            return ExitCode::from(exit.code());
        }
    };
    let exit = act(cli).unwrap_or_else(|error| {
        print_error(&error);
        Exit::of(&error)
    });
    ExitCode::from(exit.code())
}

/// An id may begin with a hyphen, so users write `explain FEED -- -5` and `forget FEED -- -5`. An argument after `--`
/// is still taken for an option where it can be nothing else.
fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    let error = match Cli::try_parse_from(&args) {
        Err(error) if error.kind() == ErrorKind::UnknownArgument => error,
        parsed => return parsed,
    };
    let takes_id = args.iter().any(|arg| arg == "explain" || arg == "forget");
    let Some(dashes) = args.iter().position(|arg| arg == "--").filter(|_| takes_id) else { return Err(error) };
    let (before, operands) = (&args[..dashes], &args[dashes + 1..]);
    let moved = (1..operands.len()).rev().find_map(|kept| {
        let (operands, options) = operands.split_at(kept);
        let dashes = [OsString::from("--")];
        Cli::try_parse_from([before, options, &dashes, operands].concat()).ok()
    });
    moved.ok_or(error)
}

/// The whole command line, for completions, manual pages and tests of the documents.
pub fn command() -> clap::Command {
    Cli::command()
}

fn act(cli: Cli) -> anyhow::Result<Exit> {
    let globals = &cli.globals;
    match cli.verb {
        Verb::Run(args) => run::run(globals, args),
        Verb::Sync(args) => sync::run(globals, args),
        Verb::Status(args) => status::run(globals, args),
        Verb::Check(args) => check::run(globals, args),
        Verb::Export(args) => export::run(globals, args),
        Verb::Changes(args) => changes::run(globals, args),
        Verb::Pause(args) => control::pause(globals, args),
        Verb::Resume(args) => control::resume(globals, args),
        Verb::PollNow(args) => control::poll_now(globals, args),
        Verb::Resync(args) => control::resync(globals, args),
        Verb::Seek(args) => control::seek(globals, args),
        Verb::Purge(args) => control::purge(globals, args),
        Verb::Ack(args) => ack::run(globals, args),
        Verb::Quarantine(args) => quarantine::run(globals, args),
        Verb::Forget(args) => forget::run(globals, args),
        Verb::Rename(args) => rename::run(globals, args),
        Verb::Findings(args) => findings::run(globals, args),
        Verb::Events(args) => events::run(globals, args),
        Verb::Discover(args) => discover::run(globals, args),
        Verb::Explain(args) => explain::run(globals, args),
        Verb::Snapshot(args) => snapshot::run(globals, args),
        Verb::Restore(args) => restore::run(globals, args),
        Verb::Verify(args) => verify::run(globals, args),
        Verb::Simulate(args) => simulate::run(globals, args),
        Verb::Demo(args) => demo::run(globals, args),
        Verb::Completions(args) => shell::completions(args),
        Verb::Man(args) => shell::man(args),
    }
}

#[expect(clippy::print_stderr, reason = "the one place that prints a verb's failure")]
fn print_error(error: &anyhow::Error) {
    // When the reader of the output went away, as with `| head`, there is nothing to report and nothing failed.
    if broken_pipe(error) {
        return;
    }
    eprintln!("feedmirror: {}", terminal::text(&format!("{error:#}")));
}

/// True only for standard output: a network connection that broke lies deeper in the error chain, and is a failure.
fn broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

impl GlobalArgs {
    /// The log level: the configured one, unless flags overrule it.
    fn log_level(&self, configured: &str) -> String {
        match (self.quiet, self.verbose) {
            (true, _) => "error".to_owned(),
            (false, 0) => configured.to_owned(),
            (false, 1) => "info,feedmirror=debug".to_owned(),
            (false, _) => "debug,feedmirror=trace".to_owned(),
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Converts an output error such that [`Exit::of`] finds its cause.
fn into_anyhow(error: OutputError) -> anyhow::Error {
    match error {
        OutputError::Store(error) => error.into(),
        OutputError::Write(error) => error.into(),
        error @ OutputError::ReadAgain(_) => error.into(),
    }
}

/// Standard output for text or for JSON; on a terminal, control sequences in it are made harmless.
fn stdout(json: bool) -> SanitisingWriter<std::io::StdoutLock<'static>> {
    let (out, terminal) = (std::io::stdout().lock(), std::io::stdout().is_terminal());
    if json { SanitisingWriter::json(out, terminal) } else { SanitisingWriter::words(out, terminal) }
}

/// The widest table: the terminal's width, or a default where standard output is no terminal.
fn width() -> u16 {
    comfy_table::Table::new().width().map_or(output::status::WIDTH, |width| width.max(80))
}

/// Writes rows as JSON, one per line.
fn lines(out: &mut impl std::io::Write, rows: &[impl serde::Serialize]) -> std::io::Result<()> {
    rows.iter().try_for_each(|row| output::write_json_line(out, row))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_may_begin_with_a_hyphen_and_options_stand_before_it_or_after() {
        let explained = |line: &str| {
            let args = line.split(' ').map(OsString::from).collect();
            match parse(args) {
                Ok(Cli { verb: Verb::Explain(args), .. }) => format!("{args:?}"),
                other => panic!("{line}: {other:?}"),
            }
        };
        let expected = explained("feedmirror explain --db m.db --kind k --json f -- -5");
        assert!(expected.contains("id: Some(\"-5\")") && expected.contains("json: true"), "{expected}");
        for line in [
            "feedmirror explain f --db m.db --kind k --json -- -5",
            "feedmirror explain f -- -5 --db m.db --kind k --json",
            "feedmirror explain f --json -- -5 --kind k --db=m.db",
            "feedmirror explain -- f -5 --json --kind k --db m.db",
            "feedmirror explain f -5 --db m.db --kind k --json",
        ] {
            assert_eq!(explained(line), expected, "{line}");
        }
        // What can be an id is one.
        assert!(explained("feedmirror explain f -- --json").contains("id: Some(\"--json\"), kind: None"));
        for line in
            ["feedmirror forget f --yes -- -5", "feedmirror forget f -- -5 --yes", "feedmirror forget f -5 --yes"]
        {
            let args = line.split(' ').map(OsString::from).collect();
            assert!(matches!(parse(args), Ok(Cli { verb: Verb::Forget(_), .. })), "{line}");
        }
        for wrong in
            ["feedmirror explain f -- -5 --jsno", "feedmirror explain f --jsno", "feedmirror status -- f --json=1"]
        {
            let args = wrong.split(' ').map(OsString::from).collect();
            if let Ok(cli) = parse(args) {
                assert!(matches!(cli.verb, Verb::Status(_)), "{wrong}");
            }
        }
    }
}
