//! The kernel against plain operations on what the cache holds, against itself, and on every instruction set.

mod recent;

use std::path::Path;

use burn::module::Param;
use burn::nn::{Linear, RmsNorm, RmsNormConfig};
use burn::tensor::{Bool, Device, Distribution, Tensor, TensorData};
use proptest::prelude::*;

use super::*;
use crate::ModelConfig;
use crate::cache::{CacheFormat, DenseCache, LatentCache};
use crate::decoder::{Rotary, RotaryTable};
use crate::projection::{GroupHeads, Matrix};

const FORMS: [ValueForm; 2] = [ValueForm::Rebuilt, ValueForm::Summed];

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

/// The largest difference, relative to the largest of what is expected.
fn difference<const D: usize>(ours: Tensor<D>, expected: Tensor<D>) -> f32 {
    let (ours, expected) = (values(ours), values(expected));
    let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    let apart = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    // NaN must not look like agreement.
    apart.fold(0f32, |a, b| if b <= a { a } else { b }) / largest
}

/// An expansion; where it will be rounded to bytes, of weights that bytes hold exactly.
fn expansion(rank: usize, out: usize, bias: bool, format: CacheFormat) -> Matrix {
    let mut weight = random([rank, out]);
    if WeightForm::of(format) == WeightForm::Byte {
        weight = (weight * 127.0).round() / 64.0;
        let ends = Tensor::full([1, out], 127.0 / 64.0, &Device::flex());
        weight = weight.slice_assign([0..1, 0..out], ends);
    }
    Matrix::Float(Linear {
        weight: Param::from_tensor(weight),
        bias: bias.then(|| Param::from_tensor(random([out]))),
    })
}

/// Shapes of the parts of one layer.
#[derive(Debug, Clone)]
struct Shape {
    group: usize,
    head_dim: usize,
    /// Heads and rank of each group of keys.
    keys: Vec<(usize, usize)>,
    /// Of values: as many heads; the same as the keys' where they are joint.
    values: Vec<(usize, usize)>,
    joint: bool,
    bias: bool,
    norm: bool,
}

struct Layer {
    shape: Shape,
    format: CacheFormat,
    parts: GroupHeads,
    norm: Option<RmsNorm>,
    rotary: Rotary,
}

impl Shape {
    fn heads(&self) -> usize {
        self.group * self.keys.iter().map(|k| k.0).sum::<usize>()
    }

    fn layer(&self, format: CacheFormat) -> Layer {
        let d = self.head_dim;
        let parts = |groups: &[(usize, usize)]| -> Vec<Matrix> {
            let each = groups
                .iter()
                .map(|(h, r)| expansion(*r, h * d, self.bias, format));
            each.collect()
        };
        let (keys, values) = (parts(&self.keys), parts(&self.values));
        let own = if self.joint {
            &[][..]
        } else {
            &self.values[..]
        };
        let rank = self.keys.iter().chain(own).map(|g| g.1).sum();
        let basis = expansion(1, rank, false, CacheFormat::F32);
        let json = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {}, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": {d}, "intermediate_size": 4, "vocab_size": 4,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"}}"#,
            2 * d
        );
        let config = ModelConfig::from_json(&json, Path::new("config.json")).expect("a config");
        let mut norm = RmsNormConfig::new(d)
            .with_epsilon(1e-3)
            .init(&Device::flex());
        norm.gamma = Param::from_tensor(random([d]) + 1.5);
        Layer {
            shape: self.clone(),
            format,
            parts: GroupHeads::new(basis, keys, values, self.joint),
            norm: self.norm.then_some(norm),
            rotary: Rotary::new(&config),
        }
    }
}

impl Layer {
    fn cache(&self, latents: &Tensor<3>) -> LatentCache {
        let mut cache = LatentCache::new(&self.parts.ranks(), self.format, 0);
        cache.append(latents.clone());
        cache
    }

    fn table(&self, past: usize, tokens: usize) -> RotaryTable {
        self.rotary.table(past, tokens, &Device::flex())
    }

    fn latents(&self, batch: usize, tokens: usize) -> Tensor<3> {
        random([batch, tokens, self.parts.rank()])
    }

    fn queries(&self, batch: usize, tokens: usize) -> Tensor<4> {
        random([batch, tokens, self.shape.heads(), self.shape.head_dim]) * 2.0
    }

    fn attend(
        &self,
        q: Tensor<4>,
        cache: &LatentCache,
        mask: Option<Tensor<2, Bool>>,
        form: Option<ValueForm>,
    ) -> Tensor<4> {
        let table = self.table(cache.length() - q.dims()[1], q.dims()[1]);
        self.parts
            .attend_as(q, cache, self.norm.as_ref(), &table, mask, form)
    }

    fn plain(&self, q: Tensor<4>, cache: &LatentCache, mask: Option<Tensor<2, Bool>>) -> Tensor<4> {
        let table = self.table(cache.length() - q.dims()[1], q.dims()[1]);
        self.parts
            .attend_plain(q, cache, self.norm.as_ref(), &table, mask)
    }
}

/// A tree of drafted tokens: each sees itself and, of those before it, every other one.
fn tree(tokens: usize) -> Tensor<2, Bool> {
    let seen = (0..tokens * tokens).map(|i| {
        let (row, column) = (i / tokens, i % tokens);
        column == row || (column < row && (row + column) % 2 == 0)
    });
    let data = TensorData::new(seen.collect::<Vec<bool>>(), [tokens, tokens]);
    Tensor::from_data(data, &Device::flex())
}

fn shapes() -> impl Strategy<Value = Shape> {
    let dims = prop::sample::select(vec![2usize, 6, 16, 24, 64, 80]);
    let groups = prop::sample::select(vec![vec![1], vec![3], vec![1, 1], vec![2, 1], vec![2, 2]]);
    let ranks = prop::collection::vec(1usize..40, 4);
    (
        1usize..4,
        dims,
        groups.clone(),
        groups,
        ranks,
        any::<(bool, bool, bool, bool)>(),
    )
        .prop_map(
            |(group, head_dim, keys, values, ranks, (joint, bias, norm, same))| {
                let heads: usize = keys.iter().sum();
                let values = match joint || same || values.iter().sum::<usize>() != heads {
                    true => keys.clone(),
                    false => values,
                };
                let with = |heads: Vec<usize>, ranks: &[usize]| {
                    heads
                        .into_iter()
                        .zip(ranks.iter().copied())
                        .collect::<Vec<_>>()
                };
                let keys = with(keys, &ranks);
                Shape {
                    group,
                    head_dim,
                    values: if joint {
                        keys.clone()
                    } else {
                        with(values, &ranks[2..])
                    },
                    keys,
                    joint,
                    bias,
                    norm,
                }
            },
        )
}

fn formats() -> impl Strategy<Value = CacheFormat> {
    prop::sample::select(CacheFormat::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn attention_over_latents_is_plain_attention_over_what_they_stand_for(
        shape in shapes(), format in formats(), batch in 1usize..3, few in 1usize..40, many: bool,
        past in prop::sample::select(vec![0usize, 1, 63, 64, 200, 255, 300, 600]), masked: bool,
    ) {
        let layer = shape.layer(format);
        let tokens = if many { few * 4 } else { few };
        let cache = layer.cache(&layer.latents(batch, past + tokens));
        let q = layer.queries(batch, tokens);
        let mask = masked.then(|| tree(tokens));
        let expected = layer.plain(q.clone(), &cache, mask.clone());
        // Weights beside eight-bit codes are rounded to sixteen bits, which the norm of a small key magnifies.
        let most = if format == CacheFormat::Q8 { 5e-4 } else { 5e-5 };
        for form in [None, Some(FORMS[0]), Some(FORMS[1])] {
            let ours = layer.attend(q.clone(), &cache, mask.clone(), form);
            let apart = difference(ours, expected.clone());
            prop_assert!(apart <= most, "{form:?}: {apart:e}");
        }
        prop_assert!(layer.parts.kernel_bytes() > 0);
    }

    #[test]
    fn a_token_of_a_few_is_the_token_alone_and_chunks_are_the_whole(
        shape in shapes(), format in formats(), batch in 1usize..3, tokens in 1usize..33,
        past in prop::sample::select(vec![0usize, 10, 250, 700]),
    ) {
        let layer = shape.layer(format);
        let latents = layer.latents(batch, past + tokens);
        let q = layer.queries(batch, tokens);
        let mut cache = layer.cache(&latents);
        let together = layer.attend(q.clone(), &cache, None, None);
        let whole = layer.queries(batch, past).slice([0..batch, 0..past]);
        let whole = match past {
            0 => q.clone(),
            _ => Tensor::cat(vec![whole, q.clone()], 1),
        };
        let prefilled = layer.attend(whole, &cache, None, Some(ValueForm::Rebuilt)).narrow(1, past, tokens);
        prop_assert!(difference(prefilled, together.clone()) <= 5e-5);
        for token in (0..tokens).rev() {
            cache.truncate(past + token + 1);
            let alone = layer.attend(q.clone().narrow(1, token, 1), &cache, None, None);
            prop_assert_eq!(values(alone), values(together.clone().narrow(1, token, 1)));
        }
        // Other tokens, taken back: nothing of them stays.
        cache.truncate(past);
        cache.append(layer.latents(batch, tokens) * f32::NAN);
        cache.truncate(past);
        cache.append(latents.narrow(1, past, tokens));
        prop_assert_eq!(values(layer.attend(q, &cache, None, None)), values(together));
    }

    #[test]
    fn every_level_is_the_scalar_twin(
        shape in shapes(), format in formats(), tokens in 1usize..10, past in 0usize..400, summed: bool,
        window in prop::sample::select(vec![0usize, 1, 100]),
    ) {
        let layer = shape.layer(format);
        let window = if format.is_packed() { window } else { 0 };
        let mut cache = LatentCache::new(&layer.parts.ranks(), format, 0).with_residual_window(window);
        cache.append(layer.latents(1, past + tokens));
        let q = values(layer.queries(1, tokens));
        let table = layer.table(past, tokens);
        let numbers = |parts: &[Matrix]| -> Vec<(Vec<f32>, Option<Vec<f32>>)> {
            let each = parts.iter().map(|part| {
                let Linear { weight, bias } = part.to_dense();
                (values(weight.val()), bias.map(|b| values(b.val())))
            });
            each.collect()
        };
        let head_dim = layer.shape.head_dim;
        let groups = |parts: &[(Vec<f32>, Option<Vec<f32>>)], groups: &[(usize, usize)], keys: bool, format| {
            let each = parts.iter().zip(groups).map(|((weight, bias), (_, rank))| {
                let stored = Stored { rank: *rank, weight, bias: bias.as_deref(), head_dim };
                let form = WeightForm::of(format);
                let whole = if keys { Expansion::of_keys(stored, form) } else { Expansion::of_values(stored, form) };
                (whole, LateExpansion::new(stored))
            });
            each.unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let of_keys = |format| groups(&numbers(&layer.parts.keys), &layer.shape.keys, true, format).0;
        let of_values = |format| groups(&numbers(&layer.parts.values), &layer.shape.values, false, format);
        let (keys, recent_keys) = (of_keys(format), of_keys(CacheFormat::F16));
        let ((rebuilt, late), (recent_values, _)) = (of_values(format), of_values(CacheFormat::F16));
        let form = |rebuilt| if summed { Values::Summed(&late) } else { Values::Rebuilt(rebuilt) };
        let gamma = layer.norm.as_ref().map(|norm| values(norm.gamma.val()));
        let run = |level: Level| {
            let mut out = vec![0.0; q.len()];
            let work = LatentAttention {
                sizes: Sizes {
                    batch: 1, tokens, heads: layer.shape.heads(), head_dim, keys: past + tokens,
                    kv_heads: layer.shape.heads() / layer.shape.group,
                },
                q: &q, latents: cache.latents(), keys: &keys,
                values: form(&rebuilt[..]),
                recent: cache.recent().map(|(window, latents)| Recent {
                    window, latents, keys: &recent_keys, values: form(&recent_values[..]),
                }),
                joint: layer.shape.joint, rotary: table.keys(),
                k_norm: gamma.as_ref().map(|gamma| (&gamma[..], 1e-3)), mask: None,
            };
            work.run(level, &mut out);
            out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let scalar = run(Level::Scalar);
        for level in Level::available() {
            prop_assert_eq!(run(level), scalar.clone(), "{:?}", level);
        }
    }
}

fn separate(head_dim: usize, rank: usize) -> Shape {
    Shape {
        group: 3,
        head_dim,
        keys: vec![(1, rank); 3],
        values: vec![(1, rank); 3],
        joint: false,
        bias: false,
        norm: false,
    }
}

/// Latents that are keys and values themselves give what the dense cache gives.
#[test]
fn at_full_rank_it_is_dense_attention() {
    let (d, batch, past, tokens) = (16, 2, 300, 5);
    let mut layer = separate(d, d).layer(CacheFormat::F32);
    let eye = || Tensor::<2>::eye(d, &Device::flex());
    for part in layer.parts.keys.iter_mut().chain(&mut layer.parts.values) {
        *part = Matrix::Float(Linear {
            weight: Param::from_tensor(eye()),
            bias: None,
        });
    }
    let latents = layer.latents(batch, past + tokens);
    let q = layer.queries(batch, tokens);
    let heads = |first: usize| {
        let part = latents.clone().narrow(2, first, 3 * d);
        part.reshape([batch, past + tokens, 3, d])
    };
    let k = layer.table(0, past + tokens).rotate(heads(0));
    let mut dense = DenseCache::new(0, CacheFormat::F32);
    let (k, v, keys) = dense.append(k.swap_dims(1, 2), heads(3 * d).swap_dims(1, 2));
    let expected = crate::ops::attention(q.clone(), k, v, keys, None);
    for form in FORMS {
        let ours = layer.attend(q.clone(), &layer.cache(&latents), None, Some(form));
        assert!(difference(ours, expected.clone()) < 2e-6, "{form:?}");
    }
}

/// What is not a number in one token's latents makes every query that sees the token no number.
#[test]
fn a_latent_that_is_no_number_is_not_lost() {
    for format in CacheFormat::ALL {
        let layer = separate(16, 8).layer(format);
        for (place, bad) in [(3, f32::NAN), (20, f32::INFINITY), (45, f32::NEG_INFINITY)] {
            let mut latents = layer.latents(1, 300);
            let spot = [0..1, 40..41, place..place + 1];
            let value = Tensor::full([1, 1, 1], bad, &Device::flex());
            latents = latents.slice_assign(spot, value);
            let mut cache = layer.cache(&latents);
            for form in FORMS {
                let seen = values(layer.attend(layer.queries(1, 1), &cache, None, Some(form)));
                assert!(seen.iter().any(|v| v.is_nan()), "{format} {form:?} {bad}");
            }
            // Forgotten, it leaves nothing behind.
            cache.truncate(40);
            for form in FORMS {
                let seen = values(layer.attend(layer.queries(1, 1), &cache, None, Some(form)));
                assert!(
                    seen.iter().all(|v| v.is_finite()),
                    "{format} {form:?} {bad}"
                );
            }
        }
    }
}

/// Weights in bytes cost little beside what the codes cost: the result's error grows by a few percent at most.
#[test]
fn rounding_the_weights_is_small_beside_rounding_the_latents() {
    for (format, share) in [
        (CacheFormat::Q8, 0.05),
        (CacheFormat::Q4, 0.15),
        (CacheFormat::Q3, 0.1),
        (CacheFormat::Q2, 0.05),
    ] {
        // Weights that no byte holds exactly.
        let mut layer = separate(64, 32).layer(CacheFormat::F32);
        layer.format = format;
        let latents = Tensor::random(
            [1, 500, 192],
            Distribution::Normal(0.0, 1.0),
            &Device::flex(),
        );
        let q = layer.queries(1, 1);
        let mut exact = LatentCache::new(&layer.parts.ranks(), CacheFormat::F32, 0);
        exact.append(latents.clone());
        let exact = layer.plain(q.clone(), &exact, None);
        let cache = layer.cache(&latents);
        let stands_for = layer.plain(q.clone(), &cache, None);
        let ours = layer.attend(q, &cache, None, None);
        let norm = |a: Tensor<4>, b: Tensor<4>| values((a - b).square().sum())[0].sqrt();
        let (weights, codes) = (norm(ours, stands_for.clone()), norm(stands_for, exact));
        println!(
            "{format}: weights {weights:e}, codes {codes:e}, {:.4}",
            weights / codes
        );
        assert!(
            weights < share * codes,
            "{format}: {weights:e} of {codes:e}"
        );
    }
}
