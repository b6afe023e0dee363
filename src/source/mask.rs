//! Finding a secret in what a publisher sends back: publishers percent-encode what they echo by rules of their own, so it
//! is found however it is written.

/// `text` with `shown` wherever `secret`, itself percent-encoded, stands: raw, or encoded in whatever way.
pub(super) fn without(text: &str, secret: &str, shown: &str) -> String {
    let secret = decoded(secret);
    let (mut out, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        match spelt(rest.as_bytes(), &secret).filter(|length| *length > 0 && rest.is_char_boundary(*length)) {
            Some(length) => {
                out.push_str(shown);
                rest = &rest[length..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

pub(super) fn decoded(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((byte, length)) = first_byte(rest) {
        bytes.push(byte);
        rest = &rest[length..];
    }
    bytes
}

/// The byte that percent-encoded text begins with, and how many bytes write it (RFC 3986 §2.1).
fn first_byte(text: &[u8]) -> Option<(u8, usize)> {
    let digit = |at: usize| text.get(at).and_then(|digit| char::from(*digit).to_digit(16));
    match (text.first()?, digit(1), digit(2)) {
        (b'%', Some(high), Some(low)) => Some((u8::try_from(high * 16 + low).ok()?, 3)),
        (byte, ..) => Some((*byte, 1)),
    }
}

/// How many bytes of `text` spell `secret`, if it begins with it.
fn spelt(text: &[u8], secret: &[u8]) -> Option<usize> {
    if text.starts_with(secret) {
        return Some(secret.len());
    }
    let mut at = 0;
    for wanted in secret {
        at += match (first_byte(text.get(at..)?)?, text[at]) {
            ((byte, length), _) if byte == *wanted => length,
            (_, byte) if byte == *wanted || (byte, *wanted) == (b'+', b' ') => 1,
            _ => return None,
        };
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_holds_percent_signs_is_found_raw_too() {
        assert_eq!(without("k=%2541%&x", "%252541%25", "{k}"), "k={k}&x");
    }

    #[test]
    fn a_secret_is_found_in_every_spelling() {
        // The secret `a b/%é`, as it is sent.
        let sent = "a%20b%2F%25%C3%A9";
        for text in ["a b/%é", "a%20b%2F%25%C3%A9", "a+b%2f%25%c3%a9", "a%20b/%25é", "%61%20%62%2F%25%C3%A9"] {
            let masked = without(&format!("?from=1&key={text}&z=é%4"), sent, "{key}");
            assert_eq!(masked, "?from=1&key={key}&z=é%4", "{text}");
        }
        for text in ["", "a b/", "a%20b%2F%2", "é%", "A%20B%2F%25%C3%A9"] {
            assert_eq!(without(text, sent, "{key}"), text);
        }
    }
}
