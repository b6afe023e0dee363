//! The text of a body, shared by all that was made of it; and what is cut from strangers' text to be told.

use std::ops::Deref;
use std::sync::Arc;

/// The text of a body. Cloning it copies nothing.
#[derive(Clone, Debug, Default)]
pub struct Text(Arc<String>);

impl Text {
    /// The text itself, for another use of its memory, where nobody else holds it any more.
    pub fn into_last(self) -> Option<String> {
        Arc::into_inner(self.0)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Arc::new(text))
    }
}

impl Deref for Text {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        &self.0
    }
}

/// A reason's or detail's longest text, in bytes.
const LONGEST: usize = 1 << 10;

/// A reason or detail in which a stranger's text stands, cut to 1 KiB between two characters.
pub fn cut(mut text: String) -> String {
    const MARK: &str = "…";
    if text.len() > LONGEST {
        let fits = (0..=LONGEST - MARK.len()).rev().find(|at| text.is_char_boundary(*at));
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
        let text = Text::from("body".to_owned());
        let other = text.clone();
        assert_eq!(text.into_last(), None);
        assert_eq!(other.into_last().as_deref(), Some("body"));
    }

    #[test]
    fn a_long_detail_is_cut_between_two_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = cut("é".repeat(2_000));
        assert_eq!((long.len(), long.chars().last()), (1_023, Some('…')));
    }
}
