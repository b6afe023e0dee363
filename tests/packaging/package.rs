//! The package as `packaging/build-deb` makes it, of the binary under test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::root::Root;
use crate::{output_of, source, text};

/// What it installs, beside folders and the manual pages of single commands.
const FILES: &[&str] = &[
    "etc/feedmirror/config.toml",
    "usr/bin/feedmirror",
    "usr/lib/systemd/system/feedmirror.service",
    "usr/lib/sysusers.d/feedmirror.conf",
    "usr/share/bash-completion/completions/feedmirror",
    "usr/share/doc/feedmirror/CHANGELOG.md",
    "usr/share/doc/feedmirror/README.md",
    "usr/share/doc/feedmirror/config.example.toml",
    "usr/share/doc/feedmirror/docs/operating/backup.md",
    "usr/share/doc/feedmirror/docs/status-page.png",
    "usr/share/doc/feedmirror/copyright",
    "usr/share/fish/vendor_completions.d/feedmirror.fish",
    "usr/share/man/man1/feedmirror.1.gz",
    "usr/share/man/man1/feedmirror-run.1.gz",
    "usr/share/zsh/vendor-completions/_feedmirror",
];

const STATE: [&str; 3] = ["mirror.db", "mirror.db-wal", "mirror.db.token"];

struct Package {
    _folder: TempDir,
    file: PathBuf,
}

/// Once a test process: copying and packing a debug binary takes seconds.
fn build() -> Package {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(source().join("packaging/build-deb"));
    command.args(["--binary", env!("CARGO_BIN_EXE_feedmirror"), "--to"]).arg(folder.path()).arg("--fast");
    let said = output_of(command.env("CARGO_TARGET_DIR", env!("CARGO_TARGET_TMPDIR")));
    let file = PathBuf::from(said.lines().last().unwrap());
    assert!(file.is_file() && file.starts_with(folder.path()), "{said}");
    Package { _folder: folder, file }
}

/// The same package under a later version, with another configuration as its default.
fn later(package: &Package, folder: &Path) -> PathBuf {
    let (tree, file) = (folder.join("tree"), folder.join("later.deb"));
    output_of(Command::new("dpkg-deb").arg("-R").arg(&package.file).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let now = fs::read_to_string(&control).unwrap();
    let version = format!("Version: {}-1", env!("CARGO_PKG_VERSION"));
    assert!(now.contains(&version), "{now}");
    fs::write(&control, now.replace(&version, "Version: 99.0.0-1")).unwrap();
    let default = tree.join("etc/feedmirror/config.toml");
    fs::write(&default, fs::read_to_string(&default).unwrap() + "# later\n").unwrap();
    output_of(Command::new("dpkg-deb").args(["-b", "--root-owner-group", "-Znone"]).arg(&tree).arg(&file));
    file
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_package_is_installed_upgraded_and_removed_without_touching_the_mirror_until_it_is_purged() {
    // Given: a machine with the package, an operator's settings, and a mirror.
    let (package, work, root) = (build(), tempfile::tempdir().unwrap(), Root::new());
    root.dpkg("--install", &package.file);
    for file in FILES {
        assert!(root.path(file).is_file(), "{file} is missing");
    }
    assert!(root.read("etc/passwd").contains("feedmirror:"), "no user");
    assert!(root.exists("etc/systemd/system/multi-user.target.wants/feedmirror.service"), "not enabled");
    let modes = [
        ("etc/feedmirror", 0o750),
        ("etc/feedmirror/config.toml", 0o640),
        ("etc/feedmirror/credentials", 0o700),
        ("etc/feedmirror/feeds.d", 0o2750),
    ];
    for (path, wanted) in modes {
        assert_eq!(mode(&root.path(path)), wanted, "{path}");
    }
    the_installed_parts_fit_each_other(&root);

    let edited = root.read("etc/feedmirror/config.toml") + "log.format = \"json\"\n";
    root.write("etc/feedmirror/config.toml", &edited);
    root.write("etc/feedmirror/feeds.d/acme.toml", "[feeds.acme]\nurl = \"https://acme.example/\"\n");
    for file in STATE {
        root.write(&format!("var/lib/feedmirror/{file}"), file);
    }
    let untouched = |root: &Root| {
        assert_eq!(root.read("etc/feedmirror/config.toml"), edited);
        assert!(root.exists("etc/feedmirror/feeds.d/acme.toml"));
        for file in STATE {
            assert_eq!(root.read(&format!("var/lib/feedmirror/{file}")), file);
        }
    };

    // When it is upgraded, removed and installed again. Then: settings and mirror are as they were.
    root.dpkg("--install", later(&package, work.path()));
    untouched(&root);
    assert!(root.read("var/lib/dpkg/status").contains("Version: 99.0.0-1"));
    let said = root.dpkg("--remove", "feedmirror");
    assert!(said.contains("the mirror stays in"), "{said}");
    assert!(!root.exists("usr/bin/feedmirror"));
    untouched(&root);
    root.dpkg("--install", &package.file);
    untouched(&root);

    // When it is purged. Then: nothing of it is left.
    let said = root.dpkg("--purge", "feedmirror");
    assert!(said.contains("was removed"), "{said}");
    for gone in ["etc/feedmirror", "var/lib/feedmirror", "usr/bin/feedmirror"] {
        assert!(!root.exists(gone), "{gone} is left");
    }
    for names in ["etc/passwd", "etc/group"] {
        assert!(!root.read(names).contains("feedmirror"), "{names}");
    }
}

/// The unit names the binary and the configuration that the package brings, and the binary takes that configuration.
fn the_installed_parts_fit_each_other(root: &Root) {
    let unit = root.read("usr/lib/systemd/system/feedmirror.service");
    assert!(unit.contains("\nExecStart=/usr/bin/feedmirror --config /etc/feedmirror/config.toml run\n"), "{unit}");
    let binary = root.path("usr/bin/feedmirror");

    let copy = root.path("feedmirror.service");
    fs::write(&copy, unit.replace("/usr/bin/feedmirror", binary.to_str().unwrap())).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&copy);
    let output = verify.output().unwrap_or_else(|error| panic!("systemd-analyze: {error}; ./test installs it"));
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !complaints.contains("feedmirror.service"), "{output:?}");

    let configuration = root.path("etc/feedmirror/config.toml");
    output_of(Command::new(&binary).arg("--config").arg(configuration).arg("check"));
    let page = output_of(Command::new("gzip").arg("-dc").arg(root.path("usr/share/man/man1/feedmirror.1.gz")));
    assert!(page.contains(".TH feedmirror 1"), "{page}");
    let completions = root.path("usr/share/bash-completion/completions/feedmirror");
    output_of(Command::new("bash").arg("-n").arg(completions));
}

#[test]
fn the_package_asks_for_little() {
    let package = build();
    let field =
        |name: &str| output_of(Command::new("dpkg-deb").arg("-f").arg(&package.file).arg(name)).trim().to_owned();
    let depends = field("Depends");
    let names: Vec<&str> = depends.split(", ").map(|one| one.split(' ').next().unwrap()).collect();
    let known = ["libc6", "libgcc-s1", "systemd"];
    assert!(names.iter().all(|name| known.contains(name)) && names.contains(&"systemd"), "{depends}");
    assert_eq!(field("Recommends"), "ca-certificates", "https needs the system's authorities");
    let conffiles = output_of(Command::new("dpkg-deb").arg("-I").arg(&package.file).arg("conffiles"));
    assert_eq!(conffiles.trim(), "/etc/feedmirror/config.toml");
    // cargo-deb changes nothing in them.
    for script in ["postinst", "prerm", "postrm"] {
        let packed = output_of(Command::new("dpkg-deb").arg("-I").arg(&package.file).arg(script));
        assert_eq!(packed.trim(), text(format!("packaging/debian/{script}")).trim());
    }
}

#[test]
fn a_mirror_elsewhere_outlives_a_purge() {
    let (root, elsewhere) = (Root::new(), tempfile::tempdir().unwrap());
    for names in ["etc/passwd", "etc/group"] {
        root.write(names, "");
    }
    fs::write(elsewhere.path().join("mirror.db"), "rows").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), root.path("var/lib/feedmirror")).unwrap();

    let said = root.script(&source().join("packaging/debian/postrm"), "purge");

    assert!(said.contains(&format!("led: {}", elsewhere.path().display())), "{said}");
    assert_eq!(fs::read_to_string(elsewhere.path().join("mirror.db")).unwrap(), "rows");
    assert!(!root.exists("var/lib/feedmirror"));
}
