//! How a cache stores its numbers.

use std::fmt;
use std::str::FromStr;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use super::window::{RECENT, ResidualWindow};
use crate::error::{Error, Result};

/// The type of a cache's numbers. Keys and values in full are kept in f32 or f16; latents in any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheFormat {
    #[default]
    F32,
    F16,
    /// 8-bit codes; each token's values of a group of heads share a scale and a minimum, both f16.
    Q8,
    /// The same with 4 bits.
    Q4,
    /// The same with 3 bits.
    Q3,
    /// The same with 2 bits.
    Q2,
}

impl CacheFormat {
    /// All of them, widest first.
    pub const ALL: [CacheFormat; 6] = [
        CacheFormat::F32,
        CacheFormat::F16,
        CacheFormat::Q8,
        CacheFormat::Q4,
        CacheFormat::Q3,
        CacheFormat::Q2,
    ];

    /// Bits of one number.
    pub const fn bits(self) -> usize {
        match self {
            CacheFormat::F32 => 32,
            CacheFormat::F16 => 16,
            CacheFormat::Q8 => 8,
            CacheFormat::Q4 => 4,
            CacheFormat::Q3 => 3,
            CacheFormat::Q2 => 2,
        }
    }

    /// Whether numbers are codes with a scale and a minimum.
    pub const fn is_packed(self) -> bool {
        self.bits() <= 8
    }

    /// The type of the numbers; none where they are codes.
    pub const fn dtype(self) -> Option<DType> {
        match self {
            CacheFormat::F32 => Some(DType::F32),
            CacheFormat::F16 => Some(DType::F16),
            _ => None,
        }
    }

    /// Name used in manifests and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            CacheFormat::F32 => "f32",
            CacheFormat::F16 => "f16",
            CacheFormat::Q8 => "q8",
            CacheFormat::Q4 => "q4",
            CacheFormat::Q3 => "q3",
            CacheFormat::Q2 => "q2",
        }
    }

    /// Checks that layers, of which some have latents, can be cached so.
    ///
    /// # Errors
    /// [`Error::CacheFormat`] for a packed format where a layer has no latents.
    pub(crate) fn check(self, mut has_latents: impl Iterator<Item = bool>) -> Result<()> {
        match has_latents.position(|latents| !latents) {
            Some(layer) if self.is_packed() => Err(Error::CacheFormat {
                format: self,
                layer,
            }),
            _ => Ok(()),
        }
    }

    /// Checks that caches of this format can have a residual window of `tokens`.
    ///
    /// # Errors
    /// [`Error::ResidualWindow`] where the numbers are not codes, unless `tokens` is 0.
    pub(crate) fn check_window(self, tokens: usize) -> Result<()> {
        match tokens > 0 && !self.is_packed() {
            true => Err(Error::ResidualWindow {
                tokens,
                format: self,
            }),
            false => Ok(()),
        }
    }

    /// Bytes that the f16 latents of a residual window of `tokens` take in one layer, of slices of these ranks, when tokens
    /// come one at a time: `tokens` and 255 more, in whole panels of 16.
    pub fn residual_bytes(tokens: usize, ranks: &[usize]) -> u64 {
        let tokens = match tokens {
            0 => 0,
            _ => ResidualWindow(tokens).room() as u64,
        };
        tokens.saturating_mul(RECENT.latent_bytes(ranks))
    }

    /// Bytes that the latents of one token take, of slices of these ranks. A cache takes memory for 16 tokens at a time.
    pub fn latent_bytes(self, ranks: &[usize]) -> u64 {
        let slice = |rank: &usize| match self.is_packed() {
            // Codes of eight latent values lie together, so that every width fills whole bytes.
            true => (rank.next_multiple_of(8) * self.bits() / 8 + 4) as u64,
            false => (rank * self.bits() / 8) as u64,
        };
        ranks.iter().map(slice).sum()
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CacheFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = CacheFormat::ALL.into_iter().find(|f| f.name() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = CacheFormat::ALL.iter().map(|f| f.name()).collect();
            format!("no cache format `{text}`; there are {}", names.join(", "))
        })
    }
}
