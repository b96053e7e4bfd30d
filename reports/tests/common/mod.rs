//! A small set of results as evaluations write them: a dense model and compressed ones.

#![allow(dead_code)]

use cinder_eval::{CorpusIdentity, EvalResult, ModelIdentity, Perplexity};
use cinder_models::checkpoint::{SiteRecord, Spectra};
use cinder_reports::{
    CompressedSite, Compression, Details, Evaluation, Measurement, Results, Sourced,
};
use serde_json::{Value, json};

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

/// The sweep with results of every other kind: tasks, divergences, a comparison, speeds, spectra, positions, stages, and
/// speculation.
pub fn everything() -> Results {
    let mut results = sweep();
    for evaluation in &mut results.evaluations {
        let base = evaluation.result.perplexity.perplexity.ln();
        let at = |i: i32| cinder_reports::PositionLoss {
            from: 2_u64.pow(i as u32 + 4) - 16,
            to: 2_u64.pow(i as u32 + 5) - 17,
            mean_nll: base + 0.6 * 0.6_f64.powi(i) - 0.1,
            stderr: Some(0.03),
        };
        evaluation.by_position = (0..7).map(at).collect();
    }
    for compression in &mut results.compressions {
        let details = &mut compression.details;
        let statistics = if compression.keep_ratio == 0.9 {
            61.4
        } else {
            0.1
        };
        let stages = [
            ("statistics", statistics),
            ("analysis", 20.3),
            ("allocation", 0.4),
            ("compression", 31.8),
        ];
        details.stages = stages
            .map(|(name, seconds)| (name.to_owned(), seconds))
            .to_vec();
        details.peak_rss_bytes = Some(1_734_000_000);
        details.bytes = Some((538_000_000, 460_000_000));
        details.dtype = Some("f32".to_owned());
        details.source = Some(("smollm2".to_owned(), fake_hash("smollm2")));
        details.recipe = compression.recipe.as_ref().filter(|name| *name == "skipcat").map(|name| {
            json!({"name": name, "calibration": {"corpus": "boolq:calibration", "windows": 64, "window": 2048},
                "passes": [{"pass": "skipcat", "keep": compression.keep_ratio, "sensitivity": null}]})
        });
        details.calibration = Some(("boolq:calibration".to_owned(), fake_hash("boolq"), 64, 2048));
    }
    let models: Vec<_> = results
        .evaluations
        .iter()
        .map(|e| json!(e.result.model))
        .collect();
    for (index, model) in models
        .iter()
        .enumerate()
        .filter(|(index, _)| index % 3 == 0)
    {
        results.tasks.push(tasks(model, index));
        results.benches.push(bench(model, index));
        if index > 0 {
            results
                .divergences
                .push(divergence(&models[0], model, index));
        }
    }
    let every = results.evaluations.iter().enumerate();
    results.benches = every
        .map(|(index, e)| bench(&json!(e.result.model), index))
        .collect();
    results.comparisons = vec![sourced(
        "compare/one.json",
        json!({
            "first": {"model": models[1], "perplexity": 24.6, "stderr": 0.4},
            "second": {"model": models[5], "perplexity": 21.3, "stderr": 0.4},
            "corpus": {"name": "wiki.test.raw", "sha256": "", "documents": 1, "tokens": 286_145},
            "nll": {"difference": {"mean": -0.14, "stderr": 0.01}, "p_value": 3.1e-5, "pairs": 16, "larger": 0, "smaller": 16},
            "perplexity_ratio": {"mean": 0.866, "stderr": 0.009},
        }),
    )];
    results.spectra = vec![spectra("low-rank", false), spectra("skipcat", true)];
    results.speculations = vec![speculation()];
    results.sensitivities = vec![sensitivity()];
    results
}

fn sourced<T: serde::de::DeserializeOwned>(file: &str, value: Value) -> Sourced<T> {
    Sourced {
        file: file.into(),
        result: serde_json::from_value(value).expect("the layout is known"),
    }
}

fn tasks(model: &Value, index: usize) -> Sourced<cinder_eval::tasks::TasksResult> {
    let task = |acc: f64, norm: Option<f64>| {
        let acc = acc - 0.012 * index as f64;
        let mut task = json!({
            "version": 1, "n": 200, "documents": 1838, "shots": 0, "acc": acc, "acc_stderr": 0.033, "stderr": 0.033,
            "truncated": 0, "tokens": 1000, "tokens_unshared": 2000, "files": [], "seconds": 3.0,
        });
        if let Some(norm) = norm {
            task["acc_norm"] = json!(norm - 0.01 * index as f64);
            task["acc_norm_stderr"] = json!(0.034);
        }
        task
    };
    sourced(
        &format!("tasks/{index}.json"),
        json!({
            "schema": 1, "tool_version": "0.1.0", "model": model,
            "tasks": {
                "piqa": task(0.68, Some(0.69)), "arc_easy": task(0.55, Some(0.51)), "winogrande": task(0.53, None),
                "hellaswag": task(0.38, Some(0.42)), "openbookqa": task(0.24, Some(0.34)),
            },
            "device": "cpu (2 threads)", "dtype": "f32", "cache": "f32", "kv_bytes_per_token": 46_080, "bos_ids": [],
            "command": format!("cinder eval tasks model-{index} --tasks piqa,arc_easy --limit 200 --out tasks/{index}.json"),
            "seconds": 61.0,
        }),
    )
}

fn bench(model: &Value, index: usize) -> Sourced<cinder_reports::BenchResult> {
    sourced(
        &format!("bench/{index}.json"),
        json!({
            "model": model["path"], "weights": "f32", "prefill": [], "decode": [],
            "decode_tokens_per_second": 21.0 + 1.7 * (index % 5) as f64, "peak_rss_bytes": 700_000_000,
            "device": "cpu (2 threads)",
        }),
    )
}

fn divergence(
    reference: &Value,
    model: &Value,
    index: usize,
) -> Sourced<cinder_reports::DivergenceResult> {
    let kl = 0.08 * index as f64;
    let at = |i: i32| {
        json!({"first": 2_u32.pow(i as u32), "last": 2_u32.pow(i as u32 + 1) - 1,
        "kl": kl * (1.0 + 0.5_f64.powi(i)), "nll": 3.1, "reference_nll": 3.0})
    };
    let estimate = |mean: f64| json!({"mean": mean, "stderr": 0.02 * mean.abs()});
    sourced(
        &format!("kl/{index}.json"),
        json!({
            "kl": estimate(kl), "kl_median": kl / 2.0, "kl_p90": 2.0 * kl, "kl_p99": 5.0 * kl, "kl_max": 12.0 * kl,
            "top1_agreement": estimate(0.9 - 0.03 * index as f64), "delta_p": estimate(-0.01), "delta_p_rms": 0.08,
            "reference_perplexity": 19.1, "perplexity": 19.1 * (1.0 + kl), "perplexity_ratio": estimate(1.0 + kl),
            "windows": 16, "tokens_scored": 32_752, "window_kl": [], "window_nll": [], "reference_window_nll": [], "covered": 0.98,
            "by_position": (0..10).map(at).collect::<Vec<_>>(),
            "model": model, "dtype": "f32", "device": "cpu (2 threads)",
            "reference": {"model": reference, "window": 2048, "top_k": 64,
                "corpus": {"name": "wiki.test.raw", "sha256": "", "documents": 1, "tokens": 286_145}},
            "command": format!("cinder eval kl model-{index} --reference smollm2 --text wiki.test.raw --json"),
        }),
    )
}

/// Spectra of 30 layers that fall the faster the deeper; stacked where bases are shared.
fn spectra(recipe: &str, shared: bool) -> Sourced<Spectra> {
    let mut all = Vec::new();
    for layer in 0..30 {
        let units: &[&[&str]] = match shared {
            true => &[&["q", "k", "v"], &["o"], &["gate", "up"], &["down"]],
            false => &[
                &["q"],
                &["k"],
                &["v"],
                &["o"],
                &["gate"],
                &["up"],
                &["down"],
            ],
        };
        for (unit, projections) in units.iter().enumerate() {
            let full = if projections == &["k"] || projections == &["v"] {
                192
            } else {
                576
            };
            let ranks: Vec<usize> = (0..64).map(|i| full * i * i / 3969).collect();
            let steep = 2.0 + layer as f64 / 8.0 + unit as f64 / 3.0;
            let left_out = ranks.iter().map(|rank| {
                let share = *rank as f64 / full as f64;
                (-steep * share).exp() * (1.0 - share).powi(2)
            });
            all.push(json!({"layer": layer, "site": "qkv", "projections": projections, "left_out": left_out.collect::<Vec<_>>(),
                "ranks": ranks}));
        }
    }
    sourced(
        &format!("compress/{recipe}.spectra.json"),
        json!({
            "kind": "spectra", "schema": 1, "tool_version": "0.1.0", "model": "smollm2", "model_sha256": fake_hash("smollm2"),
            "recipe": recipe, "spectra": all,
        }),
    )
}

/// Eight layers of four sites; of one nothing was saved.
pub fn sensitivity() -> Measurement {
    let estimate = |mean: f64| json!({"mean": mean, "stderr": 0.03 * mean});
    let mut sites = Vec::new();
    for layer in 0..8u32 {
        for (index, site) in ["qkv", "o", "gate_up", "down"].into_iter().enumerate() {
            let kl =
                0.002 * (1.0 + 0.4 * index as f64) * (1.0 + (f64::from(layer) - 3.5).powi(2) / 4.0);
            let saved = if (layer, site) == (7, "o") {
                0
            } else {
                250_000 * (index as u64 + 1)
            };
            sites.push(json!({"layer": layer, "site": site, "scalars": 1_769_472, "scalars_saved": saved, "kl": estimate(kl),
                "kl_per_scalar": (saved > 0).then(|| kl / saved as f64), "top1_agreement": 1.0 - 5.0 * kl,
                "perplexity_ratio": estimate(1.0 + kl), "predicted_loss": 1.1 * kl, "error": 0.2}));
        }
    }
    let dense = evaluation("smollm2", None, 1.0, 19.1).result;
    let result = json!({"schema": 1, "tool_version": "0.1.0", "model": dense.model, "perturbation": {"kind": "frontier", "keep": 0.5},
        "corpus": dense.corpus, "ids_sha256": fake_hash("ids"), "window": 2048, "window_indices": [0, 1, 2, 3], "top_k": 64,
        "device": "cpu (2 threads)", "command": "cinder sensitivity smollm2 --text wiki.test.raw --out sensitivity.json",
        "seconds": 400.0, "sites": sites});
    Measurement {
        file: "sensitivity.json".into(),
        result: serde_json::from_value(result).expect("the layout is known"),
    }
}

/// Two drafts in two shapes at two bandwidths, beside plain decoding.
pub fn speculation() -> Sourced<cinder_eval::speculation::SpeculationResult> {
    let mut runs = Vec::new();
    let mut baselines = Vec::new();
    for bandwidth in [None, Some(2.5e9)] {
        let plain = if bandwidth.is_some() { 4.1 } else { 21.3 };
        let seconds = |draft: f64, read: f64| json!({"prefill": 0.8, "draft": draft, "read": read, "verify": 3.1, "overhead": 0.2});
        baselines.push(json!({"label": "plain", "bandwidth_bytes_per_second": bandwidth, "tokens": 128, "speedup_over_plain": 1.0,
            "tokens_per_second": plain, "seconds": seconds(0.0, if bandwidth.is_some() { 26.0 } else { 0.0 }),
            "bytes_read_per_token": 5.4e8}));
        for (label, depth, width, times) in [
            ("chain of 4", 4, 1, 1.7),
            ("chain of 8", 8, 1, 1.9),
            ("tree 6×4", 6, 4, 2.6),
        ] {
            let reach = |d: i32| 0.83_f64.powi(d) + 0.03 * f64::from(width);
            runs.push(json!({
                "label": label, "draft": "substitute q4", "depth": depth, "width": width, "verify": "greedy",
                "bandwidth_bytes_per_second": bandwidth, "resident_blocks": 8, "tokens": 128,
                "tokens_per_second": plain * times, "tokens_per_round_with_bonus": 1.0 + times, "accepted_per_round": times,
                "acceptance_by_depth": (1..=depth).map(reach).collect::<Vec<_>>(),
                "seconds": seconds(1.9, if bandwidth.is_some() { 8.0 } else { 0.0 }),
                "bytes_read_per_token": 1.9e8, "predicted_speedup": times * 1.08, "speedup_over_plain": times,
            }));
        }
    }
    sourced(
        "bench/speculation.json",
        json!({
            "kind": "speculation", "schema": 1, "tool_version": "0.1.0", "model": "smollm2", "draft": "its 4-bit substitute",
            "device": "cpu (2 threads)", "command": "cinder bench smollm2 --draft substitute:q4 --json",
            "baselines": baselines, "runs": runs,
        }),
    )
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
