//! The latents of keys and values in a checkpoint, read from names and shapes alone.

use super::names::{latent_prefix, projection_prefix};
use super::source::TensorSource;

/// A layer's keys and values as they are stored: the stacked bases under `{prefix}.weight`, and an expansion for each group of
/// heads under `{projection}.groups.{index}`.
#[derive(Debug, Clone)]
pub(crate) struct LatentInfo {
    pub prefix: String,
    /// Latent values of a token, of all groups.
    pub rank: usize,
    /// `(out, rank)` of each group of key heads.
    pub keys: Vec<(usize, usize)>,
    /// Of each group of value heads.
    pub values: Vec<(usize, usize)>,
    /// Whether a group's keys and values share its latent.
    pub joint: bool,
}

impl LatentInfo {
    pub(crate) fn find(source: &dyn TensorSource, layer: usize) -> Option<Self> {
        let prefix = latent_prefix(layer);
        let groups = |projection: &str| -> Vec<(usize, usize)> {
            let prefix = projection_prefix(layer, projection);
            let shapes = (0..).map_while(|group| {
                let info = source.info(&format!("{}.weight", group_prefix(&prefix, group)))?;
                match info.shape[..] {
                    [out, rank] => Some((out, rank)),
                    _ => None,
                }
            });
            shapes.collect()
        };
        let (keys, values) = (groups("k"), groups("v"));
        let basis = source.info(&format!("{prefix}.weight"));
        if basis.is_none() && keys.is_empty() && values.is_empty() {
            return None;
        }
        let rank = basis.and_then(|info| info.shape.first().copied());
        let rank = rank.unwrap_or(0);
        let total = |groups: &[(usize, usize)]| groups.iter().map(|(_, rank)| rank).sum::<usize>();
        Some(LatentInfo {
            prefix,
            rank,
            // Latents are either shared by keys and values or not; the number of them says which.
            joint: total(&keys) == rank && total(&values) == rank,
            keys,
            values,
        })
    }

    /// The ranks of the latents' slices, in their order.
    pub(crate) fn ranks(&self) -> Vec<usize> {
        let values = self.values.iter().filter(|_| !self.joint);
        let groups = self.keys.iter().chain(values);
        groups.map(|(_, rank)| *rank).collect()
    }

    /// Groups of a projection.
    pub(crate) fn groups(&self, projection: &str) -> &[(usize, usize)] {
        match projection {
            "k" => &self.keys,
            _ => &self.values,
        }
    }

    /// Latent values that one projection reads.
    pub(crate) fn rank_of(&self, projection: &str) -> usize {
        self.groups(projection).iter().map(|(_, rank)| rank).sum()
    }

    /// Where the latents that a projection reads begin.
    pub(crate) fn start_of(&self, projection: &str) -> usize {
        match projection {
            "v" if !self.joint => self.rank_of("k"),
            _ => 0,
        }
    }

    /// Stored scalars of one projection: its expansions and its part of the basis; a joint basis counts with the keys.
    pub(crate) fn scalars(&self, projection: &str, input: usize) -> u64 {
        let groups = self.groups(projection).iter();
        let expansions: usize = groups.map(|(out, rank)| out * rank).sum();
        (expansions + self.basis_rows(projection) * input) as u64
    }

    /// Rows of the basis that count with a projection.
    pub(crate) fn basis_rows(&self, projection: &str) -> usize {
        match (projection, self.joint) {
            ("v", true) => 0,
            _ => self.rank_of(projection),
        }
    }

    /// # Errors
    /// The tensor's name, and what does not fit.
    pub(crate) fn check(
        &self,
        layer: usize,
        kv_width: usize,
        head_dim: usize,
    ) -> Result<(), (String, String)> {
        if self.rank == 0 {
            let why = "is missing, or has no latents".into();
            return Err((format!("{}.weight", self.prefix), why));
        }
        for projection in ["k", "v"] {
            let prefix = projection_prefix(layer, projection);
            let groups = self.groups(projection);
            let name = |group: usize| format!("{}.weight", group_prefix(&prefix, group));
            for (group, (out, rank)) in groups.iter().enumerate() {
                if *rank == 0 || *out == 0 || out % head_dim != 0 {
                    let why = format!(
                        "has shape [{out}, {rank}]: a group has whole heads of {head_dim} and a rank of at least 1"
                    );
                    return Err((name(group), why));
                }
            }
            let width: usize = groups.iter().map(|(out, _)| out).sum();
            if width < kv_width {
                let why = format!(
                    "is missing, or those before it lack heads: they give {width} of {kv_width} values"
                );
                return Err((name(groups.len()), why));
            }
            if width > kv_width {
                let why = format!("is too much: {width} values for heads of {kv_width}");
                return Err((name(groups.len() - 1), why));
            }
        }
        let total = self.rank_of("k") + self.rank_of("v");
        if !self.joint && total != self.rank {
            let why = format!(
                "has {} latents; the groups of heads read {total}",
                self.rank
            );
            return Err((format!("{}.weight", self.prefix), why));
        }
        if self.joint && self.keys != self.values {
            let name = group_prefix(&projection_prefix(layer, "k"), 0);
            let why = "differs between keys and values, which share the latent".into();
            return Err((format!("{name}.weight"), why));
        }
        Ok(())
    }
}

/// Prefix of one group's expansion.
pub(crate) fn group_prefix(projection_prefix: &str, group: usize) -> String {
    format!("{projection_prefix}.groups.{group}")
}
