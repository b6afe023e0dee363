//! The text of a body, shared by all values that refer to it; and the truncation of foreign text in reasons and
//! details.

use std::ops::Deref;
use std::sync::Arc;

/// The text of a body. A clone shares the same memory.
#[derive(Clone, Debug, Default)]
pub struct BodyText(Arc<String>);

impl BodyText {
    /// The text itself, so that its memory can be used again; `None` while another clone exists.
    pub fn into_unshared(self) -> Option<String> {
        Arc::into_inner(self.0)
    }
}

impl From<String> for BodyText {
    fn from(text: String) -> Self {
        Self(Arc::new(text))
    }
}

impl Deref for BodyText {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        &self.0
    }
}

/// The longest text of a reason or detail, in bytes.
const MAX_DETAIL_BYTES: usize = 1 << 10;

/// Truncates a reason or detail that may contain a publisher's text to 1 KiB, between two characters.
pub fn truncate_text(mut text: String) -> String {
    const MARK: &str = "…";
    if text.len() > MAX_DETAIL_BYTES {
        let fits = (0..=MAX_DETAIL_BYTES - MARK.len()).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(fits.unwrap_or(0));
        text.push_str(MARK);
        text.shrink_to_fit();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_holder_of_a_text_gets_its_memory() {
        let text = BodyText::from("body".to_owned());
        let other = text.clone();
        assert_eq!(text.into_unshared(), None);
        assert_eq!(other.into_unshared().as_deref(), Some("body"));
    }

    #[test]
    fn a_long_detail_is_cut_between_two_characters() {
        assert_eq!(truncate_text("short".to_owned()), "short");
        let long = truncate_text("é".repeat(2_000));
        assert_eq!((long.len(), long.chars().last()), (1_023, Some('…')));
    }
}
