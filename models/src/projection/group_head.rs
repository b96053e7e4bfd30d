//! Keys and values by groups of heads, rebuilt from latents that the KV cache stores in their place.
//!
//! Each group of key heads, and each group of value heads, is a factorization `W_g ≈ B_g A_g`; what is cached is `A_g x`, before
//! the rotary embedding (Palu, Chang et al. 2024, arXiv 2407.21118, §3.2). A *joint* latent serves the keys and the values of
//! its heads.

use burn::module::{Module, Param};
use burn::nn::{Linear, RmsNorm};
use burn::tensor::{Bool, DType, Tensor};

use super::Matrix;
use super::expansions::Expansions;
use crate::cache::LatentCache;
use crate::cache::window::RECENT;
use crate::decoder::{RotaryTable, norm};
use crate::ops::{self, LatentParts, Recent, ValueForm};

/// The key and value projections of a layer as latents and expansions.
#[derive(Module, Debug)]
pub struct GroupHeads {
    /// All latents, one slice after another: `[in]` to `[Σ rank]`, without bias. The slices are those of the key groups and
    /// then those of the value groups; where they are joint, one for each group. None where the one latent is that of the basis
    /// which query, key and value share: the queries' group has it.
    pub basis: Option<Matrix>,
    /// Keys of each group of consecutive heads: `[rank]` to `[heads * head_dim]`, with the dense map's biases.
    pub keys: Vec<Matrix>,
    /// Values, likewise.
    pub values: Vec<Matrix>,
    /// Whether keys and values of a group share its latent.
    #[module(skip)]
    pub joint: bool,
    /// What weighted values are summed from; the faster form where none is set.
    #[module(skip)]
    pub value_form: Option<ValueForm>,
    /// Whether the output projection reads weighted latents: see [`GroupHeads::narrowed`].
    #[module(skip)]
    pub(super) folded: bool,
    /// The expansions as the attention kernel multiplies them, made when they are first needed.
    #[module(skip)]
    pub(super) prepared: Expansions,
}

impl GroupHeads {
    /// Puts the parts together.
    ///
    /// # Panics
    /// When the ranks of the expansions do not add up to the basis' outputs, or those of a joint latent differ.
    pub fn new(basis: Matrix, keys: Vec<Matrix>, values: Vec<Matrix>, joint: bool) -> Self {
        let heads = GroupHeads {
            basis: Some(basis),
            keys,
            values,
            joint,
            value_form: None,
            folded: false,
            prepared: Expansions::default(),
        };
        let total: usize = heads.ranks().iter().sum();
        let rows = heads.basis.as_ref().map(|basis| basis.shape().0);
        assert_eq!(Some(total), rows, "latents and expansions");
        if joint {
            let ranks = |parts: &[Matrix]| parts.iter().map(|m| m.shape().1).collect::<Vec<_>>();
            assert_eq!(ranks(&heads.keys), ranks(&heads.values), "a joint latent");
        }
        heads
    }

    /// Keys and values of all heads, rebuilt from the latent of the basis that they share with the queries (SkipCat's Cat, Multi-head
    /// Latent Attention's form): `[rank]` to `[kv_heads * head_dim]` each.
    ///
    /// # Panics
    /// When they are not of one rank.
    pub fn of_shared_basis(keys: Matrix, values: Matrix) -> Self {
        assert_eq!(keys.shape().1, values.shape().1, "a shared basis");
        GroupHeads {
            basis: None,
            keys: vec![keys],
            values: vec![values],
            joint: true,
            value_form: None,
            folded: false,
            prepared: Expansions::default(),
        }
    }

    /// Latent values of a token.
    pub fn rank(&self) -> usize {
        self.ranks().iter().sum()
    }

    /// The ranks of the latents' slices, in their order.
    pub fn ranks(&self) -> Vec<usize> {
        let values = self.values.iter().filter(|_| !self.joint);
        let parts = self.keys.iter().chain(values);
        parts.map(|part| part.shape().1).collect()
    }

    /// Stored scalars; biases not counted.
    pub fn scalars(&self) -> u64 {
        let parts = self.keys.iter().chain(&self.values);
        let shapes = self.basis.iter().chain(parts).map(Matrix::shape);
        shapes.map(|(out, input)| (out * input) as u64).sum()
    }

    /// What the cache stores of `[..., in]`: `[..., Σ rank]`. None where it is a shared basis' latent.
    pub fn latents<const D: usize>(&self, input: Tensor<D>) -> Option<Tensor<D>> {
        self.basis.as_ref().map(|basis| basis.forward(input))
    }

    /// Keys (before norm and rotation) and values `[rows, kv_heads * head_dim]` of latents `[rows, Σ rank]`.
    pub fn rebuild(&self, latents: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let expand = |parts: &[Matrix], mut start: usize| {
            let parts = parts.iter().map(|part| {
                let rank = part.shape().1;
                let slice = latents.clone().narrow(1, start, rank);
                start += rank;
                part.forward(slice)
            });
            Tensor::cat(parts.collect(), 1)
        };
        (
            expand(&self.keys, 0),
            expand(&self.values, self.first_value()),
        )
    }

    /// Where the latents of the first value group start.
    fn first_value(&self) -> usize {
        match self.joint {
            true => 0,
            false => self.keys.iter().map(|k| k.shape().1).sum(),
        }
    }

    /// Attention of rotated queries `[batch, tokens, heads, head_dim]` over a cache that ends with the queries' own tokens;
    /// of the same shape. The form of the values is [`GroupHeads::value_form`]; else the faster one, but the same for any number of
    /// new tokens up to 32.
    pub fn attend(
        &self,
        q: Tensor<4>,
        cache: &LatentCache,
        k_norm: Option<&RmsNorm>,
        rotary: &RotaryTable,
    ) -> Tensor<4> {
        self.attend_as(q, cache, k_norm, rotary, None, None)
    }

    /// [`GroupHeads::attend`] with a mask of the new tokens `[tokens, tokens]`, as for [`ops::attention`], and the values in
    /// the given form.
    ///
    /// On the CPU, keys and values are rebuilt inside the kernel and never kept. The expansions' kernel form is made at the
    /// first call: expansions are not to be changed afterwards, but in a clone.
    ///
    /// # Panics
    /// When the cache is empty, or of another layer; when it has a residual window and the queries are of tokens before those
    /// of its last [`LatentCache::append`].
    pub fn attend_as(
        &self,
        q: Tensor<4>,
        cache: &LatentCache,
        k_norm: Option<&RmsNorm>,
        rotary: &RotaryTable,
        mask: Option<Tensor<2, Bool>>,
        form: Option<ValueForm>,
    ) -> Tensor<4> {
        if !ops::takes_latents(&q) {
            return self.attend_plain(q, cache, k_norm, rotary, mask);
        }
        let [_, tokens, heads, head_dim] = q.dims();
        let format = cache.format();
        let form = form.or(self.value_form).unwrap_or_else(|| {
            let ranks = self.values.iter().flat_map(|values| {
                let (out, rank) = values.shape();
                std::iter::repeat_n(rank, out / head_dim)
            });
            ValueForm::of(tokens, heads, head_dim, format, &ranks.collect::<Vec<_>>())
        });
        let keys = |format| self.prepared.keys(&self.keys, head_dim, format);
        let values = |format| {
            let prepared = &self.prepared;
            prepared.values(&self.values, head_dim, format, form)
        };
        let recent = cache.recent().map(|(window, latents)| Recent {
            window,
            latents,
            keys: keys(RECENT),
            values: values(RECENT),
        });
        let parts = LatentParts {
            latents: cache.latents(),
            keys: keys(format),
            values: values(format),
            recent,
            joint: self.joint,
            rotary: rotary.keys(),
            k_norm: k_norm.map(|norm| (norm.gamma.val(), norm.epsilon)),
        };
        ops::latent_attention(q, parts, mask)
    }

    /// Bytes of the expansions' kernel forms that were needed so far.
    pub fn kernel_bytes(&self) -> u64 {
        self.prepared.bytes()
    }

    /// [`GroupHeads::attend_as`] of plain operations: keys and values in full.
    pub(crate) fn attend_plain(
        &self,
        q: Tensor<4>,
        cache: &LatentCache,
        k_norm: Option<&RmsNorm>,
        rotary: &RotaryTable,
        mask: Option<Tensor<2, Bool>>,
    ) -> Tensor<4> {
        let [_, tokens, _, _] = q.dims();
        let past = cache.length() - tokens;
        let Some(window) = cache.window() else {
            return self.attend_rebuilt(q, cache.values(), k_norm, rotary, mask);
        };
        let mut parts = Vec::new();
        let mut first = 0;
        // Queries that read the same tokens packed go together.
        while first < tokens {
            let end = tokens.min(window.until(past + first) - past);
            let latents = cache.values_at(past + first);
            parts.push(match &mask {
                // A mask is of all new tokens.
                Some(mask) => self
                    .attend_rebuilt(q.clone(), latents, k_norm, rotary, Some(mask.clone()))
                    .narrow(1, first, end - first),
                None => {
                    let seen = latents.map(|latents| latents.narrow(1, 0, past + end));
                    let q = q.clone().narrow(1, first, end - first);
                    self.attend_rebuilt(q, seen, k_norm, rotary, None)
                }
            });
            first = end;
        }
        Tensor::cat(parts, 1)
    }

    /// Attention over keys and values in full, of latents `[batch, tokens, Σ rank]`.
    fn attend_rebuilt(
        &self,
        q: Tensor<4>,
        latents: Option<Tensor<3>>,
        k_norm: Option<&RmsNorm>,
        rotary: &RotaryTable,
        mask: Option<Tensor<2, Bool>>,
    ) -> Tensor<4> {
        let [batch, _, _, head_dim] = q.dims();
        let latents = latents.expect("the queries' own tokens were added");
        let [_, tokens, rank] = latents.dims();
        let (k, v) = self.rebuild(latents.reshape([batch * tokens, rank]));
        let heads = |x: Tensor<2>| {
            let count = x.dims()[1] / head_dim;
            x.reshape([batch, tokens, count, head_dim])
        };
        let k = match k_norm {
            Some(k_norm) => norm(k_norm, heads(k)),
            None => heads(k),
        };
        let k = rotary.rotate_keys(k).swap_dims(1, 2);
        ops::attention(q, k, heads(v).swap_dims(1, 2), tokens, mask)
    }

    /// The dense maps of keys and values, of weight `[in, out]`, in f32: of the latents, where the basis is a shared one.
    pub fn to_dense(&self) -> (Linear, Linear) {
        let basis = match &self.basis {
            Some(basis) => basis.to_dense().weight.val().cast(DType::F32),
            None => {
                let first = self.keys[0].to_dense().weight.val();
                Tensor::eye(self.rank(), &first.device())
            }
        };
        let [input, _] = basis.dims();
        let weight = |parts: &[Matrix], mut start: usize| {
            let parts: Vec<_> = parts.iter().map(Matrix::to_dense).collect();
            let weights = parts.iter().map(|part| {
                let weight = part.weight.val().cast(DType::F32);
                let rank = weight.dims()[0];
                let slice = basis.clone().slice([0..input, start..start + rank]);
                start += rank;
                slice.matmul(weight)
            });
            let weight = Tensor::cat(weights.collect(), 1);
            let biases = parts.iter().map(|p| p.bias.as_ref().map(|b| b.val()));
            let biases: Option<Vec<_>> = biases.collect();
            Linear {
                weight: Param::from_tensor(weight),
                bias: biases.map(|b| Param::from_tensor(Tensor::cat(b, 0))),
            }
        };
        (
            weight(&self.keys, 0),
            weight(&self.values, self.first_value()),
        )
    }
}
