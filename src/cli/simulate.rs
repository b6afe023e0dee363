//! `simulate`: a simulated publisher in a process of its own, for testing any consumer.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, GlobalArgs, UsageError};
use crate::simulate::{AmqpTarget, Dialect, FAULTS, Fault, FaultChannel, Simulator, SimulatorSettings, WebhookTarget};

/// Arguments of `simulate`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Prints each feed as NAME, tab, URL once it listens, and serves until interrupted. Beside that URL, URL/stream?from=\
MODIFIED&after=ID streams what comes after that position as server-sent events, from the beginning if not said.

Faults befall requests by chance, from the seed alone; with a share of 1 they befall as many as they can. Those of \
streams befall a stream's beginning or single events, those of pushing a page to the webhook or a batch of messages. \
What the feeds say, for comparison:

  GET  /                  the feeds, with the URLs of their streams
  GET  /_truth/FEED       all the feed says now, NDJSON in order
  GET  /_fired            how often each fault has happened
  GET  /_pushed           what each webhook and queue has taken
  POST /_freeze, /_thaw   stop the rate of change, or let it go on
  POST /_calm             no more faults
  POST /_change/FEED?n=N  make changes now
  POST /_restore/FEED     go back to an older state, as from a backup

Example: feedmirror simulate --feeds 5 --rate 2 --all-faults=0.02
         feedmirror simulate --webhook http://127.0.0.1:8471/webhooks/{feed} --webhook-token secret")]
pub struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8480")]
    listen: SocketAddr,
    /// How many feeds
    #[arg(long, value_name = "N", default_value_t = 3)]
    feeds: usize,
    /// Items of each feed at the start
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    items: usize,
    /// Items on a page
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    page: usize,
    /// Changes a second to each feed
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = rate)]
    rate: f64,
    /// The share of items that are deleted, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = share)]
    deleted: f64,
    /// How the feeds are spelt
    #[arg(long, value_name = "DIALECT", default_value = "mixed")]
    dialect: DialectChoice,
    /// Another seed, other items and other chances
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Go wrong in this way; always, or in this share of requests. May be given several times
    #[arg(long, value_name = "NAME[=SHARE]", value_parser = fault)]
    fault: Vec<(Fault, f64)>,
    /// Go wrong in every way that heals, each in this share of requests (or events, or pushes); 0.01 if not said
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "0.01", value_parser = share)]
    all_faults: Option<f64>,
    /// List the ways to go wrong with what they befall, and exit: `heals` and `stays` are those of polling
    #[arg(long)]
    list_faults: bool,
    /// Let last pages be cached for so many seconds; not at all by default
    #[arg(long, value_name = "SECONDS")]
    max_age: Option<u64>,
    /// POST the feeds' changes to this webhook, page by page; {feed} in it stands for the feed's name
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// Send this as a bearer token with them
    #[arg(long, value_name = "TOKEN", requires = "webhook")]
    webhook_token: Option<SecretString>,
    /// Sign them with this secret, in X-Hub-Signature-256
    #[arg(long, value_name = "SECRET", requires = "webhook")]
    webhook_hmac: Option<SecretString>,
    /// Push what the feeds hold at the start, too
    #[arg(long, requires = "webhook")]
    webhook_from_start: bool,
    /// Publish the feeds' changes at this AMQP broker, each as a message; needs --amqp-queue
    #[arg(long, value_name = "URL", requires = "amqp_queue")]
    amqp: Option<SecretString>,
    /// The queue for them, made durable; {feed} in it stands for the feed's name
    #[arg(long, value_name = "NAME", requires = "amqp")]
    amqp_queue: Option<String>,
    /// Publish what the feeds hold at the start, too
    #[arg(long, requires = "amqp")]
    amqp_from_start: bool,
    /// Give the streams' events ids, for Last-Event-ID
    #[arg(long)]
    sse_ids: bool,
    /// Drop silent and dripping connections after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    hold: u64,
}

/// One dialect, or `mixed`: the feeds take all dialects in rotation.
#[derive(Clone, Copy, Debug)]
struct DialectChoice(Option<Dialect>);

impl ValueEnum for DialectChoice {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: &[DialectChoice] = &[
            DialectChoice(Some(Dialect::Timestamp)),
            DialectChoice(Some(Dialect::ChangeNumber)),
            DialectChoice(Some(Dialect::Draft)),
            DialectChoice(None),
        ];
        ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.map_or("mixed", Dialect::as_str)))
    }
}

/// Serves until interrupted, or lists the faults.
///
/// # Errors
/// When the address can't be listened on, or standard output can't be written.
pub fn run(_: &GlobalArgs, args: Args) -> anyhow::Result<Exit> {
    if args.list_faults {
        list_faults(&mut io::stdout().lock())?;
        return Ok(Exit::Done);
    }
    super::runtime()?.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<Exit> {
    let listen = args.listen;
    // Signals are handled before the first line is printed: its reader may interrupt at once.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let simulator = Simulator::start(listener, args.settings()).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => UsageError(error.to_string()).into(),
        _ => anyhow::Error::from(error),
    })?;
    print_feeds(&simulator, &mut io::stdout().lock())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    simulator.stop().await;
    Ok(Exit::Done)
}

fn print_feeds(simulator: &Simulator, out: &mut impl Write) -> io::Result<()> {
    for name in simulator.names() {
        writeln!(out, "{name}\t{}", simulator.feed_url(&name))?;
    }
    out.flush()
}

fn list_faults(out: &mut impl Write) -> io::Result<()> {
    let width = FAULTS.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in FAULTS {
        let heals = match (row.on, row.heals) {
            (FaultChannel::Poll, true) => "heals ",
            (FaultChannel::Poll, false) => "stays ",
            (FaultChannel::Stream, _) => "stream",
            (FaultChannel::Push, _) => "pushed",
        };
        writeln!(out, "{:width$}  {heals}  {}", row.name, row.does)?;
    }
    Ok(())
}

impl Args {
    fn settings(self) -> SimulatorSettings {
        let webhook = self.webhook.map(|url| WebhookTarget {
            url,
            token: self.webhook_token,
            hmac: self.webhook_hmac,
            from_start: self.webhook_from_start,
        });
        let queue = self.amqp.zip(self.amqp_queue);
        let amqp = queue.map(|(url, queue)| AmqpTarget { url, queue, from_start: self.amqp_from_start });
        SimulatorSettings {
            feeds: self.feeds,
            items: self.items,
            page: self.page,
            rate: self.rate,
            deleted: self.deleted,
            dialect: self.dialect.0,
            seed: self.seed,
            faults: faults(self.fault, self.all_faults),
            max_age: self.max_age.map(Duration::from_secs),
            hold: Duration::from_secs(self.hold),
            sse_ids: self.sse_ids,
            webhook,
            amqp,
            ..SimulatorSettings::default()
        }
    }
}

/// The faults named, and with `all` also every other fault that heals.
fn faults(mut named: Vec<(Fault, f64)>, all: Option<f64>) -> Vec<(Fault, f64)> {
    let Some(share) = all else { return named };
    for row in FAULTS.iter().filter(|row| row.heals) {
        if named.iter().all(|(fault, _)| *fault != row.fault) {
            named.push((row.fault, share));
        }
    }
    named
}

fn fault(text: &str) -> Result<(Fault, f64), String> {
    let (name, share_text) = text.split_once('=').unwrap_or((text, "1"));
    let Some(fault) = Fault::named(name) else {
        let nearest = FAULTS
            .iter()
            .map(|row| row.name)
            .max_by(|one, other| strsim::jaro_winkler(name, one).total_cmp(&strsim::jaro_winkler(name, other)));
        return Err(format!("no fault has this name; the nearest is {}", nearest.unwrap_or_default()));
    };
    Ok((fault, share(share_text)?))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "a rate is a number of at least 0".to_owned())
}

fn positive(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "at least 1".to_owned())
}
