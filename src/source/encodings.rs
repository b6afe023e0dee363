//! The encodings that a secret may appear in: percent-encoding, JSON's and HTML's escapes, base64. Publishers escape
//! what they echo by rules of their own, so each escape is recognised anywhere. Pure; knows no secret.

use super::http::percent_encode_query;

/// Why a text is masked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MaskMode {
    /// To be shown: any escape is recognised, in any case.
    Display,
    /// To be sent again: only escapes that can be restored exactly are recognised.
    Resend,
}

/// A text with escapes removed, layer by layer; each byte has its range in the original text.
pub(super) struct UnescapedText(Vec<UnescapedByte>);

#[derive(Clone, Copy)]
struct UnescapedByte {
    byte: u8,
    start: u32,
    end: u32,
}

/// The bytes that an escape sequence stands for, up to four, and its length in units.
struct EscapeSequence {
    bytes: [u8; 4],
    length: usize,
    units: usize,
}

impl EscapeSequence {
    fn of(character: char, units: usize) -> Self {
        let mut bytes = [0; 4];
        let length = character.encode_utf8(&mut bytes).len();
        Self { bytes, length, units }
    }

    fn of_byte(byte: u8, units: usize) -> Self {
        Self { bytes: [byte, 0, 0, 0], length: 1, units }
    }
}

impl UnescapedText {
    /// The text unchanged; at most 4 GiB.
    pub(super) fn of(text: &[u8]) -> Self {
        let unit = |(at, byte): (u32, &u8)| UnescapedByte { byte: *byte, start: at, end: at + 1 };
        Self((0..).zip(text).map(unit).collect())
    }

    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.0.get(at).map(|unit| unit.byte)
    }

    /// The offset in the text at which the unit begins.
    pub(super) fn start(&self, at: usize) -> usize {
        self.0.get(at).map_or(usize::MAX, |unit| unit.start as usize)
    }

    /// The offset in the text at which the unit before this one ends.
    pub(super) fn end(&self, at: usize) -> usize {
        at.checked_sub(1).and_then(|last| self.0.get(last)).map_or(0, |unit| unit.end as usize)
    }

    /// The text with one layer of escapes removed; none where there is no escape.
    pub(super) fn decoded(&self, mode: MaskMode) -> Option<Self> {
        let (mut units, mut at, mut changed) = (Vec::with_capacity(self.0.len()), 0, false);
        while let Some(unit) = self.0.get(at) {
            match self.escape(at, mode) {
                Some(escape) => {
                    changed = true;
                    let end = self.0.get(at + escape.units - 1).map_or(unit.end, |last| last.end);
                    let bytes = escape.bytes.iter().take(escape.length);
                    units.extend(bytes.map(|byte| UnescapedByte { byte: *byte, start: unit.start, end }));
                    at += escape.units;
                }
                None => {
                    units.push(*unit);
                    at += 1;
                }
            }
        }
        changed.then_some(Self(units))
    }

    /// How many bytes of `secret` the units from `at` on encode, and the unit after them: all of it, or its beginning
    /// where the text ends within it.
    pub(super) fn matches(&self, at: usize, secret: &[u8], mode: MaskMode) -> Option<(usize, usize)> {
        self.matches_raw(at, secret, mode).or_else(|| self.matches_escaped(at, secret, mode))
    }

    fn matches_raw(&self, at: usize, secret: &[u8], mode: MaskMode) -> Option<(usize, usize)> {
        let units = self.0.get(at..)?;
        let length = units.len().min(secret.len());
        let same = units.iter().zip(secret).all(|(unit, wanted)| same(unit.byte, *wanted, mode));
        same.then_some((length, at + length))
    }

    fn matches_escaped(&self, mut at: usize, secret: &[u8], mode: MaskMode) -> Option<(usize, usize)> {
        let mut matched = 0;
        while let Some(wanted) = secret.get(matched) {
            let Some(byte) = self.byte(at) else { return Some((matched, at)) };
            let escape = self.escape(at, mode).filter(|escape| {
                let bytes = &escape.bytes[..escape.length];
                let wanted = secret.get(matched..matched + escape.length);
                wanted.is_some_and(|wanted| bytes.iter().zip(wanted).all(|(byte, wanted)| same(*byte, *wanted, mode)))
            });
            match escape {
                Some(escape) => (matched, at) = (matched + escape.length, at + escape.units),
                None if same(byte, *wanted, mode) || (byte, *wanted) == (b'+', b' ') => {
                    (matched, at) = (matched + 1, at + 1);
                }
                // A truncated escape.
                None if matched > 0 && b"%\\&".contains(&byte) && at + 6 > self.0.len() => {
                    return Some((matched, self.0.len()));
                }
                None => return None,
            }
        }
        Some((matched, at))
    }

    fn escape(&self, at: usize, mode: MaskMode) -> Option<EscapeSequence> {
        match self.byte(at)? {
            // RFC 3986 §2.1
            b'%' => Some(EscapeSequence::of_byte(u8::try_from(self.number(at + 1, 2, 16)?).ok()?, 3)),
            b'\\' if mode == MaskMode::Display => self.json(at),
            b'&' if mode == MaskMode::Display => self.html(at),
            _ => None,
        }
    }

    /// RFC 8259 §7
    fn json(&self, at: usize) -> Option<EscapeSequence> {
        let one = |character| Some(EscapeSequence::of(character, 2));
        match self.byte(at + 1)? {
            b'n' => one('\n'),
            b'r' => one('\r'),
            b't' => one('\t'),
            b'b' => one('\u{8}'),
            b'f' => one('\u{c}'),
            b'u' => {
                let first = self.number(at + 2, 4, 16)?;
                if let Some(character) = char::from_u32(first) {
                    return Some(EscapeSequence::of(character, 6));
                }
                let paired = (self.byte(at + 6)?, self.byte(at + 7)?) == (b'\\', b'u');
                let second = self.number(at + 8, 4, 16).filter(|second| paired && (0xdc00..0xe000).contains(second))?;
                let scalar = 0x10000 + (first.checked_sub(0xd800)? << 10) + (second - 0xdc00);
                Some(EscapeSequence::of(char::from_u32(scalar)?, 12))
            }
            byte if byte.is_ascii_punctuation() => one(char::from(byte)),
            _ => None,
        }
    }

    /// WHATWG HTML §13.5, the references that are needed to write any text.
    fn html(&self, at: usize) -> Option<EscapeSequence> {
        const NAMED: &[(&[u8], char)] =
            &[(b"amp;", '&'), (b"lt;", '<'), (b"gt;", '>'), (b"quot;", '"'), (b"apos;", '\''), (b"nbsp;", '\u{a0}')];
        let follows = |text: &[u8]| text.iter().zip(at + 1..).all(|(byte, at)| self.byte(at) == Some(*byte));
        if let Some((name, character)) = NAMED.iter().find(|(name, _)| follows(name)) {
            return Some(EscapeSequence::of(*character, 1 + name.len()));
        }
        let (from, radix) = match (self.byte(at + 1)?, self.byte(at + 2)?) {
            (b'#', b'x' | b'X') => (at + 3, 16),
            (b'#', _) => (at + 2, 10),
            _ => return None,
        };
        let digits =
            (from..from + 7).take_while(|at| self.byte(*at).is_some_and(|byte| char::from(byte).is_digit(radix)));
        let digits = digits.count();
        let character = char::from_u32(self.number(from, digits, radix)?)?;
        (self.byte(from + digits) == Some(b';')).then(|| EscapeSequence::of(character, from + digits + 1 - at))
    }

    fn number(&self, from: usize, digits: usize, radix: u32) -> Option<u32> {
        let digit = |at| self.byte(at).and_then(|byte| char::from(byte).to_digit(radix));
        (from..from + digits).try_fold(0u32, |number, at| number.checked_mul(radix)?.checked_add(digit(at)?))
    }
}

fn same(byte: u8, wanted: u8, mode: MaskMode) -> bool {
    byte == wanted || mode == MaskMode::Display && byte.eq_ignore_ascii_case(&wanted)
}

/// Decodes percent-encoded text.
pub(super) fn decoded(text: &str) -> Vec<u8> {
    let layer = UnescapedText::of(text.as_bytes());
    layer.decoded(MaskMode::Resend).unwrap_or(layer).0.into_iter().map(|unit| unit.byte).collect()
}

/// Percent-encodes bytes for a query.
pub(super) fn percent(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => percent_encode_query(text),
        Err(_) => bytes.iter().map(|byte| format!("%{byte:02X}")).collect(),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The digits that every base64 text (RFC 4648 §4 and §5) of data with `bytes` in it contains: one fragment for each
/// offset in the three bytes that four digits encode, and again where the alphabet for URLs differs.
pub(super) fn base64_fragments(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut fragments = Vec::new();
    for offset in 0..3 {
        let padded: Vec<u8> = std::iter::repeat_n(0, offset).chain(bytes.iter().copied()).collect();
        let bits = |n: usize| {
            let byte = |at: usize| u32::from(padded.get(at).copied().unwrap_or(0));
            let three = byte(n / 4 * 3) << 16 | byte(n / 4 * 3 + 1) << 8 | byte(n / 4 * 3 + 2);
            ALPHABET[(three >> (18 - 6 * (n % 4)) & 63) as usize]
        };
        let digits: Vec<u8> = ((offset * 8).div_ceil(6)..padded.len() * 8 / 6).map(bits).collect();
        let for_urls: Vec<u8> = digits
            .iter()
            .map(|digit| match digit {
                b'+' => b'-',
                b'/' => b'_',
                digit => *digit,
            })
            .collect();
        let differs = for_urls != digits;
        fragments.push(digits);
        if differs {
            fragments.push(for_urls);
        }
    }
    fragments
}

/// Decodes base64 in either alphabet, padded or not.
pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let digit = match digit {
            b'-' => b'+',
            b'_' => b'/',
            digit => digit,
        };
        bits = bits << 6 | u32::try_from(ALPHABET.iter().position(|known| *known == digit)?).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_as_it_is_written() {
        // RFC 4648 §10, without the digits that depend on what follows.
        assert_eq!(base64_fragments(b"foobar").first().map(Vec::as_slice), Some(&b"Zm9vYmFy"[..]));
        assert_eq!(decode_base64("Zm9vYg==").as_deref(), Some(&b"foob"[..]));
        assert_eq!(decode_base64("-_-_"), decode_base64("+/+/"));
        assert_eq!(decode_base64("a b"), None);
    }
}
