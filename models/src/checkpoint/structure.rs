//! The form each projection has in a checkpoint, read from names and shapes alone.

use super::names::projection_prefix;
use super::source::TensorSource;
use crate::config::ModelConfig;
use crate::decoder::Site;
use crate::precision::Precision;

/// One projection as it is stored.
#[derive(Debug, Clone)]
pub struct ProjectionInfo {
    pub layer: usize,
    pub site: Site,
    pub projection: &'static str,
    pub kind: &'static str,
    /// Output and input width.
    pub out: usize,
    pub input: usize,
    pub rank: Option<usize>,
    /// Stored scalars without the bias.
    pub scalars: u64,
    /// Bytes on disk without the bias.
    pub bytes_on_disk: u64,
}

impl ProjectionInfo {
    /// Bytes in memory at a precision, without the bias.
    pub fn bytes(&self, precision: Precision) -> u64 {
        match self.rank {
            None => precision.matrix_bytes(self.out, self.input),
            Some(rank) => {
                precision.matrix_bytes(rank, self.input) + precision.matrix_bytes(self.out, rank)
            }
        }
    }
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

    /// Bytes of the KV cache for one token: keys and values of every layer, in f32.
    pub fn kv_bytes_per_token(&self) -> u64 {
        (2 * self.layers * self.kv_heads * self.head_dim * size_of::<f32>()) as u64
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

/// The stored form of one projection. Without a basis it is taken to be dense, so that a missing
/// weight is reported under its usual name.
pub(crate) fn projection_info(
    source: &dyn TensorSource,
    config: &ModelConfig,
    layer: usize,
    site: Site,
    projection: &'static str,
) -> ProjectionInfo {
    let prefix = projection_prefix(layer, projection);
    let (out, input) = config.projection_shape(projection);
    let size = |name: &str| source.info(&format!("{prefix}.{name}.weight"));
    let mut info = ProjectionInfo {
        layer,
        site,
        projection,
        kind: "dense",
        out,
        input,
        rank: None,
        scalars: (out * input) as u64,
        bytes_on_disk: source
            .info(&format!("{prefix}.weight"))
            .map_or(0, |i| i.bytes),
    };
    if let Some(basis) = size("basis") {
        let rank = basis.shape.first().copied().unwrap_or(0);
        info.kind = "low-rank";
        info.rank = Some(rank);
        info.scalars = (rank as u64).saturating_mul((out + input) as u64);
        info.bytes_on_disk = basis.bytes + size("expansion").map_or(0, |i| i.bytes);
    }
    info
}
