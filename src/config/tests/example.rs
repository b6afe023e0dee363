//! `config.example.toml` is correct and complete.

use super::*;
use crate::source::http::HttpSettings;

fn example() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml")).unwrap()
}

/// The example with every commented-out setting in force.
fn example_in_full() -> String {
    let setting = |line: &str| {
        let key: String = line.chars().take_while(|c| c.is_ascii_alphanumeric() || "._-\"*".contains(*c)).collect();
        line.starts_with('[') || (!key.is_empty() && line[key.len()..].starts_with(" = "))
    };
    let uncommented = |line: &str| line.strip_prefix("# ").filter(|rest| setting(rest)).unwrap_or(line).to_owned();
    example().lines().map(uncommented).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_sound_as_it_stands_and_in_full() {
    assert_eq!(messages(&example()), [""; 0]);
    let config_dir = ConfigDir::new(&[
        ("feedmirror.toml", &example_in_full()),
        ("acme.key", "secret"),
        ("ops.token", "secret"),
        ("ca.pem", "-----BEGIN CERTIFICATE-----\n"),
        ("cert.pem", CERTIFICATE),
        ("key.pem", KEY),
        ("webhook.key", "secret"),
        ("broker.url", "amqps://user:password@broker.example/vhost"),
    ]);
    let config = config_dir.load().unwrap();
    let unreadable: Vec<_> = config.problems.iter().map(|problem| problem.key.as_str()).collect();
    // This machine has neither the variable nor the credential.
    assert_eq!(unreadable, ["feeds.acme-sessions.headers.Authorization", "feeds.acme-sessions.query.api_key"]);
}

#[test]
fn the_example_tells_of_every_key() {
    fn walk(table: &toml::Table, path: &str, keys: &mut BTreeSet<String>) {
        for (key, value) in table {
            let key = if ["feeds", "providers", "hosts"].contains(&path) { "*" } else { key.trim_end_matches("_file") };
            let here = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            if let Some(inner) = value.as_table() {
                walk(inner, &here, keys);
            }
            keys.insert(here);
        }
    }
    let mut keys = BTreeSet::new();
    walk(&toml::from_str(&example_in_full()).unwrap(), "", &mut keys);
    for key in known_keys() {
        let key = key.trim_end_matches("_file");
        // The example says that a provider takes a feed's keys, and that a feed takes the keys of the global tables.
        let feed = key.replace("providers.*", "feeds.*");
        let global = feed.strip_prefix("feeds.*.").filter(|rest| rest.contains('.')).unwrap_or(&feed);
        assert!(
            keys.contains(key) || keys.contains(&feed) || keys.contains(global),
            "{key} is not in config.example.toml"
        );
    }
    assert!(known_keys().len() > 60, "the keys were found");
}

#[test]
fn the_example_s_defaults_are_the_defaults() {
    let pem = "-----BEGIN CERTIFICATE-----\n";
    let full = example_in_full();
    // Of the feed only its URL, so that the settings of the global tables show.
    let global = full.split("[hosts.").next().unwrap();
    let config_dir = ConfigDir::new(&[
        ("feedmirror.toml", &format!("{global}\n{FEED}")),
        ("ops.token", "s"),
        ("ca.pem", pem),
        ("cert.pem", CERTIFICATE),
        ("key.pem", KEY),
    ]);
    let config = config_dir.load().unwrap();
    let plain = load(FEED).1.unwrap();
    let (example, default) = (feed(&config, "a"), feed(&plain, "a"));
    assert_eq!((example.poll, example.retry, example.resync), (default.poll, default.retry, default.resync));
    assert_eq!(example.push, default.push);
    let without_examples = HttpSettings { proxy: None, ca_file: None, allow_hosts: Vec::new(), ..example.http };
    assert_eq!(without_examples, default.http);
    assert_eq!(config.hosts, plain.hosts);
    assert_eq!(config.log, plain.log);
    assert_eq!(config.ops.listen, plain.ops.listen);
    let without_examples = WebhookListenerSettings { public_url: None, tls: None, ..config.webhooks };
    assert_eq!(without_examples, plain.webhooks);
    assert_eq!(config.database, config_dir.0.path().join("mirror.db"));
}
