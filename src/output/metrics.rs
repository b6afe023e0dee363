//! placeholder
/// Counts.
#[derive(Clone, Debug)]
pub struct FeedCounts {
    /// f
    pub feed: String,
    /// f
    pub pages: u64,
    /// f
    pub bytes: u64,
    /// f
    pub records: u64,
    /// f
    pub written: u64,
    /// f
    pub quarantined: u64,
}
