//! Unescapes JSON strings. A lone surrogate is half a character: [`code_points`] keeps it, and the caller that needs
//! text chooses between [`unescape_strict`] and [`unescape_lossy`].

use std::borrow::Cow;

/// The code points of a string with its quotes, which is valid by the grammar; lone surrogates are among them.
pub fn code_points(raw: &str) -> impl Iterator<Item = u32> + '_ {
    let mut rest = inner(raw).chars();
    let mut pending = None;
    std::iter::from_fn(move || {
        let unit = match pending.take() {
            Some(unit) => unit,
            None => unit(&mut rest)?,
        };
        if !matches!(unit, StringUnit::Escaped(0xd800..=0xdbff)) {
            return Some(unit.code());
        }
        pending = self::unit(&mut rest);
        match pending {
            Some(StringUnit::Escaped(low @ 0xdc00..=0xdfff)) => {
                pending = None;
                Some(0x10000 + ((unit.code() & 0x3ff) << 10) + (low & 0x3ff))
            }
            _ => Some(unit.code()),
        }
    })
}

/// The text of a string; `None` for anything but a string, and for one with lone surrogates.
pub fn unescape_strict(raw: &str) -> Option<Cow<'_, str>> {
    plain(raw)?.map_or_else(|| code_points(raw).map(char::from_u32).collect::<Option<String>>().map(Cow::Owned), some)
}

/// The text of a string, U+FFFD in place of lone surrogates; `None` for anything but a string.
pub fn unescape_lossy(raw: &str) -> Option<Cow<'_, str>> {
    let replaced = |code| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    plain(raw)?.map_or_else(|| Some(Cow::Owned(code_points(raw).map(replaced).collect())), some)
}

/// Of a string: its text, where it has no escapes.
#[expect(clippy::option_option, reason = "no string, and a string with escapes")]
fn plain(raw: &str) -> Option<Option<&str>> {
    raw.starts_with('"').then(|| Some(inner(raw)).filter(|inner| !inner.contains('\\')))
}

fn some(text: &str) -> Option<Cow<'_, str>> {
    Some(Cow::Borrowed(text))
}

fn inner(raw: &str) -> &str {
    raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')).unwrap_or_default()
}

#[derive(Clone, Copy)]
enum StringUnit {
    Plain(u32),
    Escaped(u32),
}

impl StringUnit {
    fn code(self) -> u32 {
        match self {
            Self::Plain(code) | Self::Escaped(code) => code,
        }
    }
}

fn unit(rest: &mut std::str::Chars<'_>) -> Option<StringUnit> {
    let plain = |c: char| Some(StringUnit::Plain(u32::from(c)));
    match rest.next()? {
        '\\' => match rest.next()? {
            'b' => plain('\u{8}'),
            'f' => plain('\u{c}'),
            'n' => plain('\n'),
            'r' => plain('\r'),
            't' => plain('\t'),
            'u' => {
                let hex = rest.by_ref().take(4).filter_map(|c| c.to_digit(16));
                Some(StringUnit::Escaped(hex.fold(0, |code, digit| code << 4 | digit)))
            }
            other => plain(other),
        },
        other => plain(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_replaced_and_lone_surrogates_are_not_hidden() {
        assert_eq!(unescape_strict(r#""a\/\"\\\n\u0041\ud83d\ude00é""#).as_deref(), Some("a/\"\\\nA😀é"));
        assert_eq!(unescape_strict(r#""\ud83d\ud83d\ude00""#), None);
        assert_eq!(unescape_lossy(r#""\ud83d\ud83d\ude00\ude00x""#).as_deref(), Some("\u{fffd}😀\u{fffd}x"));
        assert_eq!(unescape_lossy(r#""\ud83dx""#).as_deref(), Some("\u{fffd}x"));
        assert_eq!((unescape_strict("1"), unescape_lossy("null")), (None, None));
        assert_eq!(unescape_strict("\"\"").as_deref(), Some(""));
    }
}
