//! The stream that the AMQP library reads, limited to what [`FlowControl`] allows; and the runtime that lets the
//! library read it, since the library's own runtime accepts TCP streams only.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::{Runtime, Tokio, util::RuntimeParts};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::tcp::AsyncTcpStream;

use super::flow_control::FlowControl;

/// The most bytes of one read: so many may exceed a full window.
const READ_BYTES: usize = 64 << 10;

type Tcp = <Tokio as Reactor>::TcpStream;

/// A connection to a broker, encrypted or not.
pub(super) struct LimitedStream {
    stream: AsyncTcpStream<Tcp>,
    flow: FlowControl,
}

impl LimitedStream {
    pub(super) fn new(stream: AsyncTcpStream<Tcp>, flow: FlowControl) -> Self {
        Self { stream, flow }
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.flow.poll_readable(context))?;
        let most = into.len().min(READ_BYTES);
        let read = std::task::ready!(Pin::new(&mut self.stream).poll_read(context, &mut into[..most]))?;
        let admitted = self.flow.admit(&into[..read]);
        if read > 0 && admitted == 0 {
            // Zero bytes would mean the stream's end: the next poll returns the violation once it is due.
            return self.poll_read(context, into);
        }
        Poll::Ready(Ok(admitted))
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.flow.sent();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// The current Tokio runtime, with limited streams in place of TCP.
pub(super) fn runtime() -> Runtime<RuntimeParts<Tokio, LimitedReactor>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), LimitedReactor(Tokio::current())))
}

/// Tokio's timers; opens no connection: only [`mod@super::connect`] does.
#[derive(Clone, Debug)]
pub(super) struct LimitedReactor(Tokio);

impl Reactor for LimitedReactor {
    type TcpStream = LimitedStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H>(&self, _: H) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<LimitedStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, length: Duration) -> Self::Sleep {
        self.0.sleep(length)
    }

    fn interval(&self, length: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(length)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<LimitedStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}
