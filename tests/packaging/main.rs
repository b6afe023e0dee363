//! What is shipped: the Debian package, which is built here, put into a folder by the real dpkg, upgraded, removed and
//! purged; and the image, which is held by reading alone, since no container runs where tests do.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod image;
mod metadata;
mod package;
mod root;

use std::path::{Path, PathBuf};
use std::process::Command;

fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: impl AsRef<Path>) -> String {
    let path = source().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Standard output of a command that must succeed.
fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; ./test installs what it needs"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {} (./test installs what it needs)\n{said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
