//! A webhook's loop: takes bodies from the inbox, commits them, and answers once they are on the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::walk::explain;
use super::{Feed, REGISTER_PULSE, WEBHOOK_PULSE, chance};
use crate::feed::{Generation, Page, Transport, Unreadable, cut};
use crate::mode::{self, History, Trouble};
use crate::schedule;
use crate::source::http::Requests;
use crate::source::webhook::{Answer, Posted, RegisterSettings};
use crate::store::StoreError;
use crate::store::apply::{Applied, Position};

/// A registration under way shows a sign of life within this time.
const REGISTERS: Duration = Duration::from_secs(120);

/// A publisher that has to come again is asked to after this.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// One feed's webhook.
pub struct WebhookLoop<'a> {
    feed: &'a Arc<Feed>,
    cancel: &'a CancellationToken,
    inbox: mpsc::Receiver<Posted>,
    /// The feed's generation, as the door knows it.
    generation: Arc<AtomicI64>,
}

impl<'a> WebhookLoop<'a> {
    /// A loop for what is posted to `feed`, to be cancelled by `cancel`.
    pub fn new(
        feed: &'a Arc<Feed>,
        generation: Arc<AtomicI64>,
        inbox: mpsc::Receiver<Posted>,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self { feed, cancel, inbox, generation }
    }

    /// Until cancelled; what was taken in is answered.
    pub async fn run(mut self) {
        self.feed.push_up(Transport::Webhook, None).await;
        loop {
            self.feed.pulses[WEBHOOK_PULSE].rest();
            let posted = tokio::select! {
                () = self.cancel.cancelled() => break,
                posted = self.inbox.recv() => posted,
            };
            let Some(posted) = posted else { break };
            self.take(posted).await;
        }
        self.inbox.close();
        while let Some(posted) = self.inbox.recv().await {
            self.take(posted).await;
        }
    }

    async fn take(&mut self, mut posted: Posted) {
        let mut bytes = std::mem::take(&mut posted.bytes);
        let mut answer = match &posted.fault {
            Some(fault) => Answer::Refused(fault.clone()),
            None if posted.fifth => self.answer(posted.generation, bytes.clone()).await,
            None => self.answer(posted.generation, std::mem::take(&mut bytes)).await,
        };
        if let (Answer::Refused(why), true) = (&answer, posted.fifth) {
            answer = self.give_in(posted.generation, &bytes, posted.hash, &why.clone()).await;
        }
        // The publisher may be gone: what it posted is applied all the same.
        let _ = posted.answer.send(answer);
    }

    /// A body is checked whole before any of it is written, then committed part by part. What ends in between comes
    /// again, and what was written of it is equal then.
    async fn answer(&mut self, generation: Generation, bytes: Vec<u8>) -> Answer {
        let source = &self.feed.source;
        let mut body = match source.check(bytes, None).await {
            Ok(body) => body,
            Err((_, reason)) => return Answer::Refused(reason),
        };
        loop {
            let part;
            (body, part) = match self.feed.source.part(body).await {
                Ok(decoded) => decoded,
                Err((_, reason)) => return Answer::Refused(reason),
            };
            let Some(part) = part else { return Answer::Taken };
            match self.apply(generation, part).await {
                Answer::Taken => {}
                answer => return answer,
            }
        }
    }

    async fn apply(&mut self, generation: Generation, page: Page) -> Answer {
        match self.feed.push(generation, Transport::Webhook, page, Position::default()).await {
            Ok(Ok(applied)) => self.applied(applied).await,
            Ok(Err(StoreError::Closed)) | Err(_) => Answer::Busy(COME_AGAIN),
            Ok(Err(error)) => {
                tracing::warn!(feed = %self.feed.name, %error, "what was posted could not be committed");
                Answer::Busy(COME_AGAIN)
            }
        }
    }

    async fn applied(&mut self, applied: Applied) -> Answer {
        if self.feed.committed(Transport::Webhook, applied).await {
            return Answer::Taken;
        }
        // The feed has begun anew: what comes again is taken under its new generation.
        if let Ok(stored) = self.feed.shared.store.feed(&self.feed.name).await {
            if stored.purged {
                return Answer::Gone;
            }
            self.generation.store(stored.generation, Ordering::Relaxed);
        }
        Answer::Busy(COME_AGAIN)
    }

    /// The publisher sends the same body for the fifth time, and its queue waits behind it: the body goes to quarantine,
    /// and a look-back finds what it held.
    async fn give_in(&mut self, generation: Generation, bytes: &[u8], hash: u64, why: &str) -> Answer {
        let raw = String::from_utf8_lossy(bytes).into_owned();
        let detail = format!("posted for the fifth time (SHA-256 {hash:016x}…): {why}");
        let refused = Unreadable { reason: "refused-body", detail: cut(detail), raw, shown: None, id: None, count: 1 };
        let page = Page { unreadable: vec![refused], ..Page::default() };
        let answer = self.apply(generation, page).await;
        if matches!(answer, Answer::Taken) {
            tracing::warn!(feed = %self.feed.name, "a body that could not be read was quarantined at its fifth time");
            self.feed.look_back_soon().await;
        }
        answer
    }
}

/// How a feed's publisher is told where to post.
pub struct Registration {
    /// As configured.
    pub settings: RegisterSettings,
    /// The request, with its own headers and no others.
    pub requests: Requests,
}

impl Registration {
    /// Registers at start, again until it succeeds, and then as often as configured; until cancelled.
    pub async fn keep(&self, feed: &Feed, cancel: &CancellationToken) {
        let mut failures = 0_u32;
        loop {
            feed.pulses[REGISTER_PULSE].within(REGISTERS);
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
                    feed.registered(None).await;
                    self.settings.renew
                }
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    let (trouble, reason) = explain(&failure);
                    refused = matches!(trouble, Trouble::Status { code: 401 | 403, .. });
                    if let Err(failure) = self.requests.read_secrets() {
                        tracing::warn!(feed = %feed.name, %failure, "secrets can't be read again");
                    }
                    feed.registered(Some(format!("registration: {reason}"))).await;
                    let history = History { failures, first_page: true, ..History::default() };
                    let ruling = mode::judge_push(trouble, &history);
                    Some(schedule::after_failure(&feed.retry, ruling.wait, failures, chance()))
                }
            };
            let rest = async {
                match wait {
                    Some(wait) => {
                        feed.pulses[REGISTER_PULSE].within(wait);
                        tokio::time::sleep(wait).await;
                    }
                    None => {
                        feed.pulses[REGISTER_PULSE].rest();
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
