//! The listeners' connections: bounds their number, and how long each peer may keep the server waiting.
//!
//! Guarantees: a bounded number of connections at once, of which silent ones are evicted for new ones
//! ([`crate::source::webhook::connection_slots`]); a request's head arrives within [`HEAD_TIMEOUT`] of its first byte;
//! a peer that takes nothing for [`WRITE_TIMEOUT`] while it is being answered, or is silent for [`IDLE_TIMEOUT`]
//! between requests, is dropped. It does not bound how long a handler takes, nor a request's body: the body's reader
//! does.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::source::webhook::connection_slots::{ConnectionSlot, ConnectionSlots, Peer};
use crate::source::webhook::tls::ReloadableTls;

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A listener whose connections are bounded in number and in time.
pub(super) struct BoundedListener {
    listener: TcpListener,
    slots: ConnectionSlots,
}

impl BoundedListener {
    pub(super) fn new(listener: TcpListener, slots: ConnectionSlots) -> Self {
        Self { listener, slots }
    }

    /// The next connection, with its slot. While no slot is free it waits, and the connections after it in the system's
    /// queue.
    async fn next(&mut self) -> (TcpStream, SocketAddr, ConnectionSlot) {
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let slot = self.slots.acquire(peer).await;
        (stream, peer, slot)
    }
}

impl Connected<IncomingStream<'_, BoundedListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        stream.remote_addr().clone()
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        stream.remote_addr().clone()
    }
}

impl Listener for BoundedListener {
    type Io = Connection<TcpStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        let (stream, address, slot) = self.next().await;
        let peer = slot.peer(address);
        (Connection::new(stream, slot), peer)
    }

    fn local_addr(&self) -> io::Result<Peer> {
        self.listener.local_addr().map(Peer::local)
    }
}

/// As [`BoundedListener`], over TLS. Handshakes run concurrently, each within [`HEAD_TIMEOUT`]: a slow one delays no
/// other.
pub(super) struct TlsListener {
    inner: BoundedListener,
    tls: ReloadableTls,
    handshakes: JoinSet<Option<(Connection<TlsStream<TcpStream>>, Peer)>>,
}

impl TlsListener {
    pub(super) fn new(listener: TcpListener, tls: ReloadableTls, slots: ConnectionSlots) -> Self {
        Self { inner: BoundedListener::new(listener, slots), tls, handshakes: JoinSet::new() }
    }
}

impl Listener for TlsListener {
    type Io = Connection<TlsStream<TcpStream>>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        loop {
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => {
                    if let Ok(Some(ready)) = ended {
                        return ready;
                    }
                }
                (stream, address, slot) = self.inner.next() => {
                    let acceptor = TlsAcceptor::from(self.tls.current());
                    self.handshakes.spawn(async move {
                        let stream = tokio::select! {
                            stream = timeout(HEAD_TIMEOUT, acceptor.accept(stream)) => stream.ok()?.ok()?,
                            () = slot.evicted() => return None,
                        };
                        let peer = slot.peer(address);
                        Some((Connection::new(stream, slot), peer))
                    });
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        self.inner.local_addr()
    }
}

/// What a connection's peer is expected to do.
#[derive(Clone, Copy)]
enum Phase {
    /// Send a request, or read the response.
    Idle,
    /// Finish a request's head; so many bytes of the blank line that ends it have been read.
    Head(usize),
    /// Wait for the response.
    Answering,
}

pub(super) struct Connection<S> {
    stream: S,
    phase: Phase,
    read_deadline: Pin<Box<Sleep>>,
    /// Set while a write waits for the peer.
    write_deadline: Option<Pin<Box<Sleep>>>,
    slot: ConnectionSlot,
}

const BLANK_LINE: &[u8] = b"\r\n\r\n";
const INTERIM: &[u8] = b"HTTP/1.1 100 ";

impl<S> Connection<S> {
    fn new(stream: S, slot: ConnectionSlot) -> Self {
        let read_deadline = Box::pin(sleep(HEAD_TIMEOUT));
        Self { stream, phase: Phase::Idle, read_deadline, write_deadline: None, slot }
    }

    fn on_read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let is_new_request = matches!(self.phase, Phase::Idle);
        if is_new_request {
            self.read_deadline.as_mut().reset(Instant::now() + HEAD_TIMEOUT);
            self.phase = Phase::Head(0);
        }
        let is_whole_head = self.has_whole_head(bytes);
        self.slot.record_read(bytes.len(), is_new_request, is_whole_head);
    }

    /// Whether these bytes end a request's head.
    fn has_whole_head(&mut self, bytes: &[u8]) -> bool {
        let Phase::Head(mut seen) = self.phase else { return false };
        for byte in bytes {
            seen = match *byte {
                byte if byte == BLANK_LINE[seen] => seen + 1,
                b'\r' => 1,
                _ => 0,
            };
            if seen == BLANK_LINE.len() {
                self.phase = Phase::Answering;
                return true;
            }
        }
        self.phase = Phase::Head(seen);
        false
    }

    /// An interim response, which asks for the body, does not end the request.
    fn on_written(&mut self, bytes: &[u8], result: &io::Result<usize>) {
        if matches!(result, Ok(1..)) && !bytes.starts_with(INTERIM) {
            self.phase = Phase::Idle;
            self.read_deadline.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
            self.slot.record_write();
        }
    }

    /// The result of a write: an error if the peer takes nothing until the deadline.
    fn check_write_deadline<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.write_deadline = None;
            return poll;
        }
        let write_deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(write_deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(context, into) {
            this.on_read(into.filled().get(before..).unwrap_or_default());
            return Poll::Ready(result);
        }
        if this.slot.poll_evicted(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "another takes the place")));
        }
        if matches!(this.phase, Phase::Answering) {
            return Poll::Pending;
        }
        ready!(this.read_deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer says nothing")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write(context, bytes);
        let result = ready!(this.check_write_deadline(context, poll));
        this.on_written(bytes, &result);
        Poll::Ready(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write_vectored(context, bytes);
        let result = ready!(this.check_write_deadline(context, poll));
        let first = bytes.iter().find(|slice| !slice.is_empty());
        this.on_written(first.map_or(&[], |slice| slice), &result);
        Poll::Ready(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_flush(context);
        this.check_write_deadline(context, poll)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn pair() -> (Connection<TcpStream>, TcpStream) {
        let mut listener =
            BoundedListener::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), ConnectionSlots::of_operators());
        let peer = TcpStream::connect(Listener::local_addr(&listener).unwrap().address).await.unwrap();
        (listener.accept().await.0, peer)
    }

    #[tokio::test]
    async fn a_head_that_drips_is_dropped() {
        let (mut connection, mut peer) = pair().await;
        connection.read_deadline.as_mut().reset(Instant::now());
        peer.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut into = [0; 64];
        while timeout(DEADLINE, connection.read(&mut into)).await.unwrap().is_err() {}
        // The first bytes set the head's deadline; a later byte does not extend it.
        let deadline = connection.read_deadline.deadline();
        peer.write_all(b"X").await.unwrap();
        assert_eq!(timeout(DEADLINE, connection.read(&mut into)).await.unwrap().unwrap(), 1);
        assert_eq!(connection.read_deadline.deadline(), deadline);

        connection.read_deadline.as_mut().reset(Instant::now());
        let error = timeout(DEADLINE, connection.read(&mut into)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn nobody_is_hurried_while_waiting_for_an_answer() {
        let (mut connection, mut peer) = pair().await;
        peer.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut into = [0; 64];
        assert!(timeout(DEADLINE, connection.read(&mut into)).await.unwrap().unwrap() > 0);
        connection.read_deadline.as_mut().reset(Instant::now());
        drop(peer);
        assert_eq!(timeout(DEADLINE, connection.read(&mut into)).await.unwrap().unwrap(), 0, "the end, no time-out");
    }

    #[tokio::test]
    async fn a_body_that_was_asked_for_is_no_head() {
        let (mut connection, mut peer) = pair().await;
        let mut into = [0; 128];
        peer.write_all(b"POST / HTTP/1.1\r\nHost: m\r\nExpect: 100-continue\r\n\r\n").await.unwrap();
        assert!(timeout(DEADLINE, connection.read(&mut into)).await.unwrap().unwrap() > 0);
        connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        assert!(matches!(connection.phase, Phase::Answering));
        peer.write_all(b"body").await.unwrap();
        assert_eq!(timeout(DEADLINE, connection.read(&mut into)).await.unwrap().unwrap(), 4);
        assert!(matches!(connection.phase, Phase::Answering));
        connection.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        assert!(matches!(connection.phase, Phase::Idle));
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_dropped() {
        let (mut connection, peer) = pair().await;
        let mut written = 0;
        let error = loop {
            if let Some(write_deadline) = &mut connection.write_deadline {
                write_deadline.as_mut().reset(Instant::now());
            }
            // Fills the system's buffers first; each write that waits is dropped and made again.
            match timeout(Duration::from_millis(50), connection.write(&[0; 64 * 1024])).await {
                Ok(Ok(count)) => written += count,
                Ok(Err(error)) => break error,
                Err(_) => assert!(connection.write_deadline.is_some(), "a write that waits has a deadline"),
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(written > 0);
        drop(peer);
    }
}
