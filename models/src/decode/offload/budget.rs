//! How many blocks stay in memory.

use serde::Serialize;

use super::reader::STAGES;
use crate::error::{Error, Result};

/// What a streamed model takes in memory, part by part, in bytes. Not counted: the program itself and its threads, and
/// blocks that host memory holds in a disk's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// What was allowed; none when nothing was said, and no block stays.
    pub budget: Option<u64>,
    /// Embedding, head, norms and biases: always there.
    pub frame: u64,
    /// The KV cache and activations, as the caller counts them.
    pub cache_and_activations: u64,
    /// Buffers that blocks are read into; 0 when all stay.
    pub staging: u64,
    /// Blocks that stay: the first ones.
    pub resident: u64,
    /// How many these are.
    pub resident_blocks: usize,
}

impl MemoryPlan {
    /// Keeps as many of the first blocks, given by their bytes, as the budget and what is available allow; none without a
    /// budget.
    ///
    /// # Errors
    /// [`Error::Budget`] when the rest takes more.
    pub fn new(
        budget: Option<u64>,
        available: Option<u64>,
        frame: u64,
        cache_and_activations: u64,
        blocks: &[u64],
    ) -> Result<Self> {
        let keeping = |count: usize| {
            let (resident, streamed) = blocks.split_at(count);
            MemoryPlan {
                budget,
                frame,
                cache_and_activations,
                staging: STAGES as u64 * streamed.iter().max().unwrap_or(&0),
                resident: resident.iter().sum(),
                resident_blocks: count,
            }
        };
        let allowed = budget.into_iter().chain(available).min();
        let allowed = allowed.unwrap_or(u64::MAX);
        let most = budget.map_or(0, |_| blocks.len());
        // All blocks without staging may take less than all but one with it.
        let mut plans = (0..=most).rev().map(keeping);
        let fits = plans.find(|plan| plan.total() <= allowed);
        fits.ok_or_else(|| {
            let least = (0..=most).map(keeping).min_by_key(MemoryPlan::total);
            Error::Budget {
                plan: least.unwrap_or(keeping(0)),
                allowed,
            }
        })
    }

    /// All parts together.
    pub fn total(&self) -> u64 {
        let parts = [
            self.frame,
            self.cache_and_activations,
            self.staging,
            self.resident,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// What needs how much, in words.
    pub fn parts(&self) -> String {
        let mut parts = vec![
            format!("{} for embedding, head and norms", size(self.frame)),
            format!(
                "{} for cache and activations",
                size(self.cache_and_activations)
            ),
        ];
        if self.staging > 0 {
            parts.push(format!("{} to read blocks into", size(self.staging)));
        }
        if self.resident > 0 {
            parts.push(format!(
                "{} for {} blocks",
                size(self.resident),
                self.resident_blocks
            ));
        }
        parts.join(", ")
    }
}

/// Such as `12.4 MB`, never less than it is.
pub(crate) fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_000_000 => (1e3, "kB"),
        1_000_000..1_000_000_000 => (1e6, "MB"),
        _ => (1e9, "GB"),
    };
    format!("{:.1} {name}", (bytes as f64 / unit * 10.0).ceil() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_decides_how_many_blocks_stay() {
        let blocks = [100, 100, 100, 100];
        let plan = |budget, available| MemoryPlan::new(budget, available, 50, 30, &blocks);
        let count = |budget| plan(budget, None).map(|p| p.resident_blocks);
        assert_eq!(count(None).unwrap(), 0);
        for (budget, wanted) in [
            (280, 0),
            (379, 0),
            (380, 1),
            // With the fourth block the buffers go: four fit where three do not.
            (479, 1),
            (480, 4),
            (u64::MAX, 4),
        ] {
            assert_eq!(count(Some(budget)).unwrap(), wanted, "{budget}");
        }
        let kept = plan(Some(400), None).unwrap();
        assert_eq!((kept.staging, kept.resident, kept.total()), (200, 100, 380));
        let error = count(Some(279)).unwrap_err();
        assert!(matches!(error, Error::Budget { plan, .. } if plan.total() == 280));
        // There is no more than there is, and without a budget all is streamed.
        assert_eq!(plan(Some(480), Some(400)).unwrap().resident_blocks, 1);
        assert_eq!(plan(None, Some(u64::MAX)).unwrap().resident_blocks, 0);
        assert!(plan(None, Some(279)).is_err() && plan(Some(480), Some(279)).is_err());
        // One block alone is smaller than two buffers for it.
        let one = MemoryPlan::new(Some(180), None, 50, 30, &[100]).unwrap();
        assert_eq!((one.resident_blocks, one.staging), (1, 0));
    }

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!(size(12_300_001), "12.4 MB");
        assert_eq!(size(1), "0.1 kB");
        assert_eq!(size(2_000_000_000), "2.0 GB");
    }
}
