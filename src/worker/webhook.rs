//! A webhook's loop: takes bodies from the inbox, commits them, and answers once they are on the disk. Checking secrets
//! and sizes is the router's work.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::walk::describe_failure;
use super::{FeedRuntime, jitter};
use crate::feed::{Generation, Page, Transport, UnreadableRecord, truncate_text};
use crate::mode::{self, FailureHistory, FailureKind};
use crate::schedule;
use crate::source::http::EndpointClient;
use crate::source::webhook::{PostAnswer, RegisterSettings, WebhookPost};
use crate::store::StoreError;
use crate::store::apply::{Applied, PushPosition};

/// The longest that a registration may take before its loop counts as hung.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(120);

/// When a publisher is asked to post again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One feed's webhook.
pub struct WebhookLoop<'a> {
    feed: &'a Arc<FeedRuntime>,
    cancel: &'a CancellationToken,
    inbox: mpsc::Receiver<WebhookPost>,
    /// The feed's generation, shared with its webhook route.
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

    /// Runs until cancelled; then answers the posts that are in the inbox.
    pub async fn run(mut self) {
        self.feed.mark_push_up(Transport::Webhook, None).await;
        loop {
            self.feed.heartbeats.webhook.suspend();
            let post = tokio::select! {
                () = self.cancel.cancelled() => break,
                post = self.inbox.recv() => post,
            };
            let Some(post) = post else { break };
            self.handle_post(post).await;
        }
        self.inbox.close();
        while let Some(post) = self.inbox.recv().await {
            self.handle_post(post).await;
        }
    }

    async fn handle_post(&mut self, mut post: WebhookPost) {
        let mut bytes = std::mem::take(&mut post.bytes);
        let mut answer = match &post.fault {
            Some(fault) => PostAnswer::Unreadable(fault.clone()),
            None if post.quarantine_if_unreadable => self.commit_body(post.generation, bytes.clone()).await,
            None => self.commit_body(post.generation, std::mem::take(&mut bytes)).await,
        };
        if let (PostAnswer::Unreadable(detail), true) = (&answer, post.quarantine_if_unreadable) {
            answer = self.quarantine_body(post.generation, &bytes, post.hash, &detail.clone()).await;
        }
        // The publisher may have closed its connection: its post is committed all the same.
        let _ = post.answer.send(answer);
    }

    /// Checks the whole body before any of it is written, then commits it part by part. A body that fails in between is
    /// posted again, and its written records are equal then.
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
            Ok(Err(StoreError::Closed)) | Err(_) => PostAnswer::Busy(RETRY_AFTER),
            Ok(Err(error)) => {
                tracing::warn!(feed = %self.feed.name, %error, "what was posted could not be committed");
                PostAnswer::Busy(RETRY_AFTER)
            }
        }
    }

    async fn answer_commit(&mut self, applied: Applied) -> PostAnswer {
        if self.feed.record_push_commit(Transport::Webhook, applied).await {
            return PostAnswer::Committed;
        }
        // The feed has a new generation: the next post is taken under it.
        if let Ok(stored) = self.feed.context.store.feed(&self.feed.name).await {
            if stored.purged {
                return PostAnswer::OutdatedGeneration;
            }
            self.generation.store(stored.generation, Ordering::Relaxed);
        }
        PostAnswer::Busy(RETRY_AFTER)
    }

    /// The publisher sends the same body for the fifth time, and its queue waits behind it: the body goes to
    /// quarantine, and a look-back finds its items.
    async fn quarantine_body(&mut self, generation: Generation, bytes: &[u8], hash: u64, detail: &str) -> PostAnswer {
        let raw = String::from_utf8_lossy(bytes).into_owned();
        let detail = format!("posted for the fifth time (SHA-256 {hash:016x}…): {detail}");
        let record = UnreadableRecord {
            reason: "refused-body",
            detail: truncate_text(detail),
            raw,
            redacted: None,
            id: None,
            count: 1,
        };
        let page = Page { unreadable: vec![record], ..Page::default() };
        let answer = self.commit_page(generation, page).await;
        if matches!(answer, PostAnswer::Committed) {
            tracing::warn!(feed = %self.feed.name, "a body that could not be read was quarantined at its fifth time");
            self.feed.request_look_back().await;
        }
        answer
    }
}

/// Registers a feed's webhook with its publisher.
pub struct WebhookRegistration {
    pub settings: RegisterSettings,
    /// Sends the registration, with its own headers and no others.
    pub requests: EndpointClient,
}

impl WebhookRegistration {
    /// Registers at start, again until it succeeds, and then as often as configured; until cancelled.
    pub async fn run(&self, feed: &FeedRuntime, cancel: &CancellationToken) {
        let mut failures = 0_u32;
        loop {
            feed.heartbeats.register.expect_within(REGISTER_TIMEOUT);
            let changes = self.requests.secret_changes();
            let mut secret_refused = false;
            let body = self.settings.body.replace("{callback}", &self.settings.callback);
            let result = tokio::select! {
                () = cancel.cancelled() => return,
                result = self.requests.submit(&self.settings.method, body) => result,
            };
            let wait = match result {
                Ok(()) => {
                    failures = 0;
                    tracing::info!(feed = %feed.name, callback = self.settings.callback, "registered with the publisher");
                    feed.record_registration(None).await;
                    self.settings.renew
                }
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    let (kind, reason) = describe_failure(&failure);
                    secret_refused = matches!(kind, FailureKind::Status { code: 401 | 403, .. });
                    if let Err(failure) = self.requests.read_secrets() {
                        tracing::warn!(feed = %feed.name, %failure, "secrets can't be read again");
                    }
                    feed.record_registration(Some(format!("registration: {reason}"))).await;
                    let history = FailureHistory { failures, first_page: true, ..FailureHistory::default() };
                    let policy = mode::classify_push(kind, &history);
                    Some(schedule::wait_after_failure(&feed.retry, policy.wait, failures, jitter()))
                }
            };
            let wait_for_next = async {
                match wait {
                    Some(wait) => {
                        feed.heartbeats.register.expect_within(wait);
                        tokio::time::sleep(wait).await;
                    }
                    None => {
                        feed.heartbeats.register.suspend();
                        std::future::pending().await
                    }
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = wait_for_next => {}
                () = self.requests.secrets_changed(changes), if secret_refused => {}
            }
        }
    }
}
