//! Decodes bytes to text, with the encoding guessed as browsers do, and cleans publishers' text to be shown and stored.
//! Knows no markup.

use std::borrow::Cow;

use crate::terminal::is_hidden;

/// Longer texts of publishers, which are names and titles, are truncated; characters.
const LONGEST: usize = 300;

/// UTF-16 where a byte order mark says so, else UTF-8, else Windows-1252, which includes ISO 8859-1: the encoding that
/// a page's header or `<meta>` declares is wrong about as often as it is missing, and valid UTF-8 is hardly ever
/// anything else.
pub(super) fn decode(bytes: &[u8]) -> Cow<'_, str> {
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes).into(),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes).into(),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => bytes.iter().map(|byte| windows_1252(*byte)).collect::<String>().into(),
        },
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let (pairs, _) = bytes.as_chunks::<2>();
    let units = pairs.iter().map(|pair| unit(*pair));
    char::decode_utf16(units).map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// WHATWG Encoding, index windows-1252: 0x80 to 0x9f differ from ISO 8859-1.
fn windows_1252(byte: u8) -> char {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘',
        '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9f => HIGH[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

/// The text on one line, without characters that control a terminal, reverse text or are invisible, and truncated; none
/// when empty.
pub(super) fn clean(text: &str) -> Option<String> {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let kept: String = words.chars().filter(|character| !is_hidden(*character)).take(LONGEST).collect();
    let kept = kept.trim();
    (!kept.is_empty()).then(|| kept.to_owned())
}

/// Replaces character references that templates leave in scripts, where HTML has none: the named ones that escape, and
/// numeric ones.
pub(super) fn without_references(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        // The longest is `&#x10ffff;`.
        let end = rest.bytes().take(10).position(|byte| byte == b';');
        match end.and_then(|end| Some((referenced_character(&rest[1..end])?, end))) {
            Some((character, end)) => {
                out.push(character);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out.into()
}

fn referenced_character(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "nbsp" => Some(' '),
        _ => {
            let digits = name.strip_prefix('#')?;
            let number = match digits.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => digits.parse().ok()?,
            };
            char::from_u32(number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_in_the_encodings_that_are_sent() {
        for (bytes, text) in [
            (&b"\xef\xbb\xbf{}"[..], "{}"),
            (b"\xff\xfe{\0}\0", "{}"),
            (b"\xfe\xff\0{\0}", "{}"),
            ("Café – £5".as_bytes(), "Café – £5"),
            (b"Caf\xe9 \x96 \xa35", "Café – £5"),
            (b"\xff\xfe{", ""),
            (b"", ""),
        ] {
            assert_eq!(decode(bytes), text, "{bytes:?}");
        }
    }

    #[test]
    fn a_publisher_s_text_is_one_line_without_control_characters() {
        assert_eq!(clean(" a\n\t b\u{1b}[2J\u{202e}c ").as_deref(), Some("a b[2Jc"));
        assert_eq!(clean(" \u{200b} "), None);
        assert_eq!(clean(&"é".repeat(1000)).map(|text| text.chars().count()), Some(LONGEST));
    }

    #[test]
    fn references_are_replaced_and_other_ampersands_stay() {
        for (text, read) in [
            ("a&amp;b&quot;c&#39;d&#x2F;e", "a&b\"c'd/e"),
            ("a & b &c; &; &#xfffffff; &#", "a & b &c; &; &#xfffffff; &#"),
            ("é&é;&amp", "é&é;&amp"),
        ] {
            assert_eq!(without_references(text), read);
        }
    }
}
