//! A reader of RPDE in a few lines: HTTP/1.1 over a socket, JSON as values, newest wins.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A response, or as much of it as was received.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    /// 0 when no head was received.
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the connection ended in an error.
    pub(crate) reset: bool,
    /// Whether the body has the announced length, or its last chunk.
    pub(crate) complete: bool,
    pub(crate) took: Duration,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn page(&self) -> Value {
        assert_eq!(self.status, 200, "{:?}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }
}

pub(crate) async fn get(url: &str) -> Reply {
    get_with(url, &[]).await
}

pub(crate) async fn get_with(url: &str, headers: &[(&str, &str)]) -> Reply {
    ask("GET", url, headers).await
}

pub(crate) async fn ask(method: &str, url: &str, headers: &[(&str, &str)]) -> Reply {
    let since = std::time::Instant::now();
    let (authority, path) = split(url);
    let mut stream = TcpStream::connect(authority).await.unwrap();
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut bytes, mut reset) = (Vec::new(), false);
    let all = async {
        let mut part = vec![0; 65_536];
        loop {
            match stream.read(&mut part).await {
                Ok(0) => break,
                Ok(size) => bytes.extend_from_slice(&part[..size]),
                Err(_) => {
                    reset = true;
                    break;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the answer never ended");
    Reply { reset, took: since.elapsed(), ..parse(&bytes) }
}

/// Authority, and path with query.
fn split(url: &str) -> (&str, &str) {
    let rest = &url[url.find("://").unwrap() + 3..];
    rest.find('/').map_or((rest, "/"), |at| rest.split_at(at))
}

fn parse(bytes: &[u8]) -> Reply {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Reply::default() };
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut reply = Reply { status, headers, ..Reply::default() };
    let rest = &bytes[end + 4..];
    if reply.header("transfer-encoding") == Some("chunked") {
        (reply.body, reply.complete) = unchunk(rest);
    } else {
        let length = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
        (reply.body, reply.complete) = (rest.to_vec(), rest.len() == length);
    }
    reply
}

fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let Some(chunk) = bytes.get(end + 2..end + 2 + size) else { break };
        body.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + size..).unwrap_or_default();
    }
    (body, false)
}

/// One record as read.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kind: String,
    pub(crate) id: String,
    pub(crate) state: String,
    pub(crate) modified: i64,
    data: Option<Value>,
}

/// By kind and id: modified, and the data of items that are not deleted.
pub(crate) type Items = BTreeMap<(String, String), (i64, Option<Value>)>;

#[derive(Default)]
pub(crate) struct WalkResult {
    pub(crate) items: Items,
    pub(crate) records: Vec<Record>,
    /// The URL of the last page.
    pub(crate) end: String,
}

impl WalkResult {
    pub(crate) fn take(&mut self, record: Record) {
        let data = record.data.clone().filter(|_| record.state.eq_ignore_ascii_case("updated"));
        let key = (record.kind.clone(), record.id.clone());
        let known = self.items.get(&key);
        if known.is_none_or(|(modified, _)| *modified < record.modified) {
            self.items.insert(key, (record.modified, data));
        }
        self.records.push(record);
    }
}

/// Reads a record in any form that a fault may give it; `None` for a broken one.
pub(crate) fn record(value: &Value) -> Option<Record> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let fields = value.as_object()?;
    let modified = text(fields.get("modified")?)?;
    let record = Record {
        kind: text(fields.get("kind")?)?,
        id: text(fields.get("id").or_else(|| fields.get("@id"))?)?,
        state: text(fields.get("state")?)?,
        modified: modified.strip_suffix(".0").unwrap_or(&modified).parse().ok()?,
        data: fields.get("data").cloned(),
    };
    match record.state.to_lowercase().as_str() {
        "deleted" => Some(record),
        "updated" if record.data.is_some() => Some(record),
        _ => None,
    }
}

/// Resolves `next` against the requested URL, where it is a path.
pub(crate) fn resolve(url: &str, next: &str) -> String {
    if next.starts_with('/') { format!("http://{}{next}", split(url).0) } else { next.to_owned() }
}

/// Reads a feed without faults to its end; `between` is awaited after each page.
pub(crate) async fn walk(url: &str, mut between: impl AsyncFnMut()) -> WalkResult {
    let mut read = WalkResult { end: url.to_owned(), ..WalkResult::default() };
    for _ in 0..1_000 {
        let page = get(&read.end).await.page();
        let items = page["items"].as_array().unwrap();
        items.iter().for_each(|item| read.take(record(item).unwrap()));
        let next = resolve(&read.end, page["next"].as_str().unwrap());
        if items.is_empty() && next == read.end {
            return read;
        }
        read.end = next;
        between().await;
    }
    panic!("{url} has no end");
}
