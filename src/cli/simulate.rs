//! `simulate`: placeholder.
use super::{Exit, Globals};
/// Arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}
/// Runs.
/// # Errors
/// Always.
pub fn run(_: &Globals, _: Args) -> anyhow::Result<Exit> {
    anyhow::bail!("placeholder")
}
