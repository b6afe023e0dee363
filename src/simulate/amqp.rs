//! Publishes each change as one message in a queue of an AMQP 0-9-1 broker (0.2.1 §3d); the broker confirms them in
//! batches. A batch that was not confirmed as a whole is published again as a whole: a queue may hold an item twice, as
//! with real publishers.
//!
//! Each feed has a connection of its own, so that none waits for another. Plain TCP only.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use secrecy::{ExposeSecret, SecretString};

use super::page::DraftItem;
use super::push::{Backoff, PushBatch, Pusher};

/// The broker and queue that a feed's changes are published to.
#[derive(Clone, Debug)]
pub struct AmqpTarget {
    pub url: SecretString,
    /// The queue, declared as durable; `{feed}` stands for the feed's name.
    pub queue: String,
    /// Whether the items at the start are published too.
    pub from_start: bool,
}

/// How long a connection may take to be closed in good order.
const GRACE: Duration = Duration::from_millis(300);
const PERSISTENT: u8 = 2;

/// Publishes until the publisher stops, with a new connection after each failure.
pub(super) async fn publish(mut pusher: Pusher, amqp: AmqpTarget) {
    let mut backoff = Backoff::new();
    loop {
        let result = {
            let stopped = pusher.stopped_for(GRACE);
            tokio::select! {
                () = stopped => return,
                result = session(&mut pusher, &amqp, &mut backoff) => result,
            }
        };
        let Err(error) = result else { return };
        pusher.mark_failed(&error.to_string());
        if !pusher.wait(backoff.next(None)).await {
            return;
        }
    }
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Broker(#[from] lapin::Error),
    #[error("the broker refused a message")]
    Refused,
}

async fn session(pusher: &mut Pusher, amqp: &AmqpTarget, backoff: &mut Backoff) -> Result<(), SessionError> {
    let properties = ConnectionProperties::default().with_connection_name("feedmirror simulate".into());
    let connection = Connection::connect(amqp.url.expose_secret(), properties).await?;
    let channel = connection.create_channel().await?;
    let queue = amqp.queue.replace(super::webhook::FEED, &pusher.feed);
    channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), FieldTable::default()).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    while let Some(batch) = pusher.next().await {
        send(&channel, &queue, &messages(&batch)).await?;
        *backoff = Backoff::new();
        pusher.count_batch_fault(&batch);
        pusher.mark_accepted(&batch);
    }
    Ok(connection.close(200, "bye".into()).await?)
}

async fn send(channel: &Channel, queue: &str, messages: &[String]) -> Result<(), SessionError> {
    let mut confirmations = Vec::with_capacity(messages.len());
    for message in messages {
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("".into(), queue.into(), options, message.as_bytes(), properties());
        confirmations.push(sent.await?);
    }
    for confirmation in confirmations {
        if !confirmation.await?.is_ack() {
            return Err(SessionError::Refused);
        }
    }
    Ok(())
}

fn properties() -> BasicProperties {
    BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(PERSISTENT)
}

/// The bodies to publish, in order.
fn messages(batch: &PushBatch) -> Vec<String> {
    let items: Vec<String> = batch.items.iter().map(DraftItem::text).collect();
    let again = if batch.twice { items.clone() } else { Vec::new() };
    batch.before.map(str::to_owned).into_iter().chain(items).chain(again).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::super::fault::Fault;
    use super::super::publisher::PublisherState;
    use super::super::{ExpectedItem, SimulatorSettings};
    use super::*;

    /// The messages that a queue gets of a feed's first ten items, and those items.
    async fn published(fault: Option<&str>) -> (Vec<String>, Vec<ExpectedItem>) {
        let faults = fault.map(|name| (Fault::named(name).unwrap(), 1.0)).into_iter().collect();
        let settings = SimulatorSettings { feeds: 1, items: 10, faults, ..SimulatorSettings::default() };
        let publisher = Arc::new(PublisherState::new(settings, "127.0.0.1:1".parse().unwrap()));
        let name = publisher.names().next().unwrap().to_owned();
        let mut pusher = Pusher::new(&publisher, &name, "amqp", true).unwrap();
        let batch = pusher.next().await.unwrap();
        let expected = publisher.feed(&name).unwrap().lock().feed.expected_items();
        (messages(&batch), expected)
    }

    #[tokio::test]
    async fn each_item_is_one_persistent_message_in_json_in_the_feed_s_order() {
        let (messages, expected) = published(None).await;
        assert_eq!(messages.len(), expected.len());
        for (message, expected) in messages.iter().zip(&expected) {
            let item: serde_json::Value = serde_json::from_str(message).unwrap();
            assert_eq!((&item["id"], &item["kind"]), (&expected.id.as_str().into(), &expected.kind.as_str().into()));
            assert_eq!(
                (&item["modified"], &item["state"]),
                (&expected.modified.clone().into(), &expected.state.into())
            );
            assert_eq!(item.get("data").is_some(), expected.data.is_some());
        }
        assert_eq!(properties().content_type().as_ref().unwrap().as_str(), "application/json");
        assert_eq!(properties().delivery_mode(), &Some(2));
    }

    #[tokio::test]
    async fn what_goes_wrong_shows_in_the_messages() {
        let (right, _) = published(None).await;
        let (skipped, _) = published(Some("push-skip")).await;
        assert!(skipped.len() == 9 && skipped.iter().all(|message| right.contains(message)));
        let (repeated, _) = published(Some("push-repeat")).await;
        assert_eq!(repeated, [right.clone(), right.clone()].concat());
        for odd in ["push-junk", "push-stale"] {
            let (messages, _) = published(Some(odd)).await;
            let known = messages.iter().filter(|message| right.contains(message)).count();
            assert_eq!((messages.len(), known), (11, 10), "{odd}");
        }
    }
}
