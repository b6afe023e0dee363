//! Masks a feed's secrets in what its publisher sends back: all of it that is shown, logged or stored is masked here
//! first.
//!
//! Guarantees: a secret is found raw, percent-encoded, JSON- or HTML-escaped, one encoding in another, and as base64 at
//! any offset; the rest of a secret at the end of a truncated text is found too. Secrets under six bytes are only found
//! as the value of their own parameter: in running text they would match anywhere.

use std::ops::Range;

use super::encodings::{self, MaskMode, UnescapedText};
use super::http::percent_encode_query;

/// Shorter secrets are not masked in running text.
const LEAST_BYTES: usize = 6;
/// The beginning of a secret, of this length, at the end of a text counts as a truncated secret.
const TRUNCATED_BYTES: usize = 4;
/// How many bytes of a publisher's response a reason shows.
const SHOWN_BYTES: usize = 80;
/// Text is searched in pieces, so that a large one costs no more memory than a small one.
const PIECE_BYTES: usize = 64 << 10;
/// How many layers of encoding are searched.
const DEPTH: usize = 3;
/// The most bytes that an encoding of one byte has.
const ENCODED_BYTES: usize = 12;

/// A feed's secrets, to be masked.
#[derive(Default)]
pub(super) struct Mask {
    needles: Vec<Needle>,
    /// Whether an encoding of a needle may begin with the byte of this index.
    first_bytes: Vec<bool>,
    /// The longest encoding of a needle, bytes.
    max_encoded_bytes: usize,
}

struct Needle {
    text: Vec<u8>,
    /// Replaces the secret, in braces.
    name: String,
    /// Whether the text is a parameter with its value, which is only masked whole.
    whole: bool,
}

struct SecretMatch {
    range: Range<usize>,
    needle: usize,
    depth: usize,
}

impl Mask {
    /// Masks `value` as `{name}`: a header's value or any other secret. Of credentials after a scheme (RFC 9110 §11.4)
    /// only the credentials are secret, of a URL with a password only the password.
    pub(super) fn hide(&mut self, name: &str, value: &str) {
        let password = url::Url::parse(value).ok().and_then(|url| url.password().map(encodings::decoded));
        if let Some(password) = password {
            return self.add(format!("{name}.password"), password);
        }
        let credentials =
            value.split_once(' ').filter(|(_, rest)| !rest.trim().is_empty() && !rest.trim().contains(' '));
        let Some((scheme, credentials)) = credentials else { return self.add(name.to_owned(), value.into()) };
        let credentials = credentials.trim();
        self.add(name.to_owned(), credentials.into());
        if scheme.eq_ignore_ascii_case("basic")
            && let Some(pair) = encodings::decode_base64(credentials)
        {
            let password = pair.iter().position(|byte| *byte == b':').map(|colon| pair[colon + 1..].to_vec());
            self.add(format!("{name}.pair"), pair);
            self.add(format!("{name}.password"), password.unwrap_or_default());
        }
    }

    /// Masks a query parameter's value as `{name}`.
    pub(super) fn hide_parameter(&mut self, name: &str, value: &str) {
        if value.len() < LEAST_BYTES {
            let text = format!("{}={value}", percent_encode_query(name)).into_bytes();
            self.push(Needle { text, name: name.to_owned(), whole: true });
        } else {
            self.add(name.to_owned(), value.into());
        }
    }

    fn add(&mut self, name: String, secret: Vec<u8>) {
        if secret.len() < LEAST_BYTES {
            return;
        }
        for (n, text) in
            encodings::base64_fragments(&secret).into_iter().enumerate().filter(|(_, text)| text.len() >= LEAST_BYTES)
        {
            self.push(Needle { text, name: format!("{name}.base64-{n}"), whole: false });
        }
        self.push(Needle { text: secret, name, whole: false });
    }

    fn push(&mut self, needle: Needle) {
        if self.first_bytes.is_empty() {
            self.first_bytes = vec![false; 256];
            for byte in *b"%\\&+" {
                self.first_bytes[usize::from(byte)] = true;
            }
        }
        if let Some(first) = needle.text.first() {
            self.first_bytes[usize::from(first.to_ascii_lowercase())] = true;
            self.first_bytes[usize::from(first.to_ascii_uppercase())] = true;
        }
        self.max_encoded_bytes = self.max_encoded_bytes.max(needle.text.len() * ENCODED_BYTES);
        self.needles.push(needle);
    }

    /// Masks the secrets in a publisher's text, to be shown and stored.
    pub(super) fn redact(&self, text: &str) -> String {
        self.replace(text, MaskMode::Display)
    }

    /// Masks the secrets in a URL that is sent again: [`Mask::unmask_url`] puts the secrets in again.
    pub(super) fn mask_url(&self, url: &str) -> String {
        self.replace(url, MaskMode::Resend)
    }

    /// The URL as it is sent.
    pub(super) fn unmask_url(&self, url: &str) -> String {
        let mut unmasked = url.to_owned();
        if !url.contains('{') {
            return unmasked;
        }
        for needle in &self.needles {
            for depth in 0..DEPTH {
                let shown = needle.placeholder(depth);
                if !unmasked.contains(&shown) {
                    continue;
                }
                let secret = needle.text.get(needle.parameter().map_or(0, str::len)..).unwrap_or_default();
                let encoded = (0..=depth).fold(encodings::percent(secret), |encoded, layer| match layer {
                    0 => encoded,
                    _ => percent_encode_query(&encoded),
                });
                unmasked = unmasked.replace(&shown, &encoded);
            }
        }
        unmasked
    }

    /// A header's value as it is sent: nothing in it is percent-encoded.
    pub(super) fn unmask_header(&self, value: &str) -> String {
        let unmask = |unmasked: String, needle: &Needle| match std::str::from_utf8(&needle.text) {
            Ok(secret) if !needle.whole => unmasked.replace(&needle.placeholder(0), secret),
            _ => unmasked,
        };
        self.needles.iter().fold(value.to_owned(), unmask)
    }

    /// The first bytes of a response, for a reason in words: masked before they are truncated.
    pub(super) fn redacted_beginning(&self, bytes: &[u8]) -> String {
        let seen = bytes.len().min(SHOWN_BYTES + self.max_encoded_bytes);
        let mut shown = self.redact(String::from_utf8_lossy(&bytes[..seen]).trim());
        shown.truncate((0..=SHOWN_BYTES.min(shown.len())).rev().find(|at| shown.is_char_boundary(*at)).unwrap_or(0));
        shown.trim().to_owned()
    }

    fn replace(&self, text: &str, mode: MaskMode) -> String {
        if self.needles.is_empty() {
            return text.to_owned();
        }
        let (mut out, mut from) = (String::with_capacity(text.len()), 0);
        for SecretMatch { range, needle, depth } in self.find_matches(text, mode) {
            out.push_str(text.get(from..range.start).unwrap_or_default());
            let needle = &self.needles[needle];
            if let Some(parameter) = needle.parameter() {
                out.push_str(parameter);
            }
            out.push_str(&needle.placeholder(depth));
            from = range.end;
        }
        out.push_str(text.get(from..).unwrap_or_default());
        out
    }

    /// The secrets in a text, in order, without overlaps.
    fn find_matches(&self, text: &str, mode: MaskMode) -> Vec<SecretMatch> {
        // A text that was truncated may end with an ellipsis or a quote.
        let (bytes, mut matches, mut from) = (text.trim_end_matches(['…', '"', '\'']).as_bytes(), Vec::new(), 0);
        while from < bytes.len() {
            let until = bytes.len().min(from + PIECE_BYTES);
            let seen = bytes.len().min(until + self.max_encoded_bytes);
            let mut layer = UnescapedText::of(&bytes[from..seen]);
            for depth in 0..DEPTH {
                self.find_in(&layer, until - from, seen == bytes.len(), mode, |range, needle| {
                    matches.push(SecretMatch { range: range.start + from..range.end + from, needle, depth });
                });
                match layer.decoded(mode) {
                    Some(next) => layer = next,
                    None => break,
                }
            }
            from = until;
        }
        matches.sort_by_key(|found| (found.range.start, std::cmp::Reverse(found.range.end), found.depth));
        let mut end = 0;
        matches.retain_mut(|found| {
            // A truncated character is masked with the secret.
            while !text.is_char_boundary(found.range.end) {
                found.range.end += 1;
            }
            let is_separate = found.range.start >= end && text.is_char_boundary(found.range.start);
            end = if is_separate { found.range.end } else { end };
            is_separate
        });
        matches
    }

    fn find_in(
        &self,
        layer: &UnescapedText,
        until: usize,
        last: bool,
        mode: MaskMode,
        mut report: impl FnMut(Range<usize>, usize),
    ) {
        let mut at = 0;
        while let Some(first) = layer.byte(at).filter(|_| layer.start(at) < until) {
            if self.first_bytes[usize::from(first)] {
                for (n, needle) in self.needles.iter().enumerate() {
                    let Some((matched, end)) = layer.matches(at, &needle.text, mode) else { continue };
                    let whole = matched == needle.text.len();
                    let is_delimited = !needle.whole
                        || !layer.byte(end).is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'%')
                            && !at
                                .checked_sub(1)
                                .and_then(|before| layer.byte(before))
                                .is_some_and(|byte| byte.is_ascii_alphanumeric());
                    let is_truncated = last && mode == MaskMode::Display && !needle.whole && matched >= TRUNCATED_BYTES;
                    if whole && is_delimited || !whole && is_truncated {
                        report(layer.start(at)..layer.end(end), n);
                    }
                }
            }
            at += 1;
        }
    }
}

impl Needle {
    /// The name and the equals sign of a parameter that is only masked with its value.
    fn parameter(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.text).ok().filter(|_| self.whole)?;
        text.split_inclusive('=').next()
    }

    /// Replaces the secret; names how often it was escaped, so that it is sent as it was received.
    fn placeholder(&self, depth: usize) -> String {
        format!("{{{}{}}}", self.name, "%".repeat(depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask() -> Mask {
        let mut mask = Mask::default();
        mask.hide_parameter("key", "a b/%é\"c");
        mask.hide("X-Api-Key", "hush-header-4711");
        mask.hide("Authorization", "Basic dXNlcjpzZXNhbWUtb3Blbg==");
        mask.hide_parameter("pin", "500");
        mask
    }

    #[test]
    fn a_secret_is_found_in_every_encoding() {
        for text in [
            "a b/%é\"c",
            "a%20b%2F%25%C3%A9%22c",
            "a+b%2f%25%c3%a9%22c",
            "%61%20%62%2F%25%C3%A9%22%63",
            r#"a b\/%\u00e9\"c"#,
            "a b/%é&quot;c",
            "a%2520b%252F%2525%25C3%25A9%2522c",
        ] {
            let redacted = mask().redact(&format!("?from=1&key={text}&z=é%4"));
            let shown = redacted.trim_start_matches("?from=1&key=").trim_end_matches("&z=é%4");
            assert!(["{key}", "{key%}"].contains(&shown), "{text}: {redacted}");
        }
        for text in ["", "a b", "é%", "header", "4711", "pin 500", "spin=500", "pin=5001"] {
            assert_eq!(mask().redact(text), text);
        }
        assert_eq!(mask().redact("x?pin=500&y"), "x?pin={pin}&y");
    }

    #[test]
    fn credentials_are_found_without_their_scheme_and_decoded() {
        for text in [
            "dXNlcjpzZXNhbWUtb3Blbg==",
            "Bearer dXNlcjpzZXNhbWUtb3Blbg==",
            "user:sesame-open",
            "sesame-open",
            "SESAME-OPEN",
        ] {
            let redacted = mask().redact(text);
            assert!(redacted.contains("{Authorization") && !redacted.contains("esame"), "{text}: {redacted}");
        }
        let mut mask = Mask::default();
        mask.hide("amqp.url", "amqps://acme:open%20sesame@broker.example/v");
        assert_eq!(mask.redact("acme, open sesame"), "acme, {amqp.url.password}");
    }

    #[test]
    fn base64_is_found_at_any_offset() {
        for before in ["", "x", "xy", "xyz"] {
            let text = String::from_utf8(
                encodings::base64_fragments(format!("{before}hush-header-4711 and so on").as_bytes()).remove(0),
            );
            let redacted = mask().redact(&text.clone().unwrap_or_default());
            assert!(redacted.contains("{X-Api-Key.base64-"), "{before}: {text:?}: {redacted}");
        }
    }

    #[test]
    fn a_truncated_secret_is_masked_and_a_beginning_is_truncated_after_masking() {
        assert_eq!(mask().redact("your key is hush-header-4"), "your key is {X-Api-Key}");
        assert_eq!(mask().redact("your key is hush%2dheade"), "your key is {X-Api-Key}");
        assert_eq!(mask().redact("hush-hour"), "hush-hour");
        for before in 0..90 {
            let text = format!("{}hush-header-4711 is your key", ".".repeat(before));
            let shown = mask().redacted_beginning(text.as_bytes());
            assert!(shown.len() <= 80 && !shown.contains("hush"), "{shown}");
        }
    }

    #[test]
    fn a_url_is_sent_as_it_was_received() {
        for url in [
            "/feed?key=a%20b%2F%25%C3%A9%22c&from=2",
            "/feed?token=hush-header-4711",
            "/feed?t=aHVzaC1oZWFkZXItNDcxMQ",
            "/feed?back=%2Ffeed%3Fkey%3Da%2520b%252F%2525%25C3%25A9%2522c",
            "/feed?pin=500&from=1500",
            "/feed?from=hush-hea",
        ] {
            let masked = mask().mask_url(url);
            assert_eq!(mask().unmask_url(&masked), url, "{masked}");
            assert!(masked == url || masked.contains('{'));
        }
        assert_eq!(mask().mask_url("/feed?from=hush-hea"), "/feed?from=hush-hea");
    }

    #[test]
    fn a_large_text_is_searched_in_pieces_that_miss_nothing() {
        for before in (PIECE_BYTES - 20)..(PIECE_BYTES + 4) {
            let text = format!("{}hush-header-4711{}", "é".repeat(before / 2), "x".repeat(70_000));
            assert!(!mask().redact(&text).contains("hush"), "{before}");
        }
    }
}
