//! Running one block over the calibration windows.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use burn::tensor::Tensor;
use cinder_models::decoder::RotaryTable;
use cinder_models::{DecoderLayer, Site};

use crate::linalg::{Gram, LowRankSvd, Whitening, whiten};

/// What the passes may ask of one block, and what was already worked out from it: targets that differ only in
/// their keep ratio share the decompositions.
#[derive(Default)]
pub struct BlockStatistics {
    /// Input Gram of each site.
    pub grams: BTreeMap<Site, Gram>,
    remember: bool,
    whitenings: Memo<(Site, u64), Whitening>,
    decompositions: Memo<(Site, usize, u64), LowRankSvd>,
}

/// Results by what they were made from; a ridge enters by its bits.
type Memo<K, V> = Mutex<HashMap<K, Arc<V>>>;

impl BlockStatistics {
    /// Whether decompositions are kept for the next one who asks.
    #[must_use]
    pub fn remembering(mut self, remember: bool) -> Self {
        self.remember = remember;
        self
    }

    /// The whitening of a site's inputs with a relative ridge.
    ///
    /// # Errors
    /// A sentence when nothing was collected, or as [`whiten`].
    pub fn whitening(&self, site: Site, ridge: f64) -> Result<Arc<Whitening>, String> {
        remember(&self.whitenings, (site, ridge.to_bits()), || {
            let gram = self.grams.get(&site).ok_or("no inputs were collected")?;
            whiten(gram, ridge)
        })
    }

    /// The decomposition of a site's `member`-th dense weight, `[in, out]` row-major, on whitened inputs.
    ///
    /// # Errors
    /// As [`LowRankSvd::of`].
    pub fn decomposition(
        &self,
        (site, member): (Site, usize),
        weight: &[f32],
        out: usize,
        (ridge, whitening): (f64, &Whitening),
    ) -> Result<Arc<LowRankSvd>, String> {
        let decompose = || LowRankSvd::of(weight, out, whitening);
        match self.remember {
            true => remember(
                &self.decompositions,
                (site, member, ridge.to_bits()),
                decompose,
            ),
            false => decompose().map(Arc::new),
        }
    }
}

/// Looks `key` up, or makes and keeps its value. Two threads may make the same value at once; both get equal ones.
fn remember<K: Eq + std::hash::Hash, V>(
    memo: &Memo<K, V>,
    key: K,
    make: impl FnOnce() -> Result<V, String>,
) -> Result<Arc<V>, String> {
    // A poisoned lock only means that another value could not be made.
    let lock = || memo.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(found) = lock().get(&key) {
        return Ok(found.clone());
    }
    let made = Arc::new(make()?);
    lock().insert(key, made.clone());
    Ok(made)
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
