//! placeholder
use super::StoreError;
use std::path::Path;
/// A mirror's file, open for reading.
pub struct Reader {}
impl Reader {
    /// Opens.
    /// # Errors
    /// When it can't.
    pub fn open(_: &Path) -> Result<Self, StoreError> {
        Err(StoreError::Closed)
    }
}
