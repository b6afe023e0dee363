//! Stored times as text of a page. Scripts keep the text current: they read `datetime`, and `data-says` for the form,
//! so both must produce the same text.

use std::fmt;

use askama::filters::HtmlSafe;
use jiff::Timestamp;

use super::super::format::span;

/// The form in which a time is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeForm {
    /// `5 min`: the time since.
    Span,
    /// `5 min ago`.
    Ago,
    /// `in 5 min`, or `now`.
    Ahead,
}

/// A time as HTML; a dash where there is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeText {
    at: Option<Timestamp>,
    now: Timestamp,
    form: TimeForm,
}

impl TimeText {
    /// A stored time; one that can't be read is none.
    pub(super) fn new(at: Option<&str>, now: Timestamp, form: TimeForm) -> Self {
        Self { at: at.and_then(|at| at.parse().ok()), now, form }
    }
}

// Neither a parsed time nor the text made of it holds anything to be escaped.
impl HtmlSafe for TimeText {}

impl fmt::Display for TimeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(at) = self.at else { return f.write_str("–") };
        let ago = self.now.as_second() - at.as_second();
        let (says, text) = match self.form {
            TimeForm::Span => ("span", span(ago)),
            TimeForm::Ago => ("ago", format!("{} ago", span(ago))),
            TimeForm::Ahead if ago < 0 => ("ahead", format!("in {}", span(-ago))),
            TimeForm::Ahead => ("ahead", "now".to_owned()),
        };
        write!(f, "<time datetime=\"{at:.0}\" data-says=\"{says}\" title=\"{at:.0}\">{text}</time>")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(at: Option<&str>, says: TimeForm) -> String {
        TimeText::new(at, "2026-01-01T00:10:00Z".parse().unwrap(), says).to_string()
    }

    #[test]
    fn a_time_is_in_words_and_machine_readable() {
        assert_eq!(
            shown(Some("2026-01-01T00:00:00.999Z"), TimeForm::Ago),
            "<time datetime=\"2026-01-01T00:00:00Z\" data-says=\"ago\" title=\"2026-01-01T00:00:00Z\">10 min ago</time>"
        );
        assert!(shown(Some("2026-01-01T00:10:30.000Z"), TimeForm::Ahead).contains(">in 30 s<"));
        assert!(shown(Some("2026-01-01T00:09:30.000Z"), TimeForm::Ahead).contains(">now<"));
    }

    #[test]
    fn what_is_no_time_is_a_dash() {
        assert_eq!(shown(None, TimeForm::Span), "–");
        assert_eq!(shown(Some("<script>"), TimeForm::Span), "–");
    }
}
