//! Connections that the server can cut: HTTP servers don't offer it, and real ones do it to their clients.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Accepts connections; `cut` ends all of them, whatever they are doing.
pub(super) struct CuttableListener {
    pub(super) listener: TcpListener,
    pub(super) cut: CancellationToken,
}

/// Cuts a request's connection.
#[derive(Clone, Debug)]
pub(super) struct ConnectionCutter {
    now: CancellationToken,
    reset: Arc<AtomicBool>,
}

/// A connection that can be cut.
pub(super) struct CuttableConnection {
    stream: TcpStream,
    cut: ConnectionCutter,
    waiting: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl ConnectionCutter {
    fn new(all: &CancellationToken) -> Self {
        Self { now: all.child_token(), reset: Arc::default() }
    }

    /// Drops the connection with a reset (RFC 9293 §3.5.2), whatever was still to be sent.
    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
        self.now.cancel();
    }
}

impl Listener for CuttableListener {
    type Io = CuttableConnection;
    type Addr = ConnectionCutter;

    async fn accept(&mut self) -> (CuttableConnection, ConnectionCutter) {
        /// An accept fails when file descriptors run out, for example: that passes, or nobody can be served anyway.
        const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(50);
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // When it fails, the connection is only slower.
                    let _ = stream.set_nodelay(true);
                    let cut = ConnectionCutter::new(&self.cut);
                    let waiting = Box::pin(cut.now.clone().cancelled_owned());
                    return (CuttableConnection { stream, cut: cut.clone(), waiting }, cut);
                }
                Err(_) => tokio::time::sleep(ACCEPT_RETRY_WAIT).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<ConnectionCutter> {
        Ok(ConnectionCutter::new(&self.cut))
    }
}

impl Connected<IncomingStream<'_, CuttableListener>> for ConnectionCutter {
    fn connect_info(stream: IncomingStream<'_, CuttableListener>) -> Self {
        stream.remote_addr().clone()
    }
}

impl CuttableConnection {
    fn intact(&mut self, context: &mut Context<'_>) -> io::Result<&mut TcpStream> {
        if self.waiting.as_mut().poll(context).is_pending() {
            return Ok(&mut self.stream);
        }
        if self.cut.reset.load(Ordering::Acquire) {
            // When it fails, the connection ends in good order, which is a fault all the same.
            let _ = self.stream.set_zero_linger();
        }
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for CuttableConnection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.intact(context)?;
        Pin::new(stream).poll_read(context, into)
    }
}

impl AsyncWrite for CuttableConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.intact(context)?;
        Pin::new(stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
