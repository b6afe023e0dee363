#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attribution;
mod environment;
mod example;
mod push;

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::feed::{Dialect, ModifiedOrder, TiePolicy};
use crate::source::secret::ConfiguredValue;

/// A marker put wherever a secret may be, which must appear in no output.
const MARKER: &str = "hunter2-marker";

struct ConfigDir(tempfile::TempDir);

impl ConfigDir {
    fn new(files: &[(&str, &str)]) -> Self {
        let config_dir = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            config_dir.write(name, text);
        }
        config_dir
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        protect(&path);
    }

    fn load_with(&self, environment: &[(&str, &str)], overrides: &Overrides) -> Result<Config, ConfigErrors> {
        let environment: Vec<_> = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        load_from(&self.0.path().join("feedmirror.toml"), &environment, overrides, Vec::new())
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        self.load_with(&[], &Overrides::default())
    }

    /// Messages with the directory's path cut off, so that they can be compared.
    fn local(&self, problems: &[ConfigProblem]) -> Vec<String> {
        let root = format!("{}/", self.0.path().display());
        problems.iter().map(|problem| problem.to_string().replace(&root, "")).collect()
    }
}

fn protect(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn problems(loaded: &Result<Config, ConfigErrors>) -> &[ConfigProblem] {
    match loaded {
        Ok(config) => &config.problems,
        Err(errors) => &errors.problems,
    }
}

fn load(text: &str) -> (ConfigDir, Result<Config, ConfigErrors>) {
    let config_dir = ConfigDir::new(&[("feedmirror.toml", text)]);
    let loaded = config_dir.load();
    (config_dir, loaded)
}

/// The messages for `text`, without the file name that all begin with.
fn messages(text: &str) -> Vec<String> {
    let (config_dir, loaded) = load(text);
    let local = config_dir.local(problems(&loaded));
    local.into_iter().map(|message| message.replacen("feedmirror.toml: ", "", 1)).collect()
}

fn feed(config: &Config, name: &str) -> FeedSettings {
    let mut feeds = config.feeds.iter().filter_map(|feed| feed.as_ref().ok());
    feeds.find(|feed| feed.name.as_str() == name).cloned().expect("feed is sound")
}

const CERTIFICATE: &str = include_str!("../../tests/certificate/localhost.pem");
const KEY: &str = include_str!("../../tests/certificate/localhost.key");

const FEED: &str = "[feeds.a]\nurl = \"https://a.example/\"\n";

#[test]
fn nothing_set_gives_the_defaults() {
    let config = load(FEED).1.unwrap();
    assert_eq!(config.database, Path::new("mirror.db"));
    assert_eq!(config.ops.listen.to_string(), "127.0.0.1:8470");
    assert_eq!(config.log, LogSettings { format: LogFormat::Text, level: "info".into() });
    let a = feed(&config, "a");
    assert_eq!((a.modified, a.ties, a.dialect), (ModifiedOrder::Standard, TiePolicy::Keep, None));
    assert_eq!(a.retention, Duration::from_secs(7 * 86_400));
    assert_eq!((a.poll, a.retry, a.resync, a.http), Default::default());
    assert_eq!(config.warnings, []);
}

#[test]
fn each_global_mistake_is_named_with_what_would_be_right() {
    let table = [
        ("databse = \"x\"", "databse: unknown key; did you mean \"database\"?"),
        ("database = 5", "database = 5: must be the path of a file"),
        (
            "zzz = 1",
            "zzz: unknown key; known here: database, include, ops, webhooks, log, http, hosts, poll, retry, resync, push, keep, providers, feeds",
        ),
        ("poll = 5", "poll: must be a table, [poll], not a number"),
        ("[poll]\nmin = 8", "poll.min = 8: needs a unit: ms, s, m, h, d or w, as in \"8s\""),
        ("[poll]\nmin = \"0s\"", "poll.min = \"0s\": must be longer than nothing"),
        ("[poll]\nmin = \"20m\"", "poll.min: min (20m) must not be over max (10m)"),
        ("[poll]\nmax = \"9999d\"", "poll.max = \"9999d\": must be at most \"3650d\""),
        ("[retry]\nmax = \"500ms\"", "retry.max: min (1s) must not be over max (500ms)"),
        ("[resync]\nmax_sweep = 1.5", "resync.max_sweep = 1.5: must be a number from 0 to 1"),
        ("[http]\nper_host = 0", "http.per_host = 0: must be a whole number of at least 1"),
        ("[http]\nrate = 0", "http.rate = 0: must be a number of requests a second, over 0, or \"off\""),
        (
            "[http]\nmax_page_bytes = \"lots\"",
            "http.max_page_bytes = \"lots\": not a size: write bytes, or \"16KiB\", \"16MiB\", \"1GiB\" (or KB, MB, GB for powers of 1000)",
        ),
        (
            "[http]\nallow_hosts = [\"https://a.example/\"]",
            "http.allow_hosts = a list: must be a list of hosts, as [\"cdn.example.org\", \"example.org:8443\"]: \"https://a.example/\" is none",
        ),
        (
            "[http]\nca_file = \"no.pem\"",
            "http.ca_file = \"no.pem\": no.pem cannot be read: No such file or directory (os error 2)",
        ),
        (
            "[ops]\nlisten = \"8470\"",
            "ops.listen = \"8470\": must be an address and a port, as \"127.0.0.1:8470\" or \"[::1]:8470\"",
        ),
        ("[ops]\ntoken_file = \"no\"", "ops.token: cannot read secret file no: No such file or directory (os error 2)"),
        ("[log]\nformat = \"xml\"", "log.format = \"xml\": must be \"text\" or \"json\""),
        (
            "[log]\nlevel = \"loud\"",
            "log.level = \"loud\": must be \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or a filter as \"warn,feedmirror=debug\"",
        ),
        (
            "[hosts.example.org]\nper_host = 1",
            "hosts.example: must hold values only; a host is written in quotes: [hosts.\"example.org\"]",
        ),
        ("[hosts.\"a b\"]", "hosts.\"a b\": must be named \"example.org\", \"example.org:8443\" or \"*.example.org\""),
        ("include = \"feeds.d\"", "include: must be a list of file patterns, as [\"feeds.d/*.toml\"]"),
        ("include = [\"no.toml\"]", "include = \"no.toml\": there is no such file"),
        ("a = = b", "not TOML at line 1, column 5: extra `=`, expected nothing"),
    ];
    for (text, expected) in table {
        let (config_dir, loaded) = load(text);
        let errors = loaded.expect_err(text);
        let message = config_dir.local(&errors.problems).join("\n");
        assert_eq!(message, format!("feedmirror.toml: {expected}"), "{text}");
    }
}

#[test]
fn each_mistake_of_a_feed_fails_that_feed_alone() {
    let url = "must be an absolute http or https URL, as \"https://example.org/feed\"";
    let table = [
        ("", "feeds.b.url: is missing: the URL of the feed's first page".to_owned()),
        ("url = \"b.example/x\"", format!("feeds.b.url: {url} (relative URL without a base), not \"b.example/x\"")),
        ("url = \"ftp://b.example/\"", format!("feeds.b.url: {url}, not \"ftp://b.example/\"")),
        ("url = \"https://b.example/#x\"", "feeds.b.url: must hold no fragment: leave out what follows #".to_owned()),
        (
            "url = \"https://me:hunter2-marker@b.example/\"",
            "feeds.b.url: must hold no credentials (not shown here): put them in headers, as \
             headers = { Authorization = { file = \"…\" } }"
                .to_owned(),
        ),
        ("@kindd = \"x\"", "feeds.b.kindd: unknown key; did you mean \"kind\"?".to_owned()),
        ("@poll.mim = \"9s\"", "feeds.b.poll.mim: unknown key; did you mean \"min\"?".to_owned()),
        ("@ties = \"drop\"", "feeds.b.ties = \"drop\": must be \"keep\" or \"replace\"".to_owned()),
        (
            "@dialect = 1.0",
            "feeds.b.dialect = 1: must be text: \"0.2.1\" (or \"0.2\"), \"1.0\" or \"1.0-change-number\"".to_owned(),
        ),
        ("@modified = \"x\"", "feeds.b.modified = \"x\": must be \"standard\" or \"bytes\"".to_owned()),
        (
            "@http.per_host = 1",
            "feeds.b.http.per_host: is a host's, over all its feeds: set it in [hosts.\"example.org\"] or, for all, in [http]"
                .to_owned(),
        ),
        ("@provider = \"acme\"", "feeds.b.provider = \"acme\": there is no [providers.acme]".to_owned()),
        (
            "@headers = { K = { file = \"no\" } }",
            "feeds.b.headers.K: cannot read secret file no: No such file or directory (os error 2)".to_owned(),
        ),
        (
            "@headers.K = { env = \"FEEDMIRROR_TEST_UNSET\" }",
            "feeds.b.headers.K: environment variable FEEDMIRROR_TEST_UNSET is not set".to_owned(),
        ),
        (
            "@headers.K = { env = \"hunter2-marker\" }",
            "feeds.b.headers.K: env must be the name of an environment variable \
             (what was given is not shown: it may be secret)"
                .to_owned(),
        ),
        ("@headers = { Host = \"x\" }", "feeds.b.headers.Host: is a header that the client sets itself".to_owned()),
        ("@headers = { \"a b\" = \"x\" }", "feeds.b.headers.\"a b\": not a header's name".to_owned()),
        (
            "@headers = { K = { env = \"PATH\", file = \"x\" } }",
            "feeds.b.headers.K: is given in more than one way: keep one".to_owned(),
        ),
        (
            "@headers = { k = \"x\", K = \"y\" }",
            "feeds.b.headers.k: stands here twice: a header's name has no case".to_owned(),
        ),
    ];
    for (given, expected) in table {
        let given = match given.strip_prefix('@') {
            Some(rest) => format!("url = \"https://b.example/\"\n{rest}"),
            None => given.to_owned(),
        };
        let (config_dir, loaded) = load(&format!("{FEED}[feeds.b]\n{given}\n"));
        let config = loaded.unwrap_or_else(|errors| panic!("{given}: {errors}"));
        assert_eq!(config_dir.local(&config.problems), [format!("feedmirror.toml: {expected}")], "{given}");
        feed(&config, "a");
        let failed: Vec<_> = config.feeds.iter().filter_map(|feed| feed.as_ref().err()).collect();
        assert_eq!(failed.len(), 1, "{given}");
        assert_eq!((failed[0].name.as_str(), &failed[0].errors), ("b", &config.problems), "{given}");
    }
}

#[test]
fn all_mistakes_come_at_once() {
    let text =
        "x = 1\n[poll]\nmin = \"soon\"\nmax = \"late\"\n[feeds.a]\nties = 1\n[feeds.B]\nurl = \"https://b.example/\"\n";
    let keys: Vec<_> = load(text).1.unwrap_err().problems.into_iter().map(|problem| problem.key).collect();
    assert_eq!(keys, ["poll.min", "poll.max", "feeds.B", "feeds.a.ties", "feeds.a.url", "x"]);
}

#[test]
fn a_provider_is_the_default_of_its_feeds() {
    let text = "[poll]\nmin = \"9s\"\n[http]\nread_timeout = \"1m\"\n\
        [providers.p]\npoll.max = \"20m\"\nheaders = { X-A = \"1\", X-B = \"2\" }\nquery = { q = \"1\" }\nkind = \"K\"\n\
        http.page_timeout = \"9m\"\ndialect = \"0.2\"\n\
        [feeds.a]\nurl = \"https://a.example/\"\nprovider = \"p\"\npoll.lookback = \"2h\"\nheaders = { x-b = \"3\" }\nquery = { r = 2 }\n\
        [feeds.b]\nurl = \"https://b.example/\"\n";
    let config = load(text).1.unwrap();
    let a = feed(&config, "a");
    let seconds = |s| Duration::from_secs(s);
    assert_eq!((a.poll.min, a.poll.max, a.poll.lookback), (seconds(9), seconds(1200), seconds(7200)));
    assert_eq!((a.http.read_timeout, a.http.page_timeout), (seconds(60), seconds(540)));
    assert_eq!((a.kind.as_deref(), a.dialect, a.provider.as_deref()), (Some("K"), Some(Dialect::Draft), Some("p")));
    let plain = |name: &str, value: &str| (name.to_owned(), ConfiguredValue::Plain(value.to_owned()));
    assert_eq!(a.headers, [plain("X-A", "1"), plain("x-b", "3")]);
    assert_eq!(a.query, [plain("q", "1"), plain("r", "2")]);
    let b = feed(&config, "b");
    assert_eq!((b.poll.min, b.poll.max, b.kind, b.headers), (seconds(9), seconds(600), None, Vec::new()));
}

#[test]
fn a_provider_s_mistake_fails_all_its_feeds_and_no_other() {
    let text = format!(
        "{FEED}[providers.p]\nties = \"x\"\n[feeds.b]\nurl = \"https://b.example/\"\nprovider = \"p\"\n\
         [feeds.c]\nurl = \"https://c.example/\"\nprovider = \"p\"\n"
    );
    let config = load(&text).1.unwrap();
    feed(&config, "a");
    let failed: Vec<_> = config.feeds.iter().filter_map(|feed| feed.as_ref().err()).map(|f| f.name.as_str()).collect();
    assert_eq!(failed, ["b", "c"]);
    assert_eq!(config.problems.len(), 1, "told once");
}

#[test]
fn environment_beats_file_and_flags_beat_environment() {
    let config_dir = ConfigDir::new(&[(
        "feedmirror.toml",
        &format!("database = \"f.db\"\n[poll]\nmin = \"9s\"\nmax = \"1h\"\n{FEED}"),
    )]);
    let environment = [
        ("FEEDMIRROR_POLL__MIN", "11s"),
        ("FEEDMIRROR_HTTP__PER_HOST", "5"),
        ("FEEDMIRROR_HTTP__RATE", "2.5"),
        ("FEEDMIRROR_HTTP__ALLOW_HOSTS", "[\"x.example\"]"),
        ("FEEDMIRROR_FEEDS__A__HEADERS__X-VERSION", "1.10"),
        ("FEEDMIRROR_LOG__LEVEL", "debug"),
        ("FEEDMIRROR_CONFIG", "not a setting"),
        ("HOME", "/"),
    ];
    let config = config_dir.load_with(&environment, &Overrides::default().with("log.level", "warn")).unwrap();
    let a = feed(&config, "a");
    assert_eq!((a.poll.min, a.poll.max), (Duration::from_secs(11), Duration::from_secs(3600)));
    assert_eq!((config.hosts.each.per_host, config.hosts.each.rate), (5, Some(2.5)));
    assert_eq!(a.http.allow_hosts, ["x.example"]);
    assert_eq!(a.headers, [("x-version".to_owned(), ConfiguredValue::Plain("1.10".to_owned()))]);
    assert_eq!(config.log.level, "warn");
    assert_eq!(config.database, config_dir.0.path().join("f.db"), "relative to its file");
    let config = config_dir.load_with(&[("FEEDMIRROR_DATABASE", "e.db")], &Overrides::default()).unwrap();
    assert_eq!(config.database, Path::new("e.db"), "relative to the working directory");
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    let config_dir = ConfigDir::new(&[("feedmirror.toml", FEED)]);
    let environment = [("FEEDMIRROR_POLL__MIN", "soon"), ("FEEDMIRROR_POL__MIN", MARKER)];
    let loaded = config_dir.load_with(&environment, &Overrides::default().with("log.format", "xml"));
    let local = config_dir.local(problems(&loaded));
    assert!(local[0].starts_with("command line: log.format = \"xml\": must be"), "{local:?}");
    assert!(local[1].starts_with("environment variable FEEDMIRROR_POLL__MIN: poll.min = \"soon\": not a"), "{local:?}");
    assert_eq!(local[2], "environment variable FEEDMIRROR_POL: pol: unknown key; did you mean \"poll\"?");
}

#[test]
fn a_higher_layer_replaces_a_secret_however_it_is_given() {
    let config_dir = ConfigDir::new(&[("feedmirror.toml", &format!("[ops]\ntoken_file = \"t\"\n{FEED}")), ("t", "s")]);
    let config = config_dir.load().unwrap();
    assert_eq!(config.ops.token, Some(SecretSource::File(config_dir.0.path().join("t"))));
    let config = config_dir.load_with(&[("FEEDMIRROR_OPS__TOKEN__ENV", "PATH")], &Overrides::default()).unwrap();
    assert_eq!(config.ops.token, Some(SecretSource::Env("PATH".to_owned())));
}

#[test]
fn a_variable_that_holds_a_secret_is_no_setting() {
    let text = format!("{FEED}headers = {{ K = {{ env = \"FEEDMIRROR_ACME_KEY\" }} }}\n");
    let config_dir = ConfigDir::new(&[("feedmirror.toml", &text)]);
    let config = config_dir.load_with(&[("FEEDMIRROR_ACME_KEY", MARKER)], &Overrides::default()).expect("not fatal");
    assert!(!format!("{config:?}").contains(MARKER));
    let config_dir = ConfigDir::new(&[("feedmirror.toml", FEED)]);
    let environment = [("FEEDMIRROR_OPS__TOKEN__ENV", "FEEDMIRROR_MINE"), ("FEEDMIRROR_MINE", MARKER)];
    let errors = config_dir.load_with(&environment, &Overrides::default()).unwrap_err();
    let expected =
        "environment variable FEEDMIRROR_OPS__TOKEN: ops.token: environment variable FEEDMIRROR_MINE is not set";
    assert_eq!(config_dir.local(&errors.problems), [expected], "of the process; but it is no unknown key");
}

#[test]
fn included_files_add_feeds_with_paths_of_their_own() {
    let config_dir = ConfigDir::new(&[
        ("feedmirror.toml", &format!("include = [\"feeds.d/*.toml\", \"*.toml\"]\n{FEED}")),
        (
            "feeds.d/b.toml",
            "[feeds.b]\nurl = \"https://b.example/\"\nprovider = \"p\"\nheaders = { K_file = \"key\" }\n",
        ),
        ("feeds.d/p.toml", "[providers.p]\nkind = \"K\"\n[hosts.\"b.example\"]\nper_host = 7\n"),
        ("feeds.d/note.txt", "not read"),
        ("feeds.d/key", "secret"),
    ]);
    let config = config_dir.load().unwrap();
    let b = feed(&config, "b");
    let key = config_dir.0.path().join("feeds.d/key");
    assert_eq!(b.headers, [("K".to_owned(), ConfiguredValue::Secret(SecretSource::File(key)))]);
    assert_eq!(b.kind.as_deref(), Some("K"));
    assert_eq!(
        config.hosts.matching,
        [("b.example".to_owned(), crate::source::http::HostLimits { per_host: 7, rate: None })]
    );
    assert_eq!(config.files.len(), 3);
    assert_eq!(config, config_dir.load().unwrap(), "loading can be repeated and compared");
}

#[test]
fn included_files_hold_feeds_only_and_no_name_twice() {
    let config_dir = ConfigDir::new(&[
        ("feedmirror.toml", &format!("include = [\"d/*\"]\n{FEED}")),
        ("d/1.toml", "database = \"x\"\n[feeds.a]\nurl = \"https://b.example/\"\n"),
        ("d/2.toml", "[feeds.c\n"),
    ]);
    let loaded = config_dir.load();
    assert!(loaded.is_err());
    assert_eq!(
        config_dir.local(problems(&loaded)),
        [
            "d/1.toml: database: an included file holds [feeds.*], [providers.*] and [hosts.*] only",
            "d/2.toml: not TOML at line 1, column 9: unclosed table, expected `]`",
            "d/1.toml: feeds.a: already stands in feedmirror.toml: names are unique over all files",
        ]
    );
}

#[test]
fn unwise_settings_are_warned_of() {
    let config_dir = ConfigDir::new(&[
        (
            "feedmirror.toml",
            "[poll]\nmin = \"1s\"\n[feeds.a]\nurl = \"http://a.example/\"\nheaders = { X-Api-Key = \"k\", K_file = \"key\" }\n\
             [feeds.b]\nurl = \"http://a.example/\"\n",
        ),
        ("key", "s"),
    ]);
    use std::os::unix::fs::PermissionsExt;
    let key = config_dir.0.path().join("key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let config = config_dir.load().unwrap();
    assert_eq!(
        config_dir.local(&config.warnings),
        [
            "feedmirror.toml: poll.min: 1s is under 8s, the shortest wait that publishers are used to",
            "feedmirror.toml: feeds.a.headers.K: secret file key can be read by everyone (mode 0644): chmod 0600 key",
            "feedmirror.toml: feeds.a.headers.X-Api-Key: looks like a secret in plain text: better \
             { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }",
            "feedmirror.toml: feeds.a.url: is plain http, and secrets are sent with it: anyone on the way can read them",
            "feedmirror.toml: feeds.b.url: is the URL of \"a\" too: its publisher is asked twice",
        ]
    );
}

#[test]
fn no_feeds_is_a_warning() {
    let (config_dir, loaded) = load("");
    let config = loaded.unwrap();
    assert_eq!(config.feeds, []);
    assert_eq!(
        config_dir.local(&config.warnings),
        ["feedmirror.toml: feeds: there are none: nothing will be mirrored"]
    );
}

#[test]
fn a_missing_configuration_says_where_it_was_looked_for() {
    let problem = find_file(&["/nonexistent/a.toml", "/nonexistent/b.toml"]).unwrap_err();
    assert_eq!(
        problem.to_string(),
        "no configuration: there is no /nonexistent/a.toml and no /nonexistent/b.toml; name one with --config FILE"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let config_dir = ConfigDir::new(&[]);
    let errors = config_dir.load().unwrap_err();
    assert_eq!(
        config_dir.local(&errors.problems),
        ["feedmirror.toml: cannot be read: No such file or directory (os error 2)"]
    );
}

/// Configurations where someone may have written a secret, by mistake or not; `@` is where.
const SECRET_PLACES: &[&str] = &[
    "[ops]\ntoken = \"@\"",
    "[ops]\ntoken = [\"@\"]",
    "[ops]\ntoken = { \"file\" = [\"@\"] }",
    "[ops]\ntoken = { env = \"@\" }",
    "[ops]\ntoken = { credential = \"a/@\" }",
    "[ops]\ntoken = { value = \"@\" }",
    "[ops]\ntoken = @",
    "[ops]\ntoken = \"@",
    "[ops]\ntokn = \"@\"",
    "[ops]\ntoken_file = [\"@\"]",
    "ops = \"@\"",
    "feeds = \"@\"",
    "[http]\nproxy = \"http://me:@@proxy.example\"",
    "[http]\nproxy = \"@\"",
    "[feeds]\na = \"@\"",
    "[feeds.a]\nurl = \"https://me:@@a.example/\"",
    "[feeds.a]\nurl = \"me:@@a.example/\"",
    "[feeds.a]\nurl = \"a.example/?key=@\"",
    "[feeds.a]\nheaders = \"@\"",
    "[feeds.a]\nheaders = { K = [\"@\"] }",
    "[feeds.a]\nheaders = { K = { value = \"@\" } }",
    "[feeds.a]\nheaders = { K = { env = \"@ \" } }",
    "[feeds.a]\nheaders = { K = \"@\\n\" }",
    "[feeds.a]\nheaders = { Host = \"@\" }",
    "[feeds.a]\nheaders = { K = @ }",
    "[feeds.a]\nquery = { k = { file = { x = \"@\" } } }",
    "[feeds.a]\nquery = { k = true, l = [\"@\"] }",
    "[feeds.a]\nwebhook = { secret = \"@\" }",
    "[feeds.a]\nwebhook = { secret = [\"@\"] }",
    "[feeds.a]\nwebhook = { secret = [{ env = \"@ \" }, { value = \"@\" }] }",
    "[feeds.a]\nwebhook = { secret_file = [5, \"@\"] }",
    "[feeds.a]\nwebhook = { register = { body = 5, url = \"https://me:@@p.example/\" } }",
    "[feeds.a]\nsse.url = \"https://me:@@a.example/\"",
    "[webhooks]\npublic_url = \"https://me:@@a.example/\"",
    "[feeds.a]\namqp = { url = \"amqp://me:@@q.example\" }",
    "[feeds.a]\napikey = \"@\"",
    "[providers.p]\nheader = { K = \"@\" }",
];

proptest! {
    #[test]
    fn no_secret_comes_out(index in 0..SECRET_PLACES.len(), tail in "[a-z0-9 =#-]{0,6}", in_environment: bool) {
        let secret = format!("{MARKER}{tail}");
        let text = SECRET_PLACES[index].replace("@@", &format!("{secret}\u{0}")).replace('@', &secret).replace('\u{0}', "@");
        let config_dir = ConfigDir::new(&[("feedmirror.toml", &text)]);
        let environment = [("FEEDMIRROR_OPS__TOKEN", secret.as_str()), ("FEEDMIRROR_FEEDS__A__HEADERS__K__FOO", &secret)];
        let environment = if in_environment { &environment[..] } else { &[] };
        let loaded = config_dir.load_with(environment, &Overrides::default());
        prop_assert!(!problems(&loaded).is_empty(), "{}", text);
        let shown = match &loaded {
            Ok(config) => format!("{config:?}"),
            Err(errors) => format!("{errors} {errors:?}"),
        };
        prop_assert!(!shown.contains(MARKER), "{} {}", text, shown);
    }
}
