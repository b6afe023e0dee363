//! One suite over every transport: the same history of changes, delivered in its order or not, once or often, ends in
//! the same mirror.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::broker::Broker;
use crate::post::{self, SECRET};
use crate::stream::{StreamServer, event};
use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, page};
use crate::{endpoint, mirror};

/// The transport of a delivery. A new transport needs a variant here, and a test below.
#[derive(Clone, Copy, Debug, PartialEq)]
enum DeliveryTransport {
    Poll,
    Sse,
    Webhook,
    Amqp,
}

impl DeliveryTransport {
    const ALL: [Self; 4] = [Self::Poll, Self::Sse, Self::Webhook, Self::Amqp];
    /// A broker takes ten seconds to start: a single test uses it.
    const WITHOUT_A_BROKER: [Self; 3] = [Self::Poll, Self::Sse, Self::Webhook];

    fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Sse => "sse",
            Self::Webhook => "webhook",
            Self::Amqp => "amqp",
        }
    }
}

/// One version of a record; `data` follows from the rest.
#[derive(Clone, Debug, PartialEq)]
struct Version {
    kind: &'static str,
    id: String,
    modified: i64,
    live: bool,
}

impl Version {
    fn data(&self) -> String {
        format!(r#"{{"is":"{}/{}@{}"}}"#, self.kind, self.id, self.modified)
    }

    fn json(&self) -> String {
        let Self { kind, id, modified, live } = self;
        let rest = if *live { format!(r#""updated","data":{}"#, self.data()) } else { r#""deleted""#.to_owned() };
        format!(r#"{{"kind":"{kind}","id":"{id}","modified":{modified},"state":{rest}}}"#)
    }
}

/// Numbers that look random and are the same each time (a linear congruential generator).
struct TestRandom(u64);

impl TestRandom {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// 300 versions of 20 records: changes, deletions, revivals, and a deletion that shares its `modified` with an update.
fn history() -> Vec<Version> {
    let mut random = TestRandom(7);
    let mut versions = Vec::new();
    for modified in 1..=300 {
        let (kind, id) = (["session", "slot"][random.below(2)], format!("r{}", random.below(10)));
        let version = Version { kind, id, modified, live: random.below(4) > 0 };
        if version.live && modified % 9 == 0 {
            versions.push(Version { live: false, ..version.clone() });
        }
        versions.push(version);
    }
    versions
}

/// The history as careless publishers deliver it: out of order, repeated, and old versions again at the end.
fn careless_order(history: &[Version]) -> Vec<Version> {
    let mut random = TestRandom(11);
    let mut delivered = history.to_vec();
    for at in 0..delivered.len() {
        let with = (at + random.below(25)).min(delivered.len() - 1);
        delivered.swap(at, with);
    }
    for at in (0..delivered.len()).step_by(5).rev() {
        delivered.insert((at + random.below(10)).min(delivered.len()), delivered[at].clone());
    }
    let stale = (0..40).map(|_| history[random.below(history.len())].clone());
    delivered.extend(stale);
    delivered
}

/// (kind, id) → (modified, state, data).
type Contents = BTreeMap<(String, String), (String, String, String)>;

/// The contents that RPDE prescribes after a history: of each record the newest version; a deletion is newer than an
/// update of the same time.
fn expected_contents(history: &[Version]) -> Contents {
    let mut newest = BTreeMap::<(&str, &str), &Version>::new();
    for version in history {
        let key = (version.kind, version.id.as_str());
        let newer = |known: &&Version| (version.modified, !version.live) > (known.modified, !known.live);
        if newest.get(&key).is_none_or(newer) {
            newest.insert(key, version);
        }
    }
    let owned = newest.into_iter().map(|((kind, id), version)| {
        let (state, data) = if version.live { ("updated", version.data()) } else { ("deleted", String::new()) };
        ((kind.to_owned(), id.to_owned()), (version.modified.to_string(), state.to_owned(), data))
    });
    owned.collect()
}

fn contents(mirror: &MirrorProcess) -> Contents {
    let rows = mirror.rows("SELECT kind, id, modified, state, data FROM items WHERE feed = 'f' AND kind <> 'mark'");
    let entry = |row: Vec<String>| {
        let [kind, id, modified, state, data] = row.try_into().unwrap();
        ((kind, id), (modified, state, data))
    };
    rows.into_iter().map(entry).collect()
}

/// A publisher of pages, a mirror, and the transports between them.
struct TransportHarness<'a> {
    /// With the name of a queue.
    broker: Option<(&'a Broker, String)>,
    pages: Arc<Mutex<Vec<String>>>,
    /// Every event so far: a new connection is sent all of them again.
    events: Arc<Mutex<String>>,
    _publisher: ScriptedPublisher,
    stream: StreamServer,
    mirror: MirrorProcess,
}

impl<'a> TransportHarness<'a> {
    fn new(broker: Option<(&'a Broker, String)>) -> Self {
        let pages = Arc::new(Mutex::new(vec![
            r#"{"kind":"mark","id":"begin","modified":1,"state":"updated","data":{}}"#.to_owned(),
        ]));
        let served_pages = Arc::clone(&pages);
        let publisher = ScriptedPublisher::start(move |request| serve(request, &served_pages.lock().unwrap()));
        let events = Arc::new(Mutex::new(String::new()));
        let sent_events = Arc::clone(&events);
        let stream = StreamServer::greeting(move |_| sent_events.lock().unwrap().clone());
        let mut keys = format!("sse.url = {:?}\nwebhook = {{ secret_file = \"secret\" }}", stream.url());
        if let Some((_, queue)) = &broker {
            keys.push_str(&format!("\namqp = {{ url_file = \"broker\", queue = {queue:?} }}"));
        }
        let mirror = mirror(&publisher.url("/feed"), &keys);
        mirror.write("secret", SECRET);
        if let Some((broker, queue)) = &broker {
            mirror.write("broker", &broker.url());
            broker.declare(queue);
        }
        let mirror = mirror.start();
        mirror.until("the stream up, by its proof", |mirror| endpoint(mirror, "sse", "push") == "proven");
        Self { broker, pages, events, _publisher: publisher, stream, mirror }
    }

    /// Delivers items, together where the transport has pages.
    fn deliver(&self, transport: DeliveryTransport, items: &[String]) {
        match transport {
            DeliveryTransport::Poll => self.pages.lock().unwrap().push(items.join(",")),
            DeliveryTransport::Sse => {
                // A stream that delivers only some of the items is demoted and opened again: nothing may be lost by
                // that.
                self.events.lock().unwrap().extend(items.iter().map(|item| event(item)));
                items.iter().for_each(|item| self.stream.item(item));
            }
            DeliveryTransport::Webhook => assert_eq!(post::page(&self.mirror, items).status, 204),
            DeliveryTransport::Amqp => {
                let (broker, queue) = self.broker.as_ref().unwrap();
                items.iter().for_each(|item| broker.publish(queue, item));
            }
        }
    }

    /// Waits until all earlier deliveries of a transport are committed: until its last item is, since the order is
    /// kept.
    fn wait_until_settled(&self, transport: DeliveryTransport) {
        let mark = format!("end-{}", transport.name());
        self.deliver(
            transport,
            &[format!(r#"{{"kind":"mark","id":"{mark}","modified":1,"state":"updated","data":{{}}}}"#)],
        );
        crate::until_has(&self.mirror, &mark);
    }
}

/// Serves page after page; after the last one an empty page.
fn serve(request: &Request, pages: &[String]) -> Reply {
    let at: usize = request.query().strip_prefix("page=").map_or(0, |at| at.parse().unwrap());
    let items = pages.get(at).cloned();
    let next = if items.is_some() { format!("/feed?page={}", at + 1) } else { request.target.clone() };
    Reply::page(page(&items.into_iter().collect::<Vec<_>>(), &next))
}

/// Delivers a history, each part by the transports that `transports` returns, and compares the mirror's contents.
fn the_history_ends_in_the_same_mirror(delivered: &[Version], transports: impl Fn(usize) -> Vec<DeliveryTransport>) {
    ends_in_the_same_mirror(None, delivered, transports);
}

fn ends_in_the_same_mirror(
    broker: Option<(&Broker, String)>,
    delivered: &[Version],
    transports: impl Fn(usize) -> Vec<DeliveryTransport>,
) {
    // Given
    let harness = TransportHarness::new(broker);

    // When
    let mut used = Vec::new();
    for (n, part) in delivered.chunks(7).enumerate() {
        let items: Vec<String> = part.iter().map(Version::json).collect();
        for transport in transports(n) {
            harness.deliver(transport, &items);
            used.push(transport);
        }
    }
    let used: Vec<DeliveryTransport> =
        DeliveryTransport::ALL.into_iter().filter(|transport| used.contains(transport)).collect();
    used.iter().for_each(|transport| harness.wait_until_settled(*transport));

    // Then
    assert_eq!(contents(&harness.mirror), expected_contents(&history()));
    let live = expected_contents(&history()).values().filter(|(_, state, _)| state == "updated").count();
    let marks = 1 + used.len();
    assert_eq!(harness.mirror.row("f").items, i64::try_from(live + marks).unwrap());
    for transport in used {
        let delivered = endpoint(&harness.mirror, transport.name(), "delivered");
        assert!(
            transport == DeliveryTransport::Poll || delivered.parse::<i64>().unwrap() > 0,
            "{transport:?} brought nothing"
        );
    }
}

fn by(transport: DeliveryTransport) {
    the_history_ends_in_the_same_mirror(&history(), |_| vec![transport]);
    the_history_ends_in_the_same_mirror(&careless_order(&history()), |_| vec![transport]);
}

#[test]
fn polled_a_history_ends_in_its_newest_versions() {
    by(DeliveryTransport::Poll);
}

#[test]
fn streamed_a_history_ends_in_its_newest_versions() {
    by(DeliveryTransport::Sse);
}

#[test]
fn posted_a_history_ends_in_its_newest_versions() {
    by(DeliveryTransport::Webhook);
}

#[test]
fn each_part_another_way_a_history_ends_in_its_newest_versions() {
    the_history_ends_in_the_same_mirror(&careless_order(&history()), |n| {
        vec![DeliveryTransport::WITHOUT_A_BROKER[n % 3]]
    });
}

#[test]
fn everything_every_way_a_history_ends_in_its_newest_versions() {
    the_history_ends_in_the_same_mirror(&careless_order(&history()), |n| {
        let mut transports = DeliveryTransport::WITHOUT_A_BROKER.to_vec();
        transports.rotate_left(n % 3);
        transports
    });
}

#[test]
fn queued_alone_or_among_the_others_a_history_ends_in_its_newest_versions() {
    let broker = Broker::start();
    let ends = |queue: &str, delivered: &[Version], transports: &dyn Fn(usize) -> Vec<DeliveryTransport>| {
        ends_in_the_same_mirror(Some((&broker, queue.to_owned())), delivered, transports);
    };
    ends("in-order", &history(), &|_| vec![DeliveryTransport::Amqp]);
    ends("as-told", &careless_order(&history()), &|_| vec![DeliveryTransport::Amqp]);
    ends("each-part-another-way", &careless_order(&history()), &|n| vec![DeliveryTransport::ALL[n % 4]]);
    ends("everything-every-way", &careless_order(&history()), &|n| {
        let mut transports = DeliveryTransport::ALL.to_vec();
        transports.rotate_left(n % 4);
        transports
    });
}
