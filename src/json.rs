//! JSON by the grammar of RFC 8259 and nothing more: where a value ends, how deep it nests, what a text says.
//!
//! Whatever the grammar allows is read: numbers of any size, lone surrogates, any depth. Nothing is built from a value, no
//! function calls itself, and memory grows by a bit for each level that is open. All who look into strangers' JSON use it.

mod text;

pub use text::{chars, lossy, strict};

/// Why a text is no JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It ends too early.
    #[error("it is cut short at byte {0}")]
    CutShort(usize),
    /// A byte where the grammar has none like it.
    #[error("nothing allowed stands at byte {0}")]
    Unexpected(usize),
}

/// A value as it stands in its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw<'a> {
    /// From its first to its last byte.
    pub text: &'a str,
    /// Levels of lists and objects: none for a number.
    pub depth: usize,
}

/// A place in a text, moved by reading.
#[derive(Debug, Clone)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Reads `text` from its byte `at`.
    pub fn new(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    /// Where it stands.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The text from here to where `end`, a scanner of the same text, stands.
    pub fn until(&self, end: &Self) -> &'a str {
        self.text.get(self.at..end.at).unwrap_or_default()
    }

    /// The next byte that is no white space.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Passes `byte` where it comes next.
    #[inline]
    pub fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Passes `byte`, which must come next.
    ///
    /// # Errors
    /// When something else does.
    #[inline]
    pub fn expect(&mut self, byte: u8) -> Result<(), Problem> {
        if self.take(byte) { Ok(()) } else { Err(self.problem()) }
    }

    /// Nothing but white space may follow.
    ///
    /// # Errors
    /// When something else does.
    pub fn end(&mut self) -> Result<(), Problem> {
        self.peek().map_or(Ok(()), |_| Err(self.problem()))
    }

    /// The next key of an object whose `{` (for the `first`) or last value was passed, with its quotes; what follows is its
    /// value. `None` behind the `}`.
    ///
    /// # Errors
    /// When neither comes next.
    #[inline]
    pub fn key(&mut self, first: bool) -> Result<Option<&'a str>, Problem> {
        if self.take(b'}') {
            return Ok(None);
        }
        if !first {
            self.expect(b',')?;
        }
        self.own_key().map(Some)
    }

    /// Whether another element of a list comes, whose `[` (for the `first`) or last element was passed; `false` behind
    /// the `]`.
    ///
    /// # Errors
    /// When neither comes next.
    #[inline]
    pub fn element(&mut self, first: bool) -> Result<bool, Problem> {
        if self.take(b']') {
            return Ok(false);
        }
        if !first {
            self.expect(b',')?;
        }
        Ok(true)
    }

    /// The next value, whole.
    ///
    /// # Errors
    /// When none comes next.
    pub fn value(&mut self) -> Result<Raw<'a>, Problem> {
        let first = self.peek();
        let start = self.at;
        let mut levels = Levels::default();
        match first {
            Some(b'{' | b'[') => self.nested(&mut levels)?,
            _ => self.scalar()?,
        }
        Ok(Raw { text: &self.text[start..self.at], depth: levels.deepest })
    }

    fn nested(&mut self, levels: &mut Levels) -> Result<(), Problem> {
        loop {
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    levels.open(true);
                    if !self.take(b'}') {
                        self.own_key()?;
                        continue;
                    }
                    levels.close();
                }
                Some(b'[') => {
                    self.at += 1;
                    levels.open(false);
                    if !self.take(b']') {
                        continue;
                    }
                    levels.close();
                }
                _ => self.scalar()?,
            }
            loop {
                if levels.depth == 0 {
                    return Ok(());
                }
                let object = levels.in_object();
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.own_key()?;
                        }
                        break;
                    }
                    Some(b'}') if object => levels.close(),
                    Some(b']') if !object => levels.close(),
                    _ => return Err(self.problem()),
                }
                self.at += 1;
            }
        }
    }

    fn own_key(&mut self) -> Result<&'a str, Problem> {
        let quote = self.peek();
        let start = self.at;
        if quote != Some(b'"') {
            return Err(self.problem());
        }
        self.string()?;
        let key = &self.text[start..self.at];
        self.expect(b':')?;
        Ok(key)
    }

    #[inline]
    fn scalar(&mut self) -> Result<(), Problem> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            _ => Err(self.problem()),
        }
    }

    fn word(&mut self, word: &str) -> Result<(), Problem> {
        for byte in word.bytes() {
            self.pass(|next| next == byte)?;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Problem> {
        self.at += usize::from(self.byte() == Some(b'-'));
        if self.byte() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.byte(), Some(b'+' | b'-')));
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Problem> {
        self.pass(|byte| byte.is_ascii_digit())?;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }

    fn string(&mut self) -> Result<(), Problem> {
        self.at += 1;
        loop {
            self.at = plain(self.text.as_bytes(), self.at);
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    let unicode = self.byte() == Some(b'u');
                    self.pass(|byte| b"\"\\/bfnrtu".contains(&byte))?;
                    if unicode {
                        for _ in 0..4 {
                            self.pass(|byte| byte.is_ascii_hexdigit())?;
                        }
                    }
                }
                _ => return Err(self.problem()),
            }
        }
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn pass(&mut self, is_right: impl Fn(u8) -> bool) -> Result<(), Problem> {
        match self.byte() {
            Some(byte) if is_right(byte) => {
                self.at += 1;
                Ok(())
            }
            _ => Err(self.problem()),
        }
    }

    fn problem(&self) -> Problem {
        if self.at < self.text.len() { Problem::Unexpected(self.at) } else { Problem::CutShort(self.at) }
    }
}

/// Which of the open levels are objects: a bit each.
#[derive(Default)]
struct Levels {
    depth: usize,
    deepest: usize,
    open: u64,
    outer: Vec<u64>,
}

impl Levels {
    fn open(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.open);
        }
        self.open = self.open << 1 | u64::from(object);
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
    }

    fn close(&mut self) {
        self.open >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.open = self.outer.pop().unwrap_or_default();
        }
    }

    fn in_object(&self) -> bool {
        self.open & 1 == 1
    }
}

/// Behind the bytes of a text that are neither quote, backslash nor control character: eight at a time.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    fn depth(text: &str) -> Result<usize, Problem> {
        let mut scanner = Scanner::new(text, 0);
        let raw = scanner.value()?;
        scanner.end().map(|()| raw.depth)
    }

    #[test]
    fn what_the_grammar_allows_is_read() {
        for (text, levels) in [
            ("1e999", 0),
            ("-0.0E+00", 0),
            (r#""\ud800 \u0000\/""#, 0),
            (" \t\r\n{ } ", 1),
            ("[[],[[{}]],1]", 4),
            (r#"{"\udfff":[1,{"a":null}],"":true}"#, 3),
        ] {
            assert_eq!(depth(text), Ok(levels), "{text}");
        }
        assert_eq!(depth(&"9".repeat(400)), Ok(0));
        let deep = format!("{}1{}", r#"{"a":["#.repeat(100_000), "]}".repeat(100_000));
        assert_eq!(depth(&deep), Ok(200_000));
    }

    #[test]
    fn what_it_does_not_allow_is_named_by_its_place() {
        for (text, problem) in [
            ("", Problem::CutShort(0)),
            ("[1,", Problem::CutShort(3)),
            ("[1}", Problem::Unexpected(2)),
            ("{\"a\":1,}", Problem::Unexpected(7)),
            ("01", Problem::Unexpected(1)),
            ("1.", Problem::CutShort(2)),
            ("\"a\nb\"", Problem::Unexpected(2)),
            (r#""\x""#, Problem::Unexpected(2)),
            (r#""\u12g4""#, Problem::Unexpected(5)),
            ("nul", Problem::CutShort(3)),
            ("'a'", Problem::Unexpected(0)),
        ] {
            assert_eq!(depth(text), Err(problem), "{text}");
        }
    }

    proptest! {
        #[test]
        fn another_reader_of_the_grammar_agrees(text in r#"([\[\]{},:"\\u0-9a1e.+\- \n]|true|null|"a":|\[\]|\{\}|"é"){0,14}"#) {
            let other = serde_json::from_str::<&RawValue>(&text);
            prop_assert_eq!(depth(&text).is_ok(), other.is_ok(), "{} {:?}", text, other);
        }
    }
}
