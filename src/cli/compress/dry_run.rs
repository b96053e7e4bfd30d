//! What a compression would do, before anything is loaded.

use std::process::ExitCode;

use anyhow::Result;
use cinder::compress::passes::{Needs, PlannedUnit, touched_scalars};
use cinder::compress::pipeline::{projection_scalars, require_form, shape_plans};
use cinder::compress::recipe::{Calibration, Propagate, Recipe};
use cinder::models::checkpoint::Checkpoint;
use cinder::models::{Precision, ops};
use serde_json::{Value, json};

use super::calibration::{OWN_TEXT, own_text_batch};
use crate::cli::context::Context;
use crate::cli::format::{bytes, count, table};

/// Refuses what can not be done, before anything slow.
pub fn check(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<()> {
    require_form(checkpoint, &recipe.passes)?;
    shape_plans(&recipe.passes, checkpoint.config())?;
    Ok(())
}

pub fn run(context: &Context, checkpoint: &Checkpoint, recipe: &Recipe) -> Result<ExitCode> {
    require_form(checkpoint, &recipe.passes)?;
    let config = checkpoint.config();
    let plans = shape_plans(&recipe.passes, config)?;
    let before = config.dense_projection_scalars();
    let (stored, after) = match &plans {
        Some(plans) => projection_scalars(checkpoint, &recipe.passes, plans),
        None => (before, budget(checkpoint, recipe)),
    };
    let width = recipe.output.dtype.bytes();
    let bytes_before = checkpoint.parameters() * width;
    let bytes_after = (checkpoint.parameters() + after - stored) * width;
    let memory = memory_estimate(checkpoint, recipe);
    let seconds = time_estimate(checkpoint, recipe);

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
            unit.rank.map_or("dense".into(), |r| r.to_string()),
            format!("{:.4}", unit.scalars() as f64 / unit.matrix.dense() as f64),
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
        "seconds_estimate": seconds,
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
         calibration: {calibration}\nmemory: about {} at the peak\ntime: about {} on this machine",
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
        minutes(seconds),
    );
    context.printer.result(&value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// The most scalars that passes whose plans are not known yet may store, with what they do not touch.
fn budget(checkpoint: &Checkpoint, recipe: &Recipe) -> u64 {
    let config = checkpoint.config();
    let saved = recipe.passes.iter().map(|pass| {
        let touched = touched_scalars(config, pass.sites());
        let keep = pass.settings()["keep"].as_f64().unwrap_or(1.0);
        touched - (keep * touched as f64) as u64
    });
    config.dense_projection_scalars() - saved.sum::<u64>()
}

fn minutes(seconds: f64) -> String {
    match seconds < 90.0 {
        true => format!("{seconds:.0} s"),
        false => format!("{:.0} min", seconds / 60.0),
    }
}

/// The largest of: the whole model with its KV cache while it writes its own text; the frame, twice where a loss is taken;
/// a block with what its statistics need.
fn memory_estimate(checkpoint: &Checkpoint, recipe: &Recipe) -> u64 {
    let c = checkpoint.config();
    let square = |n: usize| (n * n * 8) as u64;
    let gradients = recipe.needs() == Needs::Gradients;
    let heads = if c.tied_embeddings { 1 } else { 2 };
    let head = (c.vocab_size * c.hidden_size * 4) as u64;
    let block = c.dense_projection_scalars() / c.layers as u64 * 4;
    let Some(calibration) = &recipe.calibration else {
        return (heads * head).max(4 * block);
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
    let walk = frame.max(states + 4 * block + moments);
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
