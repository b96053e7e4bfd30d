//! The form each projection has in a checkpoint, read from names and shapes alone.

use super::latent::{LatentInfo, group_prefix};
use super::names::{projection_prefix, shared_prefix};
use super::quantized::QuantizedInfo;
use super::source::{TensorInfo, TensorSource};
use crate::config::ModelConfig;
use crate::decoder::Site;
use crate::ops::LowBit;
use crate::precision::Precision;

/// One projection as it is stored.
#[derive(Debug, Clone)]
pub struct ProjectionInfo {
    pub layer: usize,
    pub site: Site,
    pub projection: &'static str,
    /// `dense`, `low-rank`, `identity-block`, `shared-basis`, `shared-identity-block`, `group-head` or `joint-group-head` (keys
    /// and values rebuilt from latents by groups of heads, each from its own or both from one), `quantized` (low-bit codes), or
    /// `pruned`: dense with fewer feed-forward neurons than the configuration says.
    pub kind: &'static str,
    /// Output and input width as stored.
    pub out: usize,
    pub input: usize,
    pub rank: Option<usize>,
    /// The layer's feed-forward neurons where it has fewer than the configuration says; `gate`, `up` and `down` only.
    pub neurons: Option<usize>,
    /// Stored scalars without bias and pivots. A shared basis is counted with the first projection of its site, so that
    /// sums over projections are right.
    pub scalars: u64,
    /// Bytes on disk without the bias, pivots counted; a shared basis as for the scalars.
    pub bytes_on_disk: u64,
    /// The first of two factors.
    pub(crate) basis: Option<BasisInfo>,
    /// Keys and values that are rebuilt from latents.
    pub(crate) latent: Option<LatentInfo>,
    /// Whether it is a key or value that is rebuilt from the cached latent of a shared basis.
    pub(crate) rebuilt: bool,
    /// Low-bit codes.
    pub(crate) quantized: Option<QuantizedInfo>,
}

impl ProjectionInfo {
    /// Bytes in memory at a precision, without the bias: with pivots, and a shared basis counted as for the scalars. What
    /// rebuilds keys and values from latents is kept in f32, and codes as they are stored.
    pub fn bytes(&self, precision: Precision) -> u64 {
        if let Some(quantized) = &self.quantized {
            return quantized.bytes;
        }
        if let Some(latent) = &self.latent {
            let groups = latent.groups(self.projection).iter();
            let expansions = groups.map(|(out, rank)| Precision::F32.matrix_bytes(*out, *rank));
            // A basis in blocks is filled up as a whole.
            let basis = |rows: usize| precision.matrix_bytes(rows, self.input);
            let start = latent.start_of(self.projection);
            let end = start + latent.basis_rows(self.projection);
            return expansions.sum::<u64>() + basis(end) - basis(start);
        }
        let Some(basis) = &self.basis else {
            return precision.matrix_bytes(self.out, self.input);
        };
        let expansion = match self.rebuilt {
            true => Precision::F32.matrix_bytes(self.out, basis.rank),
            false => precision.matrix_bytes(self.out, basis.rank),
        };
        match self.counts_basis() {
            true => expansion + basis.bytes(self.input, precision),
            false => expansion,
        }
    }

    /// Bits of a code and inputs that share a scale, where the projection is stored as codes.
    pub fn low_bit(&self) -> Option<LowBit> {
        self.quantized.as_ref().map(|quantized| quantized.format)
    }

    /// Whether it is a key or value that attention rebuilds from what the KV cache keeps of a shared basis.
    pub fn is_rebuilt(&self) -> bool {
        self.rebuilt
    }

    /// Whether the basis counts with this projection: its own does, a shared one with the site's first.
    fn counts_basis(&self) -> bool {
        let shared = self.basis.as_ref().is_some_and(|basis| basis.shared);
        !shared || self.site.projections().first() == Some(&self.projection)
    }
}

/// A basis as it is stored, under `{prefix}.weight` and `{prefix}.pivots`.
#[derive(Debug, Clone)]
pub(crate) struct BasisInfo {
    pub prefix: String,
    pub rank: usize,
    /// Whether the rank's inputs pass through, so that the weight is of the others alone.
    pub identity: bool,
    /// Whether all projections of the site read its latent.
    pub shared: bool,
    /// The input width that the stored shapes add up to.
    width: usize,
    bytes_on_disk: u64,
}

impl BasisInfo {
    fn find(source: &dyn TensorSource, prefix: String, shared: bool) -> Option<Self> {
        let weight = source.info(&format!("{prefix}.weight"));
        let pivots = source.info(&format!("{prefix}.pivots"));
        let size = |info: &Option<TensorInfo>, axis: usize| {
            let size = info.as_ref().and_then(|i| i.shape.get(axis));
            size.copied().unwrap_or(0)
        };
        let bytes = |info: &Option<TensorInfo>| info.as_ref().map_or(0, |i| i.bytes);
        let identity = pivots.is_some();
        let rank = size(if identity { &pivots } else { &weight }, 0);
        (identity || weight.is_some()).then(|| BasisInfo {
            prefix,
            rank,
            identity,
            shared,
            width: size(&weight, 1) + size(&pivots, 0),
            bytes_on_disk: bytes(&weight) + bytes(&pivots),
        })
    }

    /// The name of the tensor that says the rank.
    fn name(&self) -> String {
        let leaf = if self.identity { "pivots" } else { "weight" };
        format!("{}.{leaf}", self.prefix)
    }

    /// Stored scalars for `input` inputs.
    fn scalars(&self, input: usize) -> u64 {
        let stored = match self.identity {
            true => input.saturating_sub(self.rank),
            false => input,
        };
        (self.rank as u64).saturating_mul(stored as u64)
    }

    /// Bytes in memory. An index of each input, pivot or not, takes four.
    fn bytes(&self, input: usize, precision: Precision) -> u64 {
        match self.identity {
            true => {
                let rest = input.saturating_sub(self.rank);
                precision.matrix_bytes(self.rank, rest) + index_bytes(input)
            }
            false => precision.matrix_bytes(self.rank, input),
        }
    }
}

/// Bytes of indices in memory.
pub(crate) fn index_bytes(count: usize) -> u64 {
    (count * size_of::<i32>()) as u64
}

impl ModelConfig {
    /// `(out, in)` of a projection.
    pub fn projection_shape(&self, projection: &str) -> (usize, usize) {
        let q = self.heads * self.head_dim;
        let kv = self.kv_heads * self.head_dim;
        match projection {
            "q" => (q, self.hidden_size),
            "k" | "v" => (kv, self.hidden_size),
            "o" => (self.hidden_size, q),
            "gate" | "up" => (self.intermediate_size, self.hidden_size),
            _ => (self.hidden_size, self.intermediate_size),
        }
    }

    /// Whether a projection has a bias.
    pub fn projection_bias(&self, projection: &str) -> bool {
        match projection {
            "q" | "k" | "v" => self.qkv_bias,
            "o" => self.output_bias,
            _ => self.feed_forward_bias,
        }
    }
}

/// What the names and shapes of a checkpoint's tensors say about its layers.
pub(crate) struct Structure<'a> {
    pub source: &'a dyn TensorSource,
    pub config: &'a ModelConfig,
    /// Whether layers may have fewer neurons than the configuration says. Only what Cinder wrote does; of any other
    /// model it means that tensors and configuration do not belong together.
    pub pruned: bool,
    /// Whether the KV cache keeps the latent of a basis that query, key and value share, where that is the smaller.
    pub cached_basis: bool,
}

impl Structure<'_> {
    /// The latents that a layer's keys and values are rebuilt from; none where the cache keeps them in full.
    pub(crate) fn latent(&self, layer: usize) -> Option<LatentInfo> {
        LatentInfo::find(self.source, layer).or_else(|| self.cached_basis(layer))
    }

    fn cached_basis(&self, layer: usize) -> Option<LatentInfo> {
        let prefix = shared_prefix(layer, Site::Qkv).filter(|_| self.cached_basis)?;
        let basis = BasisInfo::find(self.source, prefix, true)?;
        let width = self.config.kv_heads * self.config.head_dim;
        (basis.rank < 2 * width).then(|| LatentInfo {
            prefix: basis.prefix,
            rank: basis.rank,
            keys: vec![(width, basis.rank)],
            values: vec![(width, basis.rank)],
            joint: true,
        })
    }

    /// The stored form of one projection. Without a basis it is taken to be dense, so that a missing weight is reported
    /// under its usual name.
    pub(crate) fn projection(
        &self,
        layer: usize,
        site: Site,
        projection: &'static str,
    ) -> ProjectionInfo {
        let prefix = projection_prefix(layer, projection);
        let (mut out, mut input) = self.config.projection_shape(projection);
        let neurons = match site {
            Site::Qkv | Site::O => None,
            Site::GateUp | Site::Down => {
                let neurons = self.neurons(layer);
                match site {
                    Site::GateUp => out = neurons,
                    _ => input = neurons,
                }
                Some(neurons).filter(|n| *n != self.config.intermediate_size)
            }
        };
        let bytes = |name: &str| {
            let info = self.source.info(&format!("{prefix}.{name}"));
            info.map_or(0, |i| i.bytes)
        };
        let mut info = ProjectionInfo {
            layer,
            site,
            projection,
            kind: if neurons.is_some() { "pruned" } else { "dense" },
            out,
            input,
            rank: None,
            neurons,
            scalars: (out as u64).saturating_mul(input as u64),
            bytes_on_disk: bytes("weight"),
            basis: None,
            latent: None,
            rebuilt: false,
            quantized: QuantizedInfo::find(self.source, &prefix, input),
        };
        if let Some(quantized) = &info.quantized {
            info.kind = "quantized";
            info.bytes_on_disk = quantized.bytes;
            return info;
        }
        if ["k", "v"].contains(&projection)
            && let Some(latent) = LatentInfo::find(self.source, layer)
        {
            info.kind = match latent.joint {
                true => "joint-group-head",
                false => "group-head",
            };
            info.rank = Some(latent.rank_of(projection));
            info.scalars = latent.scalars(projection, input);
            let stored = |name: String| self.source.info(&name).map_or(0, |i| i.bytes);
            let groups = 0..latent.groups(projection).len();
            let expansions = groups.map(|g| stored(format!("{}.weight", group_prefix(&prefix, g))));
            let basis = stored(format!("{}.weight", latent.prefix));
            let rows = latent.basis_rows(projection) as u64;
            info.bytes_on_disk = expansions.sum::<u64>() + basis * rows / latent.rank.max(1) as u64;
            info.latent = Some(latent);
            return info;
        }
        let shared = shared_prefix(layer, site)
            .and_then(|prefix| BasisInfo::find(self.source, prefix, true));
        let own = || BasisInfo::find(self.source, format!("{prefix}.basis"), false);
        info.basis = shared.or_else(own);
        if let Some(basis) = info.basis.clone() {
            info.kind = match (basis.shared, basis.identity) {
                (false, false) => "low-rank",
                (false, true) => "identity-block",
                (true, false) => "shared-basis",
                (true, true) => "shared-identity-block",
            };
            info.rank = Some(basis.rank);
            info.rebuilt = ["k", "v"].contains(&projection) && self.cached_basis(layer).is_some();
            info.scalars = (basis.rank as u64).saturating_mul(out as u64);
            info.bytes_on_disk = bytes("expansion.weight");
            if info.counts_basis() {
                info.scalars = info.scalars.saturating_add(basis.scalars(input));
                info.bytes_on_disk += basis.bytes_on_disk;
            }
        }
        info
    }

    /// Every projection, layer by layer.
    pub(crate) fn projections(&self) -> Vec<ProjectionInfo> {
        (0..self.config.layers)
            .flat_map(|layer| Site::ALL.into_iter().map(move |site| (layer, site)))
            .flat_map(|(layer, site)| {
                let names = site.projections().iter();
                names.map(move |projection| self.projection(layer, site, projection))
            })
            .collect()
    }

    /// Feed-forward neurons of a layer: what its down projection reads.
    fn neurons(&self, layer: usize) -> usize {
        let prefix = projection_prefix(layer, "down");
        let stored = match BasisInfo::find(self.source, format!("{prefix}.basis"), false) {
            Some(basis) => Some(basis.width),
            None => self.width(&format!("{prefix}.weight"), 1),
        };
        stored
            .filter(|_| self.pruned)
            .unwrap_or(self.config.intermediate_size)
    }

    /// One side of a stored matrix.
    fn width(&self, name: &str, axis: usize) -> Option<usize> {
        let info = self.source.info(name)?;
        info.shape
            .get(axis)
            .copied()
            .filter(|_| info.shape.len() == 2)
    }

    /// Checks what shapes alone can not: that ranks and numbers of neurons make sense, and agree.
    ///
    /// # Errors
    /// The tensor's name, and what is wrong with it.
    pub(crate) fn check(&self) -> std::result::Result<(), (String, String)> {
        for p in self.projections() {
            let prefix = projection_prefix(p.layer, p.projection);
            let most = self.config.intermediate_size;
            if let Some(neurons) = p.neurons.filter(|n| *n == 0 || *n > most) {
                let why = format!("reads {neurons} neurons; they must be in 1..={most}");
                return Err((self.down_name(p.layer), why));
            }
            if p.site == Site::GateUp && self.pruned {
                let name = match p.rank {
                    Some(_) => format!("{prefix}.expansion.weight"),
                    None => format!("{prefix}.weight"),
                };
                if let Some(out) = self.width(&name, 0).filter(|out| *out != p.out) {
                    let why = format!(
                        "puts out {out} neurons, but `{}` reads {}",
                        projection_prefix(p.layer, "down"),
                        p.out
                    );
                    return Err((name, why));
                }
            }
            if let Some(latent) = p.latent.as_ref().filter(|_| p.projection == "k") {
                latent.check(p.layer, p.out, self.config.head_dim)?;
            }
            let Some(basis) = &p.basis else {
                continue;
            };
            let out = match basis.shared {
                true => self.site_out(p.layer, p.site),
                false => p.out,
            };
            let most = out.min(p.input);
            if basis.rank == 0 || basis.rank > most {
                let why = format!("has rank {}; it must be in 1..={most}", basis.rank);
                return Err((basis.name(), why));
            }
        }
        Ok(())
    }

    /// The outputs of all projections of a site.
    fn site_out(&self, layer: usize, site: Site) -> usize {
        let names = site.projections().iter();
        let outs = names.map(|projection| self.projection(layer, site, projection).out);
        outs.sum()
    }

    /// The tensor whose width is a layer's number of neurons.
    fn down_name(&self, layer: usize) -> String {
        let prefix = projection_prefix(layer, "down");
        match BasisInfo::find(self.source, format!("{prefix}.basis"), false) {
            Some(basis) => basis.name(),
            None => format!("{prefix}.weight"),
        }
    }
}
