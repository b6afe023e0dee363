//! The grammar of RFC 8259, byte by byte: each function gets the offset at which a token or value begins, and returns
//! the offset after it, or the offset of the first byte that is not allowed. Knows no values.

type ScanResult = Result<usize, usize>;

/// The offset after white space.
#[inline]
pub(super) fn blank(bytes: &[u8], mut at: usize) -> usize {
    while let Some(byte) = bytes.get(at) {
        if *byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
            break;
        }
        at += 1;
    }
    at
}

/// The offset after a list or an object, and how many levels deep it nests.
pub(super) fn nested(bytes: &[u8], mut at: usize) -> Result<(usize, usize), usize> {
    let mut levels = NestingStack::default();
    loop {
        at = match bytes.get(at) {
            Some(open @ (b'{' | b'[')) => {
                let object = *open == b'{';
                levels.open(object);
                at = blank(bytes, at + 1);
                if bytes.get(at) == Some(if object { &b'}' } else { &b']' }) {
                    levels.close();
                    at + 1
                } else {
                    at = if object { key(bytes, at)? } else { at };
                    continue;
                }
            }
            _ => scalar(bytes, at)?,
        };
        loop {
            if levels.depth == 0 {
                return Ok((at, levels.deepest));
            }
            at = blank(bytes, at);
            match (bytes.get(at), levels.in_object()) {
                (Some(b','), true) => at = key(bytes, blank(bytes, at + 1))?,
                (Some(b','), false) => at = blank(bytes, at + 1),
                (Some(b'}'), true) | (Some(b']'), false) => {
                    levels.close();
                    at += 1;
                    continue;
                }
                _ => return Err(at),
            }
            break;
        }
    }
}

/// The offset after a key, its colon and white space.
#[inline]
fn key(bytes: &[u8], at: usize) -> ScanResult {
    if bytes.get(at) != Some(&b'"') {
        return Err(at);
    }
    let at = blank(bytes, string(bytes, at)?);
    if bytes.get(at) == Some(&b':') { Ok(blank(bytes, at + 1)) } else { Err(at) }
}

/// The offset after a string, number or literal.
#[inline]
pub(super) fn scalar(bytes: &[u8], at: usize) -> ScanResult {
    match bytes.get(at) {
        Some(b'"') => string(bytes, at),
        Some(b'-' | b'0'..=b'9') => number(bytes, at),
        Some(b't') => literal(bytes, at, b"true"),
        Some(b'f') => literal(bytes, at, b"false"),
        Some(b'n') => literal(bytes, at, b"null"),
        _ => Err(at),
    }
}

fn literal(bytes: &[u8], at: usize, expected: &[u8]) -> ScanResult {
    let matched = bytes.iter().skip(at).zip(expected).take_while(|(byte, wanted)| byte == wanted).count();
    if matched == expected.len() { Ok(at + matched) } else { Err(at + matched) }
}

fn number(bytes: &[u8], mut at: usize) -> ScanResult {
    at += usize::from(bytes.get(at) == Some(&b'-'));
    at = if bytes.get(at) == Some(&b'0') { at + 1 } else { digits(bytes, at)? };
    if bytes.get(at) == Some(&b'.') {
        at = digits(bytes, at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        at = digits(bytes, at)?;
    }
    Ok(at)
}

#[inline]
fn digits(bytes: &[u8], from: usize) -> ScanResult {
    let mut at = from;
    while bytes.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    if at > from { Ok(at) } else { Err(at) }
}

#[inline]
fn string(bytes: &[u8], at: usize) -> ScanResult {
    let at = plain(bytes, at + 1);
    if bytes.get(at) == Some(&b'"') { Ok(at + 1) } else { escapes(bytes, at) }
}

/// The rest of a string, from its first backslash.
fn escapes(bytes: &[u8], mut at: usize) -> ScanResult {
    loop {
        match bytes.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => at += 1,
            _ => return Err(at),
        }
        match bytes.get(at) {
            Some(b'u') => {
                let hex = bytes.iter().skip(at + 1).take(4).take_while(|byte| byte.is_ascii_hexdigit()).count();
                at += 1 + hex;
                if hex < 4 {
                    return Err(at);
                }
            }
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 1,
            _ => return Err(at),
        }
        at = plain(bytes, at);
    }
}

/// The offset after the bytes of a string that are neither quote, backslash nor control character: eight at a time.
#[inline]
fn plain(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let quote = word ^ (ONES * u64::from(b'"'));
        let backslash = word ^ (ONES * u64::from(b'\\'));
        let special = (control | quote.wrapping_sub(ONES) & !quote | backslash.wrapping_sub(ONES) & !backslash) & HIGH;
        if special != 0 {
            return at + special.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while bytes.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)) {
        at += 1;
    }
    at
}

/// Which of the open levels are objects: a bit each.
#[derive(Default)]
struct NestingStack {
    depth: usize,
    deepest: usize,
    open: u64,
    outer: Vec<u64>,
}

impl NestingStack {
    #[inline]
    fn open(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.open);
        }
        self.open = self.open << 1 | u64::from(object);
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
    }

    #[inline]
    fn close(&mut self) {
        self.open >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.open = self.outer.pop().unwrap_or_default();
        }
    }

    #[inline]
    fn in_object(&self) -> bool {
        self.open & 1 == 1
    }
}
