//! What is configured already, and where discovery's own files are.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::{GlobalArgs, UsageError};
use crate::config::{self, Overrides};
use crate::discover::names::{KnownFeed, KnownNames, KnownSite};
use crate::discover::provider_file::{self, FileOrigin};

/// The configuration as discovery sees it.
pub(super) struct CurrentConfig {
    /// Where its own files are; nothing when none was named and the configuration includes none.
    pub(super) folder: Option<PathBuf>,
    /// Feeds and providers.
    pub(super) known: KnownNames,
    /// Its own files by provider.
    pub(super) files: BTreeMap<String, OwnFile>,
    /// The main file; none where there is no configuration.
    pub(super) main: Option<PathBuf>,
}

/// A file that discovery wrote.
pub(super) struct OwnFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) site: KnownSite,
    pub(super) feeds: Vec<KnownFeed>,
}

impl CurrentConfig {
    /// Reads the configuration, which may be missing where `folder` is named, and the files in that folder.
    ///
    /// # Errors
    /// When neither says where files are to be, or one can't be read.
    pub(super) fn load(globals: &GlobalArgs, folder: Option<&Path>, only_read: bool) -> anyhow::Result<Self> {
        if let Some(folder) = folder.filter(|folder| folder.to_string_lossy().contains("://")) {
            let why = format!("{} is no folder: let the URL come first, or name the folder too", folder.display());
            return Err(UsageError(why).into());
        }
        let found = globals.config.is_some() || config::DEFAULT_PATHS.iter().any(|place| Path::new(place).exists());
        let mut configured = Self { folder: None, known: KnownNames::default(), files: BTreeMap::new(), main: None };
        if found || folder.is_none() {
            configured.take(&config::load(globals.config.as_deref(), &Overrides::default())?);
        }
        if let Some(folder) = folder {
            configured.folder = Some(folder.to_owned());
        }
        let Some(folder) = configured.folder.clone() else {
            if only_read {
                return Ok(configured);
            }
            let why = "the configuration includes no folder of files: add include = [\"feeds.d/*.toml\"] to it, or name a \
                       folder, --add DIR";
            return Err(UsageError(why.to_owned()).into());
        };
        configured.read(&folder)?;
        Ok(configured)
    }

    fn take(&mut self, config: &config::Config) {
        self.main = config.files.first().cloned();
        self.folder = config.include.iter().find_map(|pattern| folder_of(pattern));
        for feed in &config.feeds {
            self.known.feeds.push(match feed {
                Ok(feed) => KnownFeed {
                    name: feed.name.to_string(),
                    provider: feed.provider.clone(),
                    url: feed.url.clone(),
                    dataset_url: feed.attribution.dataset_url.clone(),
                },
                Err(failed) => {
                    KnownFeed { name: failed.name.to_string(), provider: None, url: String::new(), dataset_url: None }
                }
            });
        }
        self.known.providers.extend(config.providers.iter().cloned());
    }

    fn read(&mut self, folder: &Path) -> anyhow::Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("{} can't be read", folder.display())),
        };
        for entry in entries {
            let path = entry.with_context(|| format!("{} can't be read", folder.display()))?.path();
            let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned) else { continue };
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let text = fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
            // Whatever is in it, its name is taken.
            self.known.providers.insert(stem);
            if let Some(written) = provider_file::parse(&text) {
                self.own(path, text, written);
            }
        }
        Ok(())
    }

    fn own(&mut self, path: PathBuf, text: String, written: provider_file::ProviderFile) {
        let known = |name: &str| self.known.feeds.iter().any(|feed| feed.name == name);
        let new: Vec<KnownFeed> = written.feeds.iter().filter(|feed| !known(&feed.name)).cloned().collect();
        self.known.feeds.extend(new);
        self.known.providers.insert(written.site.provider.clone());
        self.known.sites.insert(written.dataset_url, written.site.clone());
        let own = OwnFile { path, text, site: written.site.clone(), feeds: written.feeds };
        self.files.insert(written.site.provider, own);
    }
}

impl OwnFile {
    /// Whether somebody has edited it.
    pub(super) fn is_edited(&self) -> bool {
        provider_file::file_origin(&self.text) == FileOrigin::Edited
    }
}

/// `feeds.d` of `feeds.d/*.toml`.
fn folder_of(pattern: &Path) -> Option<PathBuf> {
    let folder = pattern.parent()?;
    let plain = !folder.to_string_lossy().contains(['*', '?', '[']);
    (plain && pattern.file_name()? == "*.toml").then(|| folder.to_owned())
}
