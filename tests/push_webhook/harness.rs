//! A router behind a listener, one feed's route, and the test as the feed's loop.

use std::net::SocketAddr;
use std::time::Duration;

use feedmirror::server;
use feedmirror::source::budget::MemoryBudget;
use feedmirror::source::webhook::connection_slots::ConnectionSlots;
use feedmirror::source::webhook::proxies::TrustedProxies;
use feedmirror::source::webhook::tls::ReloadableTls;
use feedmirror::source::webhook::{
    Inbox, PostAnswer, RouteState, WebhookListenerSettings, WebhookPost, WebhookRoute, router,
};
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a condition may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// The largest body that the harness accepts, bytes.
pub(crate) const MAX: usize = 256 << 10;
/// The memory budget of all bodies, bytes.
pub(crate) const BUDGET: u64 = 1 << 20;
/// The secret of GitHub's published example of a signature.
pub(crate) const NEW: &str = "It's a Secret to Everybody";
pub(crate) const OLD: &str = "the-old-one";

/// The feed `a` at `/in/a`.
pub(crate) struct WebhookHarness {
    pub(crate) address: SocketAddr,
    pub(crate) inbox: Inbox,
    pub(crate) budget: MemoryBudget,
    pub(crate) state: watch::Sender<RouteState>,
    pub(crate) posted: mpsc::Receiver<WebhookPost>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
}

impl WebhookHarness {
    /// A harness whose feed's channel has this capacity.
    pub(crate) async fn with_capacity(capacity: usize, tls: Option<ReloadableTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (inbox, budget) = (Inbox::default(), MemoryBudget::new(BUDGET));
        let settings = WebhookListenerSettings {
            path: "/in".to_owned(),
            max_body_bytes: MAX as u64,
            ..WebhookListenerSettings::default()
        };
        let router = router(inbox.clone(), &settings, budget.clone());
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server::serve_webhooks(
            listener,
            tls,
            ConnectionSlots::of_publishers(TrustedProxies::default()),
            router,
            shutdown.clone(),
        ));
        let (state, route_state) = watch::channel(RouteState::Open);
        let (sender, posted) = mpsc::channel(capacity);
        let secrets = [NEW, OLD].map(SecretString::from).to_vec();
        inbox.register(
            "a",
            WebhookRoute {
                secrets,
                state: route_state,
                sender,
                generation: Default::default(),
                turned_away_count: Default::default(),
            },
        );
        Self { address, inbox, budget, state, posted, shutdown, serving }
    }

    pub(crate) async fn start() -> Self {
        Self::with_capacity(8, None).await
    }

    /// Posts `body` to the feed with these header lines, and reads a response that doesn't depend on the loop.
    pub(crate) async fn post(&self, headers: &str, body: &[u8]) -> Reply {
        self.ask(&post("/in/a", headers, body)).await
    }

    pub(crate) async fn ask(&self, request: &[u8]) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        ask(&mut stream, request).await
    }

    /// Posts with the secret while the loop answers `answer`; what the loop received, and the response.
    pub(crate) async fn post_with_answer(
        &mut self,
        headers: &str,
        body: &[u8],
        answer: PostAnswer,
    ) -> (ReceivedPost, Reply) {
        let request = post("/in/a", headers, body);
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let asking = ask(&mut stream, &request);
        let looping = async {
            let posted = timeout(DEADLINE, self.posted.recv()).await.expect("the loop gets it").unwrap();
            let seen = ReceivedPost {
                bytes: posted.bytes,
                hash: posted.hash,
                fifth: posted.quarantine_if_unreadable,
                fault: posted.fault,
            };
            posted.answer.send(answer).unwrap();
            seen
        };
        let (reply, seen) = tokio::join!(asking, looping);
        (seen, reply)
    }

    /// How many bodies wait for the loop.
    pub(crate) fn waiting(&self) -> usize {
        self.posted.len()
    }
}

/// A body as the loop received it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReceivedPost {
    pub(crate) bytes: Vec<u8>,
    pub(crate) hash: u64,
    pub(crate) fifth: bool,
    pub(crate) fault: Option<String>,
}

/// A response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// The header line with a secret.
pub(crate) fn bearer(secret: &str) -> String {
    format!("Authorization: Bearer {secret}\r\n")
}

pub(crate) fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// Sends and reads until the other side closes.
pub(crate) async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> Reply {
    // A response may arrive before the whole request was sent.
    drop(stream.write_all(request).await);
    reply(stream).await
}

pub(crate) async fn reply(stream: &mut (impl AsyncRead + Unpin)) -> Reply {
    let (mut read, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match timeout(DEADLINE, stream.read(&mut chunk)).await.expect("an answer in time") {
            Ok(0) | Err(_) => break,
            Ok(count) => read.extend_from_slice(&chunk[..count]),
        }
    }
    let text = String::from_utf8(read).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer but {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_owned(), body: body.to_owned() }
}
