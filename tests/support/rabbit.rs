//! A RabbitMQ broker for tests, as Debian packages it, without systemd: its files in a temporary folder, its ports on
//! loopback.
//!
//! It takes some ten seconds to start: tests of one file share one.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid, User, chown};

use super::holds_within;

/// Debian's scripts; the ones in /usr/sbin insist on root.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// How long a start or stop may take on a busy machine.
const BROKER_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) struct RabbitBroker {
    folder: tempfile::TempDir,
    /// AMQP, AMQP over TLS, epmd, distribution, and where the range of the command line tools begins.
    ports: [u16; 5],
    /// The user that it runs as, when the tests run as root.
    user: Option<(Uid, Gid)>,
    name_service: Option<Child>,
    broker: Option<Child>,
}

impl RabbitBroker {
    /// Starts it, with TLS too, for clients with a certificate of its authority.
    pub(crate) fn start() -> Self {
        let scripts = Path::new(SCRIPTS).join("rabbitmq-server");
        assert!(scripts.exists(), "{} is missing: install rabbitmq-server (./test does)", scripts.display());
        let user = Uid::effective().is_root().then(|| {
            let user = User::from_name("rabbitmq").unwrap().expect("Debian's package makes the user rabbitmq");
            (user.uid, user.gid)
        });
        let folder = tempfile::Builder::new().prefix("rabbit-").tempdir().unwrap();
        let mut rabbit = Self { folder, ports: free_ports(), user, name_service: None, broker: None };
        rabbit.write_files();
        rabbit.name_service = Some(rabbit.spawn("epmd", "epmd", &["-address", "127.0.0.1"]));
        let port = rabbit.ports[2];
        rabbit.wait_for(port);
        rabbit.start_broker();
        rabbit
    }

    /// The broker's URL for a user.
    pub(crate) fn url(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}", self.ports[0])
    }

    /// The URL of its TLS listener.
    pub(crate) fn tls_url(&self) -> String {
        format!("amqps://guest:guest@localhost:{}", self.ports[1])
    }

    /// A file of its authority: `ca.pem`, `client.pem`, `client.key`, `other.pem` of another authority.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `rabbitmqctl`.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.command(&format!("{SCRIPTS}/rabbitmqctl")).args(arguments).output().unwrap();
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Stops the broker; durable queues and messages stay.
    pub(crate) fn stop(&mut self) {
        let Some(mut broker) = self.broker.take() else { return };
        let _ = self.command(&format!("{SCRIPTS}/rabbitmqctl")).arg("shutdown").output();
        if !holds_within(BROKER_TIMEOUT, || broker.try_wait().unwrap().is_some()) {
            end(&mut broker);
        }
    }

    /// Restarts it on the same ports.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start_broker();
    }

    fn start_broker(&mut self) {
        self.broker = Some(self.spawn("broker", &format!("{SCRIPTS}/rabbitmq-server"), &[]));
        let [amqp, tls, ..] = self.ports;
        self.wait_for(amqp);
        self.wait_for(tls);
        // It listens before it accepts orders.
        self.ctl(&["await_startup", "--timeout", "60"]);
    }

    fn wait_for(&mut self, port: u16) {
        let up = holds_within(BROKER_TIMEOUT, || {
            let ended = self.broker.as_mut().is_some_and(|broker| broker.try_wait().unwrap().is_some());
            ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert!(up && TcpStream::connect(("127.0.0.1", port)).is_ok(), "RabbitMQ did not start:\n{}", self.log());
    }

    fn log(&self) -> String {
        ["epmd.log", "broker.log"].map(|name| std::fs::read_to_string(self.file(name)).unwrap_or_default()).concat()
    }

    fn spawn(&self, name: &str, program: &str, arguments: &[&str]) -> Child {
        let log = File::create(self.file(&format!("{name}.log"))).unwrap();
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.process_group(0).spawn().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// A program with the broker's environment and user.
    fn command(&self, program: &str) -> Command {
        let mut command = match self.user {
            Some(_) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", "rabbitmq", "--regid", "rabbitmq", "--init-groups", program]);
                command
            }
            None => Command::new(program),
        };
        let [amqp, _, names, distribution, tools] = self.ports;
        let folder = self.folder.path();
        command.current_dir(folder).env("HOME", folder).env("LC_ALL", "C.UTF-8");
        command.env("RABBITMQ_NODENAME", format!("rabbit-{amqp}@localhost"));
        command.env("RABBITMQ_CONF_ENV_FILE", folder.join("none.conf"));
        command.env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"));
        command.env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"));
        command.env("RABBITMQ_MNESIA_BASE", folder.join("data"));
        command.env("RABBITMQ_LOG_BASE", folder.join("log"));
        command.env("RABBITMQ_PID_FILE", folder.join("pid"));
        command.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1").env("RABBITMQ_NODE_PORT", amqp.to_string());
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1").env("ERL_EPMD_PORT", names.to_string());
        command.env("RABBITMQ_DIST_PORT", distribution.to_string());
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}");
        command.env("RABBITMQ_CTL_DIST_PORT_MIN", tools.to_string());
        command.env("RABBITMQ_CTL_DIST_PORT_MAX", (tools + 50).to_string());
        command
    }

    fn write_files(&self) {
        let folder = self.folder.path().display();
        let settings = format!(
            "listeners.ssl.1 = 127.0.0.1:{}\n\
             ssl_options.cacertfile = {folder}/ca.pem\n\
             ssl_options.certfile = {folder}/server.pem\n\
             ssl_options.keyfile = {folder}/server.key\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true\n",
            self.ports[1]
        );
        std::fs::write(self.file("rabbitmq.conf"), settings).unwrap();
        std::fs::write(self.file("plugins"), "[].\n").unwrap();
        for authority in ["ca", "other"] {
            self.certificate(authority, &["-addext", "basicConstraints=critical,CA:TRUE"]);
        }
        for (name, use_) in [("server", "serverAuth"), ("client", "clientAuth")] {
            let usage = format!("extendedKeyUsage={use_}");
            let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
            let leaf = "basicConstraints=critical,CA:FALSE";
            let signed = ["-CA", "ca.pem", "-CAkey", "ca.key"];
            self.certificate(name, &[&signed[..], &["-addext", leaf, "-addext", &usage, "-addext", names]].concat());
        }
        self.own(self.folder.path());
        for file in std::fs::read_dir(self.folder.path()).unwrap() {
            self.own(&file.unwrap().path());
        }
    }

    fn certificate(&self, name: &str, options: &[&str]) {
        let mut command = Command::new("openssl");
        command.current_dir(self.folder.path()).args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", &format!("/CN={name}")]);
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]).args(options);
        let output = command.output().expect("openssl is missing: ./test installs it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn own(&self, path: &Path) {
        if let Some((user, group)) = self.user {
            chown(path, Some(user), Some(group)).unwrap();
        }
    }
}

impl Drop for RabbitBroker {
    fn drop(&mut self) {
        self.stop();
        if let Some(mut name_service) = self.name_service.take() {
            end(&mut name_service);
        }
    }
}

/// Kills a process of ours and those it started.
fn end(child: &mut Child) {
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
}

/// Ports that are free now, all different.
fn free_ports() -> [u16; 5] {
    let listeners = [(); 5].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
