//! Which SQLite file a verb reads: the one that `--db` names, or the configuration's.

use std::path::PathBuf;

use super::GlobalArgs;
use crate::config::{self, Overrides};
use crate::store::read::Reader;

/// Options of every verb that reads the file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DatabasePath {
    /// The SQLite file, in place of the configuration's
    #[arg(long, value_name = "FILE", env = "FEEDMIRROR_DB")]
    pub db: Option<PathBuf>,
}

impl DatabasePath {
    /// The file's path.
    ///
    /// # Errors
    /// When there is neither `--db` nor a configuration that can be read.
    pub fn path(&self, globals: &GlobalArgs) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.db {
            return Ok(path.clone());
        }
        Ok(config::load(globals.config.as_deref(), &Overrides::default())?.database)
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// As [`DatabasePath::path`], and when the file is not a mirror.
    pub fn open(&self, globals: &GlobalArgs) -> anyhow::Result<Reader> {
        Ok(Reader::open(&self.path(globals)?)?)
    }
}
