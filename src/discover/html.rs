//! The two things that are wanted of an HTML page: its JSON-LD blocks, and where it sends its reader.
//!
//! A tokenizer that follows the standard (WHATWG HTML §13.2.5) reads it, so that a `<script>` in a comment, a style or
//! another script is none, and a page cut short gives what it has. No tree is built and nothing is run.

use html5gum::{DefaultEmitter, StartTag, Token, Tokenizer};

/// What a page has of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HtmlContent {
    /// The text of each `<script type="application/ld+json">`.
    pub(super) blocks: Vec<String>,
    /// The target of `<meta http-equiv="refresh" content="0; url=…">`.
    pub(super) meta_refresh: Option<String>,
}

pub(super) fn read(text: &str) -> HtmlContent {
    let mut emitter = DefaultEmitter::default();
    // Script, style and title hold text, not tags.
    emitter.naively_switch_states(true);
    let mut page = HtmlContent::default();
    let mut block: Option<String> = None;
    for token in Tokenizer::new_with_emitter(text, emitter) {
        let Ok(token) = token;
        match (token, &mut block) {
            (Token::StartTag(tag), _) if is_json_ld(&tag) => block = Some(String::new()),
            (Token::StartTag(tag), _) if tag.name.as_slice() == b"meta" && page.meta_refresh.is_none() => {
                page.meta_refresh = refresh(&tag);
            }
            (Token::String(part), Some(block)) => block.push_str(&String::from_utf8_lossy(&part)),
            (Token::EndTag(_), open) => page.blocks.extend(open.take()),
            _ => {}
        }
    }
    page.blocks.extend(block);
    page
}

fn attribute(tag: &StartTag<()>, name: &[u8]) -> Option<String> {
    let (_, value) = tag.attributes.iter().find(|(given, _)| given.as_slice() == name)?;
    Some(String::from_utf8_lossy(value).trim().to_owned())
}

fn is_json_ld(tag: &StartTag<()>) -> bool {
    let sort = || attribute(tag, b"type").unwrap_or_default();
    let essence = |sort: String| sort.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    tag.name.as_slice() == b"script" && essence(sort()) == "application/ld+json"
}

/// WHATWG HTML §4.2.5.3, "refresh", as far as sites use it.
fn refresh(tag: &StartTag<()>) -> Option<String> {
    attribute(tag, b"http-equiv").filter(|value| value.eq_ignore_ascii_case("refresh"))?;
    let content = attribute(tag, b"content")?;
    let (_, rest) = content.split_once([';', ','])?;
    let (name, target) = rest.split_once('=')?;
    name.trim().eq_ignore_ascii_case("url").then(|| target.trim().trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_where_a_browser_finds_them() {
        let text = "<!-- <script type=application/ld+json>{0}</script> --><style><script></style>\
            <SCRIPT TYPE='Application/LD+JSON; charset=utf-8'>{1}</SCRIPT><script>\"<script type=application/ld+json>\"</script>\
            <title><script type=application/ld+json></title><script id=x type=\"application/ld+json\">{\"a\":\"<b>&amp;\"}</script>\
            <script type=application/ld+json>{3";
        assert_eq!(read(text).blocks, ["{1}", "{\"a\":\"<b>&amp;\"}", "{3"]);
    }

    #[test]
    fn a_page_that_only_sends_elsewhere_says_where() {
        let target = |content: &str| read(&format!("<meta HTTP-EQUIV=Refresh content=\"{content}\">")).meta_refresh;
        assert_eq!(target("0;url=https://a.example/").as_deref(), Some("https://a.example/"));
        assert_eq!(target("5; URL = '/b'").as_deref(), Some("/b"));
        assert_eq!(target("30"), None);
        assert_eq!(read("<meta name=refresh content='0;url=/a'>").meta_refresh, None);
    }
}
