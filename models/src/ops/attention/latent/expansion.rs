//! Expansions in the forms that the kernel multiplies.

use super::super::padded;
use crate::cache::CacheFormat;
use crate::cache::panels::{Slice, quads};

/// The largest whole number of a weight: in one byte, and in two of which the lower may round up.
const MOST: [f32; 2] = [127.0, 127.0 * 256.0];

/// What the weights of an expansion are rounded to, which the latents' format decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum WeightForm {
    #[default]
    /// f32, for latents that are floats.
    Float,
    /// Whole numbers of one byte, for codes of 4 bits and fewer: their own rounding is some fifteen times coarser.
    Byte,
    /// Whole numbers of two bytes, for codes of 8 bits.
    TwoBytes,
}

impl WeightForm {
    /// The form that goes with a format.
    pub fn of(format: CacheFormat) -> Self {
        match format {
            CacheFormat::F32 | CacheFormat::F16 => WeightForm::Float,
            CacheFormat::Q8 => WeightForm::TwoBytes,
            CacheFormat::Q4 | CacheFormat::Q3 | CacheFormat::Q2 => WeightForm::Byte,
        }
    }

    /// Bytes that a whole weight is split into; none where it is a float.
    pub const fn parts(self) -> usize {
        match self {
            WeightForm::Float => 0,
            WeightForm::Byte => 1,
            WeightForm::TwoBytes => 2,
        }
    }
}

/// The code that whole weights count from. Codes lie on both sides of it, so that what rounding does to the weights meets
/// small numbers; the minimum is taken for the value of this code.
pub(crate) fn middle(format: CacheFormat) -> u8 {
    match format.is_packed() {
        true => 1 << (format.bits() - 1),
        false => 0,
    }
}

/// One group's expansion, `[rank]` to `[heads * head_dim]`, channel by channel.
#[derive(Debug, Default)]
pub(crate) struct Expansion {
    pub rank: usize,
    /// Heads of the group.
    pub heads: usize,
    pub(super) form: WeightForm,
    /// `[channels, rank]`, where weights are floats.
    pub(super) floats: Vec<f32>,
    /// `[channels, parts, 4 quads]`, high bytes first, where they are whole numbers.
    pub(super) codes: Vec<i8>,
    /// `[channels, parts]`: the sums of the codes.
    pub(super) code_sums: Vec<i32>,
    /// `[channels]`: the sum of the weights, over the scale.
    pub(super) sums: Vec<f32>,
    /// `[channels]`: what is added to a rebuilt channel, over its scale.
    pub(super) shifts: Vec<f32>,
    /// `[channels]`: what a rebuilt channel is to be multiplied with. The channels that a rotation mixes share one.
    pub(super) scales: Vec<f32>,
    /// `[channels]`: what is added to a mean of rebuilt channels.
    pub(super) bias: Vec<f32>,
}

/// One group's map as it is stored.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub rank: usize,
    /// `[rank, heads * head_dim]`.
    pub weight: &'a [f32],
    /// `[heads * head_dim]`.
    pub bias: Option<&'a [f32]>,
    pub head_dim: usize,
}

impl Stored<'_> {
    fn channels(&self) -> usize {
        self.weight.len() / self.rank.max(1)
    }

    fn bias(&self) -> Vec<f32> {
        self.bias
            .map_or(vec![0.0; self.channels()], <[f32]>::to_vec)
    }
}

impl Expansion {
    /// Keys: the bias is added to each.
    pub fn of_keys(stored: Stored<'_>, form: WeightForm) -> Self {
        let mut all = Self::new(stored, form);
        let scaled = stored.bias().into_iter().zip(&all.scales);
        all.shifts = scaled.map(|(bias, scale)| bias / scale).collect();
        all
    }

    /// Values: the bias is added once, after the weighted mean, since the weights add up to one.
    pub fn of_values(stored: Stored<'_>, form: WeightForm) -> Self {
        Expansion {
            bias: stored.bias(),
            ..Self::new(stored, form)
        }
    }

    fn new(stored: Stored<'_>, form: WeightForm) -> Self {
        let (rank, d, channels) = (stored.rank, stored.head_dim, stored.channels());
        assert!(
            d % 2 == 0 && channels % d == 0,
            "{channels} channels in heads of {d}"
        );
        let (parts, half) = (form.parts(), d / 2);
        let row = |channel: usize| (0..rank).map(move |i| stored.weight[i * channels + channel]);
        let mut all = Expansion {
            rank,
            heads: channels / d,
            form,
            shifts: vec![0.0; channels],
            ..Expansion::default()
        };
        for channel in 0..channels {
            let partner = channel / d * d + (channel % d + half) % d;
            let both = row(channel).chain(row(partner));
            let scale = match parts {
                0 => 1.0,
                _ => both.fold(0.0, |most: f32, w| most.max(w.abs())) / MOST[parts - 1],
            };
            // A row of zeros has any scale; what is not a number must stay so.
            let scale = if scale == 0.0 { 1.0 } else { scale };
            all.scales.push(scale);
            if parts == 0 {
                all.floats.extend(row(channel));
                continue;
            }
            all.sums.push(row(channel).sum::<f32>() / scale);
            let whole: Vec<f32> = row(channel).map(|w| (w / scale).round()).collect();
            let high: Vec<f32> = whole
                .iter()
                .map(|w| match parts {
                    1 => *w,
                    _ => ((w + 0.25) / 256.0).round(),
                })
                .collect();
            let low = whole.iter().zip(&high).map(|(w, high)| w - 256.0 * high);
            for part in [high.clone(), low.collect()].into_iter().take(parts) {
                let bytes = part.iter().map(|w| *w as i8);
                all.code_sums.push(bytes.clone().map(i32::from).sum());
                let filled = bytes.chain(std::iter::repeat_n(0, 4 * quads(rank) - rank));
                all.codes.extend(filled);
            }
        }
        all
    }

    /// Whether it is a slice's, in the form that goes with a format, of heads of this width.
    pub(super) fn fits(&self, slice: Slice, form: WeightForm, head_dim: usize) -> bool {
        self.rank == slice.rank && self.form == form && self.scales.len() == self.heads * head_dim
    }

    /// Bytes that this form takes.
    pub fn bytes(&self) -> u64 {
        let floats = [
            &self.floats,
            &self.sums,
            &self.shifts,
            &self.scales,
            &self.bias,
        ];
        let floats: usize = floats.iter().map(|v| v.capacity() * 4).sum();
        (floats + self.codes.capacity() + self.code_sums.capacity() * 4) as u64
    }
}

/// A values' expansion that is applied once, to the weighted sum of latents: channels lie together.
#[derive(Debug)]
pub(crate) struct LateExpansion {
    pub rank: usize,
    /// Heads of the group.
    pub heads: usize,
    /// `[heads, rank, padded head_dim]`.
    pub(super) weights: Vec<f32>,
    /// `[heads, padded head_dim]`.
    pub(super) bias: Vec<f32>,
}

impl LateExpansion {
    pub fn new(stored: Stored<'_>) -> Self {
        let (rank, d, channels) = (stored.rank, stored.head_dim, stored.channels());
        let (heads, width) = (channels / d, padded(d));
        let mut weights = vec![0.0; heads * rank * width];
        for (i, weights) in weights.chunks_exact_mut(width).enumerate() {
            let (head, latent) = (i / rank, i % rank);
            weights[..d].copy_from_slice(&stored.weight[latent * channels + head * d..][..d]);
        }
        let mut bias = vec![0.0; heads * width];
        for (to, from) in bias
            .chunks_exact_mut(width)
            .zip(stored.bias().chunks_exact(d))
        {
            to[..d].copy_from_slice(from);
        }
        LateExpansion {
            rank,
            heads,
            weights,
            bias,
        }
    }

    /// Whether it is a slice's, of heads of this width.
    pub(super) fn fits(&self, slice: Slice, head_dim: usize) -> bool {
        self.rank == slice.rank && self.bias.len() == self.heads * padded(head_dim)
    }

    /// Bytes that this form takes.
    pub fn bytes(&self) -> u64 {
        4 * (self.weights.capacity() + self.bias.capacity()) as u64
    }
}
