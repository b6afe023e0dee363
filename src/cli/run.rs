//! `run`: the daemon and its signals. SIGTERM and SIGINT end it, a second one at once; SIGHUP reloads the
//! configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Exit, GlobalArgs, log};
use crate::config::{self, Config, ConfigErrors, Overrides};
use crate::daemon::{self, Setup, WebhookListener};
use crate::server::token;
use crate::source::webhook::tls::ReloadableTls;
use crate::store::{self, StoreError};
use crate::supervisor::{ConfiguredFeed, FleetSettings};

/// Wait between two attempts to save the admin token.
const TOKEN_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The SQLite file, in place of the configuration's
    #[arg(long, value_name = "FILE", env = "FEEDMIRROR_DB")]
    db: Option<PathBuf>,
    /// The operators' listener, in place of the configuration's
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
}

impl Args {
    fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        if let Some(db) = &self.db {
            overrides = overrides.with("database", db.to_string_lossy());
        }
        if let Some(listen) = &self.listen {
            overrides = overrides.with("ops.listen", listen);
        }
        overrides
    }
}

/// Runs until a signal ends it.
///
/// # Errors
/// When the configuration, the listener or the database can't be used.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    let overrides = args.overrides();
    let config = config::load(globals.config.as_deref(), &overrides)?;
    log::start(globals, &config.log)?;
    log_problems(&config);
    // Checked before its listeners are bound: another daemon on the same file usually has those too, and their error
    // says less.
    if store::stays_held(&config.database) {
        return Err(StoreError::InUse(config.database).into());
    }
    let runtime = super::runtime()?;
    let exit = runtime.block_on(under_signals(globals.config.as_deref(), &overrides, config));
    // The tasks that still run were told to end and had their time.
    runtime.shutdown_background();
    exit
}

async fn under_signals(path: Option<&Path>, overrides: &Overrides, config: Config) -> anyhow::Result<Exit> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let listener = TcpListener::bind(config.ops.listen)
        .await
        .with_context(|| format!("ops.listen = {}: can't listen there", config.ops.listen))?;
    let (token, unsaved_token) = token(&config)?;
    let (sender, reloads) = mpsc::channel(1);
    let (webhooks_sender, webhooks_from_reload) = mpsc::channel(1);
    let setup = Setup {
        database: config.database.clone(),
        fleet: fleet(&config),
        listener,
        token,
        webhooks: webhooks(&config).await?,
        webhooks_from_reload: Some(webhooks_from_reload),
    };
    let listening = setup.webhooks.as_ref().map(|webhooks| webhooks.tls.clone());
    let channels = ReloadChannels { feeds: sender, webhooks: webhooks_sender, listening };
    let shutdown = CancellationToken::new();
    let mut running = std::pin::pin!(daemon::run(setup, reloads, shutdown.clone()));
    let mut token_task = std::pin::pin!(save_token_when_possible(config.database.clone(), unsaved_token));
    let mut reload_task = std::pin::pin!(reload_on(hangup, path, overrides, config, channels));
    loop {
        tokio::select! {
            result = &mut running => return result.map(|()| Exit::Done).map_err(Into::into),
            never = &mut reload_task => match never {},
            never = &mut token_task => match never {},
            _ = next_stop_signal(&mut terminate, &mut interrupt) => {
                if shutdown.is_cancelled() {
                    return Ok(Exit::Failed);
                }
                shutdown.cancel();
            }
        }
    }
}

/// The admin token; also in the second place when the full disk kept it from being saved.
fn token(config: &Config) -> anyhow::Result<(SecretString, Option<SecretString>)> {
    match token::read_or_create(config.ops.token.as_ref(), &config.database) {
        Err(error) if error.is_disk_full() => {
            tracing::error!(%error, "the admin token is written down once there is room");
            let token = token::generate()?;
            Ok((token.clone(), Some(token)))
        }
        token => Ok((token?, None)),
    }
}

async fn save_token_when_possible(database: PathBuf, unsaved_token: Option<SecretString>) -> std::convert::Infallible {
    if let Some(token) = unsaved_token {
        while token::save(&database, &token).is_err() {
            tokio::time::sleep(TOKEN_RETRY_INTERVAL).await;
        }
        tracing::info!("the admin token is written down");
    }
    std::future::pending().await
}

/// The listener that publishers post to, if webhooks are configured.
async fn webhooks(config: &Config) -> anyhow::Result<Option<WebhookListener>> {
    if !config.takes_webhooks() {
        return Ok(None);
    }
    let settings = config.webhooks.clone();
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("webhooks.listen = {}: can't listen there", settings.listen))?;
    let tls = settings.tls.clone().map(ReloadableTls::load).transpose().context("webhooks.tls_cert_file")?;
    Ok(Some(WebhookListener { listener, settings, tls }))
}

async fn next_stop_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
}

/// How a reload changes a running daemon.
struct ReloadChannels {
    feeds: mpsc::Sender<FleetSettings>,
    /// For the first webhook listener, where there was none.
    webhooks: mpsc::Sender<WebhookListener>,
    /// The certificate of the webhook listener, if there is a listener already.
    listening: Option<Option<ReloadableTls>>,
}

impl ReloadChannels {
    /// Starts the webhook listener, where it is configured now and was not before.
    async fn listen(&mut self, config: &Config, running: &mut Config) {
        if let Some(tls) = &self.listening {
            if let Some(Err(error)) = tls.as_ref().map(ReloadableTls::reload) {
                tracing::error!(%error, "the webhooks' certificate can't be read again: the old one stays");
            }
            return;
        }
        match webhooks(config).await {
            Ok(None) => {}
            Ok(Some(listener)) => {
                self.listening = Some(listener.tls.clone());
                running.webhooks = config.webhooks.clone();
                drop(self.webhooks.send(listener).await);
            }
            Err(error) => tracing::error!("{error:#}: nothing listens for publishers until the next reload"),
        }
    }
}

async fn reload_on(
    mut hangup: Signal,
    path: Option<&Path>,
    overrides: &Overrides,
    mut running: Config,
    mut channels: ReloadChannels,
) -> std::convert::Infallible {
    loop {
        if hangup.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now().ok());
        daemon::notify_systemd(&states);
        match config::load(path, overrides) {
            Ok(config) => {
                log_problems(&config);
                channels.listen(&config, &mut running).await;
                log_unreloadable(&running, &config, channels.listening.is_some());
                // The send fails only when the daemon is ending.
                drop(channels.feeds.send(fleet(&config)).await);
                running.feeds = config.feeds;
            }
            Err(errors) => log_refused(&errors),
        }
        daemon::notify_systemd(&[NotifyState::Ready]);
    }
}

fn log_problems(config: &Config) {
    for problem in &config.problems {
        tracing::error!("{problem}");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

fn log_refused(errors: &ConfigErrors) {
    for problem in &errors.problems {
        tracing::error!("{problem}");
    }
    tracing::error!("the configuration can't be used: nothing is changed");
}

fn log_unreloadable(before: &Config, after: &Config, listening: bool) {
    let changed = [
        ("database", before.database != after.database),
        ("ops", before.ops != after.ops),
        ("log", before.log != after.log),
        ("webhooks", listening && before.webhooks != after.webhooks),
    ];
    for (key, _) in changed.iter().filter(|(_, changed)| *changed) {
        tracing::warn!(key, "has changed, which takes a restart: it stays as it was");
    }
}

/// The feeds as the supervisor takes them.
pub fn fleet(config: &Config) -> FleetSettings {
    let configured = |feed: &Result<_, config::FailedFeed>| match feed {
        Ok(settings) => ConfiguredFeed::Ready(Box::new(crate::supervisor::FeedSettings::clone(settings))),
        Err(failed) => {
            let mistakes: Vec<String> = failed.errors.iter().map(ToString::to_string).collect();
            ConfiguredFeed::Broken { name: failed.name.clone(), reason: mistakes.join("; ") }
        }
    };
    FleetSettings {
        feeds: config.feeds.iter().map(configured).collect(),
        hosts: config.hosts.clone(),
        keep_settings: config.keep.clone(),
    }
}
