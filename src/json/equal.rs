//! Whether two JSON texts have the same value, without a tree of either.
//!
//! White space, escapes and the order of an object's members don't count. Members of the same name all count, in their
//! order: RFC 8259 doesn't say which of them a reader uses. Numbers are equal when they are the same decimal number, to
//! the last digit: `1`, `1.0` and `10e-1` are equal, `0.1` and `0.10000000000000000001` are not. A number whose
//! exponent exceeds 64 bits equals only the same text.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

use super::{JsonError, Scanner, code_points, unescape_strict};

/// Where a text has more bytes, more levels, or more members of open objects (16 bytes each are held), the order of
/// members counts: comparing must not take long.
const BYTES: usize = 8 << 20;
const DEPTH: usize = 1_000;
const MEMBERS: usize = 1 << 18;

/// Whether both have the same value; of texts that are no JSON, whether they are the same text. Texts that don't agree
/// token by token are compared by a hash with a secret key: two that differ count as equal with a chance of 1 in 2⁶⁴,
/// whoever wrote them.
pub fn equal(a: &str, b: &str) -> bool {
    if a == b || equal_in_order(a, b).unwrap_or(false) {
        return true;
    }
    let hasher = JsonHasher::default();
    hasher.hash_json(a).is_some_and(|a| hasher.hash_json(b) == Some(a))
}

/// Token by token, for members in the same order.
fn equal_in_order(a: &str, b: &str) -> Result<bool, JsonError> {
    let (mut a, mut b) = (Scanner::new(a, 0), Scanner::new(b, 0));
    loop {
        match (a.token()?, b.token()?) {
            (None, None) => return Ok(true),
            (Some(a), Some(b)) if a == b || a.same_value(&b) => {}
            _ => return Ok(false),
        }
    }
}

/// A token of a JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonToken<'a> {
    /// A bracket, comma or colon.
    Punctuation(u8),
    /// A string with its quotes.
    Text(&'a str),
    /// A number as written.
    Number(&'a str),
    /// `true`, `false` or `null`.
    Literal(&'a str),
}

impl JsonToken<'_> {
    fn same_value(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => {
                (a.contains('\\') || b.contains('\\')) && code_points(a).eq(code_points(b))
            }
            (Self::Number(a), Self::Number(b)) => match (Decimal::of(a), Decimal::of(b)) {
                (Some(a), Some(b)) => a.key() == b.key() && a.digits().eq(b.digits()),
                _ => false,
            },
            _ => false,
        }
    }
}

/// Hashes the values of JSON texts; only hashes of the same hasher are comparable.
#[derive(Default)]
pub struct JsonHasher(RandomState);

enum OpenContainer {
    List(DefaultHasher),
    Object { from: usize, key: u64 },
}

impl JsonHasher {
    /// The hash; `None` for a text that is no JSON, or exceeds the bounds above.
    pub fn hash_json(&self, text: &str) -> Option<u64> {
        if text.len() > BYTES {
            return None;
        }
        let mut scanner = Scanner::new(text, 0);
        let mut open: Vec<OpenContainer> = Vec::new();
        let mut members: Vec<(u64, u64)> = Vec::new();
        loop {
            let mut value = match scanner.peek()? {
                b'{' if open.len() < DEPTH => {
                    scanner.expect(b'{').ok()?;
                    let from = members.len();
                    if let Some(key) = scanner.key(true).ok()? {
                        open.push(OpenContainer::Object { from, key: self.text(key) });
                        continue;
                    }
                    self.object(&mut members, from)
                }
                b'[' if open.len() < DEPTH => {
                    scanner.expect(b'[').ok()?;
                    let list = self.hasher(b'[');
                    if scanner.element(true).ok()? {
                        open.push(OpenContainer::List(list));
                        continue;
                    }
                    list.finish()
                }
                b'{' | b'[' => return None,
                _ => self.scalar(scanner.value().ok()?.text),
            };
            loop {
                value = match open.last_mut() {
                    None => return scanner.end().ok().map(|()| value),
                    Some(OpenContainer::List(list)) => {
                        list.write_u64(value);
                        if scanner.element(false).ok()? {
                            break;
                        }
                        list.finish()
                    }
                    Some(OpenContainer::Object { from, key }) => {
                        if members.len() >= MEMBERS {
                            return None;
                        }
                        members.push((*key, value));
                        if let Some(next) = scanner.key(false).ok()? {
                            *key = self.text(next);
                            break;
                        }
                        let from = *from;
                        self.object(&mut members, from)
                    }
                };
                open.pop();
            }
        }
    }

    fn object(&self, members: &mut Vec<(u64, u64)>, from: usize) -> u64 {
        let mut hasher = self.hasher(b'{');
        let own = members.get_mut(from..).unwrap_or_default();
        own.sort_by_key(|(key, _)| *key);
        own.hash(&mut hasher);
        members.truncate(from);
        hasher.finish()
    }

    fn scalar(&self, raw: &str) -> u64 {
        match (raw.as_bytes().first(), Decimal::of(raw)) {
            (Some(b'"'), _) => self.text(raw),
            (_, Some(decimal)) => {
                let mut hasher = self.hasher(b'0');
                decimal.key().hash(&mut hasher);
                decimal.digits().for_each(|digit| hasher.write_u8(digit));
                hasher.finish()
            }
            _ => {
                let mut hasher = self.hasher(b'w');
                raw.hash(&mut hasher);
                hasher.finish()
            }
        }
    }

    fn text(&self, raw: &str) -> u64 {
        let mut hasher = self.hasher(b'"');
        match unescape_strict(raw) {
            Some(text) => text.hash(&mut hasher),
            None => code_points(raw).for_each(|code| hasher.write_u32(code)),
        }
        hasher.finish()
    }

    fn hasher(&self, tag: u8) -> DefaultHasher {
        let mut hasher = self.0.build_hasher();
        hasher.write_u8(tag);
        hasher
    }
}

/// A number as 0.d₁d₂d₃… × 10^point, with neither leading nor trailing zeros among the digits.
struct Decimal<'a> {
    negative: bool,
    point: i64,
    whole: &'a [u8],
    fraction: &'a [u8],
    leading: usize,
    digits: usize,
}

impl<'a> Decimal<'a> {
    /// Parses a JSON number; `None` for anything else, and where the exponent exceeds 64 bits.
    fn of(raw: &'a str) -> Option<Self> {
        let (negative, rest) = raw.strip_prefix('-').map_or((false, raw), |rest| (true, rest));
        if !rest.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let (whole, fraction) = (whole.as_bytes(), fraction.as_bytes());
        let zeros = |digits: &mut dyn Iterator<Item = &u8>| digits.take_while(|digit| **digit == b'0').count();
        let leading = zeros(&mut whole.iter().chain(fraction));
        let all = whole.len() + fraction.len();
        if leading == all {
            return Some(Self { negative: false, point: 0, whole, fraction, leading, digits: 0 });
        }
        let digits = all - leading - zeros(&mut fraction.iter().rev().chain(whole.iter().rev()));
        let exponent: i64 = exponent.parse().ok()?;
        let point = exponent.checked_add(whole.len() as i64)?.checked_sub(leading as i64)?;
        Some(Self { negative, point, whole, fraction, leading, digits })
    }

    fn key(&self) -> (bool, i64, usize) {
        (self.negative, self.point, self.digits)
    }

    fn digits(&self) -> impl Iterator<Item = u8> + 'a {
        self.whole.iter().chain(self.fraction).skip(self.leading).take(self.digits).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn texts_of_the_same_value_are_equal() {
        for (a, b) in [
            ("{\"a\":[1,2],\"b\":{}}", " { \"b\" : { } ,\n\"a\" : [ 1 , 2 ] } "),
            (r#"{"\u0061":"\ud83d\ude00\/"}"#, r#"{"a":"😀/"}"#),
            (r#"{"x":1e999,"\ud800":"\udfff"}"#, r#"{ "\uD800": "\uDFFF", "x": 10E998 }"#),
            ("[100,-0,0.10,1e2]", "[1e2,0.0,1E-1,100.0]"),
            ("1e99999999999999999999", " 1e99999999999999999999"),
            (r#"{"a":1,"b":0,"a":2}"#, r#"{"b":0,"a":1,"a":2}"#),
        ] {
            assert!(equal(a, b) && equal(b, a), "{a} {b}");
        }
        let digits = "7".repeat(400);
        assert!(equal(&format!("[{digits}]"), &format!("[ {digits}.0 ]")));
    }

    #[test]
    fn texts_of_other_values_are_not() {
        for (a, b) in [
            ("[1,2]", "[2,1]"),
            ("[1]", "[[1]]"),
            ("[]", "{}"),
            ("1", "\"1\""),
            ("1", "-1"),
            ("0.1", "0.10000000000000000001"),
            ("1e999", "1e1000"),
            ("1e99999999999999999999", "1e99999999999999999998"),
            ("\"\\ud800\"", "\"\u{fffd}\""),
            ("null", "false"),
            (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a":{"b":1},"c":2}"#, r#"{"a":{"b":1,"c":2}}"#),
            ("x", "y"),
        ] {
            assert!(!equal(a, b) && !equal(b, a), "{a} {b}");
        }
        assert!(equal("x", "x"), "what is no JSON equals itself");
    }

    #[test]
    fn members_in_another_order_cost_no_more_than_reading_them() {
        // Each level in another order: reading each level anew would be a thousand times as much.
        let nest =
            |open: &str, close: &str| format!("{}\"{}\"{}", open.repeat(900), "x".repeat(1 << 20), close.repeat(900));
        let (a, b) = (nest("{\"a\":", ",\"b\":1}"), nest("{\"b\":1,\"a\":", "}"));
        assert!(equal(&a, &b));
        assert!(!equal(&a, &b.replacen("\"b\":1", "\"b\":2", 1)));
    }

    #[test]
    fn white_space_is_ignored_even_where_the_order_of_members_counts() {
        let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(equal(&deep, &deep.replace('[', "[ ")));
    }

    /// Numbers are integers: two texts of a fraction may be the same double and yet not the same number.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i8>().prop_map(Value::from),
            "[ab\"\\\\é]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("[abc]", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// The value as another program would write it: members in reverse, escapes, white space.
    fn rewritten(value: &Value) -> String {
        match value {
            Value::String(text) => {
                let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
                format!("\"{}\"", units.collect::<String>())
            }
            Value::Number(number) => format!("{number}.0e0"),
            Value::Array(values) => {
                format!("[ {} ]", values.iter().map(rewritten).collect::<Vec<_>>().join(" ,\n"))
            }
            Value::Object(members) => {
                let members = members
                    .iter()
                    .rev()
                    .map(|(key, value)| format!("{} : {}", rewritten(&Value::from(key.as_str())), rewritten(value)));
                format!("{{ {} }}", members.collect::<Vec<_>>().join("\t,"))
            }
            other => other.to_string(),
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_trees(a in any_json(), b in any_json()) {
            prop_assert_eq!(equal(&a.to_string(), &b.to_string()), a == b);
            prop_assert_eq!(equal(&a.to_string(), &rewritten(&b)), a == b);
            prop_assert!(equal(&a.to_string(), &rewritten(&a)));
            let hasher = JsonHasher::default();
            prop_assert_eq!(hasher.hash_json(&a.to_string()), hasher.hash_json(&rewritten(&a)));
        }
    }
}
