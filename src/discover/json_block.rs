//! Parses the JSON of web pages, with the wrappers and defects that templates leave. Text that is no JSON even without
//! them is refused with the parser's message about the text as sent.

use std::borrow::Cow;

use serde_json::Value;

use super::text::without_references;

/// Wrappers that templates put around a block, for obsolete browsers; some arrive escaped.
const WRAPPERS: [&str; 20] = [
    "<![CDATA[",
    "&lt;![CDATA[",
    "\\u003c![CDATA[",
    "<!\\[CDATA[",
    "]]>",
    "]]&gt;",
    "]]\\>",
    "]]\\u003e",
    "]]\\x3e",
    "]] >",
    "<!--",
    "&lt;!--",
    "-->",
    "--&gt;",
    "--!>",
    "--\\>",
    "//",
    "/*",
    "*/",
    ";",
];

/// Parses a document. Line breaks within strings, which JSON forbids and templates make, are read as spaces; trailing
/// commas are ignored.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).or_else(|error| {
        let spaced: String =
            text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
        let lenient = || serde_json::from_str(&without_trailing_commas(&spaced));
        serde_json::from_str(&spaced).or_else(|_| lenient()).map_err(|_| error.to_string())
    })
}

/// Parses a block of a page, without the comments and CDATA marks around it; a block that is escaped as HTML text is
/// unescaped.
pub(super) fn parse_block(text: &str) -> Result<Value, String> {
    let inner = unwrapped(text);
    if inner.is_empty() {
        return Err("it is empty".to_owned());
    }
    let unescaped = without_references(inner);
    let tries = [Cow::Borrowed(inner), unescaped.clone(), unwrapped(&unescaped).to_owned().into()];
    let mut problem = None;
    for text in tries {
        match parse(&text) {
            Ok(tree) => return Ok(tree),
            Err(why) => problem = problem.or(Some(why)),
        }
    }
    // Any other text around the JSON.
    let objects = inner.find('{').zip(inner.rfind('}')).and_then(|(from, to)| inner.get(from..=to));
    let found = objects.and_then(|text| parse(text).or_else(|_| parse(&format!("[{text}]"))).ok());
    found.ok_or_else(|| problem.unwrap_or_default())
}

fn unwrapped(text: &str) -> &str {
    let mut inner = text.trim();
    while let Some(less) =
        WRAPPERS.iter().find_map(|wrapper| inner.strip_prefix(wrapper).or_else(|| inner.strip_suffix(wrapper)))
    {
        inner = less.trim();
    }
    inner
}

/// The text without commas that only white space separates from the end of their list or object.
fn without_trailing_commas(text: &str) -> String {
    let (mut out, mut in_text, mut escaped) = (String::with_capacity(text.len()), false, false);
    for (at, character) in text.char_indices() {
        let is_trailing = || text[at + 1..].trim_start().starts_with(['}', ']']);
        if !in_text && character == ',' && is_trailing() {
            continue;
        }
        (in_text, escaped) = match character {
            '"' if !escaped => (!in_text, false),
            '\\' => (in_text, in_text && !escaped),
            _ => (in_text, false),
        };
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read_whatever_wrappers_templates_put_around_it() {
        let expected = Ok(serde_json::json!({"a": ["1,]", "\\\",}"], "b": 2}));
        let json = r#"{"a":["1,]","\\\",}",],"b":2,}"#;
        for block in [
            "{}",
            "//<![CDATA[\n{}\n//]]>",
            "//<![CDATA[\n{}\n//]]&gt;",
            "/*<![CDATA[*/{}/*]]&gt;*/",
            "&lt;![CDATA[{}]]&gt;",
            "<![CDATA[{}]]\\>",
            "<![CDATA[{}]]\\u003e",
            "<!--//--><![CDATA[//><!--\n{}\n//--><!]]>",
            "<!--\n{}\n--&gt;",
            "<!-- {} --!>",
            "var dataset = {};",
        ] {
            assert_eq!(parse_block(&block.replace("{}", json)), expected, "{block}");
        }
        assert_eq!(parse_block("x = [{\"a\":1},{\"a\":2},];"), Ok(serde_json::json!([{"a": 1}, {"a": 2}])));
        for broken in ["", "//", "{oops", "{\"a\"}", "{\"a\":1,,}"] {
            assert!(parse_block(broken).is_err(), "{broken}");
        }
    }
}
