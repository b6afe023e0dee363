//! Reads an HTML page's JSON-LD blocks and the target of its `<meta http-equiv=refresh>`.
//!
//! The page is read by a tokenizer that follows the standard (WHATWG HTML §13.2.5), so that a `<script>` in a comment,
//! a style or another script is none, and a truncated page is read as far as it goes. No tree is built, no script is
//! run.

use html5gum::{DefaultEmitter, StartTag, Token, Tokenizer};

/// What is read of a page.
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
    let media_type = || attribute(tag, b"type").unwrap_or_default();
    let essence = |media_type: String| media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    tag.name.as_slice() == b"script" && essence(media_type()) == "application/ld+json"
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
    fn the_target_of_a_meta_refresh_is_read() {
        let target = |content: &str| read(&format!("<meta HTTP-EQUIV=Refresh content=\"{content}\">")).meta_refresh;
        assert_eq!(target("0;url=https://a.example/").as_deref(), Some("https://a.example/"));
        assert_eq!(target("5; URL = '/b'").as_deref(), Some("/b"));
        assert_eq!(target("30"), None);
        assert_eq!(read("<meta name=refresh content='0;url=/a'>").meta_refresh, None);
    }
}
