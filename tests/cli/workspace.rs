//! A folder in which the program runs, and a simulated publisher.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{DEADLINE, holds_within};

pub(crate) struct Workspace(TempDir);

/// The result of a run.
#[derive(Debug)]
pub(crate) struct RunOutput {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for RunOutput {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl RunOutput {
    /// Standard output as JSON values, one per line.
    pub(crate) fn rows(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }
}

impl Workspace {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// The names of the files in the folder, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The program in this folder, with no settings from the environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["FEEDMIRROR_CONFIG", "FEEDMIRROR_DB", "HTTP_PROXY", "http_proxy", "JOURNAL_STREAM"] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> RunOutput {
        self.command(arguments).output().unwrap().into()
    }

    /// Starts the program and captures its output.
    pub(crate) fn start(&self, arguments: &[&str]) -> RunningProgram {
        self.start_as(&mut self.command(arguments))
    }

    pub(crate) fn start_as(&self, command: &mut Command) -> RunningProgram {
        let (out, err) = (self.path("running.out"), self.path("running.err"));
        let file = |path| std::fs::File::create(path).unwrap();
        let child = command.stdout(file(&out)).stderr(file(&err)).spawn().unwrap();
        RunningProgram { child, out, err }
    }

    /// The value that systemd would give JOURNAL_STREAM if the file that captures standard error were the journal.
    pub(crate) fn journal_stream(&self) -> String {
        let caught = std::fs::File::create(self.path("running.err")).unwrap().metadata().unwrap();
        format!("{}:{}", caught.dev(), caught.ino())
    }

    /// The rows of a query, each as one text; none while there is no such table.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> Vec<String> {
        let Ok(db) = Connection::open_with_flags(self.path(database), OpenFlags::SQLITE_OPEN_READ_ONLY) else {
            return Vec::new();
        };
        let Ok(mut select) = db.prepare(sql) else { return Vec::new() };
        let rows = select.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

/// A running program; killed when a test fails.
pub(crate) struct RunningProgram {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl RunningProgram {
    pub(crate) fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    pub(crate) fn err(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for the program's exit.
    pub(crate) fn wait_for_exit(mut self) -> RunOutput {
        let mut status: Option<ExitStatus> = None;
        let ended = holds_within(DEADLINE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "it does not end\n{}\n{}", self.out(), self.err());
        RunOutput { code: status.unwrap().code(), out: self.out(), err: self.err() }
    }
}

impl Drop for RunningProgram {
    fn drop(&mut self) {
        // The process has usually ended by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `feedmirror simulate`; ends when dropped.
pub(crate) struct SimulatorProcess {
    child: Child,
    /// Each feed's name and URL.
    pub(crate) feeds: Vec<(String, String)>,
}

impl SimulatorProcess {
    /// Starts `feeds` feeds of 30 items that don't change.
    pub(crate) fn of(feeds: usize) -> Self {
        let count = feeds.to_string();
        let arguments =
            ["simulate", "--listen", "127.0.0.1:0", "--rate", "0", "--items", "30", "--page", "10", "--feeds", &count];
        let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
        let mut child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(feeds);
        let pair = |line: String| line.split_once('\t').map(|(name, url)| (name.to_owned(), url.to_owned())).unwrap();
        let feeds = lines.map(|line| pair(line.unwrap())).collect();
        Self { child, feeds }
    }

    pub(crate) fn url(&self, feed: usize) -> &str {
        &self.feeds[feed].1
    }
}

impl Drop for SimulatorProcess {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A URL where nothing listens: its port was free a moment ago.
pub(crate) fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/feed", listener.local_addr().unwrap())
}
