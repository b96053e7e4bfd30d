//! A small set of results as evaluations write them: a dense model and compressed ones.

#![allow(dead_code)]

use cinder_eval::{CorpusIdentity, EvalResult, ModelIdentity, Perplexity};
use cinder_reports::Evaluation;

const DENSE_SCALARS: u64 = 106_168_320;
const OTHER_PARAMETERS: u64 = 28_346_688;

/// An evaluation over 16 windows of 2,048 tokens; the window means spread evenly around the perplexity's logarithm.
pub fn evaluation(
    name: &str,
    recipe: Option<&str>,
    keep_ratio: f64,
    perplexity: f64,
) -> Evaluation {
    let windows: Vec<u64> = (0..16).collect();
    let mean = perplexity.ln();
    // The text's difficulty, the same for all models, and a little of the model's own; both sum to zero.
    let shared = |i: u64| 0.02 * (i as f64 - 7.5);
    let own = |i: u64| if i.is_multiple_of(2) { 1.0 } else { -1.0 } * 0.15 * (1.0 - keep_ratio);
    let window_nll: Vec<f64> = windows.iter().map(|&i| mean + shared(i) + own(i)).collect();
    let variance = window_nll
        .iter()
        .map(|nll| (nll - mean).powi(2))
        .sum::<f64>()
        / 15.0;
    let scalars = (DENSE_SCALARS as f64 * keep_ratio) as u64;
    let slug = name.replace(' ', "-");
    let result = EvalResult {
        schema: cinder_reports::SCHEMA,
        tool_version: "0.1.0".to_owned(),
        model: ModelIdentity {
            name: name.to_owned(),
            path: if recipe.is_none() {
                "smollm2".to_owned()
            } else {
                format!("runs/{slug}")
            },
            sha256: fake_hash(name),
            stored_as: if recipe.is_none() { "Q4_1+Q8_0" } else { "f32" }.to_owned(),
            parameters: scalars + OTHER_PARAMETERS,
            decoder_projection_scalars: scalars,
            keep_ratio,
            bytes: 4 * (scalars + OTHER_PARAMETERS),
            recipe: recipe.map(str::to_owned),
        },
        corpus: CorpusIdentity {
            name: "wiki.test.raw".to_owned(),
            sha256: fake_hash("wiki.test.raw"),
            documents: 1,
            tokens: 286_145,
        },
        perplexity: Perplexity {
            perplexity,
            stderr: perplexity * (variance / 16.0).sqrt(),
            window: 2048,
            stride: 2048,
            tokens_scored: 16 * 2047,
            windows: windows.len() as u64,
            window_indices: windows,
            window_nll,
            tokens_per_second: 412.5 + 300.0 * (1.0 - keep_ratio),
            bos_ids: Vec::new(),
        },
        device: "cpu (2 threads)".to_owned(),
        dtype: "f32".to_owned(),
        command: format!(
            "cinder eval ppl runs/{slug} --text wiki.test.raw --window 2048 --windows 16 --json"
        ),
        seconds: 79.4,
    };
    Evaluation {
        file: format!("results/{slug}.json").into(),
        result,
    }
}

/// The dense model and one recipe at three keep ratios.
pub fn sample() -> Vec<Evaluation> {
    vec![
        evaluation("smollm2", None, 1.0, 20.9712),
        evaluation("low-rank 0.9", Some("low-rank"), 0.9, 28.1034),
        evaluation("low-rank 0.8", Some("low-rank"), 0.8, 63.8021),
        evaluation("low-rank 0.7", Some("low-rank"), 0.7, 182.0577),
    ]
}

/// Three recipes whose points come close, and a second corpus with its own windows.
pub fn crowded() -> Vec<Evaluation> {
    let mut all = sample();
    for (recipe, points) in [
        (
            "shared basis with identity blocks",
            [(0.9, 24.02), (0.8, 34.9), (0.7, 61.3), (0.5, 410.0)],
        ),
        (
            "group-head low rank",
            [(0.92, 23.1), (0.81, 36.4), (0.7, 66.0), (0.6, 130.2)],
        ),
    ] {
        all.extend(points.map(|(keep, value)| {
            evaluation(&format!("{recipe} {keep}"), Some(recipe), keep, value)
        }));
    }
    for mut other in [
        evaluation("smollm2", None, 1.0, 14.21),
        evaluation("low-rank 0.9", Some("low-rank"), 0.9, 16.85),
        evaluation("low-rank 0.8", Some("low-rank"), 0.8, 24.9),
    ] {
        other.file = format!("other/{}.json", other.result.model.name).into();
        other.result.corpus.name = "boolq:evaluation".to_owned();
        other.result.corpus.sha256 = fake_hash("boolq");
        all.push(other);
    }
    all
}

/// 64 hexadecimal digits that depend on `text`.
fn fake_hash(text: &str) -> String {
    let mut state = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut hash = String::new();
    for _ in 0..4 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        hash.push_str(&format!("{state:016x}"));
    }
    hash
}
