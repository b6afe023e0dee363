//! Scans JSON by the grammar of RFC 8259 and nothing more: where a value ends, how deep it nests, the text of a string.
//!
//! Everything that the grammar allows is read: numbers of any size, lone surrogates, any depth. No tree is built, no
//! function is recursive, and memory grows by a bit for each open level. All code that reads publishers' JSON uses
//! this.

mod equal;
mod grammar;
mod lookup;
mod unescape;

pub use equal::{JsonHasher, JsonToken, equal};
pub use lookup::{elements, member};
pub use unescape::{code_points, unescape_lossy, unescape_strict};

/// Why a text is no JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The text ends too early.
    #[error("it is cut short at byte {0}")]
    CutShort(usize),
    /// A byte that the grammar doesn't allow there.
    #[error("nothing allowed stands at byte {0}")]
    Unexpected(usize),
}

/// A value as raw text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawJson<'a> {
    /// From the value's first to its last byte.
    pub text: &'a str,
    /// Levels of lists and objects: 0 for a number.
    pub depth: usize,
}

/// Reads a text from a position that moves forward.
#[derive(Debug, Clone)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// A scanner of `text` from its byte `at`.
    pub fn new(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    /// The offset in the text, bytes.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The text from here to the position of `end`, a scanner of the same text.
    pub fn until(&self, end: &Self) -> &'a str {
        self.text.get(self.at..end.at).unwrap_or_default()
    }

    /// The next byte that is not white space.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        self.at = grammar::blank(self.text.as_bytes(), self.at);
        self.text.as_bytes().get(self.at).copied()
    }

    /// Consumes `byte` if it comes next; whether it did.
    #[inline]
    pub fn consume(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Consumes `byte`, which must come next.
    ///
    /// # Errors
    /// When another byte or the end comes next.
    #[inline]
    pub fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.consume(byte) { Ok(()) } else { Err(self.error(self.at)) }
    }

    /// Checks that nothing but white space follows.
    ///
    /// # Errors
    /// When anything else follows.
    pub fn end(&mut self) -> Result<(), JsonError> {
        self.peek().map_or(Ok(()), |_| Err(self.error(self.at)))
    }

    /// The next key of an object whose `{` (for the `first`) or last value was consumed, with its quotes; its value
    /// follows. `None` after the `}`.
    ///
    /// # Errors
    /// When neither a key nor `}` comes next.
    #[inline]
    pub fn key(&mut self, first: bool) -> Result<Option<&'a str>, JsonError> {
        if self.consume(b'}') {
            return Ok(None);
        }
        if !first {
            self.expect(b',')?;
        }
        if self.peek() != Some(b'"') {
            return Err(self.error(self.at));
        }
        let key = self.scalar()?;
        self.expect(b':')?;
        Ok(Some(key))
    }

    /// Whether another element of a list follows, whose `[` (for the `first`) or last element was consumed; `false`
    /// after the `]`.
    ///
    /// # Errors
    /// When neither a comma nor `]` comes next.
    #[inline]
    pub fn element(&mut self, first: bool) -> Result<bool, JsonError> {
        if self.consume(b']') {
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
    /// When no value comes next.
    pub fn value(&mut self) -> Result<RawJson<'a>, JsonError> {
        if !matches!(self.peek(), Some(b'{' | b'[')) {
            return self.scalar().map(|text| RawJson { text, depth: 0 });
        }
        let nested = grammar::nested(self.text.as_bytes(), self.at);
        let (end, depth) = nested.map_err(|at| self.error(at))?;
        let text = &self.text[self.at..end];
        self.at = end;
        Ok(RawJson { text, depth })
    }

    /// The next token, whatever came before it; `None` at the end.
    ///
    /// # Errors
    /// When no token comes next.
    pub fn token(&mut self) -> Result<Option<JsonToken<'a>>, JsonError> {
        let Some(first) = self.peek() else { return Ok(None) };
        if b"{}[],:".contains(&first) {
            self.at += 1;
            return Ok(Some(JsonToken::Punctuation(first)));
        }
        let text = self.scalar()?;
        Ok(Some(match first {
            b'"' => JsonToken::Text(text),
            b't' | b'f' | b'n' => JsonToken::Literal(text),
            _ => JsonToken::Number(text),
        }))
    }

    #[inline]
    fn scalar(&mut self) -> Result<&'a str, JsonError> {
        let end = grammar::scalar(self.text.as_bytes(), self.at).map_err(|at| self.error(at))?;
        let text = &self.text[self.at..end];
        self.at = end;
        Ok(text)
    }

    #[cold]
    fn error(&self, at: usize) -> JsonError {
        if at < self.text.len() { JsonError::Unexpected(at) } else { JsonError::CutShort(at) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    fn depth(text: &str) -> Result<usize, JsonError> {
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
    fn what_it_does_not_allow_is_reported_with_its_offset() {
        for (text, problem) in [
            ("", JsonError::CutShort(0)),
            ("[1,", JsonError::CutShort(3)),
            ("[1}", JsonError::Unexpected(2)),
            ("{\"a\":1,}", JsonError::Unexpected(7)),
            ("01", JsonError::Unexpected(1)),
            ("1.", JsonError::CutShort(2)),
            ("\"a\nb\"", JsonError::Unexpected(2)),
            (r#""\x""#, JsonError::Unexpected(2)),
            (r#""\u12g4""#, JsonError::Unexpected(5)),
            ("nul", JsonError::CutShort(3)),
            ("'a'", JsonError::Unexpected(0)),
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
