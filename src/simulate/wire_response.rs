//! The HTTP response of a page: status, headers and bytes, with those faults that concern them.

use std::convert::Infallible;
use std::io::{self, Write};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream;
use xxhash_rust::xxh3::xxh3_64;

use super::SimulatorSettings;
use super::fault::Fault;
use super::next_faults::FOREIGN;
use super::poll_faults::{PageReply, PageRequest};

/// The media type of a page (RPDE 1.0 "content type").
const PAGE: &str = "application/vnd.openactive.rpde+json; version=1";
const BLOCK: usize = 64 << 10;
static SPACES: [u8; BLOCK] = [b' '; BLOCK];

/// A response before it is sent.
pub(super) struct WireResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    pub(super) fault: Option<Fault>,
}

/// Builds the response; `known` holds the entity tags that the reader has. Compresses: must run off the async threads.
pub(super) fn build(
    reply: PageReply,
    request: &PageRequest,
    known_tags: Option<&str>,
    settings: &SimulatorSettings,
) -> WireResponse {
    let PageReply { text, last, fault } = reply;
    if let Some(response) = fault.and_then(|fault| without_page(fault, request)) {
        return response;
    }
    let mut response = page(text, last, fault, request, settings);
    if let (None, Some(known_tags), Some(tag)) = (fault, known_tags, response.headers.get(header::ETAG))
        && tag.to_str().is_ok_and(|tag| known_tags.split(',').any(|other| other.trim() == tag))
    {
        response.status = StatusCode::NOT_MODIFIED;
        response.headers.remove(header::CONTENT_TYPE);
        response.headers.remove(header::CONTENT_ENCODING);
        response.body = Vec::new();
    }
    response
}

fn page(
    text: String,
    last: bool,
    fault: Option<Fault>,
    request: &PageRequest,
    settings: &SimulatorSettings,
) -> WireResponse {
    let mut headers = HeaderMap::new();
    let (kind, text) = faulty_body(fault, text);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    let hash = xxh3_64(&text);
    let gzip = request.gzip && !is_uncompressed(fault);
    let body = match fault {
        Some(Fault::ZipBomb) => gzipped(&text, settings.large),
        Some(Fault::DamagedGzip) => corrupt(gzipped(&text, 0)),
        _ if gzip => gzipped(&text, 0),
        _ => text,
    };
    let coding = if gzip { "-gzip" } else { "" };
    set(&mut headers, header::ETAG, &format!("\"{hash:016x}{coding}\""));
    if gzip {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(age) = settings.max_age {
        let seconds = if last { age.as_secs() } else { 3_600 };
        set(&mut headers, header::CACHE_CONTROL, &format!("public, max-age={seconds}"));
    }
    WireResponse { status: StatusCode::OK, headers, body, fault }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Values are digits and URLs that came in as headers, so this can't fail; if it did, the header would be left out.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The media type and the body, with the fault applied.
fn faulty_body(fault: Option<Fault>, text: String) -> (&'static str, Vec<u8>) {
    match fault {
        Some(Fault::Truncated) => {
            let half = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            (PAGE, text.as_bytes()[..half].to_vec())
        }
        Some(Fault::NotJson) => ("text/plain; charset=utf-8", b"No ride data found".to_vec()),
        Some(Fault::Html) => ("text/html; charset=utf-8", CHALLENGE.as_bytes().to_vec()),
        Some(Fault::NoItems) => (PAGE, br#"{"error":{"code":"busy","message":"please try again"}}"#.to_vec()),
        Some(Fault::WrongEncoding) => {
            let whole = text.strip_prefix('{').unwrap_or(&text);
            (PAGE, [b"{\"publisher\":\"\xe9\",".as_slice(), whole.as_bytes()].concat())
        }
        Some(Fault::Bom) => (PAGE, [b"\xef\xbb\xbf".as_slice(), text.as_bytes()].concat()),
        Some(Fault::ContentType) => ("text/html; charset=utf-8", text.into_bytes()),
        _ => (PAGE, text.into_bytes()),
    }
}

/// A web application firewall's page.
pub(super) const CHALLENGE: &str = "<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head>\
    <body><p>Checking your browser before accessing this site.</p></body></html>\n";

/// Faults in the bytes sent, which compression would hide.
fn is_uncompressed(fault: Option<Fault>) -> bool {
    matches!(fault, Some(Fault::CutShort | Fault::Drip | Fault::TooLarge))
}

/// Compresses `spaces` spaces and the text.
fn gzipped(text: &[u8], spaces: u64) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory fails only when memory runs out.
    let _ = spaces_of(spaces).try_for_each(|part| encoder.write_all(part)).and_then(|()| encoder.write_all(text));
    encoder.finish().unwrap_or_default()
}

fn spaces_of(mut remaining: u64) -> impl Iterator<Item = &'static [u8]> + Send {
    std::iter::from_fn(move || {
        let size = remaining.min(BLOCK as u64);
        remaining -= size;
        (size > 0).then(|| &SPACES[..usize::try_from(size).unwrap_or(BLOCK)])
    })
}

/// Inverts bytes in the middle: the beginning still decompresses.
fn corrupt(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    for byte in bytes.iter_mut().skip(middle).take(8) {
        *byte = !*byte;
    }
    bytes
}

/// Responses without a page.
fn without_page(fault: Fault, request: &PageRequest) -> Option<WireResponse> {
    let mut headers = HeaderMap::new();
    let code = match fault {
        Fault::Http408 => 408,
        Fault::Http425 => 425,
        Fault::Http429 => 429,
        Fault::RetryAfter => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            429
        }
        Fault::Http500 => 500,
        Fault::Http502 => 502,
        Fault::Http503 => 503,
        Fault::Http401 => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            401
        }
        Fault::Http403 => 403,
        Fault::Http404 | Fault::DeadCursor => 404,
        Fault::Http410 => 410,
        Fault::Gone => {
            if request.gone_for_good {
                410
            } else {
                404
            }
        }
        Fault::Redirect => {
            set(&mut headers, header::LOCATION, &request.query.redirect_target());
            302
        }
        Fault::ForeignRedirect => {
            set(&mut headers, header::LOCATION, &format!("{FOREIGN}{}", request.query.path_and_query));
            302
        }
        _ => return None,
    };
    let status = StatusCode::from_u16(code).unwrap_or_default();
    let words = format!("{code} {}", status.canonical_reason().unwrap_or_default());
    let html = fault == Fault::Http502;
    let kind = if html { "text/html; charset=utf-8" } else { "text/plain; charset=utf-8" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let body = if html { format!("<html><body><h1>{words}</h1></body></html>") } else { words };
    Some(WireResponse { status, headers, body: body.into_bytes(), fault: Some(fault) })
}

impl WireResponse {
    /// How long a slow response takes: 200 to 500 ms.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_millis(200 + xxh3_64(&self.body) % 301)
    }

    /// The response as it is.
    pub(super) fn whole(mut self) -> Response<Body> {
        let body = std::mem::take(&mut self.body);
        self.with(Body::from(body))
    }

    fn with(self, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }

    /// The response without its last two thirds; `on_cut` is called when the connection breaks off.
    pub(super) fn cut_short(mut self, on_cut: impl FnOnce() + Send + 'static) -> Response<Body> {
        set(&mut self.headers, header::CONTENT_LENGTH, &self.body.len().to_string());
        let sent = Bytes::from(self.body[..self.body.len() / 3].to_vec());
        let parts = stream::unfold((Some(sent), Some(on_cut)), async |(sent, on_cut)| {
            if let Some(sent) = sent {
                return Some((Ok(sent), (None, on_cut)));
            }
            // The first third has to leave this machine first, or the reader sees no beginning.
            tokio::time::sleep(Duration::from_millis(5)).await;
            on_cut.map(|on_cut| {
                on_cut();
                (Err(io::Error::from(io::ErrorKind::BrokenPipe)), (None, None))
            })
        });
        self.with(Body::from_stream(parts))
    }

    /// The response byte by byte, one per `pause`, until `hold` has passed; `on_drip` is called with the second byte.
    pub(super) fn dripping(
        mut self,
        pause: Duration,
        hold: Duration,
        on_drip: impl FnOnce() + Send + 'static,
    ) -> Response<Body> {
        set(&mut self.headers, header::CONTENT_LENGTH, &self.body.len().to_string());
        let body = Bytes::from(std::mem::take(&mut self.body));
        let until = tokio::time::Instant::now() + hold;
        let parts = stream::unfold((0, Some(on_drip)), move |(at, mut on_drip)| {
            let byte = body.get(at..=at).map(Bytes::copy_from_slice);
            async move {
                let byte = byte?;
                if at > 0 {
                    tokio::time::sleep(pause).await;
                    on_drip.take().into_iter().for_each(|on_drip| on_drip());
                }
                let late = tokio::time::Instant::now() > until;
                let part = if late { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(byte) };
                Some((part, (at + 1, on_drip)))
            }
        });
        self.with(Body::from_stream(parts))
    }

    /// The response after this many spaces, without a Content-Length.
    pub(super) fn padded(mut self, spaces: u64) -> Response<Body> {
        let body = Bytes::from(std::mem::take(&mut self.body));
        let parts = spaces_of(spaces).map(Bytes::from_static).chain([body]);
        self.with(Body::from_stream(stream::iter(parts.map(Ok::<_, Infallible>))))
    }
}
