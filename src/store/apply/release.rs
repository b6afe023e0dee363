//! What a delivery holds while it waits for the writer, and what is handed back when it has been dealt with.

use super::Delivery;
use crate::feed::BodyText;

/// Whatever has to be kept for as long as a delivery waits.
pub trait Release: Send {
    /// The delivery has been committed or given up; its text is no longer needed. Others may still hold it.
    fn release(self: Box<Self>, text: BodyText);
}

/// What a delivery holds, if anything.
#[derive(Default)]
pub struct ReleaseOnCommit(pub Option<Box<dyn Release>>);

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(hold) = self.release_on_commit.0.take() {
            hold.release(std::mem::take(&mut self.page.text));
        }
    }
}

impl std::fmt::Debug for ReleaseOnCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}
