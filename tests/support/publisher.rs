//! A publisher that does exactly what a test prescribes, byte for byte, and records its requests.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// A request as received.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The request target, byte for byte.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) at: Instant,
    /// Unanswered requests when it came, itself included.
    pub(crate) open: usize,
    /// The number of this request among those for this target, from 1.
    pub(crate) count: usize,
    /// The number of this request among those for this path, from 1.
    pub(crate) path_count: usize,
}

impl Request {
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }
}

/// The reply to a request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    after: Duration,
    send_mode: SendMode,
}

#[derive(Clone, Debug)]
enum SendMode {
    Whole,
    /// Announces the length of the whole body, but sends only so many bytes.
    CutTo(usize),
    /// One byte of the body at a time.
    Drip(Duration),
    /// Zeros of this many bytes, gzipped while sending.
    Bomb(u64),
    /// The body's bytes are the whole response, head included.
    Raw,
    Silence,
    Reset,
}

impl Reply {
    pub(crate) fn page(json: impl Into<String>) -> Self {
        Self::status(200).body(json.into().into_bytes()).header("Content-Type", "application/json")
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), after: Duration::ZERO, send_mode: SendMode::Whole }
    }

    pub(crate) fn redirect(status: u16, to: &str) -> Self {
        Self::status(status).header("Location", to)
    }

    pub(crate) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// Sets a header in place of one of this name.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(given, _)| !given.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Delays the reply.
    pub(crate) fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }

    pub(crate) fn gzip(self) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&self.body).unwrap();
        let body = encoder.finish().unwrap();
        Self { body, ..self }.header("Content-Encoding", "gzip")
    }

    pub(crate) fn cut_to(self, bytes: usize) -> Self {
        Self { send_mode: SendMode::CutTo(bytes), ..self }
    }

    pub(crate) fn drip(self, every: Duration) -> Self {
        Self { send_mode: SendMode::Drip(every), ..self }
    }

    /// A gzipped page that would be `size` bytes of white space.
    pub(crate) fn bomb(size: u64) -> Self {
        let page = Self::page("").header("Content-Encoding", "gzip");
        Self { send_mode: SendMode::Bomb(size), ..page }
    }

    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { send_mode: SendMode::Raw, ..Self::status(0).body(bytes) }
    }

    /// The connection stays open and nothing is sent.
    pub(crate) fn silence() -> Self {
        Self { send_mode: SendMode::Silence, ..Self::status(0) }
    }

    /// The connection is reset before a byte was sent.
    pub(crate) fn reset() -> Self {
        Self { send_mode: SendMode::Reset, ..Self::status(0) }
    }
}

type Handler = Box<dyn Fn(&Request) -> Reply + Send + Sync>;

struct PublisherInner {
    handler: Handler,
    requests: Mutex<Vec<Request>>,
    counts: Mutex<HashMap<String, usize>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
    connections: Mutex<Vec<TcpStream>>,
    stop: (Mutex<bool>, Condvar),
}

/// A running publisher; ends when dropped.
pub(crate) struct ScriptedPublisher {
    address: SocketAddr,
    shared: Arc<PublisherInner>,
}

impl ScriptedPublisher {
    /// On a port of its own, answering by `handler`, which runs on the connection's thread.
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), handler)
    }

    pub(crate) fn on(address: SocketAddr, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(PublisherInner {
            handler: Box::new(handler),
            requests: Mutex::default(),
            counts: Mutex::default(),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            connections: Mutex::default(),
            stop: (Mutex::new(false), Condvar::new()),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.pause(Duration::ZERO) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let serving = Arc::clone(&accepting);
                serving.connections.lock().unwrap().extend(stream.try_clone());
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://…` and this target.
    pub(crate) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    /// All requests so far, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The requests for one path.
    pub(crate) fn requests_to(&self, path: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path() == path).collect()
    }

    pub(crate) fn count(&self, path: &str) -> usize {
        self.shared.requests.lock().unwrap().iter().filter(|request| request.path() == path).count()
    }

    /// The most requests that were unanswered at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }
}

impl Drop for ScriptedPublisher {
    fn drop(&mut self) {
        *self.shared.stop.0.lock().unwrap() = true;
        self.shared.stop.1.notify_all();
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(self.address));
        for connection in self.shared.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl PublisherInner {
    /// Waits; returns whether the publisher is ending.
    fn pause(&self, time: Duration) -> bool {
        let stopped = self.stop.0.lock().unwrap();
        *self.stop.1.wait_timeout_while(stopped, time, |stopped| !*stopped).unwrap().0
    }

    fn serve(&self, stream: TcpStream) {
        let peer = stream.peer_addr().ok();
        self.serve_requests(stream);
        // Kept any longer, the copy would keep the connection from being closed.
        self.connections.lock().unwrap().retain(|connection| connection.peer_addr().ok() != peer);
    }

    fn serve_requests(&self, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        while let Some(head) = peek_head(&stream) {
            let request = self.record(&head);
            let reply = (self.handler)(&request);
            self.pause(reply.after);
            // A reader may send its next request at once: this one no longer counts as open.
            self.open.fetch_sub(1, Ordering::SeqCst);
            if matches!(reply.send_mode, SendMode::Reset) {
                // A socket closed over unread bytes is reset.
                return;
            }
            let drained = stream.read_exact(&mut vec![0; head.len()]);
            if drained.and_then(|()| self.send(&mut stream, &reply)).is_err() || !reply.keeps_open() {
                return;
            }
        }
    }

    fn record(&self, head: &str) -> Request {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_open.fetch_max(open, Ordering::SeqCst);
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let count = |key: &str| {
            let mut counts = self.counts.lock().unwrap();
            let count = counts.entry(key.to_owned()).or_default();
            *count += 1;
            *count
        };
        let path = target.split('?').next().unwrap_or_default();
        let request = Request {
            method: method.to_owned(),
            target: target.to_owned(),
            headers,
            at: Instant::now(),
            open,
            count: count(&format!("target {target}")),
            path_count: count(&format!("path {path}")),
        };
        self.requests.lock().unwrap().push(request.clone());
        request
    }

    fn send(&self, stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
        match reply.send_mode {
            SendMode::Raw => stream.write_all(&reply.body),
            SendMode::Silence => until_closed(stream),
            SendMode::Bomb(size) => {
                stream.write_all(reply.head(None).as_bytes())?;
                bomb(stream, size)
            }
            SendMode::CutTo(bytes) => {
                stream.write_all(reply.head(Some(reply.body.len())).as_bytes())?;
                stream.write_all(&reply.body[..bytes])
            }
            SendMode::Drip(every) => {
                stream.write_all(reply.head(Some(reply.body.len())).as_bytes())?;
                for byte in &reply.body {
                    stream.write_all(&[*byte])?;
                    if self.pause(every) {
                        return Err(ErrorKind::Interrupted.into());
                    }
                }
                Ok(())
            }
            SendMode::Whole | SendMode::Reset => {
                let mut bytes = reply.head(Some(reply.body.len())).into_bytes();
                bytes.extend_from_slice(&reply.body);
                stream.write_all(&bytes)
            }
        }
    }
}

impl Reply {
    fn head(&self, length: Option<usize>) -> String {
        let mut head = format!("HTTP/1.1 {} Whatever\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match length {
            // RFC 9110 §8.6: no length goes with a 304.
            _ if self.status == 304 => {}
            Some(length) => head.push_str(&format!("Content-Length: {length}\r\n")),
            None => head.push_str("Connection: close\r\n"),
        }
        head + "\r\n"
    }

    fn keeps_open(&self) -> bool {
        matches!(self.send_mode, SendMode::Whole | SendMode::Drip(_))
    }
}

/// The next request's head, still unread; none when the connection is over.
fn peek_head(mut stream: &TcpStream) -> Option<String> {
    let mut seen = vec![0; 64 << 10];
    loop {
        let length = stream.peek(&mut seen).ok().filter(|length| *length > 0)?;
        if !seen[0].is_ascii_uppercase() {
            // TLS, say: this port speaks HTTP only, as web servers say.
            stream.read_exact(&mut seen[..length]).ok()?;
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").ok()?;
            return None;
        }
        let end = seen[..length].windows(4).position(|window| window == b"\r\n\r\n");
        match end {
            Some(end) => return Some(String::from_utf8_lossy(&seen[..end + 4]).into_owned()),
            None => std::thread::yield_now(),
        }
    }
}

fn until_closed(stream: &mut TcpStream) -> std::io::Result<()> {
    while stream.read(&mut [0; 64])? > 0 {}
    Ok(())
}

fn bomb(stream: &mut TcpStream, mut size: u64) -> std::io::Result<()> {
    let mut encoder = flate2::write::GzEncoder::new(stream, flate2::Compression::fast());
    let spaces = vec![b' '; 1 << 20];
    while size > 0 {
        let some = size.min(spaces.len() as u64);
        encoder.write_all(&spaces[..usize::try_from(some).unwrap()])?;
        size -= some;
    }
    encoder.finish().map(drop)
}
