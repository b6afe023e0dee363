//! The publisher's end of a stream (WHATWG HTML §9.2): sends what a test wants to all connected clients.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The head of an event stream's response.
const OPEN: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n";

/// A running stream; ends when dropped.
pub(crate) struct StreamServer {
    address: SocketAddr,
    inner: Arc<StreamServerInner>,
}

type Greeting = Box<dyn Fn(&str) -> String + Send + Sync>;

struct StreamServerInner {
    /// The first text of a connection, by the request's target.
    greeting: Greeting,
    state: Mutex<StreamServerState>,
}

#[derive(Default)]
struct StreamServerState {
    listening: Vec<TcpStream>,
    heads: Vec<String>,
    /// The whole response to new connections, instead of a stream.
    refusal: Option<String>,
    over: bool,
}

impl StreamServer {
    /// On a port of its own; a new connection gets only what is sent from then on.
    pub(crate) fn start() -> Self {
        Self::greeting(|_| String::new())
    }

    /// A new connection first gets the text that `greeting` returns for the request's target.
    pub(crate) fn greeting(greeting: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(StreamServerInner { greeting: Box::new(greeting), state: Mutex::default() });
        let accepting = Arc::clone(&inner);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if accepting.state.lock().unwrap().over {
                    return;
                }
                accepting.accept_connection(connection.unwrap());
            }
        });
        Self { address, inner }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/stream", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sends a text to all connected clients.
    pub(crate) fn send(&self, text: &str) {
        let mut state = self.inner.state.lock().unwrap();
        state.listening.retain_mut(|connection| connection.write_all(text.as_bytes()).is_ok());
    }

    /// Sends an item.
    pub(crate) fn item(&self, item: &str) {
        self.send(&event(item));
    }

    /// Closes every connection; new ones are accepted.
    pub(crate) fn cut(&self) {
        for connection in self.inner.state.lock().unwrap().listening.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Closes every connection, and answers new ones with this status line, headers and body.
    pub(crate) fn refuse(&self, status: &str, headers: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        self.inner.state.lock().unwrap().refusal = Some(head + body);
        self.cut();
    }

    /// Takes new connections again.
    pub(crate) fn accept_again(&self) {
        self.inner.state.lock().unwrap().refusal = None;
    }

    /// The heads of all requests so far, refused ones too.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.inner.state.lock().unwrap().heads.clone()
    }
}

impl Drop for StreamServer {
    fn drop(&mut self) {
        self.inner.state.lock().unwrap().over = true;
        self.cut();
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(self.address));
    }
}

impl StreamServerInner {
    fn accept_connection(&self, mut connection: TcpStream) {
        connection.set_nodelay(true).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        connection.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let Some(head) = head(&mut connection) else { return };
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut state = self.state.lock().unwrap();
        state.heads.push(head);
        if let Some(refusal) = &state.refusal {
            let _ = connection.write_all(refusal.as_bytes());
            return;
        }
        // Nothing can be sent between the greeting and adding the connection: the state is locked.
        let opening = OPEN.to_owned() + &(self.greeting)(&target);
        if connection.write_all(opening.as_bytes()).is_ok() {
            state.listening.push(connection);
        }
    }
}

fn head(connection: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).ok()
}

/// An item as an event (RPDE 0.2.1 draft, 2c).
pub(crate) fn event(item: &str) -> String {
    format!("event: itemupdate\ndata: {item}\n\n")
}
