//! A broker that accepts every request of a consumer (AMQP 0-9-1 over TCP), and then sends what a test specifies.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Types of frames.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

pub(crate) struct FakeBroker {
    pub(crate) url: String,
    /// The tag up to which each connection has acknowledged, in the order of the connections.
    acknowledged: Arc<Mutex<Vec<u64>>>,
    heartbeats: Arc<AtomicU64>,
}

impl FakeBroker {
    /// Calls `send` for each connection that consumes, with the connection's number from 0. When `send` returns, the
    /// connection stays open until the consumer closes it.
    pub(crate) fn start(send: impl Fn(&mut Sender, usize) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://guest:guest@{}", listener.local_addr().unwrap());
        let (acknowledged, send) = (Arc::<Mutex<Vec<u64>>>::default(), Arc::new(send));
        let heartbeats = Arc::default();
        let (counts, beats) = (Arc::clone(&acknowledged), Arc::clone(&heartbeats));
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (counts, beats, send) = (Arc::clone(&counts), Arc::clone(&beats), Arc::clone(&send));
                thread::spawn(move || converse(socket, &counts, &beats, send));
            }
        });
        Self { url, acknowledged, heartbeats }
    }

    /// How many connections have begun to consume.
    pub(crate) fn connections(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// How many heartbeats arrived, over all connections.
    pub(crate) fn heartbeats(&self) -> u64 {
        self.heartbeats.load(Ordering::Relaxed)
    }

    /// Up to which tag a connection has acknowledged.
    pub(crate) fn acknowledged(&self, connection: usize) -> u64 {
        self.acknowledged.lock().unwrap()[connection]
    }
}

/// Sends frames to a connection's consumer.
pub(crate) struct Sender(TcpStream);

impl Sender {
    /// Sends a whole message.
    pub(crate) fn message(&mut self, tag: u64, body: &[u8]) -> std::io::Result<()> {
        self.deliver(tag)?;
        self.header(body.len() as u64, b"\x00\x00")?;
        body.chunks(100_000).try_for_each(|part| self.body(part))
    }

    pub(crate) fn deliver(&mut self, tag: u64) -> std::io::Result<()> {
        let tag = tag.to_be_bytes();
        self.0.write_all(&method((60, 60), &[&short("consumer"), tag.as_slice(), b"\x00\x00\x01q"].concat()))
    }

    /// Sends a content header that announces a body, with property flags and the properties.
    pub(crate) fn header(&mut self, size: u64, properties: &[u8]) -> std::io::Result<()> {
        let header = [b"\x00\x3c\x00\x00".as_slice(), &size.to_be_bytes(), properties].concat();
        self.0.write_all(&frame(HEADER, 1, &header))
    }

    pub(crate) fn body(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(&frame(BODY, 1, bytes))
    }
}

fn converse(
    mut socket: TcpStream,
    acknowledged: &Mutex<Vec<u64>>,
    heartbeats: &AtomicU64,
    send: Arc<impl Fn(&mut Sender, usize) -> std::io::Result<()> + Send + Sync + 'static>,
) -> Option<()> {
    let mut greeting = [0; 8];
    socket.read_exact(&mut greeting).ok()?;
    let start = b"\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US";
    socket.write_all(&on(0, method((10, 10), start))).ok()?;
    let mut number = None;
    loop {
        let (channel, payload) = receive(&mut socket, heartbeats)?;
        let [class, id] = [0, 2].map(|at| payload.get(at..at + 2).map(|id| u16::from_be_bytes([id[0], id[1]])));
        let answer = match (class?, id?) {
            (10, 11) => method((10, 30), b"\x07\xff\x00\x02\x00\x00\x00\x00"), // start-ok: tune
            (10, 40) => method((10, 41), b"\x00"),                             // open
            (20, 10) => method((20, 11), b"\x00\x00\x00\x00"),                 // channel.open
            (60, 10) => method((60, 11), b""),                                 // qos
            (50, 10) => method((50, 11), &[short("q"), vec![0; 8]].concat()),  // declare
            (60, 20) => method((60, 21), &short("consumer")),                  // consume
            (10, 50) => method((10, 51), b""),                                 // close
            (60, 80) => {
                let tag = u64::from_be_bytes(payload[4..12].try_into().unwrap());
                acknowledged.lock().unwrap()[number?] = tag;
                continue;
            }
            _ => continue,
        };
        socket.write_all(&on(channel, answer)).ok()?;
        if (class, id) == (Some(60), Some(20)) {
            let mut counts = acknowledged.lock().unwrap();
            counts.push(0);
            let connection = *number.insert(counts.len() - 1);
            let (mut sender, send) = (Sender(socket.try_clone().unwrap()), Arc::clone(&send));
            thread::spawn(move || send(&mut sender, connection));
        }
    }
}

/// Reads the next method: its channel and its payload.
fn receive(socket: &mut TcpStream, heartbeats: &AtomicU64) -> Option<(u8, Vec<u8>)> {
    loop {
        let mut head = [0; 7];
        socket.read_exact(&mut head).ok()?;
        let size = u32::from_be_bytes(head[3..].try_into().unwrap());
        let mut payload = vec![0; size as usize + 1];
        socket.read_exact(&mut payload).ok()?;
        match head[0] {
            METHOD => return Some((head[2], payload)),
            _ => heartbeats.fetch_add(1, Ordering::Relaxed),
        };
    }
}

fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 0, channel], size.as_slice(), payload, b"\xce"].concat()
}

fn method((class, id): (u16, u16), arguments: &[u8]) -> Vec<u8> {
    frame(METHOD, 1, &[class.to_be_bytes().as_slice(), &id.to_be_bytes(), arguments].concat())
}

fn on(channel: u8, mut frame: Vec<u8>) -> Vec<u8> {
    frame[2] = channel;
    frame
}
