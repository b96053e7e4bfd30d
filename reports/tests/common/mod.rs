//! A small set of results as evaluations write them: a dense model and compressed ones.

#![allow(dead_code)]

use cinder_eval::{CorpusIdentity, EvalResult, ModelIdentity, Perplexity};
use cinder_models::checkpoint::SiteRecord;
use cinder_reports::{CompressedSite, Compression, Details, Evaluation, Results};

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
            by_position: Vec::new(),
            tokens_per_second: 412.5 + 300.0 * (1.0 - keep_ratio),
            bos_ids: Vec::new(),
        },
        device: "cpu (2 threads)".to_owned(),
        dtype: "f32".to_owned(),
        cache: None,
        kv_bytes_per_token: None,
        residual_window: 0,
        residual_window_bytes: 0,
        command: format!(
            "cinder eval ppl runs/{slug} --text wiki.test.raw --window 2048 --windows 16 --json"
        ),
        seconds: 79.4,
    };
    Evaluation {
        file: format!("results/{slug}.json").into(),
        result,
        by_position: Vec::new(),
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

/// Dense with two caches, and a recipe whose caches are smaller in two formats.
pub fn cached() -> Vec<Evaluation> {
    let of = |recipe: Option<&str>, keep: f64, perplexity: f64, cache: &str, bytes: u64| {
        let name = format!("{} {keep} {cache}", recipe.unwrap_or("smollm2"));
        let mut made = evaluation(&name, recipe, keep, perplexity);
        if recipe.is_none() {
            made.result.model.sha256 = "d".repeat(64);
        }
        made.result.cache = Some(cache.parse().expect("a format"));
        made.result.kv_bytes_per_token = Some(bytes);
        made
    };
    vec![
        of(None, 1.0, 20.9712, "f32", 46_080),
        of(None, 1.0, 20.9714, "f16", 23_040),
        of(Some("palu"), 0.95, 21.8, "q8", 6_000),
        of(Some("palu"), 0.9, 23.9, "q8", 4_200),
        of(Some("palu"), 0.95, 22.1, "q4", 3_100),
        of(Some("palu"), 0.9, 24.4, "q4", 2_200),
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

/// Every projection of a block of SmolLM2-135M: site, projection, `[out, in]`.
const BLOCK: [(&str, &str, [usize; 2]); 7] = [
    ("qkv", "q", [576, 576]),
    ("qkv", "k", [192, 576]),
    ("qkv", "v", [192, 576]),
    ("o", "o", [576, 576]),
    ("gate_up", "gate", [1536, 576]),
    ("gate_up", "up", [1536, 576]),
    ("down", "down", [576, 1536]),
];

/// A compression of `layers` layers by factoring every projection; the ends of the model keep more than its middle.
pub fn compression(recipe: &str, keep_ratio: f64, layers: usize) -> Compression {
    let slug = format!("{} {keep_ratio}", recipe).replace(' ', "-");
    let mut sites = Vec::new();
    for layer in 0..layers {
        let middle = layers.saturating_sub(1) as f64 / 2.0;
        let outer = (layer as f64 - middle).abs() / middle.max(1.0);
        for (index, (site, projection, shape)) in BLOCK.into_iter().enumerate() {
            let kept = (keep_ratio + 0.15 * (outer - 0.5) + 0.02 * (index as f64 - 3.0)).min(1.0);
            let dense = kept >= 1.0;
            let rank =
                (kept * (shape[0] * shape[1]) as f64 / (shape[0] + shape[1]) as f64) as usize;
            let scalars = if dense {
                shape[0] * shape[1]
            } else {
                rank * (shape[0] + shape[1])
            };
            let record = SiteRecord {
                layer,
                site: site.to_owned(),
                projection: projection.to_owned(),
                kind: if dense { "dense" } else { "low-rank" }.to_owned(),
                shape,
                rank: (!dense).then_some(rank),
                scalars: scalars as u64,
                keep_ratio: scalars as f64 / (shape[0] * shape[1]) as f64,
                error: if dense {
                    0.0
                } else {
                    0.4 * (1.0 - kept) * 10f64.powf(-2.0 * outer)
                },
                predicted_loss: (!dense).then_some(0.001 * (1.0 - kept)),
                condition: Some(1e3 + 1e5 * outer),
                ..SiteRecord::default()
            };
            sites.push(CompressedSite {
                record,
                seconds: None,
            });
        }
    }
    Compression {
        file: format!("runs/{slug}/cinder.json").into(),
        path: format!("runs/{slug}").into(),
        recipe: Some(recipe.to_owned()),
        keep_ratio,
        seconds: None,
        sites,
        details: Details::default(),
    }
}

/// As [`compression`], with a shared basis, identity blocks, a removed neuron, a fallback, and timings.
pub fn varied(recipe: &str, keep_ratio: f64, layers: usize) -> Compression {
    let mut varied = compression(recipe, keep_ratio, layers);
    varied.seconds = Some(48.3);
    for site in &mut varied.sites {
        let record = &mut site.record;
        site.seconds = Some(0.2);
        let kind = match record.projection.as_str() {
            "q" | "k" | "v" if record.kind != "dense" => {
                // The basis counts with the first: more than it had.
                record.keep_ratio = if record.projection == "q" { 1.1 } else { 0.3 };
                if record.layer % 2 == 0 {
                    "shared-basis"
                } else {
                    "shared-identity-block"
                }
            }
            "o" if record.kind != "dense" => {
                record.growth = Some(1.25);
                "identity-block"
            }
            "down" => {
                record.neurons = Some(1200);
                "pruned"
            }
            _ => continue,
        };
        record.kind = kind.to_owned();
    }
    if let Some(last) = varied.sites.last_mut() {
        last.record.fallback = Some("ridge raised to 1e-4".to_owned());
    }
    varied
}

/// The sample with the records of its compressed models.
pub fn with_compressions() -> Results {
    let mut results = Results::from(sample());
    results.compressions = vec![
        compression("low-rank", 0.9, 30),
        compression("low-rank", 0.8, 30),
        varied("low-rank", 0.7, 30),
    ];
    results
}

/// Three recipes at four keep ratios and the dense model, perplexities from 19 to 190; all compressed models recorded.
pub fn sweep() -> Results {
    let mut results = Results::from(vec![evaluation("smollm2", None, 1.0, 19.1)]);
    for (recipe, points) in [
        ("low-rank", [24.6, 48.0, 101.4, 190.2]),
        ("skipcat", [21.3, 27.9, 44.8, 80.7]),
        ("skipcat-sensitivity", [20.4, 24.1, 33.2, 57.5]),
    ] {
        for (keep, value) in [0.9, 0.8, 0.7, 0.6].into_iter().zip(points) {
            let name = format!("{recipe} {keep}");
            results
                .evaluations
                .push(evaluation(&name, Some(recipe), keep, value));
            let record = if recipe == "low-rank" {
                compression
            } else {
                varied
            };
            results.compressions.push(record(recipe, keep, 30));
        }
    }
    results
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
