//! `rename`: a feed under another name, its rows and cursors kept.
//!
//! It acts on a file at rest, and only where that can't go wrong: a configuration that still has the old name would read
//! that feed anew beside the renamed one.

use anyhow::bail;

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, UsageError, control};
use crate::config::{self, Config, Overrides};
use crate::feed::FeedName;

/// What `rename` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The feed's name in the mirror
    old: String,
    /// Its new name
    new: String,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Renames it.
///
/// # Errors
/// When the configuration doesn't have the new name alone, a daemon holds the file, or there is no such feed.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let Some(new) = FeedName::new(&args.new) else {
        return Err(
            UsageError(format!("{:?} is no name: use a-z, 0-9, and after the first also . _ -", args.new)).into()
        );
    };
    if args.database_path.db.is_none() {
        check(&config::load(globals.config.as_deref(), &Overrides::default())?, &args.old, &new)?;
    }
    control::rename(globals, &args.database_path, &args.old, &new)
}

fn check(config: &Config, old: &str, new: &FeedName) -> anyhow::Result<()> {
    let has = |wanted: &str| {
        config.feeds.iter().any(|feed| {
            let name = feed.as_ref().map_or_else(|failed| &failed.name, |settings| &settings.name);
            name.as_str() == wanted
        })
    };
    if has(old) {
        bail!("{old} is configured: rename [feeds.{old}] to [feeds.{new}] first, or {old} would be read anew");
    }
    if !has(new.as_str()) {
        bail!("{new} is not configured: write [feeds.{new}] first, or name the file alone with --db");
    }
    Ok(())
}
