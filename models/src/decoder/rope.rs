//! Rotary position embedding, half-rotation form (GPT-NeoX; Su et al. 2021, arXiv 2104.09864, §3.4.2).

use burn::tensor::{Device, Tensor, TensorData};

use crate::config::{ModelConfig, RopeScaling};
use crate::ops;

/// The rotary frequencies of a model.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Radians per position, `head_dim / 2` of them.
    frequencies: Vec<f32>,
}

/// Cosines and sines for a run of positions, each `[tokens, head_dim / 2]`.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    cos: Tensor<2>,
    sin: Tensor<2>,
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

    /// The table for positions `start..start + tokens`.
    pub fn table(&self, start: usize, tokens: usize, device: &Device) -> RotaryTable {
        let half = self.frequencies.len();
        let (mut cos, mut sin) = (
            Vec::with_capacity(tokens * half),
            Vec::with_capacity(tokens * half),
        );
        for position in start..start + tokens {
            for frequency in &self.frequencies {
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
        }
    }
}

impl RotaryTable {
    /// Rotates `[batch, tokens, heads, head_dim]`.
    pub fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        ops::rotate(x, self.cos.clone(), self.sin.clone())
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
