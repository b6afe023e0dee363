//! Runs this test program again as a child that uses a store, so that the child can be killed or denied disk space.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

const ROLE: &str = "STORE_TEST_ROLE";
const FILE: &str = "STORE_TEST_FILE";

/// A running child and the lines that it prints.
pub(crate) struct ChildProgram {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl ChildProgram {
    /// Starts `before… this-program` in a role, on a file.
    pub(crate) fn start(before: &[&str], role: &str, file: &Path) -> Self {
        let this = std::env::current_exe().unwrap();
        let test = ["program::a_child_plays_its_role", "--exact", "--nocapture"];
        let mut command = match before {
            [] => Command::new(this),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(this);
                command
            }
        };
        command.args(test).env(ROLE, role).env(FILE, file);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The child's next line; `None` once it has ended.
    pub(crate) fn line(&mut self) -> Option<String> {
        self.lines.next().map(|line| line.unwrap())
    }

    /// Kills the child with SIGKILL; returns the lines that were not read yet.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::iter::from_fn(|| self.line()).collect()
    }
}

/// Prints one line for the parent, without buffering.
pub(crate) fn report_line(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Does nothing unless another test has started this program as its child.
#[test]
fn a_child_plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let file = std::path::PathBuf::from(std::env::var_os(FILE).expect("a child is told its file"));
    match role.as_str() {
        "crash" => crate::crash::child(&file),
        "starved" => crate::environment::child(&file),
        _ => panic!("no such role: {role}"),
    }
}
