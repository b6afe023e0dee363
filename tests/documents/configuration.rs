//! The documents' configurations: each is one that `check` accepts, and what they say to do with it works.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::document::{blocks, manual, text};
use crate::support::{MirrorProcess, Reply, ScriptedPublisher, page};

/// The files that the configurations refer to.
const SECRETS: [(&str, &str); 3] = [
    ("acme.key", "an-api-key"),
    ("acme.hook", "6f1ed002ab5595859014ebf0951522d9"),
    ("broker.url", "amqps://user:password@broker.example/vhost"),
];

fn lay_out(folder: &Path) {
    for (name, secret) in SECRETS {
        fs::write(folder.join(name), secret).unwrap();
    }
}

#[test]
fn every_configuration_is_one_that_check_accepts() {
    let examples = blocks(&manual(), "toml");
    for example in &examples {
        let folder = tempfile::tempdir().unwrap();
        lay_out(folder.path());
        fs::write(folder.path().join("feedmirror.toml"), example).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
        for name in ["FEEDMIRROR_CONFIG", "FEEDMIRROR_DB"] {
            command.env_remove(name);
        }
        let checked = command.arg("check").current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
        assert!(checked.status.success(), "{example}\n{checked:?}");
    }
    assert!(examples.len() >= 4, "only {} configurations were found", examples.len());
}

#[test]
fn every_recipe_for_a_secret_makes_a_file_that_is_its_owner_s_alone_and_that_check_is_content_with() {
    use std::os::unix::fs::PermissionsExt;
    let documents = ["docs/push.md", "config.example.toml", "packaging/config.toml", "systemd/feedmirror.service"];
    let texts = documents.map(|name| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap());
    let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| line.contains("openssl rand"));
    let recipes: Vec<&str> = lines.map(|line| line.rsplit("made by: ").next().unwrap()).collect();
    for recipe in &recipes {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("umask 022; {recipe}");
        let made = Command::new("sh").args(["-ec", &script]).current_dir(folder.path()).status().unwrap();
        assert!(made.success(), "{recipe}");
        let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(files.len(), 1, "{recipe}");
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o777, 0o600, "{recipe}");

        let name = files[0].file_name().into_string().unwrap();
        let config = format!("[feeds.a]\nurl = \"https://a.example/\"\nwebhook.secret_file = \"{name}\"\n");
        fs::write(folder.path().join("feedmirror.toml"), config).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_feedmirror"));
        check.arg("check").current_dir(folder.path()).env_remove("FEEDMIRROR_CONFIG").stdin(Stdio::null());
        let checked = check.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
        assert!(checked.status.success() && !said.contains("secret file"), "{recipe}: {said}");
    }
    assert!(!recipes.is_empty());
}

#[test]
fn a_page_is_posted_to_the_webhook_as_the_example_does_it() {
    // given the documented webhook, but for the addresses
    let publisher = ScriptedPublisher::start(|request| Reply::page(page(&[], &request.target)));
    let example =
        blocks(&text("docs/push.md"), "toml").into_iter().find(|block| block.contains("webhook.secret_file")).unwrap();
    let keys = example.lines().find(|line| line.starts_with("webhook.")).unwrap();
    let mirror = MirrorProcess::new().feed_with("acme-sessions", &publisher.url("/sessions"), keys);
    let mirror = mirror.tables("[webhooks]\nlisten = \"127.0.0.1:0\"\n");
    lay_out(mirror.path(".").as_path());
    let mirror = mirror.start();
    mirror.until_level("acme-sessions");
    let address = mirror.column("SELECT webhooks_address FROM mirror").remove(0);
    let item = r#"{"state":"updated","kind":"ScheduledSession","id":"1","modified":1,"data":{"name":"Swim"}}"#;
    mirror.write("page.json", &format!("{{\"items\":[{item}]}}"));

    // when the example is pasted
    let example = blocks(&text("docs/push.md"), "sh").into_iter().find(|block| block.starts_with("curl ")).unwrap();
    let script = example.replace("127.0.0.1:8471", &address);
    assert!(script.contains(&address), "the example posts to the default address");
    let mut shell = Command::new("sh");
    shell.args(["-ec", &script]).current_dir(mirror.path(".")).env_remove("http_proxy").stdin(Stdio::null());
    let posted = shell.output().unwrap();

    // then the page is kept by the time that curl has its answer
    assert!(posted.status.success(), "{posted:?}\n{}", mirror.account());
    assert_eq!(mirror.ids("acme-sessions"), ["1"]);
    let delivered = "SELECT delivered FROM endpoints WHERE feed = 'acme-sessions' AND transport = 'webhook'";
    assert_eq!(mirror.number(delivered), 1);
}
