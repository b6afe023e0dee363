//! Raw configuration → checked settings: defaults < file < environment < flags.
//!
//! All mistakes are found in one run; each names its key and its scope: a mistake in one feed's settings fails that
//! feed and no other. The resulting settings need no further checking; their types are defined beside the code that
//! uses them, and none of that code knows this module. Loading reads files and the environment and changes nothing, so
//! it can be repeated at any time and the results compared.
//!
//! No secret is kept here: a secret is a reference, read once to check that it can be read. No message shows a value
//! that may be a secret, even where it was written at a wrong key.

mod feeds;
mod sections;
mod layers;
mod problem;
mod push;
mod secrets;
mod table;
mod units;
mod urls;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value as Raw};

pub use layers::Overrides;
pub use problem::{ConfigErrors, ConfigProblem, ProblemScope, ValueOrigin};

use crate::feed::FeedName;
use crate::source::http::HostSettings;
use crate::source::secret::SecretSource;
use crate::source::webhook::WebhookListenerSettings;
use crate::store::retention::RetentionSettings;
use crate::supervisor::FeedSettings;
use layers::Layers;
use table::{ConfigReport, Table};

/// Paths where a configuration is looked for when none is named, in this order.
pub const DEFAULT_PATHS: [&str; 2] = ["feedmirror.toml", "/etc/feedmirror/config.toml"];

/// The whole configuration, checked; some feeds may have failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Each file read, the main one first.
    pub files: Vec<PathBuf>,
    /// The patterns of further files, as full paths.
    pub include: Vec<PathBuf>,
    /// The names of all providers.
    pub providers: Vec<String>,
    pub database: PathBuf,
    pub ops: OpsSettings,
    pub webhooks: WebhookListenerSettings,
    /// Whether the configuration has `[webhooks]`: then it listens, with or without a feed that has a webhook.
    pub webhooks_configured: bool,
    pub log: LogSettings,
    /// Limits of hosts.
    pub hosts: HostSettings,
    /// How long rows are kept.
    pub keep: RetentionSettings,
    /// Each feed by name, or why it can't run.
    pub feeds: Vec<Result<FeedSettings, FailedFeed>>,
    /// Every mistake, none of them [`ProblemScope::Fatal`]: also those of providers without feeds, and of `[feeds.*]`
    /// whose name can't be one.
    pub problems: Vec<ConfigProblem>,
    /// What is allowed but unwise.
    pub warnings: Vec<ConfigProblem>,
}

/// A feed that can't run as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedFeed {
    pub name: FeedName,
    /// The feed's mistakes and its provider's.
    pub errors: Vec<ConfigProblem>,
}

/// `[ops]`: the operators' listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpsSettings {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The admin token; when not set, one that is created beside the database.
    pub token: Option<SecretSource>,
}

impl Default for OpsSettings {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8470)), token: None }
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub format: LogFormat,
    /// A level, or a filter as tracing-subscriber reads it: `warn,feedmirror=debug`.
    pub level: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Whether there is a webhook listener: `[webhooks]` is configured, or a feed that can run has a webhook.
    pub fn takes_webhooks(&self) -> bool {
        self.webhooks_configured || self.feeds.iter().flatten().any(|feed| feed.webhook.is_some())
    }
}

impl LogFormat {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Loads the configuration at `path`, or the first of [`DEFAULT_PATHS`] that exists. Blocking: small local files.
///
/// # Errors
/// When `run` can't start from it; a mistake confined to feeds is in [`Config::feeds`] and [`Config::problems`].
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigErrors> {
    let mut problems = Vec::new();
    let environment = environment(&mut problems);
    let path = match path {
        Some(path) => path,
        None => find_file(&DEFAULT_PATHS)?,
    };
    load_from(path, &environment, overrides, problems)
}

fn find_file(paths: &[&'static str]) -> Result<&'static Path, ConfigErrors> {
    // A file that exists but can't be read is chosen all the same; reading it reports why it can't be read.
    let exists = |path: &&Path| path.try_exists().unwrap_or(true);
    paths.iter().copied().map(Path::new).find(exists).ok_or_else(|| {
        let message = format!("no configuration: there is no {}; name one with --config FILE", paths.join(" and no "));
        let problem =
            ConfigProblem { scope: ProblemScope::Fatal, origin: None, key: String::new(), value: None, message };
        ConfigErrors { problems: vec![problem], warnings: Vec::new() }
    })
}

fn environment(problems: &mut Vec<ConfigProblem>) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) if name.starts_with("FEEDMIRROR_") => problems.push(ConfigProblem {
                scope: ProblemScope::Fatal,
                origin: Some(ValueOrigin::Environment(name)),
                key: String::new(),
                value: None,
                message: "is not UTF-8".to_owned(),
            }),
            Err(_) => {}
        }
    }
    variables.sort_unstable();
    variables
}

fn load_from(
    path: &Path,
    environment: &[(String, String)],
    overrides: &Overrides,
    mut problems: Vec<ConfigProblem>,
) -> Result<Config, ConfigErrors> {
    let layers = Layers::read(path, environment, overrides, &mut problems);
    let report = ConfigReport::new(&layers, problems);
    let mut config = resolve(&report);
    config.problems = report.problems.take();
    config.warnings = report.warnings.take();
    if config.problems.iter().any(|problem| problem.scope == ProblemScope::Fatal) {
        return Err(ConfigErrors { problems: config.problems, warnings: config.warnings });
    }
    Ok(config)
}

fn resolve(report: &ConfigReport<'_>) -> Config {
    let root = Table::root(report);
    let mut database = PathBuf::from("mirror.db");
    root.set("database", &mut database, |value| value.path().ok_or_else(|| "must be the path of a file".to_owned()));
    // The files that `include` names are read already. Whichever layer sets it, it is relative to the main file.
    let include = root.ask("include").and_then(|value| value.list()).unwrap_or_default();
    let base = report.layers.files.first().and_then(|main| main.parent()).unwrap_or(Path::new(""));
    let include = include.into_iter().map(|pattern| base.join(pattern)).collect();
    let ops = sections::ops(root.table("ops"));
    let webhooks = root.table("webhooks");
    let webhooks_configured = webhooks.is_present();
    let webhooks = push::webhooks(webhooks);
    if ops.listen == webhooks.listen && ops.listen.port() != 0 {
        root.table("webhooks").problem("listen", format!("is ops.listen too ({}): each needs its own", ops.listen));
    }
    let log = sections::log(root.table("log"));
    let (http, each) = sections::global_http(root.table("http"));
    let hosts = sections::hosts(&root, each);
    let poll = sections::poll(root.table("poll"), &Default::default());
    let retry = sections::retry(root.table("retry"), &Default::default());
    let resync = sections::resync(root.table("resync"), &Default::default());
    let push = push::push(root.table("push"), &Default::default());
    let keep = sections::keep(root.table("keep"));
    let global = feeds::FeedDefaults::global(poll, retry, resync, http, push);
    let providers = feeds::providers(&root, &global);
    let feeds = feeds::feeds(report, &root, &global, &providers, &webhooks);
    sections::check_tombstones(&root, &keep, &feeds);
    if feeds.is_empty() {
        root.warn("feeds", "there are none: nothing will be mirrored".to_owned());
    }
    root.finish();
    let files = report.layers.files.clone();
    let providers = providers.into_keys().collect();
    Config {
        files,
        include,
        providers,
        database,
        ops,
        webhooks,
        webhooks_configured,
        log,
        hosts,
        keep,
        feeds,
        problems: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Every known key, dotted, with `*` where the operator chooses a name: the documents must describe all of them.
pub fn known_keys() -> BTreeSet<String> {
    let one = || Raw::from(Dict::from([("x".to_owned(), Dict::new().into())]));
    let tables = ["feeds", "providers", "hosts"].map(|key| (key.to_owned(), one()));
    let layers = Layers::of(Dict::from(tables));
    let report = ConfigReport::new(&layers, Vec::new());
    resolve(&report);
    report.known.take()
}
