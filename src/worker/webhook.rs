//! A webhook's loop: takes bodies from the inbox, commits them, and answers once they are on the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::walk::describe_failure;
use super::{FeedRuntime, REGISTER_HEARTBEAT, WEBHOOK_HEARTBEAT, jitter};
use crate::feed::{Generation, Page, Transport, UnreadableRecord, truncate_text};
use crate::mode::{self, FailureHistory, FailureKind};
use crate::schedule;
use crate::source::http::EndpointClient;
use crate::source::webhook::{PostAnswer, RegisterSettings, WebhookPost};
use crate::store::StoreError;
use crate::store::apply::{Applied, PushPosition};

/// A registration under way shows a sign of life within this time.
const REGISTERS: Duration = Duration::from_secs(120);

/// A publisher that has to come again is asked to after this.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// One feed's webhook.
pub struct WebhookLoop<'a> {
    feed: &'a Arc<FeedRuntime>,
    cancel: &'a CancellationToken,
    inbox: mpsc::Receiver<WebhookPost>,
    /// The feed's generation, as the door knows it.
    generation: Arc<AtomicI64>,
}

impl<'a> WebhookLoop<'a> {
    /// A loop for what is posted to `feed`, to be cancelled by `cancel`.
    pub fn new(
        feed: &'a Arc<FeedRuntime>,
        generation: Arc<AtomicI64>,
        inbox: mpsc::Receiver<WebhookPost>,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self { feed, cancel, inbox, generation }
    }

    /// Until cancelled; what was taken in is answered.
    pub async fn run(mut self) {
        self.feed.mark_push_up(Transport::Webhook, None).await;
        loop {
            self.feed.heartbeats[WEBHOOK_HEARTBEAT].suspend();
            let posted = tokio::select! {
                () = self.cancel.cancelled() => break,
                posted = self.inbox.recv() => posted,
            };
            let Some(posted) = posted else { break };
            self.handle_post(posted).await;
        }
        self.inbox.close();
        while let Some(posted) = self.inbox.recv().await {
            self.handle_post(posted).await;
        }
    }

    async fn handle_post(&mut self, mut posted: WebhookPost) {
        let mut bytes = std::mem::take(&mut posted.bytes);
        let mut answer = match &posted.fault {
            Some(fault) => PostAnswer::Unreadable(fault.clone()),
            None if posted.quarantine_if_unreadable => self.commit_body(posted.generation, bytes.clone()).await,
            None => self.commit_body(posted.generation, std::mem::take(&mut bytes)).await,
        };
        if let (PostAnswer::Unreadable(why), true) = (&answer, posted.quarantine_if_unreadable) {
            answer = self.quarantine_body(posted.generation, &bytes, posted.hash, &why.clone()).await;
        }
        // The publisher may be gone: what it posted is applied all the same.
        let _ = posted.answer.send(answer);
    }

    /// A body is checked whole before any of it is written, then committed part by part. What ends in between comes
    /// again, and what was written of it is equal then.
    async fn commit_body(&mut self, generation: Generation, bytes: Vec<u8>) -> PostAnswer {
        let source = &self.feed.source;
        let mut body = match source.check(bytes, None).await {
            Ok(body) => body,
            Err((_, reason)) => return PostAnswer::Unreadable(reason),
        };
        loop {
            let part;
            (body, part) = match self.feed.source.decode_part(body).await {
                Ok(decoded) => decoded,
                Err((_, reason)) => return PostAnswer::Unreadable(reason),
            };
            let Some(part) = part else { return PostAnswer::Committed };
            match self.commit_page(generation, part).await {
                PostAnswer::Committed => {}
                answer => return answer,
            }
        }
    }

    async fn commit_page(&mut self, generation: Generation, page: Page) -> PostAnswer {
        match self.feed.submit_push(generation, Transport::Webhook, page, PushPosition::default()).await {
            Ok(Ok(applied)) => self.answer_commit(applied).await,
            Ok(Err(StoreError::Closed)) | Err(_) => PostAnswer::Busy(COME_AGAIN),
            Ok(Err(error)) => {
                tracing::warn!(feed = %self.feed.name, %error, "what was posted could not be committed");
                PostAnswer::Busy(COME_AGAIN)
            }
        }
    }

    async fn answer_commit(&mut self, applied: Applied) -> PostAnswer {
        if self.feed.record_push_commit(Transport::Webhook, applied).await {
            return PostAnswer::Committed;
        }
        // The feed has begun anew: what comes again is taken under its new generation.
        if let Ok(stored) = self.feed.context.store.feed(&self.feed.name).await {
            if stored.purged {
                return PostAnswer::OutdatedGeneration;
            }
            self.generation.store(stored.generation, Ordering::Relaxed);
        }
        PostAnswer::Busy(COME_AGAIN)
    }

    /// The publisher sends the same body for the fifth time, and its queue waits behind it: the body goes to quarantine,
    /// and a look-back finds what it held.
    async fn quarantine_body(&mut self, generation: Generation, bytes: &[u8], hash: u64, why: &str) -> PostAnswer {
        let raw = String::from_utf8_lossy(bytes).into_owned();
        let detail = format!("posted for the fifth time (SHA-256 {hash:016x}…): {why}");
        let refused = UnreadableRecord {
            reason: "refused-body",
            detail: truncate_text(detail),
            raw,
            redacted: None,
            id: None,
            count: 1,
        };
        let page = Page { unreadable: vec![refused], ..Page::default() };
        let answer = self.commit_page(generation, page).await;
        if matches!(answer, PostAnswer::Committed) {
            tracing::warn!(feed = %self.feed.name, "a body that could not be read was quarantined at its fifth time");
            self.feed.request_look_back().await;
        }
        answer
    }
}

/// How a feed's publisher is told where to post.
pub struct WebhookRegistration {
    /// As configured.
    pub settings: RegisterSettings,
    /// The request, with its own headers and no others.
    pub requests: EndpointClient,
}

impl WebhookRegistration {
    /// Registers at start, again until it succeeds, and then as often as configured; until cancelled.
    pub async fn run(&self, feed: &FeedRuntime, cancel: &CancellationToken) {
        let mut failures = 0_u32;
        loop {
            feed.heartbeats[REGISTER_HEARTBEAT].expect_within(REGISTERS);
            let changes = self.requests.secret_changes();
            let mut refused = false;
            let body = self.settings.body.replace("{callback}", &self.settings.callback);
            let done = tokio::select! {
                () = cancel.cancelled() => return,
                done = self.requests.submit(&self.settings.method, body) => done,
            };
            let wait = match done {
                Ok(()) => {
                    failures = 0;
                    tracing::info!(feed = %feed.name, callback = self.settings.callback, "registered with the publisher");
                    feed.record_registration(None).await;
                    self.settings.renew
                }
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    let (trouble, reason) = describe_failure(&failure);
                    refused = matches!(trouble, FailureKind::Status { code: 401 | 403, .. });
                    if let Err(failure) = self.requests.read_secrets() {
                        tracing::warn!(feed = %feed.name, %failure, "secrets can't be read again");
                    }
                    feed.record_registration(Some(format!("registration: {reason}"))).await;
                    let history = FailureHistory { failures, first_page: true, ..FailureHistory::default() };
                    let ruling = mode::classify_push(trouble, &history);
                    Some(schedule::wait_after_failure(&feed.retry, ruling.wait, failures, jitter()))
                }
            };
            let rest = async {
                match wait {
                    Some(wait) => {
                        feed.heartbeats[REGISTER_HEARTBEAT].expect_within(wait);
                        tokio::time::sleep(wait).await;
                    }
                    None => {
                        feed.heartbeats[REGISTER_HEARTBEAT].suspend();
                        std::future::pending().await
                    }
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = rest => {}
                () = self.requests.secrets_changed(changes), if refused => {}
            }
        }
    }
}
