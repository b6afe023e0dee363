//! Holds the systemd unit: its exposure, its syntax, and the directives that the documents and operators rely on.
//! It doesn't start the unit: no service manager runs where tests do.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// What `systemd-analyze security` may say at most, of 10 for a service without any protection.
const MOST_EXPOSED: f64 = 1.5;

/// Directive, value, and what breaks without it.
const DIRECTIVES: &[(&str, &str, &str)] = &[
    ("Type", "notify", "systemd waits for READY=1, and `status` shows the STATUS line"),
    ("NotifyAccess", "main", "nobody else may feed the watchdog"),
    (
        "ExecStartPre",
        "-/usr/bin/feedmirror --config /etc/feedmirror/config.toml check",
        "it informs: `run` itself refuses",
    ),
    ("ExecStart", "/usr/bin/feedmirror --config /etc/feedmirror/config.toml run", "the daemon"),
    ("ExecReload", "/bin/kill -HUP $MAINPID", "SIGHUP reloads"),
    ("WatchdogSec", "60", "a loop that hangs is restarted"),
    ("TimeoutStopSec", "10", "the daemon exits within 5 s"),
    ("Restart", "on-failure", "a crash heals by itself"),
    ("RestartPreventExitStatus", "2 4 5", "configuration, database and a second daemon don't heal by restarting"),
    ("User", "feedmirror", "a static user owns the file"),
    ("Group", "feedmirror", "operators in the group read the file"),
    ("StateDirectory", "feedmirror", "the one writable place"),
    ("StateDirectoryMode", "0750", "the group may look in"),
    ("UMask", "0027", "the group may read the file, others may not"),
    ("LimitCORE", "0", "no core file holds a secret"),
    ("MemoryMax", "1G", "a mirror that goes wrong takes nothing else with it"),
    ("LoadCredential", "secret:/etc/feedmirror/credentials", "secrets come from a directory that root alone reads"),
    ("SetCredential", "secret:unset", "a missing credentials directory doesn't fail the start"),
    ("NoNewPrivileges", "yes", "hardening"),
    ("ProtectSystem", "strict", "hardening: nothing but the state directory is writable"),
    ("MemoryDenyWriteExecute", "yes", "hardening"),
    ("CapabilityBoundingSet", "", "hardening"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX", "feeds over TCP, the notify socket, and nothing else"),
];

#[test]
fn the_unit_is_hardly_exposed() {
    let output = systemd_analyze(&["security", "--offline=true", "--no-pager", unit_path().to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    let exposure = overall_exposure(&text).unwrap_or_else(|| panic!("no overall exposure in {output:?}"));
    assert!(exposure <= MOST_EXPOSED, "exposure {exposure}, at most {MOST_EXPOSED} wanted\n{text}");
}

#[test]
fn the_snapshot_s_unit_is_hardly_exposed_and_reaches_no_network() {
    let path = folder().join("feedmirror-snapshot.service");
    let output = systemd_analyze(&["security", "--offline=true", "--no-pager", path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    let exposure = overall_exposure(&text).unwrap_or_else(|| panic!("no overall exposure in {output:?}"));
    assert!(exposure <= MOST_EXPOSED, "exposure {exposure}, at most {MOST_EXPOSED} wanted\n{text}");

    let snapshot = fs::read_to_string(path).unwrap();
    let expected = [
        ("Type", "oneshot", "the timer waits for its end"),
        (
            "ExecStart",
            "/usr/bin/feedmirror --config /etc/feedmirror/config.toml snapshot --keep 7",
            "docs/operating/backup.md says what it keeps",
        ),
        ("PrivateNetwork", "yes", "it needs none"),
        ("LimitCORE", "0", "no core file holds what is mirrored"),
        ("MemoryMax", "512M", "it copies in steps"),
        ("ProtectSystem", "strict", "nothing but the state directory is writable"),
    ];
    for (key, value, why) in expected {
        assert_eq!(values(&snapshot, key), [value], "{key}: {why}");
    }
    for key in ["User", "Group", "StateDirectory", "StateDirectoryMode", "UMask", "WorkingDirectory"] {
        assert_eq!(values(&snapshot, key), values(&unit(), key), "{key}: as the daemon, whose file it copies");
    }
}

#[test]
fn the_snapshot_s_unit_and_timer_are_well_formed() {
    let copies = tempfile::tempdir().unwrap();
    let built = env!("CARGO_BIN_EXE_feedmirror");
    for name in ["feedmirror-snapshot.service", "feedmirror-snapshot.timer"] {
        let text = fs::read_to_string(folder().join(name)).unwrap().replace("/usr/bin/feedmirror", built);
        fs::write(copies.path().join(name), text).unwrap();
    }
    let timer = copies.path().join("feedmirror-snapshot.timer");

    let output = systemd_analyze(&["verify", "--man=no", "--recursive-errors=yes", timer.to_str().unwrap()]);

    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !complaints.contains("feedmirror-snapshot"), "{output:?}");
}

#[test]
fn the_unit_is_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("feedmirror.service");
    let built = env!("CARGO_BIN_EXE_feedmirror");
    fs::write(&copy, unit().replace("/usr/bin/feedmirror", built)).unwrap();

    let output = systemd_analyze(&["verify", "--man=no", "--recursive-errors=no", copy.to_str().unwrap()]);

    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !complaints.contains("feedmirror.service"), "{output:?}");
}

#[test]
fn the_unit_says_what_operators_rely_on() {
    let unit = unit();
    let wrong: Vec<String> = DIRECTIVES
        .iter()
        .filter(|(key, value, _)| values(&unit, key) != [*value])
        .map(|(key, value, why)| format!("{key}={value} ({why}); the unit has {:?}", values(&unit, key)))
        .collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn nothing_but_the_state_directory_is_writable() {
    let unit = unit();
    for key in
        ["ReadWritePaths", "BindPaths", "CacheDirectory", "LogsDirectory", "RuntimeDirectory", "TemporaryFileSystem"]
    {
        assert_eq!(values(&unit, key), Vec::<&str>::new(), "{key} opens another place");
    }
}

#[test]
fn the_user_is_static_and_owns_the_state_directory() {
    let text = fs::read_to_string(folder().join("feedmirror.sysusers.conf")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, ["u feedmirror - \"feedmirror change feed mirror\" /var/lib/feedmirror"]);
    assert_eq!(values(&unit(), "DynamicUser"), Vec::<&str>::new(), "a user that comes and goes can't be in a group");
}

#[test]
fn the_exposure_is_read_from_the_closing_line() {
    let text = "✗ PrivateNetwork= has access 0.5\n\n→ Overall exposure level for feedmirror.service: 9.6 UNSAFE 😨\n";
    assert_eq!(overall_exposure(text), Some(9.6));
    assert_eq!(overall_exposure("Failed to load"), None);
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

fn unit_path() -> PathBuf {
    folder().join("feedmirror.service")
}

fn unit() -> String {
    fs::read_to_string(unit_path()).unwrap()
}

/// Every value given to a directive, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(given, _)| *given == key)
        .map(|(_, value)| value)
        .collect()
}

fn overall_exposure(text: &str) -> Option<f64> {
    let closing = text.lines().find_map(|line| line.split_once("Overall exposure level for"))?.1;
    closing.split_once(':')?.1.split_whitespace().next()?.parse().ok()
}

fn systemd_analyze(arguments: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap_or_else(|error| panic!("systemd-analyze: {error}; ./test installs it (Debian's package systemd)"))
}
