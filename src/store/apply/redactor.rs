//! Hides a feed's secrets in texts that the store makes of a publisher's text. What is a secret is the caller's matter.

use std::sync::Arc;

/// Hides secrets in a text.
pub trait Redact: Send + Sync {
    /// The text as it may be kept and shown.
    fn redact(&self, text: &str) -> String;
}

/// The redactor of a feed, if the feed has secrets.
#[derive(Clone, Default)]
pub struct Redactor(pub Option<Arc<dyn Redact>>);

impl Redactor {
    /// The text as it may be kept and shown.
    pub(super) fn redact(&self, text: &str) -> String {
        self.0.as_ref().map_or_else(|| text.to_owned(), |redactor| redactor.redact(text))
    }
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor")
    }
}
