//! The decoder: one module tree for every family.

mod attention;
pub mod backward;
mod embedding;
mod feed_forward;
mod layer;
mod rope;
mod substituted;

use std::borrow::Cow;

use burn::module::Module;
use burn::nn::RmsNorm;
use burn::tensor::{Tensor, TensorData};

use crate::cache::{CacheFormat, KvCache};
use crate::config::ModelConfig;
use crate::decode::TreeSlice;
use crate::error::{Error, Result};
use crate::ops::{self, ValueForm};
use crate::projection::{Projection, flattened};

pub use attention::Attention;
pub use embedding::TokenEmbedding;
pub use feed_forward::FeedForward;
pub use layer::DecoderLayer;
pub use rope::{KeyRotary, Rotary, RotaryTable};

/// A place of the decoder where one or more projections read the same input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// Query, key and value; their input is the normalised residual stream.
    Qkv,
    /// The attention output projection; its input is the heads' concatenated values.
    O,
    /// Gate and up; their input is the normalised residual stream.
    GateUp,
    /// Down; its input is `silu(gate) * up`.
    Down,
}

impl Site {
    /// Every site of a layer, in the order data flows.
    pub const ALL: [Site; 4] = [Site::Qkv, Site::O, Site::GateUp, Site::Down];

    /// Name used in manifests, tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Site::Qkv => "qkv",
            Site::O => "o",
            Site::GateUp => "gate_up",
            Site::Down => "down",
        }
    }

    /// Names of the projections at this site, in the order of the group's members.
    pub fn projections(self) -> &'static [&'static str] {
        match self {
            Site::Qkv => &["q", "k", "v"],
            Site::O => &["o"],
            Site::GateUp => &["gate", "up"],
            Site::Down => &["down"],
        }
    }
}

/// Sees the input of each site, `[tokens, in]`, as the forward pass reaches it.
pub type Observer<'a> = &'a mut dyn FnMut(Site, &Tensor<2>);

/// A decoder-only language model.
#[derive(Module, Debug)]
pub struct Decoder {
    pub embedding: TokenEmbedding,
    pub layers: Vec<DecoderLayer>,
    pub norm: RmsNorm,
    /// None when the embedding is also the output head.
    pub lm_head: Option<Projection>,
    #[module(skip)]
    rotary: Rotary,
    #[module(skip)]
    max_context: usize,
}

impl Decoder {
    /// Puts a decoder together from its layers. `embedding` is `[vocab, hidden]`; `lm_head` maps `[hidden]` to
    /// `[vocab]`.
    pub fn new(
        config: &ModelConfig,
        embedding: TokenEmbedding,
        layers: Vec<DecoderLayer>,
        norm: RmsNorm,
        lm_head: Option<Projection>,
    ) -> Self {
        Decoder {
            embedding,
            layers,
            norm,
            lm_head,
            rotary: Rotary::new(config),
            max_context: config.max_context,
        }
    }

    /// The longest sequence, in tokens, the model was made for.
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// Takes sequences of `tokens` even if the model was made for shorter ones. What it says there is of no use; how fast it
    /// is can be measured.
    pub fn allow_context(&mut self, tokens: usize) {
        self.max_context = self.max_context.max(tokens);
    }

    /// An empty KV cache for this model, with room for `capacity` tokens; it grows when they are more.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        let capacity = capacity.min(self.max_context);
        let layers = self.layers.iter().map(|l| l.attention.new_cache(capacity));
        KvCache::new(layers.collect())
    }

    /// Makes caches store what they keep in this format, from the next one on; so does a pass without a cache.
    ///
    /// # Errors
    /// [`Error::CacheFormat`] for a packed format where a layer has no latents.
    pub fn set_cache_format(&mut self, format: CacheFormat) -> Result<()> {
        let latents = self.layers.iter().map(|l| l.attention.latent.is_some());
        format.check(latents)?;
        for layer in &mut self.layers {
            layer.attention.cache_format = format;
            if !format.is_packed() {
                layer.attention.residual_window = 0;
            }
        }
        Ok(())
    }

    /// Makes packed caches keep the last `tokens` in f16 too, from the next one on; so does a pass without a cache. Queries
    /// read them in place of the codes, and up to 255 tokens more: which ones depends on the query's position alone. A format
    /// that is not packed ends it.
    ///
    /// # Errors
    /// [`Error::ResidualWindow`] where the format is not packed, unless `tokens` is 0.
    pub fn set_residual_window(&mut self, tokens: usize) -> Result<()> {
        for layer in &self.layers {
            layer.attention.cache_format.check_window(tokens)?;
        }
        for layer in &mut self.layers {
            layer.attention.residual_window = tokens;
        }
        Ok(())
    }

    /// Makes attention over latents sum its weighted values in this form; none is the faster one, which depends on shapes, ranks
    /// and the cache's format. Layers without latents have no choice.
    pub fn set_value_form(&mut self, form: Option<ValueForm>) {
        let latents = self.layers.iter_mut().flat_map(|l| &mut l.attention.latent);
        latents.for_each(|latent| latent.value_form = form);
    }

    /// Folds the expansions of values into the output projections, which then read weighted latents: `rank` inputs for each head
    /// in place of its width (Palu, arXiv 2407.21118, §3.2). For running a model only: it can no longer be compressed or exported.
    ///
    /// # Errors
    /// [`Error::Request`] with the first layer where it can not be done; those before it are folded, and compute the same.
    pub fn fold_values(&mut self) -> Result<()> {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let folded = layer.attention.fold_values();
            folded.map_err(|why| {
                Error::Request(format!("values of layer {index} can not be folded: {why}"))
            })?;
        }
        Ok(())
    }

    /// [`Decoder::fold_values`] in the layers where it makes decoding faster, no prompt slower, and is done in f32: those with
    /// latents of half a head's width and less. Returns their number.
    ///
    /// # Errors
    /// Those of [`Decoder::fold_values`].
    pub fn fold_values_where_it_pays(&mut self) -> Result<usize> {
        let mut folded = 0;
        for layer in &mut self.layers {
            if layer.attention.folding_pays() {
                layer.attention.fold_values().map_err(Error::Request)?;
                folded += 1;
            }
        }
        Ok(folded)
    }

    /// Final hidden states `[batch, tokens, hidden]` of `ids` `[batch][tokens]`, after the last norm.
    ///
    /// With a cache the tokens follow those already in it, and their keys and values are added.
    ///
    /// # Errors
    /// [`Error::Request`] when a token id is outside the vocabulary or the context would be exceeded, or
    /// when the cache belongs to another model or batch size.
    pub fn hidden(&self, ids: &[Vec<u32>], cache: Option<&mut KvCache>) -> Result<Tensor<3>> {
        self.hidden_of(ids, None, cache)
    }

    /// [`Decoder::hidden`] of tokens that can be nodes of a `tree`.
    pub(crate) fn hidden_of(
        &self,
        ids: &[Vec<u32>],
        tree: Option<TreeSlice<'_>>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor<3>> {
        self.hidden_through(ids, tree, cache, |_, layer| Ok(Cow::Borrowed(layer)))
    }

    /// [`Decoder::hidden_of`] through the layers that `turn` makes of this decoder's own, by index, each when its turn comes; what
    /// it makes is dropped before the next.
    ///
    /// # Errors
    /// As [`Decoder::hidden`], and those of `turn`: some layers have the new tokens in their cache then.
    pub(crate) fn hidden_through<'a>(
        &'a self,
        ids: &[Vec<u32>],
        tree: Option<TreeSlice<'_>>,
        mut cache: Option<&mut KvCache>,
        mut turn: impl FnMut(usize, &'a DecoderLayer) -> Result<Cow<'a, DecoderLayer>>,
    ) -> Result<Tensor<3>> {
        if let Some(cache) = &cache {
            cache.check(self.layers.len(), ids.len())?;
        }
        let (mut hidden, table) = self.start(ids, tree, cache.as_deref_mut())?;
        let slots = cache.into_iter().flat_map(|cache| cache.layers_mut());
        let mut slots = slots.map(Some);
        for (index, layer) in self.layers.iter().enumerate() {
            let (layer, slot) = (turn(index, layer)?, slots.next().flatten());
            hidden = layer.forward(hidden, &table, slot, &mut |_, _| {});
        }
        Ok(norm(&self.norm, hidden))
    }

    /// What comes before the layers: the embeddings `[batch, tokens, hidden]` of `ids` `[batch][tokens]`, and where the tokens
    /// stand. They follow those of the cache, or are nodes of a `tree`.
    ///
    /// # Errors
    /// [`Error::Request`] when a token id is outside the vocabulary, or a position outside the context.
    fn start(
        &self,
        ids: &[Vec<u32>],
        tree: Option<TreeSlice<'_>>,
        cache: Option<&mut KvCache>,
    ) -> Result<(Tensor<3>, RotaryTable)> {
        let input = self.embedding.embed(ids)?;
        let (tokens, device) = (input.dims()[1], input.device());
        let past = cache.as_ref().map_or(0, |c| c.length());
        let end = match &tree {
            None => past + tokens,
            Some(_) if cache.as_ref().is_some_and(|cache| cache.has_latents()) => {
                return Err(Error::Request(
                    "a tree of tokens can not be cached as latents: draft a chain (width 1)".into(),
                ));
            }
            Some(tree) => tree.check(tokens, past)?,
        };
        if end > self.max_context {
            return Err(Error::Request(format!(
                "{end} tokens do not fit the model's context of {}",
                self.max_context
            )));
        }
        let mut table = match tree {
            None => self.rotary.table(past, tokens, &device),
            Some(tree) => {
                let mask = TensorData::new(tree.mask.to_vec(), [tokens, tree.span]);
                let mask = Tensor::from_data(mask, &device);
                let table = self.rotary.table_at(tree.positions, &device);
                table.with_mask(mask)
            }
        };
        if let Some(cache) = cache.filter(|cache| cache.has_latents()) {
            cache.rotary.extend(self.rotary.frequencies(), end);
            table = table.with_keys(cache.rotary.clone());
        }
        Ok((input, table))
    }

    /// Next-token logits `[..., vocab]` of hidden states `[..., hidden]`.
    ///
    /// Ask only for the positions needed: a vocabulary is many times wider than the hidden state.
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => flattened(hidden, |x| self.embedding.logits(x)),
        }
    }
}

/// `norm` applied to the last dimension.
pub(crate) fn norm<const D: usize>(norm: &RmsNorm, x: Tensor<D>) -> Tensor<D> {
    ops::rms_norm(x, norm.gamma.val(), norm.epsilon)
}
