//! `cinder inspect`

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use cinder::models::Precision;
use cinder::models::checkpoint::{Checkpoint, ProjectionInfo};
use serde_json::{Value, json};

use super::context::{Context, Weights};
use super::format::{bytes, count, pairs, table};

/// Show what a model is
///
/// Only headers are read. Bytes in memory are counted for the precision of `--weights`: codes, scales, norms and biases.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    #[command(flatten)]
    weights: Weights,
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
    let kv = config.kv_bytes_per_token();
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
        "kv_bytes_per_token": kv,
        "sites": sites(&projections, precision),
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
    let summary = pairs(&[
        ("parameters", count(parameters)),
        ("decoder projection scalars", count(scalars)),
        ("keep ratio", format!("{keep_ratio:.4}")),
        (memory_label.as_str(), bytes(memory)),
        ("bytes on disk", bytes(on_disk)),
        ("KV cache bytes per token (f32)", bytes(kv)),
    ]);
    writeln!(text, "{summary}\n\n{}", site_table(&projections, precision))?;
    manifest_summary(&checkpoint, &mut text)?;
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
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
            json!({"site": site.name(), "kind": kind, "projections": n, "scalars": scalars,
                   "bytes": memory, "bytes_on_disk": disk})
        })
        .collect()
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
