//! Hiding a feed's secrets in what its publisher sends back: whatever of it is shown, logged or kept passes here first.
//!
//! Guarantees: a secret is found raw, percent-encoded, JSON- or HTML-escaped, one in another, and as base64 at any offset;
//! what a text that was cut still holds of one is found too. Secrets under six bytes are only found as the value of their
//! own parameter: in running text they would be anywhere.

use std::ops::Range;

use super::encodings::{self, MaskMode, UnescapedText};
use super::http::percent_encode_query;

/// Shorter secrets are no secrets in running text.
const LEAST_BYTES: usize = 6;
/// So much of a secret at the end of a text is one that was cut.
const CUT_BYTES: usize = 4;
/// How much of a publisher's answer a reason shows.
const SHOWN_BYTES: usize = 80;
/// Text is looked at in pieces, so that a large one costs no more memory than a small one.
const PIECE_BYTES: usize = 64 << 10;
/// Escapes in escapes.
const DEPTH: usize = 3;
/// The most bytes that one byte is spelt with.
const SPELT_BYTES: usize = 12;

/// A feed's secrets, as they must not be shown.
#[derive(Default)]
pub(super) struct Mask {
    needles: Vec<Needle>,
    /// The bytes that a spelling of one may begin with.
    begins: Vec<bool>,
    reach: usize,
}

struct Needle {
    text: Vec<u8>,
    /// What stands in its place, in braces.
    name: String,
    /// Whether it is a parameter with a value that is only hidden whole.
    whole: bool,
}

struct SecretMatch {
    place: Range<usize>,
    needle: usize,
    depth: usize,
}

impl Mask {
    /// Hides `value` behind `{name}`: a header's value or any other secret. Of credentials after a scheme (RFC 9110 §11.4)
    /// and of a URL with a password only those are secret.
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

    /// Hides a query parameter's value behind `{name}`.
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
        if self.begins.is_empty() {
            self.begins = vec![false; 256];
            for byte in *b"%\\&+" {
                self.begins[usize::from(byte)] = true;
            }
        }
        if let Some(first) = needle.text.first() {
            self.begins[usize::from(first.to_ascii_lowercase())] = true;
            self.begins[usize::from(first.to_ascii_uppercase())] = true;
        }
        self.reach = self.reach.max(needle.text.len() * SPELT_BYTES);
        self.needles.push(needle);
    }

    /// What may be shown and kept of a publisher's text.
    pub(super) fn redact(&self, text: &str) -> String {
        self.replaced(text, MaskMode::Display)
    }

    /// The same of a URL or another place that is sent again: [`Mask::filled`] gives the secrets back.
    pub(super) fn mask_url(&self, place: &str) -> String {
        self.replaced(place, MaskMode::Resend)
    }

    /// A place as it is sent.
    pub(super) fn unmask_url(&self, place: &str) -> String {
        let mut filled = place.to_owned();
        if !place.contains('{') {
            return filled;
        }
        for needle in &self.needles {
            for depth in 0..DEPTH {
                let shown = needle.placeholder(depth);
                if !filled.contains(&shown) {
                    continue;
                }
                let secret = needle.text.get(needle.parameter().map_or(0, str::len)..).unwrap_or_default();
                let spelt = (0..=depth).fold(encodings::percent(secret), |spelt, again| match again {
                    0 => spelt,
                    _ => percent_encode_query(&spelt),
                });
                filled = filled.replace(&shown, &spelt);
            }
        }
        filled
    }

    /// The same of what is sent in a header, where nothing is percent-encoded.
    pub(super) fn unmask_header(&self, value: &str) -> String {
        let filled = |filled: String, needle: &Needle| match std::str::from_utf8(&needle.text) {
            Ok(secret) if !needle.whole => filled.replace(&needle.placeholder(0), secret),
            _ => filled,
        };
        self.needles.iter().fold(value.to_owned(), filled)
    }

    /// The first bytes of an answer, for a reason in words: what is hidden is hidden before it is cut.
    pub(super) fn redacted_beginning(&self, bytes: &[u8]) -> String {
        let seen = bytes.len().min(SHOWN_BYTES + self.reach);
        let mut shown = self.redact(String::from_utf8_lossy(&bytes[..seen]).trim());
        shown.truncate((0..=SHOWN_BYTES.min(shown.len())).rev().find(|at| shown.is_char_boundary(*at)).unwrap_or(0));
        shown.trim().to_owned()
    }

    fn replaced(&self, text: &str, manner: MaskMode) -> String {
        if self.needles.is_empty() {
            return text.to_owned();
        }
        let (mut out, mut from) = (String::with_capacity(text.len()), 0);
        for SecretMatch { place, needle, depth } in self.find_matches(text, manner) {
            out.push_str(text.get(from..place.start).unwrap_or_default());
            let needle = &self.needles[needle];
            if let Some(parameter) = needle.parameter() {
                out.push_str(parameter);
            }
            out.push_str(&needle.placeholder(depth));
            from = place.end;
        }
        out.push_str(text.get(from..).unwrap_or_default());
        out
    }

    /// Where secrets stand, in order, none within another.
    fn find_matches(&self, text: &str, manner: MaskMode) -> Vec<SecretMatch> {
        // What was cut was marked as such, or put in quotes.
        let (bytes, mut finds, mut from) = (text.trim_end_matches(['…', '"', '\'']).as_bytes(), Vec::new(), 0);
        while from < bytes.len() {
            let until = bytes.len().min(from + PIECE_BYTES);
            let seen = bytes.len().min(until + self.reach);
            let mut layer = UnescapedText::of(&bytes[from..seen]);
            for depth in 0..DEPTH {
                self.find_in(&layer, until - from, seen == bytes.len(), manner, |place, needle| {
                    finds.push(SecretMatch { place: place.start + from..place.end + from, needle, depth });
                });
                match layer.decoded(manner) {
                    Some(next) => layer = next,
                    None => break,
                }
            }
            from = until;
        }
        finds.sort_by_key(|find| (find.place.start, std::cmp::Reverse(find.place.end), find.depth));
        let mut end = 0;
        finds.retain_mut(|find| {
            // A cut character goes with the secret.
            while !text.is_char_boundary(find.place.end) {
                find.place.end += 1;
            }
            let apart = find.place.start >= end && text.is_char_boundary(find.place.start);
            end = if apart { find.place.end } else { end };
            apart
        });
        finds
    }

    fn find_in(
        &self,
        layer: &UnescapedText,
        until: usize,
        last: bool,
        manner: MaskMode,
        mut found: impl FnMut(Range<usize>, usize),
    ) {
        let mut at = 0;
        while let Some(first) = layer.byte(at).filter(|_| layer.start(at) < until) {
            if self.begins[usize::from(first)] {
                for (n, needle) in self.needles.iter().enumerate() {
                    let Some((matched, end)) = layer.spells(at, &needle.text, manner) else { continue };
                    let whole = matched == needle.text.len();
                    let stands_alone = !needle.whole
                        || !layer.byte(end).is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'%')
                            && !at
                                .checked_sub(1)
                                .and_then(|before| layer.byte(before))
                                .is_some_and(|byte| byte.is_ascii_alphanumeric());
                    let cut = last && manner == MaskMode::Display && !needle.whole && matched >= CUT_BYTES;
                    if whole && stands_alone || !whole && cut {
                        found(layer.start(at)..layer.end(end), n);
                    }
                }
            }
            at += 1;
        }
    }
}

impl Needle {
    /// The name of a parameter that is hidden with its value only, and the sign between them.
    fn parameter(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.text).ok().filter(|_| self.whole)?;
        text.split_inclusive('=').next()
    }

    /// A secret that was escaped more than once is named so, to be sent as it came.
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
    fn a_secret_is_found_in_every_spelling() {
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
    fn credentials_are_found_without_their_scheme_and_open() {
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
    fn what_was_cut_is_hidden_and_what_is_shown_is_cut_after_hiding() {
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
    fn a_place_is_sent_as_it_came() {
        for place in [
            "/feed?key=a%20b%2F%25%C3%A9%22c&from=2",
            "/feed?token=hush-header-4711",
            "/feed?t=aHVzaC1oZWFkZXItNDcxMQ",
            "/feed?back=%2Ffeed%3Fkey%3Da%2520b%252F%2525%25C3%25A9%2522c",
            "/feed?pin=500&from=1500",
            "/feed?from=hush-hea",
        ] {
            let masked = mask().mask_url(place);
            assert_eq!(mask().unmask_url(&masked), place, "{masked}");
            assert!(masked == place || masked.contains('{'));
        }
        assert_eq!(mask().mask_url("/feed?from=hush-hea"), "/feed?from=hush-hea");
    }

    #[test]
    fn a_large_text_is_looked_at_in_pieces_that_miss_nothing() {
        for before in (PIECE_BYTES - 20)..(PIECE_BYTES + 4) {
            let text = format!("{}hush-header-4711{}", "é".repeat(before / 2), "x".repeat(70_000));
            assert!(!mask().redact(&text).contains("hush"), "{before}");
        }
    }
}
