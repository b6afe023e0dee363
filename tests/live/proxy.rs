//! The stream through nginx, as publishers run it: a proxy that forwards events at once, and one that cuts a connection
//! that is idle for a second.

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

    /// How many requests the proxy has forwarded and ended.
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

/// One process in the foreground, which writes only in its own folder.
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

/// A level feed whose stream is proxied.
fn streaming(proxy: &Proxy) -> (Arc<TestFeed>, ScriptedPublisher, MirrorProcess) {
    let test_feed = TestFeed::of(3, 2);
    let served_feed = Arc::clone(&test_feed);
    let publisher = ScriptedPublisher::start(move |request| served_feed.page(request));
    let mirror = mirror(&publisher.url("/feed"), &format!("sse.url = {:?}", proxy.url())).start();
    until_mode(&mirror, "sse");
    (test_feed, publisher, mirror)
}

fn transport_of(mirror: &MirrorProcess, id: &str) -> Vec<String> {
    mirror.column(&format!("SELECT transport FROM items WHERE feed = 'f' AND id = '{id}'"))
}

#[test]
fn events_pass_a_proxy_as_they_come() {
    // Given
    let stream = StreamServer::start();
    let proxy = Proxy::start(&stream, "");
    let (_test_feed, _publisher, mirror) = streaming(&proxy);

    for n in 0..5 {
        // When: only the stream has the item
        let id = format!("passed-{n}");
        stream.item(&item(&id, 100 + n));

        // Then
        until_has(&mirror, &id);
        assert_eq!(transport_of(&mirror, &id), ["sse"]);
    }
    assert_eq!(stream.heads().len(), 1);
    assert_eq!(proxy.ended(), 0);
}

#[test]
fn a_proxy_that_cuts_idle_streams_loses_nothing() {
    // Given
    let stream = StreamServer::start();
    let proxy = Proxy::start(&stream, "proxy_read_timeout 1s;");
    let (test_feed, _publisher, mirror) = streaming(&proxy);

    for n in 0..3 {
        // When: the stream was cut, and items go on while it is down and after it is back
        let cut = proxy.ended();
        until("the idle stream cut", || proxy.ended() > cut);
        let id = format!("polled-or-streamed-{n}");
        let modified = test_feed.put(&id);
        stream.item(&item(&id, modified));

        // Then
        until_has(&mirror, &id);
    }
    until("a connection after each cut", || stream.heads().len() > 3);
    mirror.until("all of it", |mirror| mirror.live("f") == test_feed.live());
    assert_eq!(mirror.row("f").health, "ok");
    let health = mirror.events("f", "health").join("\n");
    assert!(health.contains("sse: ok → retrying: ") && health.contains("sse: retrying → ok"), "{health}");
    // And streamed items are still taken.
    let is_streamed = || {
        stream.item(&item("streamed-after-all", 500));
        transport_of(&mirror, "streamed-after-all") == ["sse"]
    };
    until("a streamed item", is_streamed);
}
