//! What Cargo.toml lists, compared with what is there, without building anything.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use toml::Table;

use crate::{output_of, source, text};

/// Source, place and mode.
fn assets() -> Vec<[String; 3]> {
    let manifest: Table = text("Cargo.toml").parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let words = |asset: &toml::Value| {
        let mut words = asset.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned());
        [words.next().unwrap(), words.next().unwrap(), words.next().unwrap()]
    };
    assets.iter().map(words).collect()
}

/// The source may be a pattern.
fn files(from: &str) -> Vec<PathBuf> {
    let found = glob::glob(source().join(from).to_str().unwrap()).unwrap().map(Result::unwrap);
    found.filter(|path| path.is_file()).collect()
}

#[test]
fn every_file_that_is_not_built_exists_and_has_its_mode() {
    for [from, to, mode] in assets() {
        assert!(from.starts_with("target/release/") || !files(&from).is_empty(), "there is no {from}");
        // Secrets are referred to, but a header may hold one: the group alone reads the configuration.
        let wanted = match to.split('/').next().unwrap() {
            "etc" => "640",
            _ if to == "usr/bin/" => "755",
            _ => "644",
        };
        assert_eq!(mode, wanted, "{to}");
    }
}

#[test]
fn all_of_systemd_is_in_the_package() {
    let assets = assets();
    for entry in std::fs::read_dir(source().join("systemd")).unwrap() {
        let path = entry.unwrap().path();
        let places: Vec<&str> =
            assets.iter().filter(|[from, ..]| files(from).contains(&path)).map(|[_, to, _]| to.as_str()).collect();
        let unit = path.extension().is_some_and(|extension| extension != "conf");
        let wanted = if unit { "usr/lib/systemd/system/" } else { "usr/lib/sysusers.d/feedmirror.conf" };
        assert_eq!(places, [wanted], "{}: by the assets in Cargo.toml", path.display());
    }
}

/// Each page where README's links look for it.
#[test]
fn every_page_is_in_the_package() {
    let (assets, pages) = (assets(), files("docs/**/*"));
    assert!(pages.len() > 20);
    for page in pages {
        let places: Vec<&str> =
            assets.iter().filter(|[from, ..]| files(from).contains(&page)).map(|[_, to, _]| to.as_str()).collect();
        let folder = page.parent().unwrap().strip_prefix(source()).unwrap();
        let wanted = format!("usr/share/doc/feedmirror/{}/", folder.display());
        assert_eq!(places, [wanted], "{}: by the assets in Cargo.toml", page.display());
    }
}

#[test]
fn where_readme_s_links_lead_is_in_the_package() {
    let (assets, readme) = (assets(), text("README.md"));
    let targets = readme.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap());
    for target in targets.filter(|target| !target.contains("://")) {
        let shipped = assets.iter().any(|[from, ..]| files(from).contains(&source().join(target)));
        assert!(shipped, "{target} is not: by the assets in Cargo.toml");
    }
}

#[test]
fn the_scripts_are_programs_that_a_shell_can_read() {
    let scripts = ["build-deb", "build-static", "debian/postinst", "debian/prerm", "debian/postrm"];
    for script in scripts {
        let path = source().join("packaging").join(script);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
        let shell = if script.starts_with("debian/") { "sh" } else { "bash" };
        output_of(Command::new(shell).arg("-n").arg(path));
    }
}

#[test]
fn only_purging_names_the_mirror_to_remove_it() {
    for script in ["postinst", "prerm"] {
        let script = text(format!("packaging/debian/{script}"));
        let code: Vec<&str> = script.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        assert!(code.iter().all(|line| !line.contains("/var/lib/feedmirror")), "{code:#?}");
    }
}

#[test]
fn an_upgrade_restarts_the_daemon_and_stops_it_at_no_other_time() {
    let (postinst, prerm) = (text("packaging/debian/postinst"), text("packaging/debian/prerm"));
    // dpkg calls `prerm upgrade` and `postinst configure OLD-VERSION` for an upgrade, `prerm remove` for an end.
    assert!(postinst.contains(r#"if [ -n "${2:-}" ]; then action=restart; else action=start; fi"#));
    assert!(prerm.contains(r#"if [ "$1" = remove ]"#) && !prerm.contains("upgrade)"), "{prerm}");
}
