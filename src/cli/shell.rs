//! `completions` and `man`: generated from the command line's own definition, so that they can't differ from it.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;

use super::{Exit, command};

/// Arguments of `completions`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to complete in
    shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Clone, Debug, clap::Args)]
pub struct ManArgs {
    /// Write the page of each command to this directory instead
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Prints the script.
///
/// # Errors
/// When standard output can't be written.
pub fn completions(args: CompletionsArgs) -> anyhow::Result<Exit> {
    // Written in one go: the generator panics where its writer fails, as it does behind `| head`.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "feedmirror", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Done)
}

/// Prints the page, or writes all of them.
///
/// # Errors
/// When standard output or the directory can't be written.
pub fn man(args: ManArgs) -> anyhow::Result<Exit> {
    match args.to {
        Some(directory) => {
            std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
            clap_mangen::generate_to(command(), &directory)
                .with_context(|| format!("cannot write to {}", directory.display()))?;
        }
        None => clap_mangen::Man::new(command()).render(&mut io::stdout())?,
    }
    Ok(Exit::Done)
}
