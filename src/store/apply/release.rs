//! Releasing what a delivery reserves while it waits for the writer: its share of the memory budget, and its text. What
//! is reserved, and how much, is the caller's matter.

use super::Delivery;
use crate::feed::BodyText;

/// A resource that is reserved for as long as a delivery waits.
pub trait Release: Send {
    /// Called once the delivery has been committed or given up and no longer needs `text`, which other clones may still
    /// share.
    fn release(self: Box<Self>, text: BodyText);
}

/// The resource that a delivery reserves, if any.
#[derive(Default)]
pub struct ReleaseOnCommit(pub Option<Box<dyn Release>>);

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(release) = self.release_on_commit.0.take() {
            release.release(std::mem::take(&mut self.page.text));
        }
    }
}

impl std::fmt::Debug for ReleaseOnCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReleaseOnCommit")
    }
}
