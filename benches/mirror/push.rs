//! Push into the mirror: how long an item takes from its publisher to the file, and how many arrive per second.
//!
//! The publisher is a thread of this process; the mirror is the real binary; the SQLite file shows whether an item has
//! arrived. AMQP needs a broker at `FEED_BENCH_AMQP` (a URL); without one its lines say so. Its flood is a queue filled
//! beforehand, since publishing would take the broker's time from delivering; a bare consumer that only acknowledges
//! empties the same queue first, which measures the broker on this machine.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use rusqlite::{Connection, OpenFlags};

use crate::publisher::item;

type BenchResult<T> = Result<T, Box<dyn std::error::Error>>;

const SECRET: &str = "bench-secret";
/// Changes per second, and for how long, where latency is measured.
const RATE: u32 = 200;
const PUSH_MEASURE_TIME: Duration = Duration::from_secs(15);
const PAGE: usize = 500;
/// More than the default: the messages that the broker sends ahead limit how much one commit can take.
const PREFETCH: u16 = 2_000;

#[derive(Clone, Copy, PartialEq)]
enum PushTransport {
    Sse,
    Webhook,
    Amqp,
}

impl PushTransport {
    const ALL: [(Self, &'static str, usize, u32); 3] = [
        (Self::Sse, "sse", 300_000, 50_000),
        (Self::Webhook, "webhook", 100_000, 20_000),
        (Self::Amqp, "amqp", 200_000, 50_000),
    ];
}

/// Prints a line for each transport.
pub(crate) fn measure(folder: &Path) -> BenchResult<()> {
    println!("push: {RATE} changes a second, and as many as will go");
    for (transport, name, items, wanted) in PushTransport::ALL {
        if transport == PushTransport::Amqp && std::env::var_os("FEED_BENCH_AMQP").is_none() {
            println!("  amqp            not measured: FEED_BENCH_AMQP names no broker");
            continue;
        }
        let steady = PushBench::start(folder, transport, "steady")?.steady()?;
        let (p50, p99) = (at(&steady, 0.5), at(&steady, 0.99));
        println!(
            "  {name:<15} p50 {p50:.1} ms, p99 {p99:.1} ms, at most {:.1} ms   (p99 within 50 ms)",
            at(&steady, 1.0)
        );
        let (rate, peak) = match transport {
            PushTransport::Amqp => drain(folder, items)?,
            PushTransport::Sse | PushTransport::Webhook => {
                PushBench::start(folder, transport, "flood")?.flood(items)?
            }
        };
        println!("  {name:<15} {rate:9.0} items/s, {peak:.0} MiB   (at least {wanted}, 128 MiB)");
    }
    Ok(())
}

fn at(waits: &[Duration], share: f64) -> f64 {
    waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1_000.0
}

/// A mirror of one feed, and a pusher to it.
struct PushBench {
    child: Child,
    database: PathBuf,
    push: Pusher,
}

enum Pusher {
    Stream(TcpStream),
    Posts { address: String, feed: String },
    Queue { runtime: tokio::runtime::Runtime, channel: lapin::Channel, queue: String },
}

impl PushBench {
    fn start(folder: &Path, transport: PushTransport, name: &str) -> BenchResult<Self> {
        Self::start_with(folder, transport, name, &format!("bench-{name}-{}", std::process::id()))
    }

    fn start_with(folder: &Path, transport: PushTransport, name: &str, queue: &str) -> BenchResult<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let origin = format!("http://{}", listener.local_addr()?);
        let (streams, opened) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let streams = streams.clone();
                std::thread::spawn(move || drop(serve(stream, &streams)));
            }
        });
        let (database, secret) = (folder.join(format!("{name}.db")), folder.join("secret"));
        let _ = std::fs::remove_file(&database);
        std::fs::write(&secret, SECRET)?;
        let endpoint = match transport {
            PushTransport::Sse => format!("sse.url = \"{origin}/stream\"\n"),
            PushTransport::Webhook => format!("webhook = {{ secret_file = \"{}\" }}\n", secret.display()),
            PushTransport::Amqp => {
                format!(
                    "amqp = {{ url = {{ env = \"FEED_BENCH_AMQP\" }}, queue = \"{queue}\", declare = \"durable\", prefetch = {PREFETCH} }}\n"
                )
            }
        };
        let config = folder.join(format!("{name}.toml"));
        std::fs::write(
            &config,
            format!(
                "database = \"{}\"\n[ops]\nlisten = \"127.0.0.1:0\"\n[webhooks]\nlisten = \"127.0.0.1:0\"\n\
                 [feeds.bench]\nurl = \"{origin}/feed\"\n{endpoint}",
                database.display()
            ),
        )?;
        let child = super::binary(&["--config", super::path(&config), "-q", "run"]).spawn()?;
        let file = wait_for(|| Connection::open_with_flags(&database, OpenFlags::SQLITE_OPEN_READ_ONLY).ok())?;
        wait_for(|| file.query_row("SELECT level_at FROM feeds WHERE level_at IS NOT NULL", [], |_| Ok(())).ok())?;
        let push = match transport {
            PushTransport::Sse => Pusher::Stream(opened.recv_timeout(Duration::from_secs(20))?),
            PushTransport::Webhook => {
                let address: String = file.query_row("SELECT webhooks_address FROM mirror", [], |row| row.get(0))?;
                Pusher::Posts { address, feed: "bench".into() }
            }
            PushTransport::Amqp => queue_at(queue)?,
        };
        Ok(Self { child, database, push })
    }

    /// Pushes one item at a time, `RATE` a second; returns how long each took to appear in the file, sorted.
    fn steady(mut self) -> BenchResult<Vec<Duration>> {
        let file = Connection::open_with_flags(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let (sent_times, sent) = mpsc::channel::<(u64, Instant)>();
        let count = u64::from(RATE) * PUSH_MEASURE_TIME.as_secs();
        let watcher = std::thread::spawn(move || watch(&file, &sent, count));
        let began = Instant::now();
        for n in 0..count {
            let due = began + Duration::from_secs(1) / RATE * u32::try_from(n)?;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            sent_times.send((n, Instant::now()))?;
            self.push.send(&[record(n)])?;
        }
        let mut waits = watcher.join().map_err(|_| "the watcher fell over")??;
        waits.sort_unstable();
        Ok(waits)
    }

    /// Pushes `items` as fast as possible, until the last is in the file; returns items a second, and the mirror's peak
    /// in MiB.
    fn flood(mut self, items: usize) -> BenchResult<(f64, f64)> {
        let pages: Vec<Vec<String>> = pages(items).collect();
        let began = Instant::now();
        for page in pages {
            self.push.send(&page)?;
        }
        self.holds(items)?;
        Ok((items as f64 / began.elapsed().as_secs_f64(), super::peak(&self.child) as f64 / 1024.0))
    }

    /// Waits until the file holds this many items.
    fn holds(&self, items: usize) -> BenchResult<()> {
        let file = Connection::open_with_flags(&self.database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let all = i64::try_from(items)?;
        wait_for(|| {
            let count: i64 = file.query_row("SELECT items + tombstones FROM feeds", [], |row| row.get(0)).ok()?;
            (count >= all).then_some(())
        })
    }
}

fn pages(items: usize) -> impl Iterator<Item = Vec<String>> {
    (0..items as u64).step_by(PAGE).map(|start| (start..start + PAGE as u64).map(record).collect())
}

/// Empties a queue of `items`, first with a bare consumer, then into the mirror; returns items a second and peak in
/// MiB.
fn drain(folder: &Path, items: usize) -> BenchResult<(f64, f64)> {
    let queue = format!("bench-drain-{}", std::process::id());
    let mut pusher = queue_at(&queue)?;
    for page in pages(items) {
        pusher.send(&page)?;
    }
    let bare = bare_consumer(&queue, items)?;
    println!("  bare consumer   {bare:9.0} items/s");
    for page in pages(items) {
        pusher.send(&page)?;
    }
    let bench = PushBench::start_with(folder, PushTransport::Amqp, "drain", &queue)?;
    bench.holds(1)?;
    let began = Instant::now();
    bench.holds(items)?;
    Ok((items as f64 / began.elapsed().as_secs_f64(), super::peak(&bench.child) as f64 / 1024.0))
}

/// Takes all messages and acknowledges them in batches, with the mirror's prefetch; returns items a second.
fn bare_consumer(queue: &str, items: usize) -> BenchResult<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let url = std::env::var("FEED_BENCH_AMQP")?;
    runtime.block_on(async {
        let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, Default::default()).await?;
        let mut consumer =
            channel.basic_consume(queue.into(), "bare".into(), Default::default(), Default::default()).await?;
        let began = Instant::now();
        for n in 1..=items {
            let message = consumer.next().await.ok_or("the queue ended")??;
            if n % (usize::from(PREFETCH) / 4) == 0 || n == items {
                let multiple = lapin::options::BasicAckOptions { multiple: true };
                channel.basic_ack(message.delivery_tag, multiple).await?;
            }
        }
        let rate = items as f64 / began.elapsed().as_secs_f64();
        connection.close(200, "OK".into()).await?;
        Ok(rate)
    })
}

impl Drop for PushBench {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pusher {
    fn send(&mut self, records: &[String]) -> BenchResult<()> {
        match self {
            Self::Stream(stream) => {
                let mut events = String::with_capacity(records.len() * 2_000);
                for record in records {
                    events.push_str("event: itemupdate\ndata: ");
                    events.push_str(record);
                    events.push_str("\n\n");
                }
                Ok(stream.write_all(events.as_bytes())?)
            }
            Self::Posts { address, feed } => post(address, feed, records),
            Self::Queue { runtime, channel, queue } => runtime.block_on(async {
                for record in records {
                    let options = lapin::options::BasicPublishOptions::default();
                    let properties = lapin::BasicProperties::default();
                    channel
                        .basic_publish("".into(), queue.as_str().into(), options, record.as_bytes(), properties)
                        .await?;
                }
                Ok(())
            }),
        }
    }
}

fn queue_at(queue: &str) -> BenchResult<Pusher> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let url = std::env::var("FEED_BENCH_AMQP")?;
    let channel = runtime.block_on(async {
        let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        // The mirror declares it in the same way, but messages published before that would be lost.
        let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.into(), options, Default::default()).await?;
        Ok::<_, lapin::Error>(channel)
    })?;
    Ok(Pusher::Queue { runtime, channel, queue: queue.to_owned() })
}

thread_local! {
    static POSTING: std::cell::RefCell<Option<TcpStream>> = const { std::cell::RefCell::new(None) };
}

/// Uses one connection; a page is posted once the one before was answered.
fn post(address: &str, feed: &str, records: &[String]) -> BenchResult<()> {
    POSTING.with_borrow_mut(|connection| {
        let stream = match connection {
            Some(stream) if stream.peer_addr().is_ok_and(|peer| peer.to_string() == address) => stream,
            _ => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                connection.insert(stream)
            }
        };
        let body = format!("{{\"items\":[{}]}}", records.join(","));
        let head = format!(
            "POST /webhooks/{feed} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {SECRET}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        let mut answer = [0; 512];
        let read = stream.read(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        if answer.starts_with("HTTP/1.1 204") { Ok(()) } else { Err(answer.into()) }
    })
}

fn record(n: u64) -> String {
    let bench_item = item(n);
    let data = bench_item.data.unwrap_or_else(|| "{}".to_owned());
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
    format!(r#"{{"state":"updated","kind":"k","id":"{n}","modified":{now},"data":{data}}}"#)
}

/// Serves the poll endpoint, always at its end, and the stream, whose connection goes to `streams`.
fn serve(stream: TcpStream, streams: &mpsc::Sender<TcpStream>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    writer.set_nodelay(true)?;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let (mut header, mut host) = (String::new(), String::new());
        while reader.read_line(&mut header)? > 2 {
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("host: ") {
                host = value.trim().to_owned();
            }
            header.clear();
        }
        let target = request.split(' ').nth(1).unwrap_or("/");
        if target.starts_with("/stream") {
            writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")?;
            let _ = streams.send(writer);
            return Ok(());
        }
        let body = format!(r#"{{"items":[],"next":"http://{host}{target}","license":"https://example.org/l"}}"#);
        write!(
            writer,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}

/// Checks the file every millisecond for new changes.
fn watch(file: &Connection, sent: &mpsc::Receiver<(u64, Instant)>, count: u64) -> Result<Vec<Duration>, String> {
    let mut new = file.prepare("SELECT seq, id FROM changes WHERE seq > ?1 ORDER BY seq").map_err(|e| e.to_string())?;
    let (mut last, mut waits, mut when) = (0_i64, Vec::new(), HashMap::new());
    let deadline = Instant::now() + PUSH_MEASURE_TIME + Duration::from_secs(30);
    while (waits.len() as u64) < count {
        let rows: Vec<(i64, String)> = new
            .query_map([last], |row| Ok((row.get(0)?, row.get(1)?)))
            .and_then(Iterator::collect)
            .map_err(|error| error.to_string())?;
        let seen = Instant::now();
        when.extend(sent.try_iter().map(|(n, at)| (n.to_string(), at)));
        for (seq, id) in rows {
            last = seq;
            if let Some(at) = when.remove(&id) {
                waits.push(seen.saturating_duration_since(at));
            }
        }
        if seen > deadline {
            return Err(format!("{} of {count} items arrived", waits.len()));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(waits)
}

fn wait_for<T>(mut found: impl FnMut() -> Option<T>) -> BenchResult<T> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        if let Some(found) = found() {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Err("it did not come to pass within two minutes".into())
}
