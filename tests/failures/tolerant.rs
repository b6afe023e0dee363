//! Responses that browsers and curl accept are accepted, with a finding.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::{MirrorProcess, Reply, Request, ScriptedPublisher, item, page};

fn gzipped(json: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(json.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// A response, byte for byte.
fn raw(status: &str, headers: &str, body: &[u8]) -> Reply {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    Reply::raw([head.as_bytes(), body].concat())
}

/// The page of one item, or the empty one after it.
fn json(request: &Request) -> String {
    match request.query() {
        "" => page(&[item("a", 1)], "?from=1"),
        _ => page(&[], &request.target),
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn bodies_that_are_not_what_their_coding_says_are_read_and_told() {
    // Given
    const FEEDS: [&str; 5] = ["padded", "utf-8", "none", "aws-chunked", "undeclared"];
    let publisher = ScriptedPublisher::start(|request| {
        let body = json(request);
        match &request.path()[1..] {
            "padded" => {
                let body = [gzipped(&body), vec![0; 512]].concat();
                raw("200 OK", &format!("{JSON}Content-Encoding: gzip\r\n"), &body)
            }
            "undeclared" => raw("200 OK", JSON, &gzipped(&body)),
            coding => raw("200 OK", &format!("{JSON}Content-Encoding: {coding}\r\n"), body.as_bytes()),
        }
    });
    let mut mirror = MirrorProcess::new().http("per_host = 8");
    for name in FEEDS {
        mirror = mirror.feed(name, &publisher.url(&format!("/{name}")));
    }
    let mirror = mirror.start();

    // Then
    for name in FEEDS {
        mirror.until_level(name);
        assert_eq!(mirror.ids(name), ["a"], "{name}");
        assert!(mirror.finding(name, "content-encoding") >= 2, "{name}");
    }
}

#[test]
fn heads_with_lines_that_are_no_headers_are_read_leniently_once_strictly_failed_and_told() {
    // Given
    const FEEDS: [(&str, &str); 5] = [
        ("blank", "Content-Type : application/json\r\n"),
        ("warning", "<br />\r\n<b>Warning</b>:  Undefined variable $x in <b>/srv/feed.php</b> on line 3<br />\r\n"),
        ("delete", "Content-Type: application/json\r\nX-Title: a\u{7f}b\r\n"),
        ("folded", "Content-Type: application/json;\r\n charset=utf-8\r\n"),
        ("many", ""),
    ];
    let publisher = ScriptedPublisher::start(|request| {
        let name = &request.path()[1..];
        let headers = FEEDS.iter().find(|(feed, _)| *feed == name).map_or(JSON, |(_, headers)| headers);
        let many: String = (0..200).map(|n| format!("Set-Cookie: c{n}=1\r\n")).collect();
        let headers = if name == "many" { format!("{JSON}{many}") } else { headers.to_owned() };
        raw("200 OK", &headers, json(request).as_bytes())
    });
    let mut mirror = MirrorProcess::new().http("per_host = 8").feed("sound", &publisher.url("/sound"));
    for (name, _) in FEEDS {
        mirror = mirror.feed(name, &publisher.url(&format!("/{name}")));
    }
    let mirror = mirror.start();

    // Then: the first page was asked for twice, later ones once.
    for (name, _) in FEEDS {
        mirror.until_level(name);
        assert_eq!(mirror.ids(name), ["a"], "{name}");
        assert!(mirror.finding(name, "header-line") >= 2, "{name}");
        let first =
            publisher.requests_to(&format!("/{name}")).iter().filter(|request| request.query().is_empty()).count();
        assert_eq!(first, 2, "{name}");
    }
    mirror.until_level("sound");
    assert_eq!(mirror.finding("sound", "header-line"), 0);
}

#[test]
fn whole_pages_with_an_odd_status_are_read_and_told_and_other_answers_with_it_are_not() {
    // Given
    let publisher = ScriptedPublisher::start(|request| {
        let body = json(request);
        let range = |last: usize, total: usize| format!("{JSON}Content-Range: bytes 0-{last}/{total}\r\n");
        match request.path() {
            "/203" => raw("203 Non-Authoritative Information", JSON, body.as_bytes()),
            "/202" => raw("202 Accepted", JSON, body.as_bytes()),
            "/206" => raw("206 Partial Content", &range(body.len() - 1, body.len()), body.as_bytes()),
            "/part" => raw("206 Partial Content", &range(body.len() - 1, body.len() + 1), body.as_bytes()),
            "/later" => raw("202 Accepted", JSON, b""),
            _ => raw("204 No Content", JSON, b""),
        }
    });
    let mut mirror = MirrorProcess::new().http("per_host = 8");
    for name in ["203", "202", "206", "part", "later", "nothing"] {
        mirror = mirror.feed(&format!("s-{name}"), &publisher.url(&format!("/{name}")));
    }
    let mirror = mirror.start();

    // Then
    for name in ["s-203", "s-202", "s-206"] {
        mirror.until_level(name);
        assert_eq!(mirror.ids(name), ["a"], "{name}");
        assert!(mirror.finding(name, "status") >= 2, "{name}");
    }
    for (name, word) in [("s-part", "http-206"), ("s-later", "http-202"), ("s-nothing", "http-204")] {
        let row = mirror.until_health(name, "retrying", word);
        assert_eq!(row.items, 0, "{name}");
    }
}

#[test]
fn what_keeps_a_page_away_is_named_down_to_the_cookie_and_the_header() {
    // Given: walls of cookies, and headers that mean nothing.
    let publisher = ScriptedPublisher::start(|request| match request.path() {
        "/round" => Reply::redirect(302, "/round").header("Set-Cookie", "wall_id=4711; Path=/"),
        "/denied" => Reply::status(403).header("Set-Cookie", "__challenge=1"),
        "/page" => Reply::page("<html>enable cookies</html>").header("Set-Cookie", "visid=1"),
        "/soon" => Reply::status(503).header("Retry-After", "soon"),
        "/there" => Reply::redirect(301, "http://[half"),
        _ => Reply::page(page(&[], &request.target)).header("Last-Modified", "yesterday"),
    });
    let mut mirror = MirrorProcess::new().http("per_host = 8");
    for name in ["round", "denied", "page", "soon", "there", "dated"] {
        mirror = mirror.feed(name, &publisher.url(&format!("/{name}")));
    }
    let mirror = mirror.start();

    // Then
    for (name, health, word, named) in [
        ("round", "failed", "redirect", "\"wall_id\""),
        ("denied", "failed", "http-403", "\"__challenge\""),
        ("page", "retrying", "html", "\"visid\""),
        ("soon", "retrying", "http-503", "Retry-After can't be read, \"soon\""),
        ("there", "failed", "redirect", "Location can't be read, \"http://[half\""),
    ] {
        let reason = mirror.until_health(name, health, word).reason;
        assert!(reason.contains(named), "{name}: {reason}");
    }
    mirror.until_level("dated");
    assert!(mirror.finding("dated", "unreadable-header") > 0);
}

fn of_localhost(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/certificate").join(file)
}

/// A proxy that speaks TLS for the publisher, which knows nothing of it; returns its port.
fn in_tls(publisher: &ScriptedPublisher) -> u16 {
    let certificate = CertificateDer::from_pem_file(of_localhost("localhost.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(of_localhost("localhost.key")).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(vec![certificate], key).unwrap());
    let (listener, behind) = (TcpListener::bind("127.0.0.1:0").unwrap(), publisher.address());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
            std::thread::spawn(move || hand_on(tls, TcpStream::connect(behind).unwrap()));
        }
    });
    port
}

/// One request and its answer.
fn hand_on(mut tls: StreamOwned<ServerConnection, TcpStream>, mut publisher: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        head.extend(byte);
    }
    publisher.write_all(&head)?;
    let mut answer = Vec::new();
    publisher.read_to_end(&mut answer)?;
    tls.write_all(&answer)?;
    tls.conn.send_close_notify();
    tls.flush()
}

#[test]
fn an_http_next_of_an_https_feed_is_asked_by_https_stored_as_sent_and_told() {
    // Given: a publisher behind a proxy that speaks TLS for it; of one feed it knows the port, of the other it doesn't.
    const FEEDS: [&str; 2] = ["port", "portless"];
    let publisher = ScriptedPublisher::start(|request| {
        let host = request.header("host").unwrap();
        let host = if request.path() == "/port" { host } else { host.split(':').next().unwrap() };
        let next = format!("http://{host}{}?from=1", request.path());
        let items = if request.query().is_empty() { vec![item("a", 1)] } else { Vec::new() };
        raw("200 OK", JSON, page(&items, &next).as_bytes())
    });
    let port = in_tls(&publisher);
    let mut mirror = MirrorProcess::new().http(&format!("per_host = 8, ca_file = {:?}", of_localhost("localhost.pem")));
    for name in FEEDS {
        let keys = "headers.Authorization = { file = \"token\" }";
        mirror = mirror.feed_with(name, &format!("https://localhost:{port}/{name}"), keys);
    }
    mirror.write("token", "a-secret-of-the-feed");
    let mut mirror = mirror.start();

    // Then: it is level, as the text of `next` is the one that was asked for.
    for (name, host) in FEEDS.iter().zip([format!("localhost:{port}"), "localhost".to_owned()]) {
        let row = mirror.until_level(name);
        assert_eq!(row.cursor, format!("http://{host}/{name}?from=1"), "as sent");
        assert_eq!(mirror.ids(name), ["a"]);
        let polled = publisher.count(&format!("/{name}"));
        mirror.until("it is polled on", |_| publisher.count(&format!("/{name}")) > polled + 1);
        mirror.until("told", |mirror| mirror.finding(name, "http-next") >= 1);
        assert_eq!(mirror.finding(name, "no-next") + mirror.finding(name, "foreign-next"), 0);
    }
    // And secrets go only there.
    assert!(publisher.requests().iter().all(|request| request.header("authorization") == Some("a-secret-of-the-feed")));
    let requests = publisher.requests().iter().filter(|request| request.query().is_empty()).count();
    assert_eq!(requests, FEEDS.len(), "each is read from its beginning once");

    // And a restart goes on from there.
    assert!(mirror.stop().success());
    mirror.start_again();
    let polled = publisher.count("/portless");
    mirror.until("it goes on", |_| publisher.count("/portless") > polled + 1);
    let requests = publisher.requests().iter().filter(|request| request.query().is_empty()).count();
    assert_eq!((requests, mirror.row("portless").health.as_str()), (FEEDS.len(), "ok"));
}
