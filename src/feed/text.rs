//! The text of a body, shared by all that was made of it; and what is cut from strangers' text to be told.

use std::ops::Deref;
use std::sync::Arc;

/// The text of a body. Cloning it copies nothing.
#[derive(Clone, Debug, Default)]
pub struct BodyText(Arc<String>);

impl BodyText {
    /// The text itself, for another use of its memory, where nobody else holds it any more.
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

/// A reason's or detail's longest text, in bytes.
const MAX_DETAIL_BYTES: usize = 1 << 10;

/// A reason or detail in which a stranger's text stands, cut to 1 KiB between two characters.
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
