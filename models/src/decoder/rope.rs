//! Rotary position embedding, half-rotation form (GPT-NeoX; Su et al. 2021, arXiv 2104.09864, §3.4.2).

use std::sync::{Arc, OnceLock};

use burn::tensor::{Bool, Device, Tensor, TensorData};

use crate::config::{ModelConfig, RopeScaling};
use crate::ops;

/// The rotary frequencies of a model.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Radians per position, `head_dim / 2` of them.
    frequencies: Arc<[f32]>,
}

/// Where new tokens stand: cosines and sines of their positions, each `[tokens, head_dim / 2]`, and what they see of each
/// other where they are not simply a run.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Tensor<2>,
    sin: Tensor<2>,
    frequencies: Arc<[f32]>,
    /// Positions from the first of all to the last of these.
    end: usize,
    /// See [`RotaryTable::with_mask`].
    mask: Option<Tensor<2, Bool>>,
    /// The rotations of all of them; made when they are first asked for.
    keys: Arc<OnceLock<KeyRotary>>,
}

/// Cosines and sines of the positions from 0, in the order in which rebuilt keys are rotated: for each tile of
/// [`KeyRotary::TILE`] positions, `[head_dim / 2, TILE]` cosines and then as many sines.
#[derive(Debug, Clone, Default)]
pub struct KeyRotary {
    tiles: Vec<Arc<[f32]>>,
}

impl KeyRotary {
    /// Positions in a tile.
    pub const TILE: usize = 64;

    /// Extends the table to at least `positions`.
    pub(crate) fn extend(&mut self, frequencies: &[f32], positions: usize) {
        let half = frequencies.len();
        for tile in self.tiles.len()..positions.div_ceil(Self::TILE) {
            let mut table = vec![0.0; 2 * half * Self::TILE];
            let (cos, sin) = table.split_at_mut(half * Self::TILE);
            for (pair, frequency) in frequencies.iter().enumerate() {
                for i in 0..Self::TILE {
                    let angle = (tile * Self::TILE + i) as f32 * frequency;
                    cos[pair * Self::TILE + i] = angle.cos();
                    sin[pair * Self::TILE + i] = angle.sin();
                }
            }
            self.tiles.push(table.into());
        }
    }

    /// Bytes of the table.
    pub(crate) fn bytes(&self) -> u64 {
        let tiles = self.tiles.iter().map(|tile| size_of_val(&**tile) as u64);
        tiles.sum()
    }

    /// Cosines and sines of a tile, each `[head_dim / 2, TILE]`.
    pub(crate) fn tile(&self, index: usize) -> (&[f32], &[f32]) {
        let table = &self.tiles[index];
        table.split_at(table.len() / 2)
    }
}

impl Rotary {
    /// Frequencies `theta^(-2i/d)`, stretched as the configuration says.
    pub fn new(config: &ModelConfig) -> Self {
        let d = config.head_dim as f64;
        let frequencies = (0..config.head_dim / 2)
            .map(|i| {
                let plain = config.rope_theta.powf(-2.0 * i as f64 / d);
                stretch(plain, i, &config.rope_scaling) as f32
            })
            .collect();
        Rotary { frequencies }
    }

    /// Radians per position, `head_dim / 2` of them.
    pub(crate) fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// The table for positions `start..start + tokens`.
    pub fn table(&self, start: usize, tokens: usize, device: &Device) -> RotaryTable {
        Self::table_of(&self.frequencies, start..start + tokens, device)
    }

    /// The table for the given positions.
    pub fn table_at(&self, positions: &[usize], device: &Device) -> RotaryTable {
        Self::table_of(&self.frequencies, positions.iter().copied(), device)
    }

    fn table_of(
        frequencies: &Arc<[f32]>,
        positions: impl ExactSizeIterator<Item = usize>,
        device: &Device,
    ) -> RotaryTable {
        let (half, tokens, mut end) = (frequencies.len(), positions.len(), 0);
        let (mut cos, mut sin) = (
            Vec::with_capacity(tokens * half),
            Vec::with_capacity(tokens * half),
        );
        for position in positions {
            end = end.max(position + 1);
            for frequency in frequencies.iter() {
                // The angle is rounded to f32 because that is what the models were trained with.
                let angle = position as f32 * frequency;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let tensor =
            |v: Vec<f32>| Tensor::<2>::from_data(TensorData::new(v, [tokens, half]), device);
        RotaryTable {
            cos: tensor(cos),
            sin: tensor(sin),
            frequencies: frequencies.clone(),
            end,
            mask: None,
            keys: Arc::default(),
        }
    }
}

impl RotaryTable {
    /// The same table with the rotations of all positions so far, which a cache keeps.
    pub(crate) fn with_keys(self, keys: KeyRotary) -> Self {
        RotaryTable {
            keys: Arc::new(keys.into()),
            ..self
        }
    }

    /// Of the last `span` keys, each token sees those that are true in its row of `[tokens, span]`, in place of those up to
    /// its own: see [`ops::attention`].
    pub(crate) fn with_mask(self, mask: Tensor<2, Bool>) -> Self {
        RotaryTable {
            mask: Some(mask),
            ..self
        }
    }

    /// What the tokens see, where they are not a run.
    pub(crate) fn mask(&self) -> Option<Tensor<2, Bool>> {
        self.mask.clone()
    }

    /// The rotations of all positions up to the last of this run.
    pub(crate) fn keys(&self) -> &KeyRotary {
        self.keys.get_or_init(|| {
            let mut keys = KeyRotary::default();
            keys.extend(&self.frequencies, self.end);
            keys
        })
    }

    /// Rotates `[batch, tokens, heads, head_dim]`.
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        ops::rotate(x, self.cos.clone(), self.sin.clone())
    }

    /// Rotates keys `[batch, tokens, heads, head_dim]` of the positions from 0.
    pub(crate) fn rotate_keys(&self, x: Tensor<4>) -> Tensor<4> {
        let tokens = x.dims()[1];
        let table = Rotary::table_of(&self.frequencies, 0..tokens, &x.device());
        table.rotate(x)
    }

    /// The gradient of [`RotaryTable::rotate`] in its input, of the same shape.
    pub(crate) fn rotate_backward(&self, gradient: Tensor<4>) -> Tensor<4> {
        ops::rotate_backward(gradient, self.cos.clone(), self.sin.clone())
    }
}

/// One frequency after scaling. `llama3` is the ramp of Meta's Llama 3.1 reference code.
fn stretch(frequency: f64, index: usize, scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            // Turns the frequency makes within the original context.
            let turns = original_context * frequency / std::f64::consts::TAU;
            if turns < *low_freq_factor {
                frequency / factor
            } else if turns > *high_freq_factor {
                frequency
            } else {
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
        RopeScaling::Divisors(divisors) => {
            frequency / divisors.get(index).copied().map_or(1.0, f64::from)
        }
    }
}
