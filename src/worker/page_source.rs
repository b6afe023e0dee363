//! A publisher as it is asked for pages: a place at its host, the download, decompressing, decoding. Knows neither a
//! walk's memory nor a store, but for saying what a request waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::not_before::NotBefore;
use super::walk::explain;
use super::{Counts, Pulse};
use crate::decode::Refused;
use crate::decode::rpde::{Body, Reading};
use crate::feed::{Asked, Dialect, FeedName, Page};
use crate::mode::Trouble;
use crate::source::body::Opened;
use crate::source::budget::{Budget, Watch};
use crate::source::decoders::{Decoders, Stop};
use crate::source::headers::Meta;
use crate::source::http::{Answer, Failure, Requests};
use crate::source::turns::{Host, Priority, Turn};
use crate::store::Store;
use crate::store::apply::Redact;

/// A wait for a place at the host, or for memory, is told after this long.
pub(super) const TELL_WAITING: Duration = Duration::from_secs(5);
/// A feed's first page is expected to be this large.
const EXPECTED_BYTES: u64 = 256 << 10;

/// All that reading a feed's pages needs.
pub struct PageSource {
    /// The feed's name, under which it waits for its turn at the host.
    pub name: FeedName,
    /// Its requests.
    pub requests: Requests,
    /// Its host's line.
    pub host: Arc<Host>,
    /// How its records are read.
    pub reading: Reading,
    /// How a missing `next` is made.
    pub dialect: Option<Dialect>,
    /// The least time between two requests for pages that bring nothing.
    pub interval: Duration,
    /// The longest a single request may take.
    pub page_timeout: Duration,
    /// Bytes in flight.
    pub budget: Budget,
    /// Pages decoded at once: more than there are cores would only hold memory.
    pub decoders: Decoders,
    /// What it has done since the start.
    pub counts: Arc<Counts>,
    /// Set once it has answered a conditional request in a way that says nothing: it is asked without from then on.
    pub unconditional: AtomicBool,
    /// When it may be asked next.
    pub not_before: NotBefore,
    /// Where long waits are told, if anywhere.
    pub waits: Option<Waits>,
}

impl Redact for PageSource {
    fn redact(&self, text: &str) -> String {
        self.requests.redact(text)
    }
}

/// A feed of the store, whose operators are told what it waits for.
pub struct Waits {
    /// The mirror.
    pub store: Store,
    /// The feed's number in it.
    pub feed: i64,
}

/// What a publisher answered.
pub(super) enum Downloaded {
    Page(Opened, Meta),
    NotModified(Meta),
    /// It can't say whether anything has changed: to be asked without a validator.
    ValidatorRefused,
}

/// What the rules need to know of a failure, and its words.
pub type Failed = (Trouble, String);

impl PageSource {
    /// Asks for a page and decompresses it; `etag` makes it conditional. Each time counts once, by what it got.
    pub(super) async fn download(
        &self,
        url: &str,
        etag: Option<&str>,
        priority: Priority,
        pulse: Option<&Pulse>,
    ) -> Result<Downloaded, Failed> {
        let got = self.ask(url, etag, priority, pulse).await;
        self.counts.asked(match &got {
            Ok(Downloaded::Page(..)) => Asked::Page,
            Ok(Downloaded::NotModified(_)) => Asked::NotModified,
            Ok(Downloaded::ValidatorRefused) | Err(_) => Asked::Failed,
        });
        got
    }

    async fn ask(
        &self,
        url: &str,
        etag: Option<&str>,
        priority: Priority,
        pulse: Option<&Pulse>,
    ) -> Result<Downloaded, Failed> {
        let turn = self.permitted(priority, pulse).await;
        let answer = self.answer(url, etag, pulse).await;
        drop(turn);
        let (body, mut meta) = match answer.map_err(|failure| explain(&failure))? {
            Answer::NotModified(meta) => {
                self.host.succeeded();
                return Ok(Downloaded::NotModified(meta));
            }
            Answer::ValidatorRefused(_) => return Ok(Downloaded::ValidatorRefused),
            Answer::Page(body, meta) => (body, meta),
        };
        self.host.succeeded();
        Counts::add(&self.counts.bytes, body.wire_bytes());
        let watch = body.watch();
        let opened = self.telling(watch, pulse, body.open(&self.decoders)).await;
        let opened = opened.map_err(|failure| explain(&failure))?;
        meta.findings.extend_from_slice(&opened.findings);
        self.counts.expected.store(opened.bytes.len() as u64 * 5 / 4, Ordering::Relaxed);
        Ok(Downloaded::Page(opened, meta))
    }

    /// Reads a page to its end, off the async threads; its first part is decoded on the way. Where a web page came in its
    /// place, the `cookies` that it wants to set are told too.
    pub(super) async fn check(&self, bytes: Vec<u8>, cookies: Option<&str>) -> Result<Body, Failed> {
        let reading = self.reading.clone();
        let checked = self.off_thread(move |stop| Body::check(bytes, &reading, &|| stop.is_set())).await?;
        checked.map_err(|refused| {
            let cookies = cookies.filter(|_| matches!(refused, Refused::Html { .. }));
            let cookies = cookies.map(|cookies| format!("; {cookies}")).unwrap_or_default();
            (Trouble::Page, refused.words(|text| self.requests.redact(text)) + &cookies)
        })
    }

    /// Decodes the next part of a page off the async threads.
    pub(super) async fn part(&self, mut body: Body) -> Result<(Body, Option<Page>), Failed> {
        self.off_thread(move |_| {
            let part = body.next_part();
            (body, part)
        })
        .await
    }

    async fn off_thread<T: Send + 'static>(&self, work: impl FnOnce(&Stop) -> T + Send + 'static) -> Result<T, Failed> {
        let done = self.decoders.run(work).await;
        done.map_err(|panic| (Trouble::Page, panic.to_string()))
    }

    /// Asks once there is a place for what may come. While the writer is kept from writing, that takes as long as it
    /// does.
    pub(super) async fn answer(&self, url: &str, etag: Option<&str>, pulse: Option<&Pulse>) -> Result<Answer, Failure> {
        let expected = match self.counts.expected.load(Ordering::Relaxed) {
            0 => EXPECTED_BYTES,
            bytes => bytes,
        };
        let reservation = self.budget.page(self.host.name(), expected);
        let watch = reservation.watch();
        let answer = async {
            reservation.ready(expected).await;
            self.requests.get(url, etag, reservation).await
        };
        self.telling(watch, pulse, answer).await
    }

    /// Waits for a page under way; where it waits for memory itself, that is told, and is no hang.
    async fn telling<T>(&self, watch: Watch, pulse: Option<&Pulse>, work: impl Future<Output = T>) -> T {
        let alive = || pulse.inspect(|pulse| pulse.within(self.page_timeout));
        alive();
        let tell = async {
            loop {
                tokio::time::sleep(TELL_WAITING).await;
                if watch.is_waiting() {
                    alive();
                    self.tell_waiting(self.budget.waiting_for()).await;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = tell => never,
        }
    }

    /// A place at the host, once the publisher may be asked: what another loop was told while this one waited counts too.
    async fn permitted(&self, priority: Priority, pulse: Option<&Pulse>) -> Turn {
        loop {
            let held = self.not_before.left();
            if !held.is_zero() {
                if let Some(pulse) = pulse {
                    pulse.within(held);
                }
                let reason = format!("waiting: its publisher asked not to be asked for {} s", held.as_secs() + 1);
                self.tell_waiting(reason).await;
                self.not_before.passed().await;
            }
            let turn = self.turn(priority, pulse).await;
            if self.not_before.left().is_zero() {
                return turn;
            }
        }
    }

    async fn turn(&self, priority: Priority, pulse: Option<&Pulse>) -> Turn {
        let mut turn = std::pin::pin!(self.host.turn(&self.name, priority));
        loop {
            if let Some(pulse) = pulse {
                pulse.within(TELL_WAITING);
            }
            if let Ok(turn) = tokio::time::timeout(TELL_WAITING, &mut turn).await {
                return turn;
            }
            self.tell_waiting(self.host.waiting_for()).await;
        }
    }

    async fn tell_waiting(&self, reason: String) {
        let Some(Waits { store, feed }) = &self.waits else { return };
        if let Err(error) = store.note_waiting(*feed, reason).await {
            tracing::debug!(feed = %self.name, %error, "the wait could not be noted");
        }
    }
}
