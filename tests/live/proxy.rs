//! The stream through nginx, as publishers run it: one that passes events on as they come, and one that cuts whoever is
//! idle for a second.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::stream::StreamServer;
use crate::support::{MirrorProcess, ScriptedPublisher, TestFeed, item, until};
use crate::{mirror, until_has, until_mode};

const NGINX: &str = "/usr/sbin/nginx";

/// A proxy in front of a stream; ends when dropped.
struct Proxy {
    port: u16,
    child: Child,
    folder: TempDir,
}

impl Proxy {
    /// With further directives for the stream's location.
    fn start(stream: &StreamServer, directives: &str) -> Self {
        assert!(Path::new(NGINX).exists(), "these tests need nginx: apt-get install nginx-light");
        let folder = tempfile::tempdir().unwrap();
        // Free a moment ago; nginx takes no port 0.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        fs::write(folder.path().join("nginx.conf"), config(port, stream.port(), directives)).unwrap();
        let child = Command::new(NGINX)
            .arg("-p")
            .arg(folder.path())
            .args(["-c", "nginx.conf", "-e", "error.log"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self { port, child, folder };
        until("nginx to listen", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        proxy
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/stream", self.port)
    }

    /// How many requests it has passed on and ended.
    fn ended(&self) -> usize {
        let log = fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains("GET /stream")).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One process, no daemon, everything it writes in its own folder.
fn config(port: u16, to: u16, directives: &str) -> String {
    format!(
        "daemon off; master_process off; pid nginx.pid; error_log error.log;
         events {{ worker_connections 64; }}
         http {{
           access_log access.log; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
           uwsgi_temp_path uwsgi; scgi_temp_path scgi;
           server {{
             listen 127.0.0.1:{port};
             location / {{
               proxy_pass http://127.0.0.1:{to}; proxy_http_version 1.1; proxy_set_header Connection '';
               proxy_buffering off; {directives}
             }}
           }}
         }}"
    )
}

/// A level feed whose stream comes through the proxy.
fn streaming(proxy: &Proxy) -> (Arc<TestFeed>, ScriptedPublisher, MirrorProcess) {
    let shelf = TestFeed::of(3, 2);
    let serving = Arc::clone(&shelf);
    let publisher = ScriptedPublisher::start(move |request| serving.page(request));
    let mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}", proxy.url())).start();
    until_mode(&mirror, "sse");
    (shelf, publisher, mirror)
}

fn brought_by(mirror: &MirrorProcess, id: &str) -> Vec<String> {
    mirror.column(&format!("SELECT transport FROM items WHERE feed = 'f' AND id = '{id}'"))
}

#[test]
fn events_pass_a_proxy_as_they_come() {
    // Given
    let stream = StreamServer::start();
    let proxy = Proxy::start(&stream, "");
    let (_shelf, _publisher, mirror) = streaming(&proxy);

    for n in 0..5 {
        // When: only the stream knows of it
        let id = format!("passed-{n}");
        stream.item(&item(&id, 100 + n));

        // Then
        until_has(&mirror, &id);
        assert_eq!(brought_by(&mirror, &id), ["sse"]);
    }
    assert_eq!(stream.heads().len(), 1);
    assert_eq!(proxy.ended(), 0);
}

#[test]
fn a_proxy_that_cuts_idle_streams_loses_nothing() {
    // Given
    let stream = StreamServer::start();
    let proxy = Proxy::start(&stream, "proxy_read_timeout 1s;");
    let (shelf, _publisher, mirror) = streaming(&proxy);

    for n in 0..3 {
        // When: it was cut, and items go on while it is down and after it is back
        let cut = proxy.ended();
        until("the idle stream cut", || proxy.ended() > cut);
        let id = format!("polled-or-streamed-{n}");
        let modified = shelf.put(&id);
        stream.item(&item(&id, modified));

        // Then
        until_has(&mirror, &id);
    }
    until("a connection after each cut", || stream.heads().len() > 3);
    mirror.until("all of it", |mirror| mirror.live("f") == shelf.live());
    assert_eq!(mirror.row("f").health, "ok");
    let health = mirror.events("f", "health").join("\n");
    assert!(health.contains("sse: ok → retrying: ") && health.contains("sse: retrying → ok"), "{health}");
    // And what the stream brings is still taken.
    let brought = || {
        stream.item(&item("streamed-after-all", 500));
        brought_by(&mirror, "streamed-after-all") == ["sse"]
    };
    until("a streamed item", brought);
}
