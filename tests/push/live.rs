//! The real binary on the queues of a real RabbitMQ, besides a poll URL that mostly has fewer records than they do: so
//! the mirror can only have the others from the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::runtime::Runtime;

use crate::support::rabbit::RabbitBroker;
use crate::support::{DEADLINE, MirrorProcess, ScriptedPublisher, TestFeed, deleted, item, until};

const PASSWORD: &str = "hunter2";
/// Short enough for a test, and long enough that audit polls don't replace the queue.
const PUSH: &str = "[push]\naudit = \"2s\"\ngrace = \"300ms\"\n";

/// One broker for all: it takes ten seconds to start.
#[test]
fn a_mirror_on_a_real_brokers_queue_loses_nothing_and_trusts_it_only_once_proven() {
    let mut broker = MirrorBroker::start();
    whatever_order_and_repetition_ends_in_the_publishers_state(&broker);
    queue_and_poll_at_once_converge_in_any_order(&broker);
    an_unreadable_message_is_quarantined_and_not_delivered_again(&broker);
    nothing_is_acknowledged_before_it_is_written(&broker);
    a_message_that_the_database_refuses_is_not_acknowledged_with_those_after_it(&broker);
    a_kill_loses_nothing_that_was_acknowledged(&broker);
    what_was_acknowledged_is_in_the_file_when_a_kill_follows_at_once(&broker);
    a_missing_queue_needs_the_operator_and_the_feed_is_healthy(&broker);
    a_broker_that_stops_is_replaced_by_polling(&mut broker);
}

struct MirrorBroker {
    rabbit: RabbitBroker,
    runtime: Runtime,
}

impl MirrorBroker {
    fn start() -> Self {
        let rabbit = RabbitBroker::start();
        rabbit.ctl(&["add_user", "mirror", PASSWORD]);
        rabbit.ctl(&["set_permissions", "mirror", ".*", ".*", ".*"]);
        Self { rabbit, runtime: Runtime::new().unwrap() }
    }

    /// A mirror, not yet started, of this poll URL and this queue; `keys` are further lines of the feed.
    fn mirror(&self, url: &str, queue: &str, keys: &str) -> MirrorProcess {
        let amqp = format!("amqp.url_file = \"broker\"\namqp.queue = {queue:?}\n{keys}");
        let mirror = MirrorProcess::new().feed_with("things", url, &amqp).tables(PUSH);
        mirror.write("broker", &self.rabbit.url("mirror", PASSWORD));
        mirror
    }

    /// A mirror that declares the queue, level and consuming.
    fn consuming(&self, url: &str, queue: &str, keys: &str) -> MirrorProcess {
        let mirror = self.mirror(url, queue, &format!("amqp.declare = \"durable\"\n{keys}")).start();
        mirror.until_level("things");
        mirror.until("consuming", |_| self.of_queue(queue, "consumers") == Some(1));
        mirror
    }

    /// A column of `rabbitmqctl list_queues` for a queue, if the queue exists.
    fn of_queue(&self, queue: &str, column: &str) -> Option<u32> {
        let queues = self.rabbit.ctl(&["-q", "list_queues", "name", column]);
        let mut lines = queues.lines().filter_map(|line| line.split_once('\t'));
        lines.find(|(name, _)| *name == queue).map(|(_, value)| value.parse().unwrap())
    }

    /// Another client's channel, which may publish to this queue.
    fn queue(&self, name: &str) -> Queue<'_> {
        let (channel, connection) = channel(&self.runtime, &self.rabbit.url("guest", "guest"));
        Queue { broker: self, _connection: connection, channel, name: name.to_owned() }
    }
}

struct Queue<'a> {
    broker: &'a MirrorBroker,
    _connection: Connection,
    channel: Channel,
    name: String,
}

impl Queue<'_> {
    fn publish(&self, body: impl AsRef<[u8]>) {
        assert!(publish(&self.broker.runtime, &self.channel, &self.name, body.as_ref()), "the broker did not take it");
    }

    /// Messages that were not delivered to any consumer yet.
    fn waiting(&self) -> u32 {
        let passive = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let declaring = self.channel.queue_declare(self.name.as_str().into(), passive, FieldTable::default());
        self.broker.runtime.block_on(declaring).unwrap().message_count()
    }

    fn until_all_acknowledged(&self) {
        until("every message acknowledged", || self.broker.of_queue(&self.name, "messages") == Some(0));
    }
}

/// A channel whose messages the broker confirms.
fn channel(runtime: &Runtime, url: &str) -> (Channel, Connection) {
    runtime.block_on(async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        (channel, connection)
    })
}

/// Publishes a persistent message; whether the broker confirmed it.
fn publish(runtime: &Runtime, channel: &Channel, queue: &str, body: &[u8]) -> bool {
    let persistent = BasicProperties::default().with_delivery_mode(2);
    let publishing = async {
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.into(), options, body, persistent).await?.await
    };
    runtime.block_on(publishing).is_ok_and(|confirmation| confirmation.is_ack())
}

fn serve(test_feed: &Arc<TestFeed>) -> ScriptedPublisher {
    let test_feed = Arc::clone(test_feed);
    ScriptedPublisher::start(move |request| test_feed.page(request))
}

fn push_of(mirror: &MirrorProcess) -> String {
    mirror.column("SELECT push FROM endpoints WHERE transport = 'amqp'").concat()
}

fn endpoint_health(mirror: &MirrorProcess) -> String {
    mirror.column("SELECT health FROM endpoints WHERE transport = 'amqp'").concat()
}

fn until_mode(mirror: &MirrorProcess, mode: &str) {
    mirror.until(&format!("mode {mode}"), |mirror| mirror.row("things").mode == mode);
}

fn until_holds(mirror: &MirrorProcess, id: &str) {
    let sql = format!("SELECT count(*) FROM items WHERE id = '{id}'");
    mirror.until(&format!("{id} in the mirror"), |mirror| mirror.number(&sql) == 1);
}

/// One version of a record.
#[derive(Clone, Debug)]
struct Version {
    id: String,
    modified: i64,
    live: bool,
}

impl Version {
    fn json(&self) -> String {
        if self.live { item(&self.id, self.modified) } else { deleted(&self.id, self.modified) }
    }
}

/// A publisher's changes, oldest first: records added, changed and deleted, with `modified` from `first` on.
fn history(random: &mut StdRng, first: i64, changes: i64) -> Vec<Version> {
    let ids: Vec<String> = (0..20).map(|n| format!("id-{n}")).collect();
    let change = |modified| {
        let id = ids.choose(random).unwrap().clone();
        Version { id, modified, live: modified % 4 != 0 }
    };
    (first..first + changes).map(change).collect()
}

/// Id, `modified` and state of every record, tombstones too, after these changes.
fn outcome<'a>(history: impl IntoIterator<Item = &'a Version>) -> BTreeMap<String, (String, String)> {
    let state = |live| if live { "updated" } else { "deleted" }.to_owned();
    // Oldest first: the last version of a record is the newest.
    history.into_iter().map(|v| (v.id.clone(), (v.modified.to_string(), state(v.live)))).collect()
}

fn mirror_contents(mirror: &MirrorProcess) -> BTreeMap<String, (String, String)> {
    let rows = mirror.rows("SELECT id, modified, state FROM items WHERE feed = 'things'");
    rows.into_iter().map(|row| (row[0].clone(), (row[1].clone(), row[2].clone()))).collect()
}

fn until_contents(mirror: &MirrorProcess, expected: &BTreeMap<String, (String, String)>) {
    mirror.until("the publisher's state", |mirror| mirror_contents(mirror) == *expected);
}

fn whatever_order_and_repetition_ends_in_the_publishers_state(broker: &MirrorBroker) {
    // Given a level feed whose poll URL never has more than ten records.
    let test_feed = TestFeed::of(10, 7);
    let publisher = serve(&test_feed);
    let mirror = broker.consuming(&publisher.url("/feed"), "orders", "");
    assert_eq!((push_of(&mirror), mirror.row("things").mode), ("unproven".into(), "poll".into()));

    // When the queue delivers an item that polling finds too, then the queue is trusted.
    let queue = broker.queue("orders");
    let first = test_feed.put("id-0");
    queue.publish(item("id-0", first));
    until_mode(&mirror, "amqp");
    assert_eq!(push_of(&mirror), "proven");

    // When it delivers a history out of order, most of it twice, and all of it once more when it is stale.
    let mut random = StdRng::seed_from_u64(7);
    let mut expected: Vec<Version> = (0..10)
        .map(|n| Version { id: format!("id-{n}"), modified: if n == 0 { first } else { n + 1 }, live: true })
        .collect();
    let changes = history(&mut random, first + 1, 300);
    let mut messages = changes.clone();
    messages.extend(changes.iter().filter(|change| change.modified % 3 != 0).cloned());
    for window in messages.chunks_mut(50) {
        window.shuffle(&mut random);
    }
    messages.extend(changes.iter().cloned());
    messages.iter().for_each(|message| queue.publish(message.json()));
    // And an update as old as a deletion, which the deletion beats.
    expected.extend(changes);
    let tombstone = expected.iter().rev().find(|change| !change.live && is_last(change, &expected)).unwrap();
    queue.publish(item(&tombstone.id, tombstone.modified));
    let end = Version { id: "end".into(), modified: 1_000, live: true };
    queue.publish(end.json());
    expected.push(end);

    // Then the mirror equals the publisher's state, data too, and the queue is empty.
    until_contents(&mirror, &outcome(&expected));
    queue.until_all_acknowledged();
    assert_eq!(mirror_contents(&mirror), outcome(&expected));
    for (id, (modified, data)) in mirror.live("things") {
        assert_eq!(data, crate::support::data(&id, modified));
    }
    assert_eq!(mirror.row("things").health, "ok");
}

fn is_last(version: &Version, history: &[Version]) -> bool {
    !history.iter().any(|other| other.id == version.id && other.modified > version.modified)
}

fn queue_and_poll_at_once_converge_in_any_order(broker: &MirrorBroker) {
    // Given a feed whose audit polls are as frequent as polls would be.
    let test_feed = TestFeed::of(10, 7);
    let publisher = serve(&test_feed);
    let mirror = broker.consuming(&publisher.url("/feed"), "both", "push.audit = \"100ms\"");
    let queue = broker.queue("both");

    // When both deliver the same history, the queue a little later and in another order.
    let mut random = StdRng::seed_from_u64(11);
    let changes = history(&mut random, 11, 400);
    let polls = publisher.count("/feed");
    let mut messages: Vec<Version> = Vec::new();
    for chunk in changes.chunks(40) {
        for change in chunk {
            if change.live {
                test_feed.put_at(&change.id, change.modified);
            } else {
                test_feed.delete_at(&change.id, change.modified);
            }
            messages.pop().iter().for_each(|message| queue.publish(message.json()));
        }
        messages = chunk.to_vec();
        messages.shuffle(&mut random);
    }
    messages.iter().for_each(|message| queue.publish(message.json()));

    // Then the mirror equals the publisher's state, and both have contributed to it.
    let before = (0..10).map(|n| Version { id: format!("id-{n}"), modified: n + 1, live: true });
    let expected: Vec<Version> = before.chain(changes).collect();
    until_contents(&mirror, &outcome(&expected));
    queue.until_all_acknowledged();
    assert_eq!(mirror_contents(&mirror), outcome(&expected));
    assert_eq!(mirror.live("things"), test_feed.live());
    assert!(publisher.count("/feed") > polls + 3);
    assert!(mirror.number("SELECT count(*) FROM refusals WHERE transport = 'amqp'") > 0);

    // And however late the queue was found to be, after one item in time it is trusted again.
    queue.publish(item("last", test_feed.put("last")));
    until_mode(&mirror, "amqp");
}

fn an_unreadable_message_is_quarantined_and_not_delivered_again(broker: &MirrorBroker) {
    let publisher = serve(&TestFeed::of(3, 7));
    let mirror = broker.consuming(&publisher.url("/feed"), "odd", "");
    let queue = broker.queue("odd");
    let without_id = r#"{"state":"updated","kind":"thing","modified":9,"data":{"name":"x"}}"#;
    let without_data = r#"{"state":"updated","kind":"thing","id":"dataless","modified":9}"#;
    let no_utf8: &[u8] = b"{\"id\":\"\xff\"}";
    for odd in [b"not json", without_id.as_bytes(), no_utf8, b"", b"[]", without_data.as_bytes(), b"not json"] {
        queue.publish(odd);
        queue.publish(item("between", 10));
    }
    queue.publish(item("behind", 11));
    until_holds(&mirror, "behind");
    queue.until_all_acknowledged();
    assert_eq!(mirror.number("SELECT count(*) FROM items"), 5);
    let kept = mirror.rows("SELECT raw, transport, count FROM quarantine ORDER BY id");
    let kept: Vec<[&str; 3]> = kept.iter().map(|row| [&*row[0], &*row[1], &*row[2]]).collect();
    let expected = [
        ("not json", "2"),
        (without_id, "1"),
        ("{\"id\":\"\u{fffd}\"}", "1"),
        ("", "1"),
        ("[]", "1"),
        (without_data, "1"),
    ];
    let expected: BTreeSet<[&str; 3]> = expected.map(|(raw, count)| [raw, "amqp", count]).into();
    assert_eq!(kept.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(endpoint_health(&mirror), "ok");
}

fn nothing_is_acknowledged_before_it_is_written(broker: &MirrorBroker) {
    // Given another process that keeps the database file locked.
    let publisher = serve(&TestFeed::of(3, 7));
    let mut mirror = broker.consuming(&publisher.url("/feed"), "locked", "");
    let queue = broker.queue("locked");
    let lock = rusqlite::Connection::open(mirror.path("mirror.db")).unwrap();
    lock.busy_timeout(DEADLINE).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    // When everything is delivered to the mirror, then none of it is acknowledged.
    (0..40).for_each(|n| queue.publish(item(&format!("late-{n}"), 100 + n)));
    until("everything handed over", || queue.waiting() == 0);
    assert_eq!(broker.of_queue("locked", "messages"), Some(40));
    assert_eq!(mirror.number("SELECT count(*) FROM items"), 3);
    // When the mirror is killed then, all of it is delivered again.
    mirror.kill();
    drop(lock);
    mirror.start_again();
    until_holds(&mirror, "late-39");
    queue.until_all_acknowledged();
    assert_eq!(mirror.number("SELECT count(*) FROM items"), 43);
}

fn a_message_that_the_database_refuses_is_not_acknowledged_with_those_after_it(broker: &MirrorBroker) {
    // Given a database file that is locked until several batches wait for it, and then refuses the first of them.
    let publisher = serve(&TestFeed::of(3, 7));
    let mirror = broker.consuming(&publisher.url("/feed"), "refusing", "");
    let queue = broker.queue("refusing");
    let file = rusqlite::Connection::open(mirror.path("mirror.db")).unwrap();
    file.busy_timeout(DEADLINE).unwrap();
    // An operator's own index, into which this one item can't be inserted.
    let refuse = "BEGIN IMMEDIATE;
                  CREATE INDEX refuse ON item (abs(-9223372036854775807 - (id = 'refused')))";
    file.execute_batch(refuse).unwrap();
    queue.publish(item("refused", 50));
    until("handed over", || queue.waiting() == 0);
    (0..40).for_each(|n| queue.publish(item(&format!("after-{n}"), 100 + n)));
    until("everything handed over", || queue.waiting() == 0);
    // When the others are committed, then the refused one is still delivered again, until it is committed too.
    file.execute_batch("COMMIT").unwrap();
    mirror.until("the batch refused", |mirror| mirror.events("things", "health").concat().contains("integer overflow"));
    file.execute_batch("DROP INDEX refuse").unwrap();
    until_holds(&mirror, "refused");
    queue.until_all_acknowledged();
    assert_eq!(mirror.number("SELECT count(*) FROM items"), 44);
}

fn a_kill_loses_nothing_that_was_acknowledged(broker: &MirrorBroker) {
    let publisher = serve(&TestFeed::of(3, 7));
    let mut mirror = broker.consuming(&publisher.url("/feed"), "killed", "");
    let queue = broker.queue("killed");
    for round in 0..3_i64 {
        // When the broker says that everything is acknowledged, and the mirror is killed.
        let first = 100 * (round + 1);
        (first..first + 40).for_each(|n| queue.publish(item(&format!("id-{n}"), n)));
        queue.until_all_acknowledged();
        mirror.kill();
        // Then it is all in the file.
        assert_eq!(mirror.number("SELECT count(*) FROM items"), 3 + 50 * round + 40);
        let delivered = mirror.number("SELECT delivered FROM endpoints WHERE transport = 'amqp'");

        // When more is published while it is down, then that is stored after its restart, delivered once and by the
        // queue.
        (first + 40..first + 50).for_each(|n| queue.publish(item(&format!("id-{n}"), n)));
        mirror.start_again();
        until_holds(&mirror, &format!("id-{}", first + 49));
        queue.until_all_acknowledged();
        assert_eq!(mirror.number("SELECT count(*) FROM items"), 3 + 50 * (round + 1));
        let again = mirror.number("SELECT delivered FROM endpoints WHERE transport = 'amqp'");
        assert_eq!(again - delivered, 10);
        until_mode(&mirror, "amqp");
    }
}

fn what_was_acknowledged_is_in_the_file_when_a_kill_follows_at_once(broker: &MirrorBroker) {
    // At most one message ahead: of the messages that are not waiting any more, all but one were acknowledged.
    const MESSAGES: u32 = 200;
    let publisher = serve(&TestFeed::of(3, 7));
    let mut mirror = broker.consuming(&publisher.url("/feed"), "one-by-one", "amqp.prefetch = 1");
    let queue = broker.queue("one-by-one");
    let mut in_mid_stream = 0;
    for round in 0..5_u32 {
        // Given a mirror that finds all messages in the queue when it starts.
        mirror.kill();
        let id = |n| format!("round-{round}-{n}");
        (0..MESSAGES).for_each(|n| queue.publish(item(&id(n), i64::from(1_000 * (round + 1) + n))));
        mirror.start_again();
        // When it is killed after some of them.
        let enough = MESSAGES - 20 * (round + 1);
        let mut waiting = MESSAGES;
        until("some taken", || {
            waiting = queue.waiting();
            waiting <= enough
        });
        mirror.kill();
        // Then the acknowledged messages, which are the oldest, are in the file.
        let there: BTreeSet<String> = mirror.ids("things").into_iter().collect();
        let acknowledged = (MESSAGES - waiting).saturating_sub(1);
        let lost: Vec<String> = (0..acknowledged).map(id).filter(|id| !there.contains(id)).collect();
        assert!(lost.is_empty(), "{acknowledged} acknowledged, but {lost:?} are not in the file");
        in_mid_stream += u32::from(!there.contains(&id(MESSAGES - 1)));

        mirror.start_again();
        until_holds(&mirror, &id(MESSAGES - 1));
        assert_eq!(mirror.number("SELECT count(*) FROM items"), i64::from(3 + MESSAGES * (round + 1)));
    }
    assert!(in_mid_stream > 0, "every kill came too late to prove anything");
}

fn a_missing_queue_needs_the_operator_and_the_feed_is_healthy(broker: &MirrorBroker) {
    let test_feed = TestFeed::of(3, 7);
    let publisher = serve(&test_feed);
    let mirror = broker.mirror(&publisher.url("/feed"), "nowhere", "amqp.declare = \"passive\"").start();
    mirror.until_level("things");
    mirror.until("the endpoint failed", |mirror| endpoint_health(mirror) == "failed");
    let reason = mirror.column("SELECT reason FROM endpoints WHERE transport = 'amqp'").concat();
    assert!(reason.starts_with("queue: ") && reason.contains("nowhere"), "{reason}");
    assert_eq!(broker.of_queue("nowhere", "messages"), None);
    test_feed.put("polled");
    until_holds(&mirror, "polled");
    let row = mirror.row("things");
    assert_eq!((row.mode.as_str(), row.health.as_str()), ("poll", "ok"));
    assert_eq!(mirror.holds_bytes(PASSWORD, &["broker"]), Vec::<String>::new());
}

fn a_broker_that_stops_is_replaced_by_polling(broker: &mut MirrorBroker) {
    // Given a feed that is live by its queue.
    let test_feed = TestFeed::of(3, 7);
    let publisher = serve(&test_feed);
    let mirror = broker.consuming(&publisher.url("/feed"), "restarted", "");
    let queue = broker.queue("restarted");
    queue.publish(item("first", 10));
    until_mode(&mirror, "amqp");
    drop(queue);

    // When the broker stops while messages are being published.
    let confirmed = publishing_while_it_stops(broker, "restarted");
    // Then the queue is tried again, and the feed is polled meanwhile.
    mirror.until("the endpoint retrying", |mirror| endpoint_health(mirror) == "retrying");
    until_mode(&mirror, "poll");
    test_feed.put("meanwhile");
    until_holds(&mirror, "meanwhile");
    assert_eq!((mirror.row("things").health.as_str(), endpoint_health(&mirror).as_str()), ("ok", "retrying"));

    // When it is back, then so is the queue, and nothing that the broker had confirmed is lost.
    broker.rabbit.restart();
    until_mode(&mirror, "amqp");
    broker.queue("restarted").until_all_acknowledged();
    let there: BTreeSet<String> = mirror.ids("things").into_iter().collect();
    let lost: Vec<&String> = confirmed.iter().filter(|id| !there.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {}: {lost:?}", lost.len(), confirmed.len());
    assert_eq!(mirror.holds_bytes(PASSWORD, &["broker"]), Vec::<String>::new());
}

/// Publishes until the broker, which is being stopped, confirms no more; the ids of the confirmed records.
fn publishing_while_it_stops(broker: &mut MirrorBroker, queue: &str) -> Vec<String> {
    const MOST: i64 = 100_000;
    let MirrorBroker { rabbit, runtime } = broker;
    let (channel, _connection) = channel(runtime, &rabbit.url("guest", "guest"));
    let id = |n: i64| format!("taken-{n}");
    let sent = |n: &i64| publish(runtime, &channel, queue, item(&id(*n), 100 + n).as_bytes());
    let confirmed: Vec<String> = std::thread::scope(|scope| {
        let publishing = scope.spawn(|| (0..MOST).take_while(sent).map(id).collect());
        rabbit.stop();
        publishing.join().unwrap()
    });
    assert!(!confirmed.is_empty() && confirmed.len() < 100_000, "{}", confirmed.len());
    confirmed
}
