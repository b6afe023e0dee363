//! Getting a page: a place at the host, the download, decompressing, decoding.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::walk::explain;
use super::{Counts, Feed, Pulse};
use crate::decode::rpde;
use crate::feed::{Asked, Page};
use crate::mode::Trouble;
use crate::source::body::Opened;
use crate::source::budget::Reservation;
use crate::source::headers::Meta;
use crate::source::http::Answer;
use crate::source::turns::{Priority, Turn};

/// A wait for a place at the host is told after this long.
pub(super) const TELL_WAITING: Duration = Duration::from_secs(5);
/// A feed's first page is expected to be this large, and no page is expected to be smaller.
const EXPECTED_BYTES: u64 = 256 << 10;

/// What a publisher answered.
pub(super) enum Downloaded {
    Page(Opened, Meta),
    NotModified(Meta),
}

pub(super) type Failed = (Trouble, String);

/// Asks for a page and decompresses it; `etag` makes it conditional. Each time counts once, by what it got.
pub(super) async fn download(
    feed: &Feed,
    asked: &str,
    etag: Option<&str>,
    priority: Priority,
    pulse: Option<&Pulse>,
) -> Result<Downloaded, Failed> {
    let got = ask(feed, asked, etag, priority, pulse).await;
    feed.counts.asked(match &got {
        Ok(Downloaded::Page(..)) => Asked::Page,
        Ok(Downloaded::NotModified(_)) => Asked::NotModified,
        Err(_) => Asked::Failed,
    });
    got
}

async fn ask(
    feed: &Feed,
    asked: &str,
    etag: Option<&str>,
    priority: Priority,
    pulse: Option<&Pulse>,
) -> Result<Downloaded, Failed> {
    let turn = turn(feed, priority, pulse).await;
    let reservation = room(feed, pulse).await;
    if let Some(pulse) = pulse {
        pulse.within(feed.page_timeout);
    }
    let answer = feed.requests.get(asked, etag, reservation).await;
    drop(turn);
    let (body, meta) = match answer.map_err(|failure| explain(&failure))? {
        Answer::NotModified(meta) => {
            feed.host.succeeded();
            return Ok(Downloaded::NotModified(meta));
        }
        Answer::ValidatorRefused(_) => {
            return Err((Trouble::Page, "validator-refused: a conditional request got no page".to_owned()));
        }
        Answer::Page(body, meta) => (body, meta),
    };
    feed.host.succeeded();
    Counts::add(&feed.counts.bytes, body.wire_bytes());
    let opened = body.open(&feed.shared.decoders).await.map_err(|failure| explain(&failure))?;
    feed.counts.expected.store(opened.bytes.len() as u64 * 5 / 4, Ordering::Relaxed);
    Ok(Downloaded::Page(opened, meta))
}

/// Decodes a page off the async threads.
pub(super) async fn decode(feed: &Feed, opened: Opened) -> Result<(Page, Reservation), Failed> {
    let _permit = feed.shared.decoders.acquire().await.ok();
    let (reading, bytes) = (feed.reading.clone(), opened.bytes);
    match tokio::task::spawn_blocking(move || rpde::page(bytes, &reading)).await {
        Ok(Ok(page)) => Ok((page, opened.reservation)),
        Ok(Err(refused)) => Err((Trouble::Page, feed.requests.mask(&refused.to_string()))),
        Err(panic) => Err((Trouble::Page, format!("decoder-panic: {panic}"))),
    }
}

/// The room for what the page is expected to be. While the writer is kept from writing, that takes as long as it does.
pub(super) async fn room(feed: &Feed, pulse: Option<&Pulse>) -> Reservation {
    if let Some(pulse) = pulse {
        pulse.rest();
    }
    let expected = feed.counts.expected.load(Ordering::Relaxed).max(EXPECTED_BYTES);
    feed.shared.budget.reserve(expected).await
}

async fn turn(feed: &Feed, priority: Priority, pulse: Option<&Pulse>) -> Turn {
    let mut turn = std::pin::pin!(feed.host.turn(&feed.name, priority));
    loop {
        if let Some(pulse) = pulse {
            pulse.within(TELL_WAITING);
        }
        if let Ok(turn) = tokio::time::timeout(TELL_WAITING, &mut turn).await {
            return turn;
        }
        if let Err(error) = feed.shared.store.note_waiting(feed.id, feed.host.waiting_for()).await {
            tracing::debug!(feed = %feed.name, %error, "the wait could not be noted");
        }
    }
}
