//! Opens the connection over a socket that can be shut down from here: the AMQP library serves each connection on a
//! thread of its own, which otherwise would wait for ever for a broker that accepts connections and never answers.
//! Never retries.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use async_rs::Tokio;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};

use super::flow_control::FlowControl;
use super::limited_stream::{LimitedStream, runtime};
use super::{OPEN_TIMEOUT, Shutdown, is_encrypted, timeout};

/// A handle on the connection's socket; the socket is shut down when the handle is dropped.
pub(super) struct Socket {
    state: Arc<Mutex<SocketState>>,
    flow: FlowControl,
}

#[derive(Default)]
struct SocketState {
    socket: Option<std::net::TcpStream>,
    is_shut_down: bool,
}

impl Socket {
    /// A handle for a connection that `flow` limits.
    pub(super) fn new(flow: &FlowControl) -> Self {
        Self { state: Arc::default(), flow: flow.clone() }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The library's thread may wait for a full window, and not for the socket.
        self.flow.close();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_shut_down = true;
        if let Some(socket) = state.socket.take() {
            // The socket may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Connects and logs in, once.
pub(super) async fn connect(
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    properties: ConnectionProperties,
    socket: &Socket,
) -> lapin::Result<Connection> {
    let (state, flow) = (Arc::clone(&socket.state), socket.flow.clone());
    let addresses: Vec<_> = tokio::net::lookup_host((uri.authority.host.as_str(), uri.authority.port)).await?.collect();
    let reactor = Tokio::current();
    let dial = async move |uri: AMQPUri, _| {
        let stream = timeout(OPEN_TIMEOUT, AsyncTcpStream::connect(&reactor, addresses.clone())).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        if let AsyncTcpStream::Plain(plain) = &stream {
            let copy = std::net::TcpStream::from(plain.get_ref().as_fd().try_clone_to_owned()?);
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.is_shut_down {
                return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
            }
            state.socket = Some(copy);
        }
        let stream =
            if is_encrypted(&uri) { stream.into_tls(&uri.authority.host, tls.as_ref()).await? } else { stream };
        Ok(AsyncTcpStream::Plain(LimitedStream::new(stream, flow.clone())))
    };
    Connection::connector(uri, runtime(), dial, properties).await
}
