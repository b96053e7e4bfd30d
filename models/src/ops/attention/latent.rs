//! Attention over latents: keys and values are rebuilt where they are read, and never kept.
//!
//! The walk is that of [`attention`](super::attention): tiles of 64 keys, runs of 256 that are summed by themselves and
//! merged in order. The rows of all heads walk together, so that a tile of latents is unpacked once for all that read it;
//! keys are rebuilt from it (codes multiply whole numbers, scale and minimum follow), normed and turned to their positions.
//! Values are either rebuilt likewise, or latents are summed in their place and expanded once for each query and head (Palu,
//! Chang et al. 2024, arXiv 2407.21118, §3.2; by linearity the same). With a residual window, the late runs of each query are
//! read from other latents than the early ones.

mod expansion;
mod merge;
mod recent;
#[cfg(test)]
mod tests;
mod tile;
mod values;
mod walk;

use std::ops::Range;

use super::tile::Ahead;
use super::{RUN, Sizes, padded};
use crate::cache::{CacheFormat, Latents};
use crate::decoder::KeyRotary;
use crate::ops::parallel::{self, Parts};
use crate::ops::simd::{LANES, Level};
use merge::Merge;
use walk::Work;

pub(crate) use expansion::{Expansion, LateExpansion, Stored, WeightForm};
pub(crate) use recent::Recent;

/// Rows (queries of all heads) that share a walk over the latents: many, since each walk rebuilds the keys.
const ROWS: usize = 512;
/// New tokens up to which latents are summed, however many there are: a token verified among others is the token decoded
/// alone.
const FEW_TOKENS: usize = 32;
/// Nothing is asked for ahead of its use: tiles are rebuilt in memory that is near.
const NOT_AHEAD: Ahead<f32> = Ahead {
    from: std::ptr::null(),
    step: 0,
    on: false,
};

/// What weighted values are summed from; the results differ by rounding alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueForm {
    /// Values, rebuilt for each walk over the cache.
    Rebuilt,
    /// Latents, expanded once for each query and head.
    Summed,
}

impl ValueForm {
    /// Both.
    pub const ALL: [ValueForm; 2] = [ValueForm::Rebuilt, ValueForm::Summed];

    /// Name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            ValueForm::Rebuilt => "rebuilt",
            ValueForm::Summed => "summed",
        }
    }

    /// The form that is taken by itself: latents for up to 32 new tokens; for more, the one with fewer products. `ranks` are
    /// those of each value head's slice.
    ///
    /// A latent's products cost twice a value's, since it is unpacked for every few rows; products with codes cost a quarter.
    pub(crate) fn of(
        tokens: usize,
        heads: usize,
        head_dim: usize,
        format: CacheFormat,
        ranks: &[usize],
    ) -> Self {
        let kv_heads = ranks.len();
        let rows = (ROWS / heads).clamp(1, tokens) * heads / kv_heads;
        let rank: usize = ranks.iter().sum();
        let rebuild = rank * head_dim / if format.is_packed() { 4 } else { 1 };
        let rebuilt = rows * head_dim * kv_heads + rebuild;
        match tokens <= FEW_TOKENS || 2 * rows * rank <= rebuilt {
            true => ValueForm::Summed,
            false => ValueForm::Rebuilt,
        }
    }
}

impl std::str::FromStr for ValueForm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = ValueForm::ALL.into_iter().find(|form| form.name() == text);
        found.ok_or_else(|| format!("values are `rebuilt` or `summed`, not `{text}`"))
    }
}

/// The values' expansions, group by group, in one of the two forms.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    Rebuilt(&'a [Expansion]),
    Summed(&'a [LateExpansion]),
}

/// One attention over latents. The last `sizes.tokens` of the cache's tokens are the queries' own.
#[derive(Clone, Copy)]
pub(crate) struct LatentAttention<'a> {
    pub sizes: Sizes,
    /// `[batch, tokens, heads, head_dim]`, turned to their positions.
    pub q: &'a [f32],
    pub latents: Latents<'a>,
    /// The keys' expansions, group by group; their slices are the first.
    pub keys: &'a [Expansion],
    pub values: Values<'a>,
    /// What late runs are read from; all are where there is none.
    pub recent: Option<Recent<'a>>,
    /// Whether the values' slices are the keys'.
    pub joint: bool,
    pub rotary: &'a KeyRotary,
    /// Weights `[head_dim]` and epsilon of the keys' norm.
    pub k_norm: Option<(&'a [f32], f32)>,
    /// `[tokens, tokens]`, as for [`attention`](super::attention).
    pub mask: Option<&'a [u8]>,
}

impl LatentAttention<'_> {
    fn check(&self, out: &[f32]) {
        let Sizes {
            batch,
            tokens,
            heads,
            kv_heads,
            head_dim,
            keys,
        } = self.sizes;
        assert_eq!(self.q.len(), batch * tokens * heads * head_dim, "queries");
        assert_eq!(out.len(), self.q.len(), "output");
        assert!(heads % kv_heads == 0 && keys >= tokens, "{:?}", self.sizes);
        assert!(self.mask.is_none_or(|m| m.len() == tokens * tokens), "mask");
        assert!(
            self.k_norm.is_none_or(|(gamma, _)| gamma.len() == head_dim),
            "norm"
        );
        self.check_latents();
        assert_eq!(self.latents.first, 0, "latents of all tokens");
        if let Some(recent) = self.recent {
            self.check_recent(recent);
            self.late().check_latents();
        }
    }

    /// That latents and expansions fit each other.
    fn check_latents(&self) {
        let Sizes {
            batch,
            kv_heads,
            head_dim,
            keys,
            ..
        } = self.sizes;
        let layout = self.latents.layout;
        let form = WeightForm::of(layout.format);
        // Heads of the groups that fit their slices, or none when one does not.
        let slices = &layout.slices[..];
        let of_keys = self.keys.iter().zip(slices);
        let of_keys = of_keys.map(|(g, s)| g.fits(*s, form, head_dim).then_some(g.heads));
        let own = &slices[self.first_value()..];
        let of_values: Option<usize> = match self.values {
            Values::Rebuilt(groups) => {
                let each = groups.iter().zip(own);
                each.map(|(g, s)| g.fits(*s, form, head_dim).then_some(g.heads))
                    .sum()
            }
            Values::Summed(groups) => {
                let each = groups.iter().zip(own);
                each.map(|(g, s)| g.fits(*s, head_dim).then_some(g.heads))
                    .sum()
            }
        };
        assert_eq!(
            of_keys.sum::<Option<usize>>(),
            Some(kv_heads),
            "groups of keys"
        );
        assert_eq!(of_values, Some(kv_heads), "groups of values");
        assert_eq!(
            (self.latents.batch, self.latents.length),
            (batch, keys),
            "latents"
        );
        let panels = (keys - self.latents.first).div_ceil(LANES);
        let bytes = panels * batch * layout.bytes;
        assert!(bytes <= self.latents.panels.len(), "memory of the latents");
    }

    /// The slice of the first value group.
    fn first_value(&self) -> usize {
        if self.joint { 0 } else { self.keys.len() }
    }

    /// Sums of a row, in whole vectors.
    fn width(&self) -> usize {
        match self.values {
            Values::Rebuilt(_) => padded(self.sizes.head_dim),
            Values::Summed(groups) => {
                let ranks = groups.iter().map(|g| g.rank);
                padded(ranks.max().unwrap_or(0))
            }
        }
    }

    /// Does it at a level the CPU has, into `out` of the queries' shape.
    ///
    /// # Panics
    /// When sizes, slices and groups do not fit each other.
    pub fn run(&self, level: Level, out: &mut [f32]) {
        if self.q.is_empty() {
            return;
        }
        self.check(out);
        let Sizes {
            batch, heads, keys, ..
        } = self.sizes;
        let all = self.blocks();
        let blocks = all.len();
        let runs = keys.div_ceil(RUN);
        let units = batch * blocks;
        let out = Parts::new(out);
        let work = |unit: usize, runs: Range<usize>, partial: *mut f32| {
            let block = &all[unit % blocks];
            Work {
                of: *self,
                out: out.pointer(),
                sequence: unit / blocks,
                first: block.start,
                positions: block.len(),
                early: self.early_runs(block.start),
                runs,
                partial,
            }
        };
        if units >= 2 * parallel::threads() || runs == 1 {
            // Later queries see more keys: start with them, so that the last task is a short one.
            parallel::for_each(units, |unit| {
                let unit = unit % batch * blocks + (blocks - 1 - unit / batch);
                // SAFETY: `check` has compared lengths; no two units share a row of `out`; the level is there.
                unsafe { level.run(work(unit, 0..runs, std::ptr::null_mut())) };
            });
            return;
        }
        let positions = all.iter().map(Range::len).max().unwrap_or(0);
        let size = positions * heads * (self.width() + 2);
        let mut partial = vec![0.0; units * runs * size];
        let places = Parts::new(&mut partial);
        parallel::for_each(units * runs, |task| {
            let (unit, run) = (task / runs, task % runs);
            // SAFETY: as above; each task has a place of its own.
            unsafe { level.run(work(unit, run..run + 1, places.pointer().add(task * size))) };
        });
        for unit in 0..units {
            // SAFETY: as above.
            unsafe {
                level.run(Merge {
                    work: work(unit, 0..runs, places.pointer().add(unit * runs * size)),
                    size,
                });
            }
        }
    }
}
