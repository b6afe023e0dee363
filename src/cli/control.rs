//! Placeholder.
use super::{Exit, Globals};
/// Arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Feeds {}
/// Arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Resync {}
/// Arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Seek {}
/// Arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Purge {}
/// Runs.
/// # Errors
/// Always.
pub fn pause(_: &Globals, _: Feeds) -> anyhow::Result<Exit> {
    anyhow::bail!("placeholder")
}
/// Runs.
/// # Errors
/// Always.
pub fn resume(_: &Globals, _: Feeds) -> anyhow::Result<Exit> {
    anyhow::bail!("placeholder")
}
/// Runs.
/// # Errors
/// Always.
pub fn poll_now(_: &Globals, _: Feeds) -> anyhow::Result<Exit> {
    anyhow::bail!("placeholder")
}
/// Runs.
/// # Errors
/// Always.
pub fn resync(_: &Globals, _: Resync) -> anyhow::Result<Exit> {
    anyhow::bail!("placeholder")
}
/// Runs.
/// # Errors
/// Always.
pub fn seek(_: &Globals, _: Seek) -> anyhow::Result<Exit> {
    anyhow::bail!("placeholder")
}
/// Runs.
/// # Errors
/// Always.
pub fn purge(_: &Globals, _: Purge) -> anyhow::Result<Exit> {
    anyhow::bail!("placeholder")
}
/// Runs.
/// # Errors
/// Always.
pub(super) fn quarantine(_: &Globals, _: &super::place::Place, _: i64, _: bool) -> anyhow::Result<Exit> {
    anyhow::bail!("placeholder")
}
