//! Connections that can be cut from inside: what HTTP servers refuse to do to their clients, and real ones do.

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

/// Accepts connections; `cut` ends them all, whatever they are at.
pub(super) struct Lines {
    pub(super) listener: TcpListener,
    pub(super) cut: CancellationToken,
}

/// The handle by which a request's connection can be cut.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    now: CancellationToken,
    reset: Arc<AtomicBool>,
}

/// A connection.
pub(super) struct Line {
    stream: TcpStream,
    cut: Cut,
    waiting: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Cut {
    fn new(all: &CancellationToken) -> Self {
        Self { now: all.child_token(), reset: Arc::default() }
    }

    /// Drops the connection with a reset (RFC 9293 §3.5.2), whatever was still to be sent.
    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
        self.now.cancel();
    }
}

impl Listener for Lines {
    type Io = Line;
    type Addr = Cut;

    async fn accept(&mut self) -> (Line, Cut) {
        /// Out of file descriptors, say: it passes, or nobody can be served anyway.
        const BREATH: Duration = Duration::from_millis(50);
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // Only slower where it fails.
                    let _ = stream.set_nodelay(true);
                    let cut = Cut::new(&self.cut);
                    let waiting = Box::pin(cut.now.clone().cancelled_owned());
                    return (Line { stream, cut: cut.clone(), waiting }, cut);
                }
                Err(_) => tokio::time::sleep(BREATH).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Cut> {
        Ok(Cut::new(&self.cut))
    }
}

impl Connected<IncomingStream<'_, Lines>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Lines>) -> Self {
        stream.remote_addr().clone()
    }
}

impl Line {
    fn intact(&mut self, context: &mut Context<'_>) -> io::Result<&mut TcpStream> {
        if self.waiting.as_mut().poll(context).is_pending() {
            return Ok(&mut self.stream);
        }
        if self.cut.reset.load(Ordering::Acquire) {
            // Without it the connection ends in good order, which is a fault all the same.
            let _ = self.stream.set_zero_linger();
        }
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.intact(context)?;
        Pin::new(stream).poll_read(context, into)
    }
}

impl AsyncWrite for Line {
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
