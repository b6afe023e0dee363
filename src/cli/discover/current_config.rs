//! What is configured already, and where the files are that `discover` wrote.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::{GlobalArgs, UsageError};
use crate::config::{self, Overrides};
use crate::discover::names::{KnownFeed, KnownNames, KnownSite};
use crate::discover::provider_file::{self, FileOrigin};

/// The configuration as `discover` needs it.
pub(super) struct CurrentConfig {
    /// Folder of the files that `discover` writes; none when none was named and the configuration includes none.
    pub(super) folder: Option<PathBuf>,
    /// Feeds and providers that are configured.
    pub(super) known: KnownNames,
    /// The files that `discover` wrote, by provider.
    pub(super) files: BTreeMap<String, OwnFile>,
    /// The main file; none where there is no configuration.
    pub(super) main: Option<PathBuf>,
}

/// A file that `discover` wrote.
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
    /// When neither names a folder (unless `only_read`), or a file can't be read.
    pub(super) fn load(globals: &GlobalArgs, folder: Option<&Path>, only_read: bool) -> anyhow::Result<Self> {
        if let Some(folder) = folder.filter(|folder| folder.to_string_lossy().contains("://")) {
            let why = format!("{} is no folder: let the URL come first, or name the folder too", folder.display());
            return Err(UsageError(why).into());
        }
        let has_config = globals.config.is_some() || config::DEFAULT_PATHS.iter().any(|path| Path::new(path).exists());
        let mut current = Self { folder: None, known: KnownNames::default(), files: BTreeMap::new(), main: None };
        if has_config || folder.is_none() {
            current.add_config(&config::load(globals.config.as_deref(), &Overrides::default())?);
        }
        if let Some(folder) = folder {
            current.folder = Some(folder.to_owned());
        }
        let Some(folder) = current.folder.clone() else {
            if only_read {
                return Ok(current);
            }
            let why = "the configuration includes no folder of files: add include = [\"feeds.d/*.toml\"] to it, or name a \
                       folder, --add DIR";
            return Err(UsageError(why.to_owned()).into());
        };
        current.read_folder(&folder)?;
        Ok(current)
    }

    fn add_config(&mut self, config: &config::Config) {
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

    fn read_folder(&mut self, folder: &Path) -> anyhow::Result<()> {
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
            // The file's name is taken, whatever the file holds.
            self.known.providers.insert(stem);
            if let Some(provider_file) = provider_file::parse(&text) {
                self.add_own_file(path, text, provider_file);
            }
        }
        Ok(())
    }

    fn add_own_file(&mut self, path: PathBuf, text: String, provider_file: provider_file::ProviderFile) {
        let known = |name: &str| self.known.feeds.iter().any(|feed| feed.name == name);
        let new: Vec<KnownFeed> = provider_file.feeds.iter().filter(|feed| !known(&feed.name)).cloned().collect();
        self.known.feeds.extend(new);
        self.known.providers.insert(provider_file.site.provider.clone());
        self.known.sites.insert(provider_file.dataset_url, provider_file.site.clone());
        let own = OwnFile { path, text, site: provider_file.site.clone(), feeds: provider_file.feeds };
        self.files.insert(provider_file.site.provider, own);
    }
}

impl OwnFile {
    /// Whether somebody has edited the file.
    pub(super) fn is_edited(&self) -> bool {
        provider_file::file_origin(&self.text) == FileOrigin::Edited
    }
}

/// `feeds.d` for `feeds.d/*.toml`.
fn folder_of(pattern: &Path) -> Option<PathBuf> {
    let folder = pattern.parent()?;
    let plain = !folder.to_string_lossy().contains(['*', '?', '[']);
    (plain && pattern.file_name()? == "*.toml").then(|| folder.to_owned())
}
