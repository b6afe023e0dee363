//! A folder that stands for a machine's root, with a dpkg database of its own.
//!
//! The package's scripts run outside it and are told where it is by DPKG_ROOT; no service is started. Whoever is not
//! root plays it with fakeroot.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::output_of;

pub(crate) struct Root(TempDir);

impl Root {
    pub(crate) fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"] {
            fs::create_dir_all(root.path(folder)).unwrap();
        }
        root.write("var/lib/dpkg/status", "");
        root
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// What dpkg says; the packages depended on are the machine's, not the folder's.
    pub(crate) fn dpkg(&self, action: &str, what: impl AsRef<OsStr>) -> String {
        let mut command = as_root("dpkg");
        command.arg(format!("--root={}", self.0.path().display()));
        command.args(["--force-script-chrootless", "--force-depends", "--force-not-root", "--force-confold"]);
        command.args(["--log=/dev/null", action]).arg(what);
        output_of(&mut command)
    }

    /// Runs a script of the package as dpkg would.
    pub(crate) fn script(&self, script: &Path, argument: &str) -> String {
        output_of(as_root(script).arg(argument).env("DPKG_ROOT", self.0.path()))
    }
}

fn as_root(program: impl AsRef<OsStr>) -> Command {
    let mut command = if nix::unistd::getuid().is_root() {
        Command::new(program)
    } else {
        let mut command = Command::new("fakeroot");
        command.arg(program);
        command
    };
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C.UTF-8");
    command
}
