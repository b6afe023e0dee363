//! A server of raw responses, byte for byte, whose connections stay open until the test drops them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

/// Connections in the order of their arrival, with the head of their request.
pub(crate) struct RawStreamServer {
    address: std::net::SocketAddr,
    connections: Receiver<Connection>,
}

/// A connection whose request's head has been read; closed when dropped.
pub(crate) struct Connection {
    /// As received, names in any case.
    pub(crate) head: String,
    socket: TcpStream,
}

impl RawStreamServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, connections) = sync_channel(16);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if sender.send(Connection::read(socket)).is_err() {
                    return;
                }
            }
        });
        Self { address, connections }
    }

    /// Answers the next connection with these bytes and sends it to the receiver.
    pub(crate) fn answering(self, bytes: impl Into<Vec<u8>>) -> (String, Receiver<Connection>) {
        let (bytes, url) = (bytes.into(), self.url("/stream"));
        let (sender, answered) = sync_channel(1);
        std::thread::spawn(move || {
            let mut connection = self.next();
            connection.send(&bytes);
            let _ = sender.send(connection);
        });
        (url, answered)
    }

    pub(crate) fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    pub(crate) fn next(&self) -> Connection {
        self.next_within(Duration::from_secs(30)).unwrap()
    }

    /// The next connection, if one arrives within that time.
    pub(crate) fn next_within(&self, time: Duration) -> Option<Connection> {
        self.connections.recv_timeout(time).ok()
    }
}

impl Connection {
    fn read(mut socket: TcpStream) -> Self {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).is_ok_and(|read| read == 1) {
            head.push(byte[0]);
        }
        Self { head: String::from_utf8(head).unwrap(), socket }
    }

    /// A header of the request.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Writes bytes unchanged; whether the client accepted them.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).and_then(|()| self.socket.flush()).is_ok()
    }

    /// One chunk of a body with `Transfer-Encoding: chunked`.
    pub(crate) fn send_chunk(&mut self, bytes: &[u8]) -> bool {
        self.send([format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
    }
}
