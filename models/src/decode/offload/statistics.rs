//! What a streamed model has read, and what it waited for.

use std::path::PathBuf;

use serde::Serialize;

use super::budget::MemoryPlan;
use crate::precision::Precision;

/// Counts since the decoder was made, or since they were reset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OffloadStatistics {
    /// `file` or `memory`.
    pub source: &'static str,
    /// The block file.
    pub path: Option<PathBuf>,
    /// How blocks are read, in words.
    pub reading: &'static str,
    /// The link, in words: `simulated link of 0.5 GB/s`, or that there is none.
    pub link: String,
    /// Bytes per second of the simulated link.
    pub link_bytes_per_second: Option<f64>,
    pub weights: Precision,
    /// Blocks of the model.
    pub blocks: usize,
    /// Those that stay in memory, and the rest of what does.
    pub memory: MemoryPlan,
    /// Bytes that host memory holds in a disk's place.
    pub source_bytes: u64,
    /// Forward passes: tokens that go through the model together are one.
    pub passes: u64,
    /// Tokens of all passes.
    pub tokens: u64,
    /// Bytes of the streamed blocks, which every pass reads once, padding included.
    pub bytes_per_pass: u64,
    /// Bytes that were read: for all passes, and ahead for the next one.
    pub bytes_read: u64,
    /// Seconds that passes waited for blocks.
    pub wait_seconds: f64,
    /// Seconds of passes without those: attention, products and the copies there may be. The head is not a pass's part.
    pub compute_seconds: f64,
    /// Seconds that the reading thread read, a simulated link's waiting included.
    pub read_seconds: f64,
    /// Seconds that the reading thread spent on checksums.
    pub checksum_seconds: f64,
}
