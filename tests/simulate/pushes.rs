//! Pages pushed to a webhook: one after the other, each until it is accepted, signed; and the faults of pushing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::post;
use feedmirror::simulate::{AmqpTarget, Fault, Simulator, SimulatorSettings, WebhookTarget};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::reader::{WalkResult, get, record};
use crate::{items_by_key, start, until};

const FEED: &str = "sessions-1";
const DEADLINE: Duration = Duration::from_secs(20);
/// Wait between two checks.
const PAUSE: Duration = Duration::from_millis(5);

/// One POST as received.
#[derive(Clone, Debug)]
struct Post {
    path: String,
    headers: HeaderMap,
    body: Bytes,
    at: Instant,
}

/// A status, and `Retry-After`.
type Answer = (u16, Option<&'static str>);

/// A webhook that gives the prepared answers, then 200.
#[derive(Clone, Default)]
struct Receiver {
    posts: Arc<Mutex<Vec<Post>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    /// Whether it refuses bodies that are no JSON.
    strict: bool,
}

impl Receiver {
    async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/{*path}", post(take)).with_state(self.clone());
        tokio::spawn(async { axum::serve(listener, routes).await });
        format!("http://{address}")
    }

    fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Self::default() }
    }

    fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    async fn until(&self, enough: impl Fn(&[Post]) -> bool) -> Vec<Post> {
        let since = Instant::now();
        while !enough(&self.posts()) {
            assert!(since.elapsed() < DEADLINE, "only {:?}", self.posts());
            tokio::time::sleep(PAUSE).await;
        }
        self.posts()
    }
}

async fn take(State(receiver): State<Receiver>, uri: Uri, headers: HeaderMap, body: Bytes) -> (StatusCode, HeaderMap) {
    let bad = receiver.strict && serde_json::from_slice::<Value>(&body).is_err();
    receiver.posts.lock().unwrap().push(Post { path: uri.path().to_owned(), headers, body, at: Instant::now() });
    let answer = receiver.answers.lock().unwrap().pop_front();
    let (status, retry) = answer.unwrap_or((if bad { 400 } else { 200 }, None));
    let mut headers = HeaderMap::new();
    if let Some(seconds) = retry {
        headers.insert("retry-after", seconds.parse().unwrap());
    }
    (StatusCode::from_u16(status).unwrap(), headers)
}

fn settings() -> SimulatorSettings {
    SimulatorSettings { feeds: 1, items: 25, page: 10, ..SimulatorSettings::default() }
}

fn from_start(url: &str) -> WebhookTarget {
    WebhookTarget { from_start: true, ..WebhookTarget::open(format!("{url}/hook/{{feed}}")) }
}

fn items(post: &Post) -> Vec<Value> {
    let page: Value = serde_json::from_slice(&post.body).unwrap();
    assert!(page.get("next").is_none(), "a pushed page has no next");
    page["items"].as_array().unwrap().clone()
}

fn ids<'a>(items: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    items.into_iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

fn expected_ids(simulator: &Simulator) -> Vec<String> {
    simulator.expected_items(FEED).into_iter().map(|item| item.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_pushed_in_order_from_the_beginning_or_from_the_first_change_on() {
    for whole in [true, false] {
        // given a webhook for the whole feed, or for what changes
        let receiver = Receiver::default();
        let url = receiver.listen().await;
        let webhook = WebhookTarget { from_start: whole, ..from_start(&url) };
        let simulator = start(SimulatorSettings { webhook: Some(webhook), ..settings() }).await;
        let before = if whole { 3 } else { 0 };
        receiver.until(|posts| posts.len() == before).await;
        // when something changes
        simulator.change(FEED, 2);
        let changed = |posts: &[Post]| posts.iter().skip(before).map(|post| items(post).len()).sum::<usize>() == 2;
        let posts = receiver.until(changed).await;
        // then the pushed items are the feed's, in its order, as on its pages
        let pushed: Vec<Value> = posts.iter().flat_map(items).collect();
        let sizes: Vec<usize> = posts.iter().take(before).map(|post| items(post).len()).collect();
        assert_eq!(sizes, [10, 10, 5][..before]);
        let all = expected_ids(&simulator);
        assert_eq!(ids(&pushed[pushed.len() - 2..]), all[all.len() - 2..]);
        assert!(posts.iter().all(|post| post.path == "/hook/sessions-1"));
        let mut read = WalkResult::default();
        pushed.iter().for_each(|item| read.take(record(item).unwrap()));
        let mut expected = items_by_key(&simulator.expected_items(FEED));
        expected.retain(|key, _| whole || read.items.contains_key(key));
        assert_eq!(read.items, expected);
        assert_eq!(simulator.push_stats(FEED).0.items, pushed.len() as u64);
        simulator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_sent_again_as_it_was_until_it_is_taken_and_only_then_the_next() {
    // given a webhook that fails in several ways before it accepts the first page
    let receiver = Receiver::answering([(500, None), (302, None), (404, None), (503, Some("1"))]);
    let url = receiver.listen().await;
    let simulator = start(SimulatorSettings { webhook: Some(from_start(&url)), ..settings() }).await;
    // when the feed changes meanwhile
    receiver.until(|posts| !posts.is_empty()).await;
    simulator.change(FEED, 5);
    let posts = receiver.until(|posts| posts.len() >= 7).await;
    // then the same bytes come until they are accepted, and the next page after that
    assert!(posts[1..5].iter().all(|post| post.body == posts[0].body));
    assert!(posts[5].body != posts[0].body);
    assert_eq!(items(&posts[5]).len(), 10);
    // with growing waits, and not before the webhook allows
    let waits: Vec<u128> = posts.windows(2).take(4).map(|pair| (pair[1].at - pair[0].at).as_millis()).collect();
    assert!(waits.iter().zip([200, 400, 800, 1_600]).all(|(waited, least)| *waited >= least), "{waits:?}");
    assert_eq!((simulator.push_stats(FEED).0.failures, simulator.push_stats(FEED).0.trouble), (4, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_waited_for() {
    let receiver = Receiver::answering([(503, Some("1"))]);
    let url = receiver.listen().await;
    let _simulator = start(SimulatorSettings { webhook: Some(from_start(&url)), ..settings() }).await;
    let posts = receiver.until(|posts| posts.len() > 1).await;
    assert!(posts[1].at - posts[0].at >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_not_there_yet_loses_nothing() {
    // given an address where nobody listens yet
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let webhook = WebhookTarget::open(format!("http://{address}/hook"));
    let simulator = start(SimulatorSettings { webhook: Some(webhook), ..settings() }).await;
    simulator.change(FEED, 3);
    until(async || simulator.push_stats(FEED).0.failures > 0).await;
    assert!(simulator.push_stats(FEED).0.trouble.is_some());
    // when a listener does
    let receiver = Receiver::default();
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let routes = Router::new().route("/{*path}", post(take)).with_state(receiver.clone());
    tokio::spawn(async { axum::serve(listener, routes).await });
    // then it gets the changes
    let posts = receiver.until(|posts| posts.iter().map(|post| items(post).len()).sum::<usize>() == 3).await;
    let all = expected_ids(&simulator);
    assert_eq!(ids(&posts.iter().flat_map(items).collect::<Vec<_>>()), all[all.len() - 3..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_carries_its_token_and_a_signature_over_its_bytes() {
    let receiver = Receiver::default();
    let url = receiver.listen().await;
    let webhook = WebhookTarget { token: Some("a-token".into()), hmac: Some("a-key".into()), ..from_start(&url) };
    assert!(!format!("{webhook:?}").contains("a-key"));
    let _simulator = start(SimulatorSettings { webhook: Some(webhook), ..settings() }).await;
    let posts = receiver.until(|posts| posts.len() == 3).await;
    for post in &posts {
        assert_eq!(post.headers["authorization"], "Bearer a-token");
        let mut hmac = Hmac::<Sha256>::new_from_slice(b"a-key").unwrap();
        hmac.update(&post.body);
        let digits: String = hmac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(post.headers["x-hub-signature-256"], format!("sha256={digits}"));
        assert_eq!(post.headers["content-type"], "application/json");
    }
    // and neither where there is none
    let open = Receiver::default();
    let url = open.listen().await;
    let _simulator = start(SimulatorSettings { webhook: Some(from_start(&url)), ..settings() }).await;
    let posts = open.until(|posts| !posts.is_empty()).await;
    assert!(!posts[0].headers.contains_key("authorization"));
    assert!(!posts[0].headers.contains_key("x-hub-signature-256"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_feed_has_its_own_pages_and_waits_for_no_other() {
    let receiver = Receiver::default();
    let url = receiver.listen().await;
    let simulator = start(SimulatorSettings { feeds: 4, webhook: Some(from_start(&url)), ..settings() }).await;
    let posts = receiver.until(|posts| posts.len() == 12).await;
    for name in simulator.names() {
        let own = posts.iter().filter(|post| post.path == format!("/hook/{name}"));
        let ids: Vec<String> = own.flat_map(items).map(|item| item["id"].to_string().replace('"', "")).collect();
        assert_eq!(ids, simulator.expected_items(&name).into_iter().map(|item| item.id).collect::<Vec<_>>());
    }
    // targets that can't be told apart are refused
    let listen = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shared = SimulatorSettings { feeds: 2, webhook: Some(WebhookTarget::open(url)), ..settings() };
    assert!(Simulator::start(listen().await, shared).err().unwrap().to_string().contains("{feed}"));
    let amqp = AmqpTarget { url: "amqp://127.0.0.1:1".into(), queue: "one".to_owned(), from_start: false };
    let shared = SimulatorSettings { feeds: 2, amqp: Some(amqp), ..settings() };
    assert!(Simulator::start(listen().await, shared).err().unwrap().to_string().contains("amqp queue"));
}

/// What arrives of 25 items with this fault at a share of 1, until the last of them has come.
async fn arrives(name: &str) -> (Simulator, Vec<Post>) {
    let receiver = Receiver::default();
    let url = receiver.listen().await;
    let faults = vec![(Fault::named(name).unwrap(), 1.0)];
    let simulator = start(SimulatorSettings { webhook: Some(from_start(&url)), faults, ..settings() }).await;
    until(async || simulator.fault_counts().get(name) == Some(&3) && simulator.push_stats(FEED).0.items >= 22).await;
    assert_eq!(simulator.fault_counts(), BTreeMap::from([(Fault::named(name).unwrap().name(), 3)]));
    (simulator, receiver.posts())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_goes_wrong_shows_and_is_counted() {
    let sizes = |posts: &[Post]| posts.iter().map(|post| items(post).len()).collect::<Vec<_>>();
    let (simulator, posts) = arrives("push-skip").await;
    let all = expected_ids(&simulator);
    assert_eq!(sizes(&posts), [9, 9, 4]);
    assert!(ids(&posts.iter().flat_map(items).collect::<Vec<_>>()).iter().all(|id| all.contains(id)));

    let (_simulator, posts) = arrives("push-repeat").await;
    assert_eq!(sizes(&posts), [10, 10, 10, 10, 5, 5]);
    assert!(posts.chunks(2).all(|pair| pair[0].body == pair[1].body));

    let (simulator, posts) = arrives("push-stale").await;
    assert_eq!(sizes(&posts), [11, 11, 6]);
    let mut read = WalkResult::default();
    posts.iter().flat_map(items).for_each(|item| read.take(record(&item).unwrap()));
    assert_eq!(read.items, items_by_key(&simulator.expected_items(FEED)), "newest wins");
    for post in &posts {
        let items = items(post);
        let last = items.last().unwrap();
        let newer = items.iter().find(|item| item["id"] == last["id"]).unwrap();
        assert!(newer["modified"].as_i64() > last["modified"].as_i64());
    }

    let (simulator, posts) = arrives("push-junk").await;
    let texts = posts.iter().filter(|post| serde_json::from_slice::<Value>(&post.body).is_err()).count();
    let pages: Vec<&Post> = posts.iter().filter(|post| post.body.starts_with(b"{")).collect();
    let broken = pages.iter().flat_map(|post| items(post)).filter(|item| record(item).is_none()).count();
    assert_eq!((pages.len(), texts + broken), (3, 3));
    let mut read = WalkResult::default();
    pages.iter().flat_map(|post| items(post)).filter_map(|item| record(&item)).for_each(|item| read.take(item));
    assert_eq!(read.items, items_by_key(&simulator.expected_items(FEED)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_is_forgotten_once_calm_and_the_right_page_comes() {
    // given a webhook that never accepts a body that is no JSON, and a publisher that sends one
    let receiver = Receiver { strict: true, ..Receiver::default() };
    let url = receiver.listen().await;
    let faults = vec![(Fault::named("push-junk").unwrap(), 1.0)];
    let simulator =
        start(SimulatorSettings { items: 200, webhook: Some(from_start(&url)), faults, ..settings() }).await;
    let refused = |posts: &[Post]| {
        let bad: Vec<&Post> = posts.iter().filter(|post| !post.body.starts_with(b"{")).collect();
        bad.len() > 1 && bad[0].body == bad[1].body
    };
    receiver.until(refused).await;
    // when the faults are cleared
    simulator.clear_faults();
    // then everything comes all the same
    let came = |posts: &[Post]| {
        let pages = posts.iter().filter(|post| post.body.starts_with(b"{"));
        pages.flat_map(items).filter(|item| record(item).is_some()).count() == 200
    };
    receiver.until(came).await;
    let base = format!("http://{}", simulator.address());
    let pushed = async || get(&format!("{base}/_pushed")).await.page()["webhook"][FEED].clone();
    until(async || pushed().await["items"].as_u64() >= Some(200)).await;
    assert_eq!(pushed().await["trouble"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_can_t_be_reached_is_tried_again_and_keeps_nobody_from_ending() {
    let amqp = AmqpTarget { url: "amqp://127.0.0.1:1".into(), queue: "{feed}".to_owned(), from_start: true };
    let simulator = start(SimulatorSettings { amqp: Some(amqp), ..settings() }).await;
    until(async || simulator.push_stats(FEED).1.failures >= 2).await;
    assert!(simulator.push_stats(FEED).1.trouble.is_some_and(|trouble| trouble.contains("refused")));
    tokio::time::timeout(DEADLINE, simulator.stop()).await.expect("it never ends");
}
