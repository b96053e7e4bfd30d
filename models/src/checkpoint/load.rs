//! From stored tensors to modules.
//!
//! The modules are built here rather than filled through burn-store, for what its loaders can not do: keep a weight where
//! it lies in a mapped file, in the file's own `[out, in]` order, or turn it into codes as it is read. burn-store still
//! writes what Cinder saves (`native.rs`, `export.rs`).

use std::collections::BTreeSet;

use burn::module::{Module, Param};
use burn::nn::{EmbeddingConfig, Linear, RmsNorm, RmsNormConfig};
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use half::{bf16, f16};

use super::latent::{LatentInfo, group_prefix};
use super::names::{is_derived, projection_prefix};
use super::open::{Checkpoint, is_packed_head};
use super::pivots::read_pivots;
use super::quantized::QuantizedInfo;
use super::structure::BasisInfo;
use crate::decoder::{Attention, DecoderLayer, FeedForward, Site, TokenEmbedding};
use crate::error::{Error, Result};
use crate::ops::{BlockFormat, Blocks};
use crate::precision::Precision;
use crate::projection::{
    Basis, BlockLinear, GroupHeads, IdentityBasis, LowRank, Matrix, Projection, ProjectionGroup,
};

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";
/// What the codes of a head are stored under.
pub(crate) const HEAD_PREFIX: &str = "lm_head";

/// What stands around the layers.
#[derive(Module, Debug)]
pub struct Frame {
    pub embedding: TokenEmbedding,
    pub norm: RmsNorm,
    pub lm_head: Option<Projection>,
}

/// Loads parts of one checkpoint; remembers what has been asked for.
pub(crate) struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    precision: Precision,
    device: &'a Device,
    taken: BTreeSet<String>,
    /// Whether matrices are zeros that take no memory.
    hollow: bool,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        precision: Precision,
        device: &'a Device,
    ) -> Self {
        Loader {
            checkpoint,
            precision,
            device,
            taken: BTreeSet::new(),
            hollow: false,
        }
    }

    /// Reads no matrix: in place of each stands one zero in all places.
    pub(crate) fn hollow(mut self) -> Self {
        self.hollow = true;
        self
    }

    /// The embedding, the last norm and the head.
    pub(crate) fn frame(mut self) -> Result<Frame> {
        let config = self.checkpoint.config();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let precision = self.precision.of_embedding();
        let embedding = match precision.blocks() {
            Some(format) => {
                TokenEmbedding::Blocks(self.blocks(EMBEDDING, vocab, hidden, format, None)?)
            }
            None => {
                let mut embedding = EmbeddingConfig::new(vocab, hidden).init(self.device);
                embedding.weight =
                    Param::from_tensor(self.rows(EMBEDDING, vocab, hidden, precision)?);
                TokenEmbedding::Float(embedding)
            }
        };
        let norm = self.norm(NORM, hidden)?;
        let codes = self.checkpoint.head_codes();
        let lm_head = match &codes {
            Some(codes) => Some(self.codes(codes, (vocab, hidden), None)?),
            None if config.tied_embeddings => None,
            None => Some(self.matrix(HEAD, vocab, hidden, precision, None)?.into()),
        };
        // Some files hold a copy of a tied head; beside codes, it would be another head than theirs.
        let copy = config.tied_embeddings && codes.is_none();
        let names = self.checkpoint.source().names();
        let left = names.iter().find(|name| {
            let head = *name == HEAD || is_packed_head(name);
            head && !self.taken.contains(*name) && !(copy && *name == HEAD)
        });
        if let Some(name) = left {
            return Err(self.wrong(name, "has no place beside the head that is read".into()));
        }
        Ok(Frame {
            embedding,
            norm,
            lm_head,
        })
    }

    /// One layer.
    pub(crate) fn layer(mut self, index: usize) -> Result<DecoderLayer> {
        let config = self.checkpoint.config();
        let prefix = format!("model.layers.{index}.");
        let name = |part: &str| format!("{prefix}{part}.weight");
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let mut head_norm = |part: &str| {
            let wanted = config.qk_norm.then(|| self.norm(&name(part), head_dim));
            wanted.transpose()
        };
        let q_norm = head_norm("self_attn.q_norm")?;
        let k_norm = head_norm("self_attn.k_norm")?;
        let (qkv, latent) = self.attention_inputs(index)?;
        let layer = DecoderLayer {
            input_norm: self.norm(&name("input_layernorm"), hidden)?,
            attention: Attention {
                qkv,
                latent,
                output: self.projection(index, Site::O, "o")?,
                q_norm,
                k_norm,
                head_dim,
                cache_format: self.checkpoint.cache_format(),
                residual_window: self.checkpoint.residual_window(),
            },
            post_attention_norm: self.norm(&name("post_attention_layernorm"), hidden)?,
            feed_forward: FeedForward {
                gate_up: self.group(index, Site::GateUp)?,
                down: self.projection(index, Site::Down, "down")?,
            },
        };
        let names = self.checkpoint.source().names();
        let left = names
            .iter()
            .find(|n| n.starts_with(&prefix) && !is_derived(n) && !self.taken.contains(*n));
        match left {
            Some(name) => Err(self.wrong(name, "has no place in this architecture".into())),
            None => Ok(layer),
        }
    }

    /// Query, key and value: the query alone where the others are rebuilt from latents.
    fn attention_inputs(&mut self, layer: usize) -> Result<(ProjectionGroup, Option<GroupHeads>)> {
        if let Some(heads) = self.group_heads(layer)? {
            let query = self.projection(layer, Site::Qkv, "q")?;
            return Ok((ProjectionGroup::new(vec![query]), Some(heads)));
        }
        let structure = self.checkpoint.structure();
        let info = structure.projection(layer, Site::Qkv, "k");
        let Some(basis) = info.basis.filter(|_| info.rebuilt) else {
            return Ok((self.group(layer, Site::Qkv)?, None));
        };
        let mut expansion = |projection: &'static str| {
            let holder = format!("{}.expansion", projection_prefix(layer, projection));
            let bias = self.checkpoint.config().projection_bias(projection);
            let bias = bias.then(|| self.vector(&format!("{holder}.bias"), info.out));
            // Keys and values are rebuilt by a kernel of their own, in f32.
            let (name, bias) = (format!("{holder}.weight"), bias.transpose()?);
            self.matrix(&name, info.out, basis.rank, Precision::F32, bias)
        };
        let (keys, values) = (expansion("k")?, expansion("v")?);
        let query = self.projection(layer, Site::Qkv, "q")?;
        let basis = self.basis(&basis, info.input)?;
        Ok((
            ProjectionGroup::shared(basis, vec![query]),
            Some(GroupHeads::of_shared_basis(keys, values)),
        ))
    }

    /// Keys and values that are rebuilt from latents of groups of heads.
    fn group_heads(&mut self, layer: usize) -> Result<Option<GroupHeads>> {
        let Some(info) = LatentInfo::find(&**self.checkpoint.source(), layer) else {
            return Ok(None);
        };
        let config = self.checkpoint.config();
        let name = format!("{}.weight", info.prefix);
        let basis = self.matrix(&name, info.rank, config.hidden_size, self.precision, None)?;
        let mut expansions = |projection: &str| -> Result<Vec<Matrix>> {
            let groups = info.groups(projection).iter().enumerate();
            let groups = groups.map(|(group, (out, rank))| {
                let prefix = group_prefix(&projection_prefix(layer, projection), group);
                let bias = config.projection_bias(projection);
                let bias = bias.then(|| self.vector(&format!("{prefix}.bias"), *out));
                let name = format!("{prefix}.weight");
                // Keys and values are rebuilt by a kernel of their own, in f32.
                self.matrix(&name, *out, *rank, Precision::F32, bias.transpose()?)
            });
            groups.collect()
        };
        let (keys, values) = (expansions("k")?, expansions("v")?);
        Ok(Some(GroupHeads::new(basis, keys, values, info.joint)))
    }

    fn group(&mut self, layer: usize, site: Site) -> Result<ProjectionGroup> {
        let structure = self.checkpoint.structure();
        let mut names = site.projections().iter();
        let shared = names.find_map(|projection| {
            let info = structure.projection(layer, site, projection);
            Some((info.basis.filter(|basis| basis.shared)?, info.input))
        });
        let basis = shared.map(|(basis, input)| self.basis(&basis, input));
        let members = site.projections().iter();
        Ok(ProjectionGroup {
            basis: basis.transpose()?,
            members: members
                .map(|projection| self.projection(layer, site, projection))
                .collect::<Result<_>>()?,
        })
    }

    /// One projection; of those that share a basis, the expansion.
    fn projection(
        &mut self,
        layer: usize,
        site: Site,
        projection: &'static str,
    ) -> Result<Projection> {
        let config = self.checkpoint.config();
        let info = self
            .checkpoint
            .structure()
            .projection(layer, site, projection);
        let prefix = projection_prefix(layer, projection);
        let bias = config.projection_bias(projection);
        let mut bias = |holder: &str| {
            let tensor = bias.then(|| self.vector(&format!("{holder}.bias"), info.out));
            tensor.transpose()
        };
        if let Some(quantized) = &info.quantized {
            let bias = bias(&prefix)?;
            return self.codes(quantized, (info.out, info.input), bias);
        }
        let Some(basis) = info.basis else {
            let bias = bias(&prefix)?;
            let name = format!("{prefix}.weight");
            let matrix = self.matrix(&name, info.out, info.input, self.precision, bias)?;
            return Ok(matrix.into());
        };
        let holder = format!("{prefix}.expansion");
        let bias = bias(&holder)?;
        let name = format!("{holder}.weight");
        let expansion = self.matrix(&name, info.out, basis.rank, self.precision, bias)?;
        Ok(match basis.shared {
            true => expansion.into(),
            false => Projection::LowRank(LowRank {
                basis: self.basis(&basis, info.input)?,
                expansion,
            }),
        })
    }

    /// What is stored as codes, of `(out, input)`.
    fn codes(
        &mut self,
        stored: &QuantizedInfo,
        shape: (usize, usize),
        bias: Option<Tensor<1>>,
    ) -> Result<Projection> {
        self.taken.extend(stored.names());
        let from = (&**self.checkpoint.source(), self.checkpoint.path());
        let loaded = stored.load(from, shape, bias, self.device)?;
        Ok(Projection::Quantized(loaded))
    }

    fn basis(&mut self, info: &BasisInfo, input: usize) -> Result<Basis> {
        let name = format!("{}.weight", info.prefix);
        if !info.identity {
            let matrix = self.matrix(&name, info.rank, input, self.precision, None)?;
            return Ok(matrix.into());
        }
        let pivots = format!("{}.pivots", info.prefix);
        self.take(&pivots, &[info.rank])?;
        let (source, path) = (self.checkpoint.source(), self.checkpoint.path());
        let pivots = read_pivots(&**source, path, &pivots, input)?;
        let rest = input - pivots.len();
        let weight = (rest > 0).then(|| self.matrix(&name, info.rank, rest, self.precision, None));
        Ok(IdentityBasis::of_matrix(&pivots, input, weight.transpose()?, self.device).into())
    }

    /// A stored `[out, input]` matrix in the given precision.
    fn matrix(
        &mut self,
        name: &str,
        out: usize,
        input: usize,
        precision: Precision,
        bias: Option<Tensor<1>>,
    ) -> Result<Matrix> {
        Ok(match precision.blocks() {
            Some(format) => Matrix::Blocks(self.blocks(name, out, input, format, bias)?),
            // The file's order is the one the kernels read: `[in, out]` is a view of it.
            None => Matrix::Float(Linear {
                weight: Param::from_tensor(self.rows(name, out, input, precision)?.transpose()),
                bias: bias.map(Param::from_tensor),
            }),
        })
    }

    fn blocks(
        &mut self,
        name: &str,
        out: usize,
        input: usize,
        format: BlockFormat,
        bias: Option<Tensor<1>>,
    ) -> Result<BlockLinear> {
        self.take(name, &[out, input])?;
        let values = self.checkpoint.source().read_f32(name)?;
        // Rounding would make ordinary numbers of these.
        if !Blocks::can_hold(&values) {
            let most = f16::MAX.to_f32();
            let why = format!(
                "has values that are not numbers or beyond {most}, which blocks can not hold"
            );
            return Err(self.wrong(name, why));
        }
        let blocks = Blocks::quantize(&values, out, input, format);
        Ok(BlockLinear::new(blocks, bias, self.device))
    }

    /// A stored matrix as it lies: `[out, input]`.
    fn rows(
        &mut self,
        name: &str,
        out: usize,
        input: usize,
        precision: Precision,
    ) -> Result<Tensor<2>> {
        self.take(name, &[out, input])?;
        let dtype = precision.dtype().unwrap_or(DType::F32);
        if self.hollow {
            let zero = Tensor::<2>::zeros([1, 1], (self.device, dtype));
            return Ok(zero.expand([out, input]));
        }
        let source = self.checkpoint.source();
        let bytes = match source.mapped(name, dtype) {
            Some(bytes) => bytes,
            None => {
                let values = source.read_f32(name)?;
                let most = f16::MAX.to_f32();
                if dtype == DType::F16 && values.iter().any(|v| v.abs() > most && v.is_finite()) {
                    return Err(self.wrong(
                        name,
                        format!("has values beyond {most}, which f16 can not hold: use bf16"),
                    ));
                }
                narrowed(values, dtype)
            }
        };
        let data = TensorData::from_bytes(bytes, [out, input], dtype);
        Ok(Tensor::from_data(data, (self.device, dtype)))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Tensor<1>> {
        self.take(name, &[length])?;
        let values = self.checkpoint.source().read_f32(name)?;
        Ok(Tensor::from_data(
            TensorData::new(values, [length]),
            self.device,
        ))
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<RmsNorm> {
        let epsilon = self.checkpoint.config().rms_norm_eps;
        let mut norm = RmsNormConfig::new(width)
            .with_epsilon(epsilon)
            .init(self.device);
        norm.gamma = Param::from_tensor(self.vector(name, width)?);
        Ok(norm)
    }

    /// Notes that a tensor is used, and checks that it is there and of the right shape.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        self.taken.insert(name.to_owned());
        let Some(info) = self.checkpoint.source().info(name) else {
            return Err(self.wrong(name, "is missing".into()));
        };
        if info.shape != shape {
            let found = info.shape;
            return Err(self.wrong(
                name,
                format!("has shape {found:?}, but the configuration asks for {shape:?}"),
            ));
        }
        Ok(())
    }

    fn wrong(&self, name: &str, why: String) -> Error {
        Error::Tensor {
            path: self.checkpoint.path().into(),
            name: name.into(),
            why,
        }
    }
}

/// f32 values as bytes of another type.
fn narrowed(values: Vec<f32>, dtype: DType) -> Bytes {
    match dtype {
        DType::F16 => Bytes::from_elems(values.into_iter().map(f16::from_f32).collect::<Vec<_>>()),
        DType::BF16 => {
            Bytes::from_elems(values.into_iter().map(bf16::from_f32).collect::<Vec<_>>())
        }
        _ => Bytes::from_elems(values),
    }
}
