//! The publisher's end of a webhook: posts bodies, and returns the responses.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::MirrorProcess;

/// The secret of tests for which it does not matter.
pub(crate) const SECRET: &str = "open-sesame";

#[derive(Clone, Debug)]
pub(crate) struct PostReply {
    pub(crate) status: u16,
    head: String,
}

impl PostReply {
    /// Seconds of `Retry-After`.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(name, _)| name.eq_ignore_ascii_case("retry-after"))?.1.parse().ok()
    }
}

/// Where the running mirror takes posts.
pub(crate) fn address(mirror: &MirrorProcess) -> String {
    mirror.until("an address for webhooks", |mirror| {
        mirror.column("SELECT webhooks_address FROM mirror").iter().any(|address| !address.is_empty())
    });
    mirror.column("SELECT webhooks_address FROM mirror").remove(0)
}

/// Posts a page to feed `f` with the usual secret.
pub(crate) fn page(mirror: &MirrorProcess, items: &[String]) -> PostReply {
    body(mirror, "f", SECRET, &crate::support::page_without_next(items))
}

/// Posts a body to a feed with a secret.
pub(crate) fn body(mirror: &MirrorProcess, feed: &str, secret: &str, body: &str) -> PostReply {
    to(&address(mirror), feed, secret, body).unwrap()
}

/// Posts a body to the mirror at this address; none when the connection ends before the response.
pub(crate) fn to(address: &str, feed: &str, secret: &str, body: &str) -> Option<PostReply> {
    with(address, feed, &format!("Authorization: Bearer {secret}"), body)
}

/// Posts a body with this header as its credentials.
pub(crate) fn with(address: &str, feed: &str, credentials: &str, body: &str) -> Option<PostReply> {
    let mut connection = TcpStream::connect(address).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = format!(
        "POST /webhooks/{feed} HTTP/1.1\r\nHost: {address}\r\n{credentials}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).ok()?;
    // A body that is too large may be answered, and cut off, before it was sent whole.
    let _ = connection.write_all(body.as_bytes());
    let mut answer = Vec::new();
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).ok()?;
        answer.push(byte[0]);
    }
    let head = String::from_utf8(answer).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some(PostReply { status, head })
}
