use std::time::Duration;

use feedmirror::source::amqp::{AmqpSettings, Consumer, Failure, Message, look};
use feedmirror::source::secret::SecretSource;
use feedmirror::source::webhook::TlsFiles;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use secrecy::SecretString;
use tokio::time::timeout;

use crate::support::DEADLINE;
use crate::support::rabbit::RabbitBroker;

fn settings(queue: &str) -> AmqpSettings {
    AmqpSettings {
        url: SecretSource::Env("UNUSED".into()),
        queue: queue.into(),
        declare: false,
        prefetch: 100,
        ca_file: None,
        identity: None,
    }
}

async fn open(settings: &AmqpSettings, url: &str) -> Result<Consumer, Failure> {
    timeout(DEADLINE, Consumer::open(settings, &SecretString::from(url), "feedmirror test")).await.unwrap()
}

async fn next(consumer: &mut Consumer) -> Result<Option<Message>, Failure> {
    timeout(DEADLINE, consumer.next()).await.expect("no message within the deadline")
}

/// The number in the next message's body, and its tag.
async fn number(consumer: &mut Consumer) -> (u32, u64) {
    let message = next(consumer).await.unwrap().unwrap();
    (String::from_utf8(message.bytes).unwrap().parse().unwrap(), message.tag)
}

async fn refused(settings: &AmqpSettings, url: &str) -> Failure {
    open(settings, url).await.map(drop).unwrap_err()
}

/// Another client, which declares a durable queue and publishes to it.
struct QueuePublisher {
    _connection: Connection,
    channel: Channel,
    queue: String,
}

impl QueuePublisher {
    async fn to(rabbit: &RabbitBroker, queue: &str) -> Self {
        let url = rabbit.url("guest", "guest");
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await.unwrap();
        Self { _connection: connection, channel, queue: queue.into() }
    }

    async fn publish(&self, numbers: std::ops::Range<u32>) {
        let persistent = BasicProperties::default().with_delivery_mode(2);
        for number in numbers {
            let (options, body) = (BasicPublishOptions::default(), number.to_string());
            let queue = self.queue.as_str();
            let sent =
                self.channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), persistent.clone());
            sent.await.unwrap().await.unwrap();
        }
    }
}

/// One broker for all: it takes ten seconds to start.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_brokers_messages_are_each_acknowledged_or_delivered_again() {
    let mut rabbit = tokio::task::spawn_blocking(RabbitBroker::start).await.unwrap();
    messages_acknowledged_in_batches_are_never_delivered_again(&rabbit).await;
    unacknowledged_messages_are_delivered_again(&rabbit).await;
    a_broker_sends_no_more_than_prefetch_ahead(&rabbit).await;
    a_queue_must_be_there_unless_it_is_to_be_declared(&rabbit).await;
    a_deleted_queue_is_the_end(&rabbit).await;
    a_channel_closed_over_an_acknowledgement_needs_no_operator(&rabbit).await;
    refused_credentials_are_the_operators_and_stay_secret(&rabbit).await;
    tls_needs_the_brokers_authority_and_our_certificate(&rabbit).await;
    rabbit = a_restart_in_mid_stream_loses_nothing(rabbit).await;
    tokio::task::spawn_blocking(move || drop(rabbit)).await.unwrap();
}

async fn messages_acknowledged_in_batches_are_never_delivered_again(rabbit: &RabbitBroker) {
    let publisher = QueuePublisher::to(rabbit, "batches").await;
    publisher.publish(0..250).await;
    let mut consumer = open(&settings("batches"), &rabbit.url("guest", "guest")).await.unwrap();
    for expected in 0..250 {
        let (number, tag) = number(&mut consumer).await;
        assert_eq!(number, expected);
        if tag % 50 == 0 {
            consumer.ack_up_to(tag).await.unwrap();
        }
    }
    consumer.close().await;
    publisher.publish(250..251).await;
    let mut consumer = open(&settings("batches"), &rabbit.url("guest", "guest")).await.unwrap();
    assert_eq!(number(&mut consumer).await.0, 250);
}

async fn unacknowledged_messages_are_delivered_again(rabbit: &RabbitBroker) {
    let publisher = QueuePublisher::to(rabbit, "dropped").await;
    publisher.publish(0..10).await;
    let mut consumer = open(&settings("dropped"), &rabbit.url("guest", "guest")).await.unwrap();
    for _ in 0..10 {
        number(&mut consumer).await;
    }
    consumer.ack_up_to(4).await.unwrap();
    // Closed first, so that the acknowledgement has surely arrived; then dropped without closing.
    consumer.close().await;
    for _ in 0..2 {
        let mut consumer = open(&settings("dropped"), &rabbit.url("guest", "guest")).await.unwrap();
        for expected in 4..10 {
            let (number, tag) = number(&mut consumer).await;
            assert_eq!((number, tag), (expected, u64::from(expected) - 3));
        }
        drop(consumer);
    }
}

async fn a_broker_sends_no_more_than_prefetch_ahead(rabbit: &RabbitBroker) {
    let publisher = QueuePublisher::to(rabbit, "ahead").await;
    publisher.publish(0..5).await;
    let two = AmqpSettings { prefetch: 2, ..settings("ahead") };
    let mut consumer = open(&two, &rabbit.url("guest", "guest")).await.unwrap();
    number(&mut consumer).await;
    let (_, second) = number(&mut consumer).await;
    assert!(timeout(Duration::from_millis(200), consumer.next()).await.is_err());
    consumer.ack_up_to(second).await.unwrap();
    assert_eq!(number(&mut consumer).await.0, 2);
}

async fn a_queue_must_be_there_unless_it_is_to_be_declared(rabbit: &RabbitBroker) {
    let url = rabbit.url("guest", "guest");
    let failure = refused(&settings("nowhere"), &url).await;
    assert!(matches!(failure, Failure::Queue(_)) && failure.needs_operator(), "{failure}");
    assert!(failure.to_string().contains("nowhere"), "{failure}");
    let declaring = AmqpSettings { declare: true, ..settings("nowhere") };
    assert_eq!(look(&declaring, &SecretString::from(url.clone())).await.unwrap(), None);
    open(&declaring, &url).await.unwrap().close().await;
    QueuePublisher::to(rabbit, "nowhere").await.publish(0..2).await;
    for _ in 0..2 {
        let looked = look(&settings("nowhere"), &SecretString::from(url.clone())).await.unwrap();
        assert_eq!(looked, Some(2), "looking takes nothing");
    }
    assert!(open(&settings("nowhere"), &url).await.is_ok());
    let queues = rabbit.ctl(&["-q", "list_queues", "name", "durable"]);
    assert!(queues.lines().any(|line| line.split_whitespace().eq(["nowhere", "true"])), "{queues}");
}

async fn a_deleted_queue_is_the_end(rabbit: &RabbitBroker) {
    let publisher = QueuePublisher::to(rabbit, "deleted").await;
    let mut consumer = open(&settings("deleted"), &rabbit.url("guest", "guest")).await.unwrap();
    publisher.channel.queue_delete("deleted".into(), QueueDeleteOptions::default()).await.unwrap();
    assert_eq!(next(&mut consumer).await.unwrap(), None);
    assert_eq!(next(&mut consumer).await.unwrap(), None);
}

/// RabbitMQ closes a channel with 406, as for a queue declared with other options, when an acknowledgement is unknown
/// or too late (`consumer_timeout`): a new connection heals that.
async fn a_channel_closed_over_an_acknowledgement_needs_no_operator(rabbit: &RabbitBroker) {
    let publisher = QueuePublisher::to(rabbit, "closed").await;
    publisher.publish(0..2).await;
    let mut consumer = open(&settings("closed"), &rabbit.url("guest", "guest")).await.unwrap();
    let (_, first) = number(&mut consumer).await;
    number(&mut consumer).await;
    consumer.ack_up_to(first + 7).await.unwrap();
    let failure = next(&mut consumer).await.unwrap_err();
    assert!(matches!(&failure, Failure::Broken(words) if words.contains("unknown delivery tag")), "{failure}");
    assert!(!failure.needs_operator(), "{failure}");
    drop(consumer);
    let mut consumer = open(&settings("closed"), &rabbit.url("guest", "guest")).await.unwrap();
    assert_eq!((number(&mut consumer).await.0, number(&mut consumer).await.0), (0, 1));
}

async fn refused_credentials_are_the_operators_and_stay_secret(rabbit: &RabbitBroker) {
    for url in
        [rabbit.url("guest", "hunter2"), rabbit.url("hunter2", "hunter2"), rabbit.url("guest", "guest") + "/none"]
    {
        let failure = refused(&settings("batches"), &url).await;
        assert!(matches!(failure, Failure::Refused(_)) && failure.needs_operator(), "{failure}");
        assert!(!format!("{failure} {failure:?}").contains("hunter2"), "{failure}");
    }
}

async fn tls_needs_the_brokers_authority_and_our_certificate(rabbit: &RabbitBroker) {
    let identity = TlsFiles { certificate: rabbit.file("client.pem"), key: rabbit.file("client.key") };
    let trusted =
        AmqpSettings { ca_file: Some(rabbit.file("ca.pem")), identity: Some(identity), ..settings("encrypted") };
    let url = rabbit.tls_url();
    let publisher = QueuePublisher::to(rabbit, "encrypted").await;
    publisher.publish(0..1).await;
    let mut consumer = open(&trusted, &url).await.unwrap();
    assert_eq!(number(&mut consumer).await.0, 0);
    drop(consumer);

    let other = AmqpSettings { ca_file: Some(rabbit.file("other.pem")), ..trusted.clone() };
    let failure = refused(&other, &url).await;
    assert!(matches!(failure, Failure::Tls(_)) && failure.needs_operator(), "{failure}");
    let anonymous = AmqpSettings { identity: None, ..trusted.clone() };
    let failure = refused(&anonymous, &url).await;
    let hinted = matches!(&failure, Failure::Connect(words) if words.contains("amqp.identity"));
    assert!(hinted || matches!(failure, Failure::Tls(_)), "{failure}");
    let unreadable = AmqpSettings { ca_file: Some(rabbit.file("none.pem")), ..trusted };
    assert!(matches!(refused(&unreadable, &url).await, Failure::Settings(_)));
}

async fn a_restart_in_mid_stream_loses_nothing(mut rabbit: RabbitBroker) -> RabbitBroker {
    let publisher = QueuePublisher::to(&rabbit, "restarted").await;
    publisher.publish(0..10).await;
    let url = rabbit.url("guest", "guest");
    let mut consumer = open(&settings("restarted"), &url).await.unwrap();
    let tags = [number(&mut consumer).await.1, number(&mut consumer).await.1];
    consumer.ack_up_to(tags[0]).await.unwrap();
    for _ in 2..10 {
        number(&mut consumer).await;
    }
    let waiting = tokio::spawn(async move {
        let ended = next(&mut consumer).await;
        (ended, consumer.ack_up_to(tags[1]).await, next(&mut consumer).await)
    });
    let rabbit = tokio::task::spawn_blocking(move || {
        rabbit.stop();
        rabbit
    });
    let mut rabbit = rabbit.await.unwrap();
    let (ended, acknowledged, after) = waiting.await.unwrap();
    let failure = ended.unwrap_err();
    assert!(matches!(failure, Failure::Broken(_)) && !failure.needs_operator(), "{failure}");
    assert!(acknowledged.is_err());
    assert_eq!(after.unwrap(), None);
    assert!(matches!(refused(&settings("restarted"), &url).await, Failure::ConnectionRefused(_)));
    let rabbit = tokio::task::spawn_blocking(move || {
        rabbit.restart();
        rabbit
    });
    let rabbit = rabbit.await.unwrap();
    let mut consumer = open(&settings("restarted"), &url).await.unwrap();
    for expected in 1..10 {
        assert_eq!(number(&mut consumer).await.0, expected);
    }
    rabbit
}

#[tokio::test]
async fn a_broker_that_never_answers_is_a_timeout_and_its_connection_is_cut() {
    use tokio::io::AsyncReadExt;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("amqp://guest:hunter2@{}", listener.local_addr().unwrap());
    let opening = tokio::spawn(async move { open(&settings("any"), &url).await.map(drop) });
    let (mut socket, _) = listener.accept().await.unwrap();
    // The protocol header arrives, and after the timeout the end of the connection; nothing is answered.
    let mut greeting = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(greeting, b"AMQP\x00\x00\x09\x01");
    let failure = opening.await.unwrap().unwrap_err();
    assert!(matches!(failure, Failure::Timeout(_)), "{failure}");
}

#[tokio::test]
async fn a_refused_connection_and_an_unknown_name_are_different_failures() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let failure = refused(&settings("any"), &format!("amqp://guest:hunter2@127.0.0.1:{port}")).await;
    assert!(matches!(failure, Failure::ConnectionRefused(_)), "{failure}");
    let failure = refused(&settings("any"), "amqp://guest:hunter2@nowhere.invalid").await;
    assert!(matches!(failure, Failure::Connect(_)), "{failure}");
}
