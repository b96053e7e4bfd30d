//! Substitutes of small models, dense and factored.

use burn::tensor::{Device, Distribution};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::ops::BlockFormat;
use crate::precision::Precision;
use crate::progress::Silent;

/// Two layers, hidden 32, biases on query, key and value, tied embeddings or not.
fn family(name: &str) -> Decoder {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/families/");
    let checkpoint = Checkpoint::open(format!("{folder}{name}").as_ref()).expect("opens");
    let loaded = checkpoint.load(Precision::F32, &Device::flex(), &Silent);
    loaded.expect("loads")
}

fn settings(text: &str) -> SubstituteSettings {
    text.parse().expect("settings")
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.cast(DType::F32).into_data().try_into_vec().expect("f32")
}

const IDS: [u32; 12] = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 32, 46];

fn logits(decoder: &Decoder) -> Vec<f32> {
    let hidden = decoder.hidden(&[IDS.to_vec()], None).expect("runs");
    values(decoder.logits(hidden))
}

/// `‖a - b‖ / ‖b‖`.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let off: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (off / b.iter().map(|b| b * b).sum::<f32>()).sqrt()
}

#[test]
fn more_bits_come_nearer_to_the_model() {
    for name in ["qwen2", "llama3"] {
        let dense = family(name);
        let reference = logits(&dense);
        let mut before = f32::INFINITY;
        for text in ["hqq:2:32", "hqq:3:32", "hqq:4:32", "hqq:8:32"] {
            let draft = substitute(&dense, &settings(text)).expect("is made");
            let off = distance(&logits(&draft), &reference);
            assert!(off < before, "{name} {text}: {off} after {before}");
            before = off;
        }
        assert!(before < 0.05, "{name}: {before}");
    }
}

#[test]
fn projections_become_codes_and_all_else_is_shared() {
    let dense = family("qwen2");
    let draft = substitute(&dense, &settings("round:4:64,down=8:32,k=3")).expect("is made");
    for (own, copy) in dense.layers.iter().zip(&draft.layers) {
        for site in Site::ALL {
            let pairs = own.site(site).into_iter().zip(copy.site(site));
            for ((own, copy), name) in pairs.zip(site.projections()) {
                let Projection::Quantized(blocks) = copy else {
                    panic!("{name} is {}", copy.kind());
                };
                let wanted = match *name {
                    "down" => LowBit::new(8, 32),
                    "k" => LowBit::new(3, 64),
                    _ => LowBit::new(4, 64),
                };
                assert_eq!(blocks.format(), BlockFormat::Low(wanted.expect("a format")));
                assert_eq!(own.shape(), copy.shape());
                let bias = |p: &Projection| p.to_dense().bias.map(|b| values(b.val()));
                assert_eq!(bias(own), bias(copy), "{name}");
            }
        }
        let norm = |layer: &DecoderLayer| values(layer.input_norm.gamma.val());
        assert_eq!(norm(own), norm(copy));
    }
    let embedded = |d: &Decoder| values(d.embedding.embed(&[IDS.to_vec()]).expect("embeds"));
    assert_eq!(embedded(&dense), embedded(&draft));
    assert_eq!(dense.lm_head.is_some(), draft.lm_head.is_some());
}

#[test]
fn a_low_bit_head_beside_the_models_own_embedding() {
    for name in ["qwen2", "llama3"] {
        let dense = family(name);
        let draft = substitute(&dense, &settings("hqq:8:32,head=8")).expect("is made");
        let Some(Projection::Quantized(head)) = &draft.lm_head else {
            panic!("a head in codes");
        };
        assert_eq!(head.shape().0, dense.embedding.vocab());
        let off = distance(&logits(&draft), &logits(&dense));
        assert!(off < 0.05, "{name}: {off}");
    }
}

#[test]
fn a_draft_goes_on_in_the_models_own_cache() {
    let dense = family("llama3");
    let draft = substitute(&dense, &settings("hqq:8:32")).expect("is made");
    let mut cache = dense.new_cache(16);
    let first = IDS[..8].to_vec();
    dense.hidden(&[first], Some(&mut cache)).expect("runs");
    let hidden = draft.hidden(&[IDS[8..].to_vec()], Some(&mut cache));
    let rest = values(draft.logits(hidden.expect("runs")));
    let reference = logits(&dense);
    let vocab = reference.len() / IDS.len();
    let off = distance(&rest, &reference[8 * vocab..]);
    assert!(off < 0.05, "{off}");
}

#[test]
fn factors_stay_factors() {
    let random = |shape: [usize; 2]| {
        let spread = Distribution::Uniform(-0.3, 0.3);
        Tensor::<2>::random(shape, spread, &Device::flex())
    };
    let mut dense = family("llama3");
    let layer = &mut dense.layers[1];
    let (out, input) = layer.attention.output.shape();
    let plain = LowRank::new(random([input, 20]), random([20, out]), None);
    layer.attention.output = Projection::LowRank(plain);
    let (out, input) = layer.feed_forward.down.shape();
    let pivots: Vec<usize> = (0..20).collect();
    let (rest, expansion) = (random([input - 20, 20]), random([20, out]));
    let identity = LowRank::with_identity(&pivots, input, rest, expansion, None);
    layer.feed_forward.down = Projection::LowRank(identity);
    let draft = substitute(&dense, &settings("hqq:8:32")).expect("is made");
    assert_eq!(draft.layers[1].attention.output.kind(), "low-rank");
    assert_eq!(draft.layers[1].feed_forward.down.kind(), "identity-block");
    assert_eq!(draft.layers[1].feed_forward.down.rank(), Some(20));
    let off = distance(&logits(&draft), &logits(&dense));
    assert!(off < 0.05, "{off}");
}

#[test]
fn what_can_not_be_coded_is_named() {
    for wrong in [f32::NAN, f32::INFINITY, 1e6] {
        let mut dense = family("llama3");
        let Projection::Dense(down) = &mut dense.layers[1].feed_forward.down else {
            panic!("dense");
        };
        let weight = down.weight.val();
        let changed = weight.slice_fill([0..1, 0..1], wrong);
        down.weight = burn::module::Param::from_tensor(changed);
        let error = substitute(&dense, &SubstituteSettings::default()).expect_err("refused");
        let text = error.to_string();
        assert!(
            text.contains("layer 1") && text.contains("`down`"),
            "{text}"
        );
    }
}
