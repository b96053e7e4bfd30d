//! What a compression would do, before anything is loaded.

use std::process::ExitCode;

use anyhow::Result;
use cinder::compress::allocation::Rung;
use cinder::compress::calibration::OWN_TEXT;
use cinder::compress::passes::{Needs, Pass, PlannedUnit, dense_scalars};
use cinder::compress::pipeline::{check, projection_scalars, shape_plans};
use cinder::compress::recipe::{Calibration, Propagate, Recipe};
use cinder::models::checkpoint::Checkpoint;
use cinder::models::ops::BlockFormat;
use cinder::models::{Precision, Site, ops};
use serde_json::{Value, json};

use super::calibration::own_text_batch;
use crate::cli::context::Context;
use crate::cli::format::{bytes, count, table};

pub fn run(context: &Context, checkpoint: &Checkpoint, recipe: &Recipe) -> Result<ExitCode> {
    check(checkpoint, recipe)?;
    let config = checkpoint.config();
    let plans = shape_plans(&recipe.passes, config)?;
    let before = config.dense_projection_scalars();
    let (stored, after) = match &plans {
        Some(plans) => projection_scalars(checkpoint, &recipe.passes, plans),
        None => (before, budget(checkpoint, recipe)),
    };
    let width = recipe.output.dtype.bytes();
    let bytes_before = checkpoint.parameters() * width;
    let (coded, codes) = low_bit(checkpoint, recipe);
    let bytes_after = (checkpoint.parameters() + after - stored - coded) * width + codes;
    let memory = memory_estimate(checkpoint, recipe);
    let seconds = time_estimate(checkpoint, recipe);
    let (each, disk) = (
        analysis_bytes(checkpoint, recipe),
        statistics_bytes(checkpoint, recipe),
    );

    let units: Vec<(usize, &PlannedUnit)> = plans
        .iter()
        .flatten()
        .flat_map(|p| &p.layers)
        .flat_map(|l| l.units.iter().map(move |u| (l.layer, u)))
        .collect();
    let names = |unit: &PlannedUnit| -> Vec<&'static str> {
        unit.members
            .iter()
            .map(|m| unit.site.projections()[*m])
            .collect()
    };
    let mut plan = table(&["projections", "out × in", "rank", "keep"]);
    for (_, unit) in units.iter().filter(|(layer, _)| *layer == 0) {
        plan.add_row(vec![
            names(unit).join(" "),
            format!("{} × {}", unit.matrix.out, unit.matrix.input),
            match unit.rank {
                Some(rank) => rank.to_string(),
                None => coded_as(recipe, &names(unit)),
            },
            format!("{:.4}", unit.scalars() as f64 / unit.matrix.dense() as f64),
        ]);
    }
    let head = recipe.passes.iter().find_map(|pass| pass.head_format());
    if let Some(head) = head {
        plan.add_row(vec![
            "lm_head".to_owned(),
            format!("{} × {}", config.vocab_size, config.hidden_size),
            format!("{} bits of {}", head.bits(), head.group()),
            "1.0000".to_owned(),
        ]);
    }
    let decided = plans.is_some();
    let plan = match units.is_empty() {
        true if decided => "every low-rank projection gets an identity block".to_owned(),
        false => format!(
            "{plan}\n({} layers; later layers may differ by one rank)",
            config.layers
        ),
        true => "structure and rank of each site are decided by the statistics".to_owned(),
    };
    let sites: Vec<Value> = units
        .iter()
        .map(|(layer, u)| {
            json!({"layer": layer, "site": u.site.name(), "projections": names(u),
                   "shape": [u.matrix.out, u.matrix.input], "rank": u.rank, "scalars": u.scalars()})
        })
        .collect();
    let value = json!({
        "dry_run": true,
        "recipe": recipe.resolved(),
        "keep_ratio": after as f64 / before as f64,
        "projection_scalars_before": before,
        "projection_scalars_after": after,
        "bytes_before": bytes_before,
        "bytes_after": bytes_after,
        "peak_memory_bytes_estimate": memory,
        "analysis_bytes_per_layer": each,
        "statistics_disk_bytes_estimate": disk,
        "seconds_estimate": seconds,
        "head": head.map(|h| json!({"bits": h.bits(), "group": h.group()})),
        "sites": sites,
    });
    let calibration = match &recipe.calibration {
        Some(c) => format!(
            "{} windows of {} tokens of {}",
            c.windows, c.window, c.corpus
        ),
        None => "none".to_owned(),
    };
    let text = format!(
        "plan for {} by recipe `{}` (nothing is written)\n\n{plan}\n\n\
         keep ratio {:.4}: {} of {} scalars{}\nweights as {}: {} before, {} after\n\
         calibration: {calibration}\nmemory: about {} at the peak{}\ntime: about {} on this machine",
        checkpoint.name(),
        recipe.name,
        after as f64 / before as f64,
        count(after),
        count(before),
        if decided { "" } else { " at most" },
        recipe.output.dtype.name(),
        bytes(bytes_before),
        bytes(bytes_after),
        bytes(memory),
        depth(each, disk),
        minutes(seconds),
    );
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Weights that become low-bit codes, and the bytes that those take. A head of codes beside a tied embedding takes no weights'
/// place.
fn low_bit(checkpoint: &Checkpoint, recipe: &Recipe) -> (u64, u64) {
    let config = checkpoint.config();
    let (mut weights, mut bytes) = (0, 0);
    for pass in &recipe.passes {
        for name in pass.projections() {
            if let Some(format) = pass.low_bit(name) {
                let (out, input) = config.projection_shape(name);
                weights += out * input * config.layers;
                bytes += BlockFormat::Low(format).bytes(out, input) * config.layers;
            }
        }
        if let Some(format) = pass.head_format() {
            let (out, input) = (config.vocab_size, config.hidden_size);
            weights += if config.tied_embeddings {
                0
            } else {
                out * input
            };
            bytes += BlockFormat::Low(format).bytes(out, input);
        }
    }
    (weights as u64, bytes as u64)
}

/// What becomes of projections without a rank.
fn coded_as(recipe: &Recipe, names: &[&str]) -> String {
    let format = |name| recipe.passes.iter().find_map(|pass| pass.low_bit(name));
    match names.first().and_then(|name| format(name)) {
        Some(format) => format!("{} bits of {}", format.bits(), format.group()),
        None => "dense".into(),
    }
}

/// The most scalars that passes whose plans are not known yet may store, with what they do not touch.
fn budget(checkpoint: &Checkpoint, recipe: &Recipe) -> u64 {
    let config = checkpoint.config();
    let saved = recipe.passes.iter().map(|pass| {
        let dense = dense_scalars(config, &pass.projections());
        dense as i64 - pass.budget(config) as i64
    });
    // Latents may store more than the dense projections: it is the cache they make smaller.
    (config.dense_projection_scalars() as i64 - saved.sum::<i64>()) as u64
}

/// What grows with the model's depth.
fn depth(each: u64, disk: u64) -> String {
    match (each, disk) {
        (_, 0) => String::new(),
        (0, disk) => format!("\ndisk: about {} for statistics", bytes(disk)),
        (each, disk) => format!(
            "; while all layers are planned, {} for each of them\ndisk: about {} for statistics",
            bytes(each),
            bytes(disk)
        ),
    }
}

/// Memory that planning takes for each layer: a loss for every rank of every alternative, and what the allocator makes of
/// it. None where shapes decide.
fn analysis_bytes(checkpoint: &Checkpoint, recipe: &Recipe) -> u64 {
    let c = checkpoint.config();
    let planned = recipe.passes.iter().filter(|p| !p.plans_from_shapes());
    let of_pass = |pass: &dyn Pass| -> usize {
        let projections = pass.projections().into_iter();
        let shapes = projections.map(|name| c.projection_shape(name));
        let ranks: usize = shapes.map(|(out, input)| out.min(input) + 1).sum();
        let sizes = pass.settings()["neuron_sizes"].as_u64().unwrap_or(0) as usize;
        // Separate and shared, and each number of neurons.
        ranks * (2 + sizes) * (size_of::<f64>() + size_of::<Rung>())
    };
    planned.map(|pass| of_pass(&**pass) as u64).sum()
}

/// Moments on disk: half of each, they are symmetric.
fn statistics_bytes(checkpoint: &Checkpoint, recipe: &Recipe) -> u64 {
    let c = checkpoint.config();
    let moment = |width: usize| (width * (width + 1) / 2 * size_of::<f64>()) as u64;
    let of_site = |site: &Site| {
        let shapes = || {
            site.projections()
                .iter()
                .map(|name| c.projection_shape(name))
        };
        let input = shapes().next().map_or(0, |(_, input)| moment(input));
        let gradients = match recipe.needs() {
            Needs::Gradients => shapes().map(|(out, _)| moment(out)).sum(),
            _ => 0,
        };
        input + gradients
    };
    match recipe.needs() {
        Needs::Nothing => 0,
        _ => c.layers as u64 * Site::ALL.iter().map(of_site).sum::<u64>(),
    }
}

fn minutes(seconds: f64) -> String {
    match seconds < 90.0 {
        true => format!("{seconds:.0} s"),
        false => format!("{:.0} min", seconds / 60.0),
    }
}

/// The largest of: the whole model with its KV cache while it writes its own text; the frame, twice where a loss is taken;
/// a block with what its statistics need; the analyses of all layers while they are planned.
fn memory_estimate(checkpoint: &Checkpoint, recipe: &Recipe) -> u64 {
    let c = checkpoint.config();
    let square = |n: usize| (n * n * 8) as u64;
    let gradients = recipe.needs() == Needs::Gradients;
    let heads = if c.tied_embeddings { 1 } else { 2 };
    let head = (c.vocab_size * c.hidden_size * 4) as u64;
    let block = c.dense_projection_scalars() / c.layers as u64 * 4;
    let Some(calibration) = &recipe.calibration else {
        // What codes are made of is held besides the frame, and the values that they stand for.
        let coded = recipe.passes.iter().any(|p| p.head_format().is_some());
        return ((heads + if coded { 3 } else { 0 }) * head).max(4 * block);
    };
    let tokens = calibration.windows * calibration.window;
    let hidden = (tokens * c.hidden_size * 4) as u64;
    let frame = heads * head + if gradients { head } else { 0 } + hidden;
    let widest = c.intermediate_size.max(c.hidden_size);
    // A moment, its factor, an inverse and a workspace; the gradients' of gate and up beside each other on the way back.
    let moments = 4 * square(widest) + if gradients { 2 * square(widest) } else { 0 };
    let states = match calibration.propagate {
        Propagate::None => 2 * hidden,
        _ => 3 * hidden + (tokens * widest * 4) as u64,
    };
    let planning = c.layers as u64 * analysis_bytes(checkpoint, recipe);
    let walk = frame.max(states + 4 * block + moments).max(planning);
    if calibration.corpus != OWN_TEXT {
        return walk;
    }
    let batch = own_text_batch(checkpoint, calibration.window).min(calibration.windows);
    let cache = (batch * calibration.window) as u64
        * checkpoint.kv_bytes_per_token(checkpoint.cache_format());
    walk.max(checkpoint.memory_bytes(Precision::F32) + cache)
}

/// Multiplications that a run needs over what this machine does a second: a rough guide.
fn time_estimate(checkpoint: &Checkpoint, recipe: &Recipe) -> f64 {
    let c = checkpoint.config();
    let Some(calibration) = &recipe.calibration else {
        return 1e-8 * checkpoint.parameters() as f64;
    };
    let flops = ops::machine().flops;
    let square = |n: usize| (n * n) as f64;
    let layers = c.layers as f64;
    let projections = c.dense_projection_scalars() as f64;
    let tokens = |c: &Calibration| (c.windows * c.window) as f64;
    let inputs = layers
        * (2.0 * square(c.hidden_size)
            + square(c.heads * c.head_dim)
            + square(c.intermediate_size));
    let outputs = layers
        * (2.0 * square(c.hidden_size)
            + square(c.heads * c.head_dim)
            + 2.0 * square(c.kv_heads * c.head_dim)
            + 2.0 * square(c.intermediate_size));
    // Products in f32 reach six tenths of the machine, those in f64 (half as fast) three quarters; moments are symmetric.
    let (narrow, wide) = (0.6 * flops, 0.75 * 0.5 * flops);
    let forward = |tokens: f64| tokens * (2.4 * projections / narrow + inputs / wide);
    let mut seconds = forward(tokens(calibration));
    if recipe.needs() == Needs::Gradients {
        let back = (calibration.gradients.windows * calibration.window) as f64;
        let head = (c.vocab_size * c.hidden_size) as f64;
        seconds += back * ((5.5 * projections + 4.0 * head) / narrow + outputs / wide);
        // Spectra: sixty eigenvalue problems of the narrower width a layer.
        seconds += layers * 60.0 * 4.0 * (c.hidden_size as f64).powi(3) / wide;
    }
    let decompositions = layers * 7.0 * 12.0 * (c.hidden_size as f64).powi(3) / wide;
    let propagated = match calibration.propagate {
        Propagate::None => 0.0,
        Propagate::Inputs => 1.5 * forward(tokens(calibration)),
        Propagate::Block => 2.5 * forward(tokens(calibration)),
    };
    seconds + decompositions + propagated
}
