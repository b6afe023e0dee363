//! A real broker, and another client that publishes to its queues.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::runtime::Runtime;

use crate::support::rabbit::RabbitBroker;

pub(crate) struct Broker {
    rabbit: RabbitBroker,
    runtime: Runtime,
    _connection: Connection,
    channel: Channel,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let (rabbit, runtime) = (RabbitBroker::start(), Runtime::new().unwrap());
        let (connection, channel) = runtime.block_on(async {
            let url = rabbit.url("guest", "guest");
            let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
            (connection, channel)
        });
        Self { rabbit, runtime, _connection: connection, channel }
    }

    pub(crate) fn url(&self) -> String {
        self.rabbit.url("guest", "guest")
    }

    /// Makes a durable queue.
    pub(crate) fn declare(&self, queue: &str) {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        self.runtime.block_on(self.channel.queue_declare(queue.into(), durable, Default::default())).unwrap();
    }

    /// Publishes a message and waits until the broker has it.
    pub(crate) fn publish(&self, queue: &str, message: &str) {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        self.runtime.block_on(async {
            let sent = self.channel.basic_publish("".into(), queue.into(), options, message.as_bytes(), properties);
            sent.await.unwrap().await.unwrap();
        });
    }
}
