//! What calibration collects, from a text to the statistics of one block.

mod statistics;
mod windows;

pub use statistics::{BlockStatistics, observe_block};
pub use windows::{Windows, choose_windows};
