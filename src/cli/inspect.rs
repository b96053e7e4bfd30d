//! `cinder inspect`

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use cinder::models::Precision;
use cinder::models::cache::CacheFormat;
use cinder::models::checkpoint::{Checkpoint, ProjectionInfo};
use serde_json::{Value, json};

use super::context::{Cache, Context, Weights};
use super::format::{bytes, count, pairs, table};
use super::memory::rotary_bytes_per_token;

/// Show what a model is
///
/// Only headers are read. Bytes in memory are counted for the precision of `--weights`: codes, scales, norms and biases.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: Cache,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let checkpoint = context.open(&args.model)?;
    let config = checkpoint.config();
    let projections = checkpoint.projections();
    let scalars: u64 = projections.iter().map(|p| p.scalars).sum();
    let keep_ratio = scalars as f64 / config.dense_projection_scalars() as f64;
    let parameters = checkpoint.parameters();
    let precision = args.weights.weights;
    let memory = checkpoint.memory_bytes(precision);
    let memory_label = format!("bytes in memory ({precision})");
    let on_disk: u64 = checkpoint.tensors().iter().map(|(_, i)| i.bytes).sum();
    let cached = args.cache.of(&checkpoint)?;
    let (format, tokens) = (cached.format, cached.residual_window);
    let kv = checkpoint.kv_bytes_per_token(format);
    let window = cached.window_bytes(&checkpoint);
    let window_label = format!("KV cache, residual window of {tokens} tokens (f16)");
    let kv_label = format!("KV cache bytes per token ({format})");
    let value = json!({
        "path": checkpoint.path(),
        "format": checkpoint.format().name(),
        "family": config.family.name,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_context": config.max_context,
        "tied_embeddings": config.tied_embeddings,
        "rope_theta": config.rope_theta,
        "stored_as": checkpoint.stored_as(),
        "parameters": parameters,
        "decoder_projection_scalars": scalars,
        "keep_ratio": keep_ratio,
        "weights": precision,
        "bytes": memory,
        "bytes_on_disk": on_disk,
        "cache": format,
        "kv_bytes_per_token": kv,
        "residual_window": tokens,
        "residual_window_bytes": window,
        "latents": checkpoint.has_latents().then(|| latents(&checkpoint)),
        "sites": sites(&projections, precision),
        "head": checkpoint.coded_head().map(|(format, bytes)| json!({
            "kind": "quantized", "bits": format.bits(), "group": format.group(), "bytes": bytes,
            "bytes_on_disk": bytes, "bits_per_weight": head_bits_per_weight(&checkpoint, bytes),
        })),
        "manifest": checkpoint.manifest().map(|m| json!({
            "recipe": m.recipe, "source": m.source, "calibration": m.calibration,
            "fallbacks": m.fallbacks, "tool_version": m.tool_version,
        })),
    });
    let mut text = format!(
        "{}: {} ({})\n  {} layers, hidden {}, {} heads of {} ({} for keys and values), feed-forward {}, vocabulary {}\n  \
         context {}, {} embeddings, stored as {}\n\n",
        checkpoint.name(),
        config.family.name,
        checkpoint.format().name(),
        config.layers,
        config.hidden_size,
        config.heads,
        config.head_dim,
        config.kv_heads,
        config.intermediate_size,
        count(config.vocab_size as u64),
        count(config.max_context as u64),
        if config.tied_embeddings {
            "tied"
        } else {
            "untied"
        },
        checkpoint.stored_as(),
    );
    let mut summary = vec![
        ("parameters", count(parameters)),
        ("decoder projection scalars", count(scalars)),
        ("keep ratio", format!("{keep_ratio:.4}")),
        (memory_label.as_str(), bytes(memory)),
        ("bytes on disk", bytes(on_disk)),
        (kv_label.as_str(), bytes(kv)),
    ];
    if tokens > 0 {
        summary.push((window_label.as_str(), bytes(window)));
    }
    if let Some(each) = bits_per_weight(&projections) {
        summary.push(("bits a weight, of low-bit codes", format!("{each:.3}")));
    }
    if let Some((format, stored)) = checkpoint.coded_head() {
        let each = head_bits_per_weight(&checkpoint, stored);
        let head = format!(
            "{} bits of {}: {each:.3} bits a weight, {}",
            format.bits(),
            format.group(),
            bytes(stored)
        );
        summary.push(("output head, as low-bit codes", head));
    }
    let summary = pairs(&summary);
    writeln!(text, "{summary}\n\n{}", site_table(&projections, precision))?;
    if checkpoint.has_latents() {
        writeln!(text, "\n{}", latent_table(&checkpoint))?;
    }
    manifest_summary(&checkpoint, &mut text)?;
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Formats with the bytes that one token takes in them, in all layers.
fn formats(checkpoint: &Checkpoint) -> Vec<(CacheFormat, u64)> {
    let possible = |format: &CacheFormat| checkpoint.check_cache_format(*format).is_ok();
    let formats = CacheFormat::ALL.into_iter().filter(possible);
    formats
        .map(|format| (format, checkpoint.kv_bytes_per_token(format)))
        .collect()
}

/// Numbers that keys and values of one token have in a layer.
fn dense_numbers(checkpoint: &Checkpoint) -> usize {
    2 * checkpoint.config().kv_heads * checkpoint.config().head_dim
}

/// Numbers cached over those of keys and values, in all layers.
fn cached_share(checkpoint: &Checkpoint) -> f64 {
    let cached = checkpoint.kv_numbers_per_token();
    let dense = dense_numbers(checkpoint) * cached.len();
    cached.iter().sum::<usize>() as f64 / dense as f64
}

fn latents(checkpoint: &Checkpoint) -> Value {
    let by_format = formats(checkpoint).into_iter();
    let by_format = by_format.map(|(format, bytes)| (format.to_string(), json!(bytes)));
    json!({
        "numbers_per_token_by_layer": checkpoint.kv_numbers_per_token(),
        "dense_numbers_per_token": dense_numbers(checkpoint),
        "ratio": cached_share(checkpoint),
        "bytes_per_token": by_format.collect::<serde_json::Map<_, _>>(),
        "rotary_bytes_per_token": rotary_bytes_per_token(checkpoint),
    })
}

/// What a token takes in the cache: one line for each format, scales and minimums counted, and the rotations that rebuilt
/// keys need.
fn latent_table(checkpoint: &Checkpoint) -> comfy_table::Table {
    let numbers = checkpoint.kv_numbers_per_token();
    let (least, most) = (numbers.iter().min(), numbers.iter().max());
    let range = match (least, most) {
        (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
        _ => most.map_or(String::new(), usize::to_string),
    };
    let dense = checkpoint.config().layers as u64 * 4 * dense_numbers(checkpoint) as u64;
    let mut rows = vec![(
        "latent numbers per token and layer".to_owned(),
        format!(
            "{range} of {} ({:.3})",
            dense_numbers(checkpoint),
            cached_share(checkpoint)
        ),
    )];
    rows.extend(formats(checkpoint).into_iter().map(|(format, n)| {
        let share = n as f64 / dense as f64;
        let name = format!("bytes per token as {format}");
        (name, format!("{} ({share:.3} of dense f32)", count(n)))
    }));
    rows.push((
        "rotary table bytes per token, once a model".to_owned(),
        count(rotary_bytes_per_token(checkpoint)),
    ));
    let rows: Vec<_> = rows
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    pairs(&rows)
}

/// Totals by (site, kind).
fn totals(
    projections: &[ProjectionInfo],
    precision: Precision,
) -> BTreeMap<(cinder::models::Site, &'static str), [u64; 4]> {
    let mut totals = BTreeMap::new();
    for p in projections {
        let entry = totals.entry((p.site, p.kind)).or_insert([0; 4]);
        entry[0] += 1;
        entry[1] += p.scalars;
        entry[2] += p.bytes(precision);
        entry[3] += p.bytes_on_disk;
    }
    totals
}

fn sites(projections: &[ProjectionInfo], precision: Precision) -> Vec<Value> {
    totals(projections, precision)
        .into_iter()
        .map(|((site, kind), [n, scalars, memory, disk])| {
            let mut value = json!({"site": site.name(), "kind": kind, "projections": n, "scalars": scalars,
                   "bytes": memory, "bytes_on_disk": disk});
            if kind == "quantized" {
                value["bits_per_weight"] = json!(8.0 * disk as f64 / scalars as f64);
            }
            value
        })
        .collect()
}

/// What low-bit codes take on disk and in memory, scales, minimums and padding counted; none where there are none.
fn bits_per_weight(projections: &[ProjectionInfo]) -> Option<f64> {
    let coded = projections.iter().filter(|p| p.low_bit().is_some());
    let (weights, bytes) = coded.fold((0, 0), |(weights, bytes), p| {
        (weights + p.scalars, bytes + p.bytes_on_disk)
    });
    (weights > 0).then(|| 8.0 * bytes as f64 / weights as f64)
}

/// What the output head's codes take for each of its weights.
fn head_bits_per_weight(checkpoint: &Checkpoint, bytes: u64) -> f64 {
    let config = checkpoint.config();
    8.0 * bytes as f64 / (config.vocab_size * config.hidden_size) as f64
}

fn site_table(projections: &[ProjectionInfo], precision: Precision) -> comfy_table::Table {
    let mut out = table(&[
        "site",
        "kind",
        "projections",
        "scalars",
        "in memory",
        "on disk",
    ]);
    for ((site, kind), [n, scalars, memory, disk]) in totals(projections, precision) {
        out.add_row(vec![
            site.name().to_owned(),
            kind.to_owned(),
            n.to_string(),
            count(scalars),
            bytes(memory),
            bytes(disk),
        ]);
    }
    out
}

fn manifest_summary(checkpoint: &Checkpoint, text: &mut String) -> Result<()> {
    if let Some(m) = checkpoint.manifest() {
        writeln!(
            text,
            "\nmade by cinder {} with recipe `{}` from {} ({})\ncalibrated on {}: {} windows of {} tokens, seed {}; {} fallbacks",
            m.tool_version,
            m.recipe["name"].as_str().unwrap_or("?"),
            m.source.name,
            m.source.stored_as,
            m.calibration.corpus,
            m.calibration.windows,
            m.calibration.window,
            m.calibration.seed,
            m.fallbacks,
        )?;
    }
    Ok(())
}
