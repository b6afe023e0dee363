//! Opens the connection over a socket that we can cut: the AMQP library serves each connection on a thread of its own,
//! which otherwise would wait for good for a broker that takes connections and never answers.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use async_rs::Tokio;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};

use super::flow_control::FlowControl;
use super::limited_stream::{LimitedStream, runtime};
use super::{PATIENCE, Shutdown, encrypted, timeout};

/// A handle on the connection's socket; the connection is cut when it is dropped.
pub(super) struct Socket {
    hold: Arc<Mutex<Hold>>,
    flow: FlowControl,
}

#[derive(Default)]
struct Hold {
    socket: Option<std::net::TcpStream>,
    cut: bool,
}

impl Socket {
    /// Of a connection that this limits.
    pub(super) fn new(flow: &FlowControl) -> Self {
        Self { hold: Arc::default(), flow: flow.clone() }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The library's thread may wait for room, and not for the socket.
        self.flow.close();
        let mut hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        hold.cut = true;
        if let Some(socket) = hold.socket.take() {
            // It may be closed already.
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
    let (hold, flow) = (Arc::clone(&socket.hold), socket.flow.clone());
    let addresses: Vec<_> = tokio::net::lookup_host((uri.authority.host.as_str(), uri.authority.port)).await?.collect();
    let reactor = Tokio::current();
    let dial = async move |uri: AMQPUri, _| {
        let stream = timeout(PATIENCE, AsyncTcpStream::connect(&reactor, addresses.clone())).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        if let AsyncTcpStream::Plain(plain) = &stream {
            let copy = std::net::TcpStream::from(plain.get_ref().as_fd().try_clone_to_owned()?);
            let mut hold = hold.lock().unwrap_or_else(PoisonError::into_inner);
            if hold.cut {
                return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
            }
            hold.socket = Some(copy);
        }
        let stream = if encrypted(&uri) { stream.into_tls(&uri.authority.host, tls.as_ref()).await? } else { stream };
        Ok(AsyncTcpStream::Plain(LimitedStream::new(stream, flow.clone())))
    };
    Connection::connector(uri, runtime(), dial, properties).await
}
