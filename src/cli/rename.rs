//! `rename`: gives a feed another name; its rows and cursors are kept.
//!
//! Acts only on a file that no daemon holds, and only where the configuration has the new name alone: with the old name
//! still configured, that feed would be read anew beside the renamed one.

use anyhow::bail;

use super::database_path::DatabasePath;
use super::{Exit, GlobalArgs, UsageError, control};
use crate::config::{self, Config, Overrides};
use crate::feed::FeedName;

/// Arguments of `rename`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The feed's name in the mirror
    old: String,
    /// Its new name
    new: String,
    #[command(flatten)]
    database_path: DatabasePath,
}

/// Renames the feed.
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
        check_configured_names(&config::load(globals.config.as_deref(), &Overrides::default())?, &args.old, &new)?;
    }
    control::rename(globals, &args.database_path, &args.old, &new)
}

fn check_configured_names(config: &Config, old: &str, new: &FeedName) -> anyhow::Result<()> {
    let is_configured = |wanted: &str| {
        config.feeds.iter().any(|feed| {
            let name = feed.as_ref().map_or_else(|failed| &failed.name, |settings| &settings.name);
            name.as_str() == wanted
        })
    };
    if is_configured(old) {
        bail!("{old} is configured: rename [feeds.{old}] to [feeds.{new}] first, or {old} would be read anew");
    }
    if !is_configured(new.as_str()) {
        bail!("{new} is not configured: write [feeds.{new}] first, or name the file alone with --db");
    }
    Ok(())
}
