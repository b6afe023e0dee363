//! Finds the parts of a JSON text without a tree. A text that is no JSON has none.

use super::Scanner;

/// The raw value of an object's member, the last of several with this name.
pub fn member<'a>(raw: &'a str, name: &str) -> Option<&'a str> {
    let mut scanner = Scanner::new(raw, 0);
    scanner.expect(b'{').ok()?;
    let (mut first, mut found) = (true, None);
    while let Ok(Some(key)) = scanner.key(first) {
        first = false;
        let value = scanner.value().ok()?.text;
        if super::unescape_strict(key).is_some_and(|key| key == name) {
            found = Some(value);
        }
    }
    found
}

/// The raw elements of a list; of any other value, the value itself.
pub fn elements(raw: &str) -> impl Iterator<Item = &str> {
    let mut scanner = Scanner::new(raw, 0);
    let list = scanner.consume(b'[');
    let mut first = true;
    std::iter::from_fn(move || {
        let more = if list { scanner.element(first).ok()? } else { first };
        first = false;
        if more { scanner.value().ok().map(|raw| raw.text) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_whatever_surrounds_them() {
        let raw = r#"{"a":1e999,"\ud800":[{"b":0}],"b":"x","\u0062":[1, {"c":"\udead"} ,[]]}"#;
        assert_eq!(member(raw, "a"), Some("1e999"));
        assert_eq!(member(raw, "c"), None);
        let found: Vec<_> = member(raw, "b").map(|list| elements(list).collect()).unwrap_or_default();
        assert_eq!(found, ["1", r#"{"c":"\udead"}"#, "[]"]);
        assert_eq!(elements(" 1 ").collect::<Vec<_>>(), ["1"]);
        assert_eq!((member("[1]", "a"), elements("[").count(), elements("").count()), (None, 0, 0));
    }
}
