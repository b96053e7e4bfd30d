//! The algebra on layers of tiny models, with moments of random vectors.

use burn::tensor::{Device, Distribution, Tensor};
use cinder_models::cache::CacheFormat;
use cinder_models::decoder::Rotary;
use cinder_models::projection::{GroupHeads, ProjectionGroup};
use cinder_models::{Checkpoint, DecoderLayer, Precision, Site};
use proptest::prelude::*;

use super::*;
use crate::calibration::SiteInputs;
use crate::linalg::Gram;

/// Inputs of `qkv`, and gradients of keys and values, each `[4 · width, width]`.
struct Vectors {
    inputs: Vec<f32>,
    gradients: [Vec<f32>; 2],
    widths: (usize, usize),
}

impl Vectors {
    fn new(config: &ModelConfig, seed: u64) -> Self {
        let (input, out) = (config.hidden_size, config.kv_heads * config.head_dim);
        let values = |width: usize, seed: u64| {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let next = |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            };
            (0..4 * width * width).map(next).collect::<Vec<f32>>()
        };
        Vectors {
            inputs: values(input, seed ^ 1),
            gradients: [values(out, seed ^ 2), values(out, seed ^ 3)],
            widths: (input, out),
        }
    }
}

impl Moments for Vectors {
    fn input(&self, _site: Site) -> Result<Gram> {
        let mut gram = Gram::new(self.widths.0);
        gram.add(&self.inputs);
        Ok(gram)
    }

    fn gradient(&self, _site: Site, member: usize) -> Result<Gram> {
        let mut gram = Gram::new(self.widths.1);
        gram.add(&self.gradients[member - KEYS]);
        Ok(gram)
    }

    fn fisher(&self, _site: Site, member: usize) -> Result<f64> {
        Ok(member as f64)
    }
}

fn checkpoint(family: &str) -> Checkpoint {
    let path = format!(
        "{}/../tests/goldens/families/{family}",
        env!("CARGO_MANIFEST_DIR")
    );
    Checkpoint::open(path.as_ref()).expect("opens")
}

fn settings(toml: &str) -> KvLowRankSettings {
    let settings: KvLowRankSettings = toml::from_str(toml).expect("valid");
    settings.checked().expect("within range")
}

/// One layer with its keys and values as latents, and the plan they are by.
fn compressed(
    settings: &KvLowRankSettings,
    checkpoint: &Checkpoint,
    vectors: &Vectors,
) -> (DecoderLayer, DecoderLayer, Vec<SiteRecord>, Plan, Analysis) {
    let dense = checkpoint.load_layer(0, Precision::F32, &Device::flex());
    compressed_layer(
        settings,
        checkpoint.config(),
        dense.expect("loads"),
        vectors,
    )
}

fn compressed_layer(
    settings: &KvLowRankSettings,
    config: &ModelConfig,
    dense: DecoderLayer,
    vectors: &Vectors,
) -> (DecoderLayer, DecoderLayer, Vec<SiteRecord>, Plan, Analysis) {
    let known: Option<(&DecoderLayer, &dyn Moments)> = Some((&dense, vectors));
    let analysis = settings.analyse(config, 0, known).expect("analyses");
    let plan = settings
        .plan(std::slice::from_ref(&analysis))
        .expect("plans");
    let mut block = dense.clone();
    let inputs = SiteInputs {
        gram: vectors.input(Site::Qkv).expect("is there"),
        targets: None,
    };
    let work = SiteWork {
        config,
        plan: &plan.layers[0],
        site: Site::Qkv,
        dense: &dense,
        calibrated: Some((&inputs, vectors)),
    };
    let records = settings.apply(work, &mut block);
    (dense, block, records.expect("applies"), plan, analysis)
}

fn latent(block: &DecoderLayer) -> &GroupHeads {
    block.attention.latent.as_ref().expect("latents")
}

/// `W` of a projection, `[in, out]` row-major, and its width.
fn values(weight: Tensor<2>) -> Vec<f32> {
    weight.into_data().try_into_vec().expect("f32")
}

/// Keys' and values' weights before and after.
fn weights(dense: &DecoderLayer, block: &DecoderLayer) -> [(Vec<f32>, Vec<f32>); 2] {
    let (k, v) = latent(block).to_dense();
    let before = |member: usize| values(dense.site(Site::Qkv)[member].to_dense().weight.val());
    [
        (before(KEYS), values(k.weight.val())),
        (before(VALUES), values(v.weight.val())),
    ]
}

const KINDS: [&str; 4] = [
    "latent = 'joint'",
    "latent = 'separate'",
    "latent = 'joint'\ngroup_heads = 1",
    "latent = 'separate'\ngroup_heads = 1",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What the plan says a latent loses is `E (gᵀ (W - Ŵ) x)²` of its rows, over gradients and inputs.
    #[test]
    fn the_loss_is_the_energy_of_the_dropped_singular_values(kind in 0usize..4, keep in 0.2f64..1.0, seed: u64, rotate: bool) {
        let checkpoint = checkpoint(["qwen2", "llama2"][seed as usize % 2]);
        let vectors = Vectors::new(checkpoint.config(), seed);
        let settings = settings(&format!(
            "keep = {keep}\n{}\nrank_floor = 1\nrank_step = 1\ninput_ridge = 0.0\noutput_ridge = 0.0\nrotate = {rotate}", KINDS[kind]
        ));
        let (dense, block, records, plan, analysis) = compressed(&settings, &checkpoint, &vectors);
        let (input, out) = vectors.widths;
        let slices = settings.slices(checkpoint.config().kv_heads, checkpoint.config().head_dim);
        let weights = weights(&dense, &block);
        for ((slice, unit), group) in slices.iter().zip(&plan.layers[0].units).zip(&analysis.groups) {
            let mut lost = 0.0;
            let mut whole = 0.0;
            for member in &slice.members {
                let (before, after) = &weights[member - KEYS];
                for x in vectors.inputs.chunks(input) {
                    let change: Vec<f64> = slice.rows.clone().map(|o| (0..input)
                        .map(|i| f64::from(x[i]) * f64::from(before[i * out + o] - after[i * out + o])).sum()).collect();
                    let as_it_was: Vec<f64> = slice.rows.clone().map(|o| (0..input)
                        .map(|i| f64::from(x[i]) * f64::from(before[i * out + o])).sum()).collect();
                    for g in vectors.gradients[member - KEYS].chunks(out) {
                        let along = |y: &[f64]| g[slice.rows.clone()].iter().zip(y).map(|(g, y)| f64::from(*g) * y).sum::<f64>().powi(2);
                        lost += along(&change);
                        whole += along(&as_it_was);
                    }
                }
            }
            let count = (4 * input * 4 * out) as f64;
            let factor::Losses::Ranks(losses) = &group[0].units[0].losses else { panic!("are known") };
            let expected = losses[unit.rank.expect("a rank")];
            prop_assert!((lost / count - expected).abs() < 1e-4 * whole / count, "{} {expected}", lost / count);
            prop_assert!((unit.predicted_loss.expect("known") - 0.5 * expected).abs() < 1e-12);
        }
        let stored: u64 = records.iter().map(|r| r.scalars).sum();
        prop_assert_eq!(stored, plan.scalars());
        prop_assert_eq!(stored, latent(&block).scalars());
        let dense_numbers = 2.0 * out as f64;
        let budget = (keep * dense_numbers) as usize;
        let used = latent(&block).rank();
        prop_assert!(used == budget || (used < budget && used == slices.iter().map(|s| s.out().min(input)).sum::<usize>()));
    }
}

#[test]
fn full_rank_gives_keys_and_values_back() {
    for family in ["qwen2", "llama2", "qwen3"] {
        let checkpoint = checkpoint(family);
        let vectors = Vectors::new(checkpoint.config(), 4);
        for kind in KINDS {
            let settings = settings(&format!("keep = 1.0\n{kind}"));
            let (dense, block, ..) = compressed(&settings, &checkpoint, &vectors);
            for (before, after) in weights(&dense, &block) {
                for (a, b) in before.iter().zip(&after) {
                    assert!((a - b).abs() < 1e-4, "{family}, {kind}: {a} {b}");
                }
            }
            let (k, v) = latent(&block).to_dense();
            for (made, member) in [(k, KEYS), (v, VALUES)] {
                let bias = |linear: &burn::nn::Linear| {
                    linear.bias.as_ref().map(|b| values(b.val().unsqueeze()))
                };
                assert_eq!(bias(&made), bias(&dense.site(Site::Qkv)[member].to_dense()));
            }
        }
    }
}

/// The layer computes what it would with the factors multiplied out, whatever the family.
#[test]
fn a_layer_of_latents_is_the_layer_of_their_product() {
    for family in ["qwen2", "llama2", "qwen3"] {
        let checkpoint = checkpoint(family);
        let config = checkpoint.config();
        let vectors = Vectors::new(config, 9);
        for kind in KINDS {
            let settings = settings(&format!(
                "keep = 0.5\n{kind}\nrank_floor = 1\nrank_step = 2\ncache = 'f32'"
            ));
            let (_, block, ..) = compressed(&settings, &checkpoint, &vectors);
            let mut product = block.clone();
            let (k, v) = latent(&block).to_dense();
            let q = block.attention.qkv.members[0].clone();
            product.attention.latent = None;
            product.attention.qkv = ProjectionGroup::new(vec![q, k.into(), v.into()]);
            let hidden = Tensor::random(
                [1, 7, config.hidden_size],
                Distribution::Uniform(-1.0, 1.0),
                &Device::flex(),
            );
            let rotary = Rotary::new(config).table(0, 7, &Device::flex());
            let run = |layer: &DecoderLayer| {
                let out = layer.forward(hidden.clone(), &rotary, None, &mut |_, _| {});
                out.into_data().try_into_vec::<f32>().expect("f32")
            };
            for (a, b) in run(&block).iter().zip(run(&product)) {
                assert!((a - b).abs() < 1e-4, "{family}, {kind}: {a} {b}");
            }
        }
    }
}

#[test]
fn groups_are_consecutive_heads_and_the_last_may_be_smaller() {
    let of = |toml: &str| {
        let slices = settings(toml).slices(5, 4);
        slices
            .into_iter()
            .map(|s| (s.members, s.rows))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("keep = 0.5"), [(vec![1, 2], 0..20)]);
    assert_eq!(
        of("keep = 0.5\nlatent = 'separate'\ngroup_heads = 3"),
        [
            (vec![1], 0..12),
            (vec![1], 12..20),
            (vec![2], 0..12),
            (vec![2], 12..20)
        ]
    );
}

#[test]
fn a_group_has_its_part_of_its_projection_s_gradients() {
    let checkpoint = checkpoint("qwen2");
    let vectors = Vectors::new(checkpoint.config(), 2);
    let layer = checkpoint
        .load_layer(0, Precision::F32, &Device::flex())
        .expect("loads");
    let scores = |rule: &str| -> Vec<f64> {
        let settings = settings(&format!(
            "keep = 0.5\nlatent = 'separate'\ngroup_heads = 1\nrule = '{rule}'"
        ));
        let analysis = settings
            .analyse(checkpoint.config(), 0, Some((&layer, &vectors)))
            .expect("analyses");
        analysis
            .groups
            .iter()
            .map(|g| g[0].units[0].score)
            .collect()
    };
    let (whole, groups) = (scores("fisher"), scores("fisher_group"));
    assert_eq!(whole[0], whole[1]);
    assert!((whole[2] / whole[0] - 2f64.sqrt()).abs() < 1e-12);
    let square = |of: &[f64]| of.iter().map(|s| s * s).sum::<f64>();
    assert!((square(&groups[..2]) - square(&whole[..2])).abs() < 1e-12 && groups[0] != groups[1]);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for (toml, expected) in [
        ("keep = 0.0", "`keep` is 0"),
        ("keep = 0.5\nrank_step = 0", "`rank_step` is 0"),
        ("keep = 0.5\ntwo_sided = false", "needs `two_sided = true`"),
        (
            "keep = 0.5\nreorder_heads = true",
            "`group_heads` is 0: all heads share a latent",
        ),
        (
            "keep = 0.5\nreorder_heads = true\ngroup_heads = 1",
            "`group_heads` is 1",
        ),
        (
            "keep = 0.5\ncache = 'f16'\nresidual_window = 64",
            "`residual_window` is 64, which is for packed caches (`cache` = \"q8\", \"q4\", \"q3\" or \"q2\"), and `cache` is \"f16\"",
        ),
    ] {
        let settings: KvLowRankSettings = toml::from_str(toml).expect("parses");
        let error = settings.checked().expect_err(toml);
        assert!(error.contains(expected), "{error}");
    }
    assert!(toml::from_str::<KvLowRankSettings>("keep = 0.5\nlatent = 'both'").is_err());
    let low = settings("keep = 0.01");
    let checkpoint = checkpoint("qwen2");
    let analysis = low.analyse(checkpoint.config(), 0, None).expect("shapes");
    let error = low.plan(&[analysis]).expect_err("too small").to_string();
    assert!(error.contains("at least 0.2500"), "{error}");
    assert_eq!(low.cache_format(), Some(CacheFormat::F32));
    assert_eq!(low.residual_window(), 0);
    let windowed = settings("keep = 0.5\ncache = 'q3'\nresidual_window = 128");
    assert_eq!(windowed.residual_window(), 128);
}

/// Layers with latents of full rank against dense ones, through their caches: all tokens at once, and one by one.
#[test]
fn a_cache_of_full_rank_is_the_dense_cache() {
    for family in ["qwen2", "llama2", "qwen3"] {
        let checkpoint = checkpoint(family);
        let config = checkpoint.config();
        let vectors = Vectors::new(config, 6);
        let hidden = Tensor::random(
            [1, 9, config.hidden_size],
            Distribution::Uniform(-1.0, 1.0),
            &Device::flex(),
        );
        let rotary = Rotary::new(config);
        let run = |layer: &DecoderLayer, step: usize| {
            let mut cache = layer.attention.new_cache(9);
            let parts = (0..9).step_by(step).map(|start| {
                let tokens = step.min(9 - start);
                let table = rotary.table(start, tokens, &Device::flex());
                let part = hidden.clone().narrow(1, start, tokens);
                layer.forward(part, &table, Some(&mut cache), &mut |_, _| {})
            });
            let out = Tensor::cat(parts.collect(), 1);
            out.into_data().try_into_vec::<f32>().expect("f32")
        };
        for kind in KINDS {
            let settings = settings(&format!("keep = 1.0\n{kind}"));
            let (dense, block, ..) = compressed(&settings, &checkpoint, &vectors);
            let expected = run(&dense, 9);
            for step in [1, 4, 9] {
                for (a, b) in run(&block, step).iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-4, "{family}, {kind}, {step}: {a} {b}");
                }
            }
        }
    }
}

/// A projection that the loss does not depend on is factored all the same, and loses nothing in the plan.
#[test]
fn keys_without_gradients_are_no_error() {
    let checkpoint = checkpoint("qwen2");
    let mut vectors = Vectors::new(checkpoint.config(), 5);
    vectors.gradients[0].fill(0.0);
    for kind in KINDS {
        let settings = settings(&format!(
            "keep = 0.5\n{kind}\nrank_floor = 1\nrank_step = 1"
        ));
        let (dense, block, records, ..) = compressed(&settings, &checkpoint, &vectors);
        let note = records[0].fallback.as_deref().expect("is said");
        assert!(note.contains("all gradients are zero"), "{note}");
        for (_, after) in weights(&dense, &block) {
            assert!(after.iter().all(|v| v.is_finite()));
        }
    }
}

/// Heads that are alike share a latent wherever they stand, and the layer computes what it did.
#[test]
fn moved_heads_compute_the_same() {
    let checkpoint = checkpoint("qwen2");
    let mut config = checkpoint.config().clone();
    (config.heads, config.kv_heads, config.head_dim) = (8, 4, 8);
    let random = |rows: usize, columns: usize| -> Tensor<2> {
        let spread = Distribution::Uniform(-0.4, 0.4);
        Tensor::random([rows, columns], spread, &Device::flex())
    };
    // Heads 0 and 2, and 1 and 3, put out nearly the same.
    let alike = || {
        let (a, b) = (random(32, 8), random(32, 8));
        Tensor::cat(vec![a.clone(), b.clone(), a, b], 1) + random(32, 32) * 0.02
    };
    let map = |weight: Tensor<2>, bias: bool| {
        let [_, out] = weight.dims();
        let bias = bias.then(|| random(1, out).reshape([out]));
        cinder_models::projection::Projection::from(factor::linear(weight, bias))
    };
    let loaded = checkpoint.load_layer(0, Precision::F32, &Device::flex());
    let mut dense = loaded.expect("loads");
    let qkv = vec![
        map(random(32, 64), true),
        map(alike(), true),
        map(alike(), true),
    ];
    dense.attention.qkv = ProjectionGroup::new(qkv);
    dense.attention.output = map(random(64, 32), false);
    dense.attention.head_dim = 8;
    let vectors = Vectors::new(&config, 11);
    let hidden = random(7, 32).reshape([1, 7, 32]);
    let rotary = Rotary::new(&config).table(0, 7, &Device::flex());
    let run = |layer: &DecoderLayer| {
        let out = layer.forward(hidden.clone(), &rotary, None, &mut |_, _| {});
        out.into_data().try_into_vec::<f32>().expect("f32")
    };
    let of = |keep: f64, more: &str| {
        let ranks = "rank_floor = 1\nrank_step = 1\ngroup_heads = 2";
        let settings = settings(&format!("keep = {keep}\n{ranks}\n{more}"));
        compressed_layer(&settings, &config, dense.clone(), &vectors)
    };
    let own = settings("keep = 1.0\ngroup_heads = 2\nreorder_heads = true");
    let own = analysis::KeyValues::new(&own, 0, &dense, &vectors).expect("reads");
    let order = own.order.expect("heads move");
    let mut pairs: Vec<_> = order
        .chunks(2)
        .map(|p| (p[0].min(p[1]), p[0].max(p[1])))
        .collect();
    pairs.sort();
    assert_eq!(pairs, [(0, 2), (1, 3)]);
    for kind in [
        "latent = 'joint'",
        "latent = 'separate'",
        "latent = 'separate'\nrule = 'fisher_group'",
    ] {
        let (_, block, ..) = of(1.0, &format!("{kind}\nreorder_heads = true"));
        for (a, b) in run(&block).iter().zip(run(&dense)) {
            assert!((a - b).abs() < 1e-4, "{kind}: {a} {b}");
        }
    }
    let loss = |more: &str| -> f64 {
        let (.., plan, _) = of(0.5, more);
        let units = plan.layers[0].units.iter();
        units.map(|unit| unit.predicted_loss.expect("known")).sum()
    };
    assert!(loss("reorder_heads = true") < 0.5 * loss(""));
}
