//! A publisher that is never the limit: every page is made and compressed before the first request, and served over
//! keep-alive from memory. It runs in its own process, so that its memory and time are not the mirror's.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Items on a page.
pub(crate) const PAGE: usize = 500;
const PARAMETER: &str = "afterTimestamp=";
const FIRST: u64 = 1_700_000_000_000;

/// One item as the writer benchmark needs it.
pub(crate) struct BenchItem {
    pub(crate) id: String,
    pub(crate) modified: u64,
    pub(crate) data: Option<String>,
}

/// The `n`-th item: a GUID, every twentieth deleted, else about 1.7 KB whose words differ from item to item.
pub(crate) fn item(n: u64) -> BenchItem {
    let a = mix(n);
    let b = mix(a);
    let id = format!(
        "{:08x}-{:04x}-4{:03x}-9{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    );
    let data = (n % 20 != 7).then(|| body(n, &id));
    BenchItem { id, modified: FIRST + n, data }
}

/// A finaliser in the manner of SplitMix64: every input gives another output.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const WORDS: [&str; 24] = [
    "badminton",
    "beginners",
    "weekly",
    "hall",
    "session",
    "coach",
    "adults",
    "outdoor",
    "pool",
    "lane",
    "swimming",
    "circuit",
    "yoga",
    "mat",
    "provided",
    "please",
    "arrive",
    "early",
    "accessible",
    "parking",
    "changing",
    "rooms",
    "fitness",
    "community",
];

fn body(n: u64, id: &str) -> String {
    let mut state = mix(n ^ 0xabcd);
    let mut words = String::new();
    let length = 700 + (state % 900) as usize;
    while words.len() < length {
        state = mix(state);
        words.push_str(WORDS[(state % 24) as usize]);
        words.push(' ');
    }
    let (latitude, longitude) = (50.0 + (n % 5_000) as f64 / 1_000.0, -3.0 + (n % 3_000) as f64 / 1_000.0);
    format!(
        r#"{{"@context":"https://openactive.io/","@type":"ScheduledSession","@id":"https://publisher.example/api/scheduled-sessions/{id}","identifier":"{id}","name":"Session {n}","description":"{words}","startDate":"2026-{:02}-{:02}T{:02}:30:00Z","endDate":"2026-{:02}-{:02}T{:02}:15:00Z","duration":"PT45M","maximumAttendeeCapacity":{},"remainingAttendeeCapacity":{},"location":{{"@type":"Place","name":"Leisure Centre {}","address":{{"@type":"PostalAddress","streetAddress":"{} High Street","addressLocality":"Town","postalCode":"AB{} {}CD","addressCountry":"GB"}},"geo":{{"@type":"GeoCoordinates","latitude":{latitude},"longitude":{longitude}}}}},"offers":[{{"@type":"Offer","@id":"https://publisher.example/api/offers/{id}#adult","price":{}.50,"priceCurrency":"GBP"}}]}}"#,
        n % 12 + 1,
        n % 28 + 1,
        n % 14 + 7,
        n % 12 + 1,
        n % 28 + 1,
        n % 14 + 8,
        n % 40 + 5,
        n % 7,
        n % 300,
        n % 190 + 1,
        n % 90 + 1,
        n % 9,
        n % 12 + 3,
    )
}

/// The child's main: makes `feeds` feeds of `items` items, prints its address, serves until it is killed.
pub(crate) fn serve(feeds: usize, items: usize) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let origin = format!("http://{address}");
    let pages: Arc<Vec<Vec<Arc<Vec<u8>>>>> = Arc::new((0..feeds).map(|feed| make(&origin, feed, items)).collect());
    writeln!(std::io::stdout(), "{address}")?;
    for stream in listener.incoming() {
        let (stream, pages, origin) = (stream?, Arc::clone(&pages), origin.clone());
        std::thread::Builder::new().stack_size(128 << 10).spawn(move || answer(&stream, &pages, &origin))?;
    }
    Ok(())
}

fn make(origin: &str, feed: usize, items: usize) -> Vec<Arc<Vec<u8>>> {
    let starts: Vec<usize> = (0..items).step_by(PAGE).collect();
    let halves: Vec<Vec<Arc<Vec<u8>>>> = std::thread::scope(|scope| {
        let parts = starts.chunks(starts.len().div_ceil(2).max(1));
        let made: Vec<_> = parts
            .map(|part| scope.spawn(move || part.iter().map(|s| Arc::new(page(origin, feed, *s, items))).collect()))
            .collect();
        made.into_iter().map(|part| part.join().unwrap_or_default()).collect()
    });
    halves.into_iter().flatten().collect()
}

fn page(origin: &str, feed: usize, start: usize, items: usize) -> Vec<u8> {
    let mut text = String::with_capacity(PAGE * 2_000);
    text.push_str("{\"items\":[");
    let mut last = 0;
    for n in start..(start + PAGE).min(items) {
        let bench_item = item((feed * 10_000_000 + n) as u64);
        last = n;
        if n > start {
            text.push(',');
        }
        let (id, modified) = (&bench_item.id, bench_item.modified);
        match &bench_item.data {
            Some(data) => text.push_str(&format!(
                r#"{{"state":"updated","kind":"ScheduledSession","id":"{id}","modified":{modified},"data":{data}}}"#
            )),
            None => text.push_str(&format!(
                r#"{{"state":"deleted","kind":"ScheduledSession","id":"{id}","modified":{modified}}}"#
            )),
        }
    }
    text.push_str(&format!(
        r#"],"next":"{origin}/{feed}?{PARAMETER}{}","license":"https://example.org/l"}}"#,
        last + 1
    ));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(4));
    let body = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).unwrap_or_default();
    response(&body, true)
}

fn response(body: &[u8], gzip: bool) -> Vec<u8> {
    let coding = if gzip { "Content-Encoding: gzip\r\n" } else { "" };
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{coding}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn answer(stream: &TcpStream, pages: &[Vec<Arc<Vec<u8>>>], origin: &str) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let _ = stream.set_nodelay(true);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut header = String::new();
        while reader.read_line(&mut header).is_ok_and(|read| read > 2) {
            header.clear();
        }
        let target = request.split(' ').nth(1).unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let feed: usize = path.trim_matches('/').parse().unwrap_or(0);
        let after: usize = query.strip_prefix(PARAMETER).and_then(|n| n.parse().ok()).unwrap_or(0);
        let sent = match pages.get(feed).and_then(|pages| pages.get(after.div_ceil(PAGE))) {
            Some(page) => writer.write_all(page),
            None => {
                let end = format!(r#"{{"items":[],"next":"{origin}{target}","license":"https://example.org/l"}}"#);
                writer.write_all(&response(end.as_bytes(), false))
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The publisher's process; killed when dropped.
pub(crate) struct BenchPublisher {
    child: Child,
    address: String,
}

impl BenchPublisher {
    /// Returns once every page is made.
    pub(crate) fn start(feeds: usize, items: usize) -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["publish", &feeds.to_string(), &items.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        if let Some(out) = child.stdout.as_mut() {
            BufReader::new(out).read_line(&mut address)?;
        }
        Ok(Self { child, address: address.trim().to_owned() })
    }

    pub(crate) fn url(&self, feed: usize) -> String {
        format!("http://{}/{feed}", self.address)
    }
}

impl Drop for BenchPublisher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
