//! Running one block over the calibration windows.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use cinder_models::decoder::RotaryTable;
use cinder_models::{DecoderLayer, Site};

use crate::linalg::Gram;

/// What the passes may ask of one block.
#[derive(Debug, Clone, Default)]
pub struct BlockStatistics {
    /// Input Gram of each site.
    pub grams: BTreeMap<Site, Gram>,
}

impl BlockStatistics {
    /// Tokens that were seen.
    pub fn tokens(&self) -> u64 {
        self.grams.values().next().map_or(0, Gram::rows)
    }
}

/// Runs `block` over the hidden states of every window (each `[1, tokens, hidden]`), adds the inputs of its
/// sites to fresh statistics, and returns them with the block's outputs.
///
/// # Errors
/// [`cinder_models::Error::NonFinite`] when an activation overflows.
pub fn observe_block(
    block: &DecoderLayer,
    hidden: &[Tensor<3>],
    rotary: &RotaryTable,
    step: &mut dyn FnMut(),
) -> cinder_models::Result<(BlockStatistics, Vec<Tensor<3>>)> {
    let mut statistics = BlockStatistics::default();
    let mut failure = None;
    let mut outputs = Vec::with_capacity(hidden.len());
    for window in hidden {
        let output = block.forward(window.clone(), rotary, None, &mut |site, input| {
            let width = input.dims()[1];
            match input.clone().into_data().try_into_vec::<f32>() {
                Ok(values) if values.iter().all(|v| v.is_finite()) => statistics
                    .grams
                    .entry(site)
                    .or_insert_with(|| Gram::new(width))
                    .add(&values),
                _ => failure = Some(site),
            }
        });
        if let Some(site) = failure {
            return Err(cinder_models::Error::NonFinite {
                what: format!("a calibration input of site `{}`", site.name()),
            });
        }
        outputs.push(output);
        step();
    }
    Ok((statistics, outputs))
}
