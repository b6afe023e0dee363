//! `demo`: a simulated publisher, the daemon and its status page, in one process and with nothing to configure.
//!
//! The first feed is pushed by server-sent events, the second by a webhook; the others are only polled.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Exit, GlobalArgs, UsageError, log, width};
use crate::config::LogSettings;
use crate::daemon::{self, Setup, WebhookListener};
use crate::feed::FeedName;
use crate::mode::PushSettings;
use crate::output::status::{self, Status};
use crate::schedule::PollSettings;
use crate::server;
use crate::simulate::{Simulator, SimulatorSettings, WebhookTarget};
use crate::source::secret::SecretSource;
use crate::source::sse::SseSettings;
use crate::source::webhook::{WebhookListenerSettings, WebhookSettings};
use crate::store::read::{Reader, StoreError};
use crate::supervisor::{ConfiguredFeed, FeedSettings, FleetSettings};

/// Arguments of `demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How many feeds
    #[arg(long, value_name = "N", default_value_t = 6)]
    feeds: usize,
    /// Items of each feed at the start
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    items: usize,
    /// Changes a second to each feed
    #[arg(long, value_name = "N", default_value_t = 0.5)]
    rate: f64,
    /// End after so many seconds, instead of when interrupted
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// The SQLite file, made anew [default: demo.db in a directory of its own, below that for temporary files]
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
}

/// The demo polls its feeds more often than any real publisher would like.
const POLL: PollSettings =
    PollSettings { min: Duration::from_secs(1), max: Duration::from_secs(5), lookback: Duration::from_secs(60) };
/// Push is proven more often than necessary, so that the user sees it.
const AUDIT: Duration = Duration::from_secs(30);
const PROVE_AFTER: Duration = Duration::from_secs(5);
const SCREEN_REDRAW_INTERVAL: Duration = Duration::from_secs(1);
const OUTPUT_REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Mirrors simulated feeds until interrupted.
///
/// # Errors
/// When the database or a listener can't be made.
pub fn run(globals: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    log::start(globals, &LogSettings { level: "error".to_owned(), ..LogSettings::default() })?;
    let database = database(&args)?;
    let runtime = super::runtime()?;
    let exit = runtime.block_on(demonstrate(&args, database));
    runtime.shutdown_background();
    exit
}

/// Path of a new database: simulated feeds begin anew with each demonstration, and so must their mirror.
fn database(args: &Args) -> anyhow::Result<PathBuf> {
    if let Some(db) = &args.db {
        if db.exists() {
            return Err(UsageError(format!("{} is there already: a demo makes its own", db.display())).into());
        }
        return Ok(db.clone());
    }
    let folder = std::env::temp_dir().join(format!("feedmirror-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join("demo.db"))
}

async fn demonstrate(args: &Args, database: PathBuf) -> anyhow::Result<Exit> {
    let settings = SimulatorSettings {
        feeds: args.feeds,
        items: args.items,
        rate: args.rate,
        page: 100,
        ..SimulatorSettings::default()
    };
    let mut simulator = Simulator::start(TcpListener::bind("127.0.0.1:0").await?, settings)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let page = format!("http://{}/", listener.local_addr()?);
    let token = server::token::read_or_create(None, &database)?;
    let roles = FeedRoles::of(&simulator);
    let webhooks = match &roles.webhook_feed {
        Some(feed) => Some(webhook(&mut simulator, feed, &database).await?),
        None => None,
    };
    let fleet = fleet(&simulator, &roles, &database);
    let setup = Setup { database: database.clone(), fleet, listener, token, webhooks, webhooks_from_reload: None };
    let (shutdown, (_reloads, reloads)) = (CancellationToken::new(), mpsc::channel(1));
    let mut running = std::pin::pin!(daemon::run(setup, reloads, shutdown.clone()));
    let mut display = std::pin::pin!(show(&database, &page, &roles));
    let mut end = std::pin::pin!(wait_for_end(args.seconds));
    loop {
        tokio::select! {
            result = &mut running => {
                result?;
                break;
            }
            result = &mut display, if !shutdown.is_cancelled() => {
                result?;
                shutdown.cancel();
            }
            () = &mut end, if !shutdown.is_cancelled() => shutdown.cancel(),
        }
    }
    simulator.stop().await;
    tokio::task::block_in_place(|| close(&database))?;
    Ok(Exit::Done)
}

/// Prints how the demo ended, where no screen shows it already, and where its database is.
fn close(database: &Path) -> anyhow::Result<()> {
    let mut text = Vec::new();
    if !io::stdout().is_terminal() {
        text.push(b'\n');
        table(&mut text, &read(database)?)?;
    }
    writeln!(text, "\nThe file stays for you to look at: {}", database.display())?;
    Ok(io::stdout().write_all(&text)?)
}

fn read(database: &Path) -> Result<Status, StoreError> {
    Status::read(&Reader::open(database)?, &[])
}

fn table(text: &mut Vec<u8>, status: &Status) -> io::Result<()> {
    status::table(text, status, jiff::Timestamp::now(), width())
}

async fn wait_for_end(seconds: Option<u64>) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    let timer = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} () = timer => {} }
}

/// Which feeds are pushed, and how.
struct FeedRoles {
    sse_feed: Option<String>,
    webhook_feed: Option<String>,
    others: usize,
}

impl FeedRoles {
    fn of(simulator: &Simulator) -> Self {
        let mut names = simulator.names().into_iter();
        let (sse_feed, webhook_feed) = (names.next(), names.next());
        Self { sse_feed, webhook_feed, others: names.count() }
    }

    /// Which feed has which role, as sentences.
    fn words(&self) -> String {
        let mut words = "A simulated publisher changes its feeds, and the mirror keeps level with them.".to_owned();
        if let Some(feed) = &self.sse_feed {
            words += &format!("\n{feed} is kept live by its stream of server-sent events (mode sse)");
        }
        if let Some(feed) = &self.webhook_feed {
            words += &format!(",\n{feed} by the pages that are posted to its webhook (mode webhook)");
        }
        if self.sse_feed.is_some() {
            words += ";\na poll now and then proves that they bring everything.";
        }
        match self.others {
            0 => {}
            1 => words += " One more is polled.",
            others => words += &format!(" The other {others} are polled."),
        }
        words
    }
}

/// The path beside which the webhook's secret is stored, as the admin token is beside the database: only its owner may
/// read it.
fn webhook_secret_base(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".webhook");
    PathBuf::from(path)
}

/// A listener for one feed's pages, and the publisher that posts them there.
async fn webhook(simulator: &mut Simulator, feed: &str, database: &Path) -> anyhow::Result<WebhookListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let settings = WebhookListenerSettings { listen: listener.local_addr()?, ..WebhookListenerSettings::default() };
    let secret = server::token::read_or_create(None, &webhook_secret_base(database))?;
    let url = format!("http://{}{}/{feed}", settings.listen, settings.path);
    simulator.push_feed_to(feed, &WebhookTarget { token: Some(secret), ..WebhookTarget::open(url) })?;
    Ok(WebhookListener { listener, settings, tls: None })
}

fn fleet(simulator: &Simulator, roles: &FeedRoles, database: &Path) -> FleetSettings {
    let configured = |name: String| {
        let url = simulator.feed_url(&name);
        let has_role = |role: &Option<String>| role.as_ref() == Some(&name);
        let (from, after) = ("from".to_owned(), "after".to_owned());
        let sse = has_role(&roles.sse_feed).then(|| SseSettings { url: simulator.stream_url(&name), from, after });
        let secrets = || vec![SecretSource::File(server::token::path(&webhook_secret_base(database)))];
        let webhook =
            has_role(&roles.webhook_feed).then(|| WebhookSettings { secrets: secrets(), defer: false, register: None });
        let push = PushSettings { audit: AUDIT, prove_after: PROVE_AFTER, ..PushSettings::default() };
        let plain = FeedSettings::with_defaults(FeedName::new(&name)?, url);
        Some(ConfiguredFeed::Ready(Box::new(FeedSettings { poll: POLL, push, sse, webhook, ..plain })))
    };
    FleetSettings { feeds: simulator.names().into_iter().filter_map(configured).collect(), ..FleetSettings::default() }
}

/// Prints the feeds' status periodically, until standard output is closed.
async fn show(database: &Path, page: &str, roles: &FeedRoles) -> anyhow::Result<()> {
    let is_terminal = io::stdout().is_terminal();
    let mut tick = tokio::time::interval(if is_terminal { SCREEN_REDRAW_INTERVAL } else { OUTPUT_REPEAT_INTERVAL });
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The daemon creates the file; the first screen waits for it.
    while !database.exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    loop {
        tick.tick().await;
        let text = tokio::task::block_in_place(|| render_screen(database, page, roles, is_terminal))?;
        let written = io::stdout().write_all(&text).and_then(|()| io::stdout().flush());
        if written.is_err() {
            return Ok(());
        }
    }
}

fn render_screen(database: &Path, page: &str, roles: &FeedRoles, is_terminal: bool) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    if is_terminal {
        text.extend_from_slice(super::TO_THE_TOP.as_bytes());
    }
    // In its first moments the file has no tables yet, or no rows.
    if let Ok(status) = read(database) {
        table(&mut text, &status)?;
    }
    let (db, program, words) = (database.display(), program(), roles.words());
    writeln!(
        text,
        "
{words}

Interrupt to end. Meanwhile, in another terminal:

  page     {page}
  SQL      sqlite3 {db} \"SELECT feed, kind, id, data ->> '$.name' FROM live_items LIMIT 10\"
           sqlite3 {db} \"SELECT seq, feed, id, state FROM changes ORDER BY seq DESC LIMIT 10\"
           sqlite3 {db} \"SELECT feed, transport, push, delivered, missed FROM endpoints\"
  changes  {program} changes --db {db} --follow
  a feed of your own   {program} sync https://…"
    )?;
    Ok(text)
}

/// The program's path as it was called: a program that is being tried out is seldom installed yet.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "feedmirror".to_owned())
}
