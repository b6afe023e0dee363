//! What hides a feed's secrets in words that are made of its publisher's text after a delivery was handed over.

use std::sync::Arc;

/// Hides secrets.
pub trait Redact: Send + Sync {
    /// The text as it may be kept and shown.
    fn redact(&self, text: &str) -> String;
}

/// A feed's, if it has secrets to hide.
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
