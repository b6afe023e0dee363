//! `[push]`, `[webhooks]`, `sse`, `webhook` and `amqp`.

use super::*;
use crate::mode::PushSettings;
use crate::source::amqp::AmqpSettings;
use crate::source::sse::SseSettings;
use crate::source::webhook::proxies::TrustedProxies;
use crate::source::webhook::{RegisterSettings, TlsFiles, WebhookSettings};

fn config_dir(text: &str) -> ConfigDir {
    ConfigDir::new(&[
        ("feedmirror.toml", text),
        ("new", "one"),
        ("old", "two"),
        ("broker", "amqps://me:hunter2-marker@broker.example/vhost"),
        ("no-broker", "hunter2-marker"),
        ("cert.pem", CERTIFICATE),
        ("key.pem", KEY),
        ("torn.key", "-----BEGIN PRIVATE KEY-----\nhunter2-marker\n-----END PRIVATE KEY-----\n"),
    ])
}

#[test]
fn a_feed_without_push_settings_has_no_push() {
    let config = load(FEED).1.unwrap();
    let a = feed(&config, "a");
    assert_eq!((a.sse, a.webhook, a.amqp, a.push), (None, None, None, PushSettings::default()));
    assert!(!config.takes_webhooks());
}

#[test]
fn a_table_for_webhooks_means_that_it_listens_and_proxies_are_addresses_or_networks() {
    let config = load(&format!("[webhooks]\n{FEED}")).1.unwrap();
    assert!(config.takes_webhooks());
    assert_eq!(config.webhooks.trusted_proxies, TrustedProxies::default());
    let config = load(&format!("webhooks.trusted_proxies = [\"10.0.0.7\", \"fd00::/8\"]\n{FEED}")).1.unwrap();
    let networks = ["10.0.0.7", "fd00::/8"].map(|network| network.parse().unwrap());
    assert_eq!(config.webhooks.trusted_proxies, TrustedProxies::new(networks.to_vec()));
    for wrong in ["\"10.0.0.7\"", "[\"proxy.example\"]", "[\"10.0.0.0/33\"]", "[7]"] {
        let (config_dir, loaded) = load(&format!("webhooks.trusted_proxies = {wrong}\n{FEED}"));
        let messages = config_dir.local(problems(&loaded));
        assert_eq!(messages.len(), 1, "{wrong}");
        assert!(
            messages[0].contains("webhooks.trusted_proxies") && messages[0].contains("must be a list of addresses"),
            "{messages:?}"
        );
    }
}

#[test]
fn each_endpoint_is_read_with_its_defaults() {
    let config_dir = config_dir(&format!(
        "{FEED}sse.url = \"https://a.example/stream?x=1\"\nwebhook.secret_file = \"new\"\n\
         amqp = {{ url_file = \"broker\", queue = \"q\" }}\n"
    ));
    let config = config_dir.load().unwrap();
    let a = feed(&config, "a");
    let url = "https://a.example/stream?x=1".to_owned();
    assert_eq!(a.sse, Some(SseSettings { url, from: "from".into(), after: "after".into() }));
    let file = |name: &str| SecretSource::File(config_dir.0.path().join(name));
    assert_eq!(a.webhook, Some(WebhookSettings { secrets: vec![file("new")], defer: false, register: None }));
    let amqp = AmqpSettings {
        url: file("broker"),
        queue: "q".into(),
        declare: false,
        prefetch: 500,
        ca_file: None,
        identity: None,
    };
    assert_eq!(a.amqp, Some(amqp));
    assert!(config.takes_webhooks());
    assert!(!format!("{config:?}").contains(MARKER));
}

#[test]
fn each_endpoint_is_read_in_full() {
    let config_dir = config_dir(&format!(
        "webhooks = {{ listen = \"[::1]:0\", path = \"/in/\", public_url = \"https://m.example/x/\", max_body_bytes = 5, \
         tls_cert_file = \"cert.pem\", tls_key_file = \"key.pem\" }}\n\
         {FEED}sse = {{ url = \"https://a.example/s\", params = {{ from = \"f\", after = \"a\" }} }}\n\
         webhook = {{ secret_file = [\"new\", \"old\"], during_refresh = \"defer\", register = {{ \
         url = \"https://a.example/subscribe\", method = \"PUT\", headers = {{ X-A = \"1\" }}, \
         body = '{{\"url\":\"{{callback}}\"}}', renew = \"1d\" }} }}\n\
         amqp = {{ url_file = \"broker\", queue = \"q\", declare = \"durable\", prefetch = 65535, ca_file = \"cert.pem\", \
         cert_file = \"cert.pem\", key_file = \"key.pem\" }}\n"
    ));
    let config = config_dir.load().unwrap();
    assert_eq!(config.warnings, []);
    let tls = TlsFiles { certificate: config_dir.0.path().join("cert.pem"), key: config_dir.0.path().join("key.pem") };
    let webhooks = &config.webhooks;
    assert_eq!((webhooks.listen.to_string().as_str(), webhooks.path.as_str()), ("[::1]:0", "/in"));
    assert_eq!((webhooks.max_body_bytes, webhooks.tls.as_ref()), (5, Some(&tls)));
    let a = feed(&config, "a");
    assert_eq!(a.sse.map(|sse| (sse.from, sse.after)), Some(("f".into(), "a".into())));
    let webhook = a.webhook.unwrap();
    assert_eq!(webhook.secrets, ["new", "old"].map(|name| SecretSource::File(config_dir.0.path().join(name))));
    assert!(webhook.defer);
    let register = RegisterSettings {
        url: "https://a.example/subscribe".into(),
        method: "PUT".into(),
        headers: vec![("X-A".into(), ConfiguredValue::Plain("1".into()))],
        body: "{\"url\":\"{callback}\"}".into(),
        renew: Some(Duration::from_secs(86_400)),
        callback: "https://m.example/x/in/a".into(),
    };
    assert_eq!(webhook.register, Some(register));
    let amqp = a.amqp.unwrap();
    assert_eq!((amqp.declare, amqp.prefetch, amqp.identity), (true, 65_535, Some(tls)));
}

#[test]
fn a_list_of_references_is_a_list_of_secrets() {
    let config_dir = config_dir(&format!("{FEED}webhook.secret = [{{ env = \"PATH\" }}, {{ file = \"old\" }}]\n"));
    let webhook = feed(&config_dir.load().unwrap(), "a").webhook.unwrap();
    let old = SecretSource::File(config_dir.0.path().join("old"));
    assert_eq!(webhook.secrets, [SecretSource::Env("PATH".into()), old]);
    // And a higher layer replaces the whole list.
    let environment = [("FEEDMIRROR_FEEDS__A__WEBHOOK__SECRET_FILE", "/dev/null")];
    let config = config_dir.load_with(&environment, &Overrides::default()).unwrap();
    let (problem, key) = (config.problems[0].to_string(), "feeds.a.webhook.secret");
    assert!(problem.contains(key) && problem.contains("the secret from file /dev/null is empty"), "{problem}");
}

#[test]
fn a_provider_holds_what_its_feeds_have_in_common() {
    let config_dir = config_dir(
        "[push]\naudit = \"20m\"\n\
         [providers.p]\npush.grace = \"5s\"\nwebhook.secret_file = \"new\"\nsse.params.from = \"f\"\n\
         amqp = { url_file = \"broker\", prefetch = 7 }\n\
         [feeds.a]\nurl = \"https://a.example/\"\nprovider = \"p\"\npush.prove_after = \"2m\"\namqp.queue = \"q\"\n\
         webhook.during_refresh = \"defer\"\n\
         [feeds.b]\nurl = \"https://b.example/\"\nprovider = \"p\"\nsse.url = \"https://b.example/s\"\n",
    );
    let config = config_dir.load().unwrap();
    let (a, b) = (feed(&config, "a"), feed(&config, "b"));
    let seconds = Duration::from_secs;
    assert_eq!((a.push.prove_after, a.push.audit, a.push.grace), (seconds(120), seconds(1200), seconds(5)));
    assert_eq!((b.push.prove_after, b.push.audit, b.push.grace), (seconds(60), seconds(1200), seconds(5)));
    assert_eq!((a.webhook.map(|w| w.defer), b.webhook.map(|w| w.defer)), (Some(true), Some(false)));
    assert_eq!((a.amqp.map(|amqp| amqp.prefetch), b.amqp), (Some(7), None));
    assert_eq!((a.sse, b.sse.map(|sse| sse.from)), (None, Some("f".into())));
}

#[test]
fn each_mistake_of_push_is_named_and_fails_its_feed_alone() {
    let url = "must be an absolute http or https URL, as \"https://example.org/feed\"";
    let secret = "{ file = \"…\" }, { env = \"…\" } or { credential = \"…\" }";
    let table = [
        ("sse.params.from = \"x\"", "sse.url: is missing: the URL of the stream".to_owned()),
        ("sse.url = \"x\"", format!("sse.url: {url} (relative URL without a base), not \"x\"")),
        ("webhook = {}", "webhook.secret: is missing: nobody could tell the publisher from anybody else".into()),
        ("webhook.secret = \"x\"", format!("webhook.secret: must be {secret}, never the secret itself (not shown here)")),
        (
            "webhook.secret = [\"x\"]",
            format!("webhook.secret: must be {secret}, or a list of these (what was given is not shown)"),
        ),
        (
            "webhook.secret_file = []",
            format!("webhook.secret: must be {secret}, or a list of these (what was given is not shown)"),
        ),
        (
            "webhook = { secret_file = [\"new\"], secret = { env = \"PATH\" } }",
            "webhook.secret: is given in more than one way: keep one".into(),
        ),
        (
            "webhook.secret_file = [\"new\", \"no\"]",
            "webhook.secret: cannot read secret file no: No such file or directory (os error 2)".into(),
        ),
        (
            "webhook = { secret_file = \"new\", during_refresh = \"x\" }",
            "webhook.during_refresh = \"x\": must be \"accept\" or \"defer\"".into(),
        ),
        (
            "webhook = { secret_file = \"new\", register.url = \"https://b.example/\" }",
            "webhook.register: needs public_url in [webhooks]: how the publisher reaches us".into(),
        ),
        ("amqp.queue = \"q\"", "amqp.url: is missing: the broker's, as url_file = \"…\"".into()),
        ("amqp.url_file = \"broker\"", "amqp.queue: is missing: the name of the queue".into()),
        (
            "amqp = { url_file = \"no-broker\", queue = \"q\" }",
            "amqp.url: must hold an amqp or amqps URL, as amqps://user:password@broker.example/vhost (what it holds is \
             not shown: it is secret)"
                .into(),
        ),
        (
            "amqp = { url_file = \"broker\", queue = \"q\", prefetch = 65536 }",
            "amqp.prefetch = 65536: must be a whole number from 1 to 65535".into(),
        ),
        (
            "amqp = { url_file = \"broker\", queue = \"q\", declare = \"x\" }",
            "amqp.declare = \"x\": must be \"passive\" or \"durable\"".into(),
        ),
        (
            "amqp = { url_file = \"broker\", queue = \"q\", cert_file = \"cert.pem\" }",
            "amqp.cert_file: needs key_file beside it".into(),
        ),
        ("push.audit = 5", "push.audit = 5: needs a unit: ms, s, m, h, d or w, as in \"8s\"".into()),
    ];
    for (toml, expected) in table {
        let config_dir = config_dir(&format!("{FEED}[feeds.b]\nurl = \"https://b.example/\"\n{toml}\n"));
        let config = config_dir.load().unwrap_or_else(|errors| panic!("{toml}: {errors}"));
        assert_eq!(config_dir.local(&config.problems), [format!("feedmirror.toml: feeds.b.{expected}")], "{toml}");
        feed(&config, "a");
        assert_eq!(config.feeds.iter().filter(|feed| feed.is_err()).count(), 1, "{toml}");
    }
}

#[test]
fn each_mistake_of_the_listener_is_named() {
    let table = [
        ("path = \"in\"", "path = \"in\": must begin with / and hold only letters, digits and / . _ ~ -"),
        ("path = \"/{x}\"", "path = \"/{x}\": must begin with / and hold only letters, digits and / . _ ~ -"),
        ("public_url = \"https://m.example/?x\"", "public_url: must hold no query"),
        ("listen = \"127.0.0.1:8470\"", "listen: is ops.listen too (127.0.0.1:8470): each needs its own"),
        ("tls_cert_file = \"cert.pem\"", "tls_cert_file: needs tls_key_file beside it"),
        (
            "tls_cert_file = \"cert.pem\"\ntls_key_file = \"cert.pem\"",
            "tls_key_file = \"cert.pem\": cert.pem holds no PEM private key",
        ),
        (
            "tls_cert_file = \"cert.pem\"\ntls_key_file = \"torn.key\"",
            "tls_cert_file: torn.key cannot be used: it is no PEM",
        ),
    ];
    for (toml, expected) in table {
        let config_dir = config_dir(&format!("[webhooks]\n{toml}\n{FEED}"));
        let errors = config_dir.load().expect_err(toml);
        assert_eq!(config_dir.local(&errors.problems), [format!("feedmirror.toml: webhooks.{expected}")], "{toml}");
    }
}

#[test]
fn a_provider_can_t_hold_what_names_one_place() {
    for (key, message) in [
        ("sse.url = \"https://a.example/s\"", "sse.url: belongs to a feed, [feeds.NAME]"),
        ("amqp.queue = \"q\"", "amqp.queue: belongs to a feed, [feeds.NAME]: two would share its messages out"),
    ] {
        let config_dir = config_dir(&format!("{FEED}[providers.p]\n{key}\n"));
        let expected = format!("feedmirror.toml: providers.p.{message}");
        assert_eq!(config_dir.local(&config_dir.load().unwrap().problems), [expected]);
    }
}

#[test]
fn plain_http_from_elsewhere_is_warned_of() {
    let config = config_dir(&format!("[webhooks]\nlisten = \"0.0.0.0:8471\"\n{FEED}")).load().unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].message.starts_with("takes plain http from other machines"), "{:?}", config.warnings);
}

#[test]
fn two_feeds_at_one_queue_are_warned_of() {
    let amqp = "amqp = { url_file = \"broker\", queue = \"q\" }\n";
    let config_dir = config_dir(&format!("{FEED}{amqp}[feeds.b]\nurl = \"https://b.example/\"\n{amqp}"));
    let config = config_dir.load().unwrap();
    let expected = "feedmirror.toml: feeds.b.amqp: takes from the queue of \"a\" too: each gets a part of its messages";
    assert_eq!(config_dir.local(&config.warnings), [expected]);
}
