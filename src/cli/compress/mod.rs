//! `cinder compress`

mod calibration;
mod dry_run;
mod recipe;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use cinder::compress::calibration::OWN_TEXT;
use cinder::compress::pipeline::{
    Earlier, Job, Outcome, check, check_places, check_resume, compress, finished,
};
use cinder::compress::recipe::Recipe;
use cinder::models::checkpoint::{
    Checkpoint, OutputDirectory, SPECTRA_KIND, SPECTRA_SCHEMA, Spectra,
};
use serde_json::{Value, json};

use super::context::{Context, Usage};
use super::eval::write_lines;
use super::format::{bytes, count};
use super::memory::peak_resident_bytes;

pub use calibration::calibration_text;
pub use recipe::read_recipe;

/// Make a smaller model by the passes of a recipe
///
/// Calibration text goes through the model block by block to learn what each projection reads and how the loss depends on
/// what it puts out; the passes decide what becomes of every projection; the blocks are compressed and written one by one.
/// The output is a Hugging Face directory with factored weights and a manifest (`cinder.json`) of everything that went in
/// and came out. A run that was killed goes on with `--resume` and ends in the same bytes.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    #[arg(required_unless_present = "print_schema")]
    model: Option<String>,
    /// A recipe, such as recipes/frontier.toml
    #[arg(long, value_name = "FILE", required_unless_present = "print_schema")]
    recipe: Option<PathBuf>,
    /// The directory to make
    #[arg(long, value_name = "DIR", required_unless_present_any = ["dry_run", "print_schema"])]
    out: Option<PathBuf>,
    /// Replaces the keep ratio of every pass: stored scalars after / before, or numbers in the KV cache
    #[arg(long, value_name = "RATIO", value_parser = parse_keep)]
    keep: Option<f64>,
    /// Replaces the recipe's calibration text: a file, `boolq:calibration`, or `self`
    ///
    /// `self` is text that the model writes itself, at temperature 1. That loads the whole model, and takes as long as
    /// generating as many tokens in batches.
    #[arg(long, value_name = "FILE")]
    calibration: Option<String>,
    /// Show the plan, sizes, memory and time, and stop before anything is loaded
    #[arg(long)]
    dry_run: bool,
    /// Go on with a run that was interrupted
    #[arg(long)]
    resume: bool,
    /// Keep statistics and analyses in this directory, and use what is there
    ///
    /// Runs with the same model, text and calibration settings share them. Several gigabytes for a large model.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Also write how fast the singular values of each projection fall here, for `cinder report`
    #[arg(long, value_name = "FILE")]
    spectra: Option<PathBuf>,
    /// Replace the directory if it exists
    #[arg(long)]
    overwrite: bool,
    /// Print the JSON schema of recipes and stop
    #[arg(long)]
    print_schema: bool,
}

/// A keep ratio from the command line.
pub fn parse_keep(text: &str) -> Result<f64, String> {
    let keep: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number"))?;
    match keep > 0.0 && keep <= 1.0 {
        true => Ok(keep),
        false => Err("a keep ratio is above 0 and at most 1".into()),
    }
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    if args.print_schema {
        let schema = Recipe::schema();
        context.printer.result(&schema, &format!("{schema:#}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(model), Some(recipe)) = (&args.model, &args.recipe) else {
        return Err(Usage::new(
            "a model and a recipe are needed",
            "see `cinder compress --help`",
        )
        .into());
    };
    let recipe = read_recipe(context, recipe, args.keep, args.calibration.as_deref())?;
    let checkpoint = context.open(model)?;
    if args.dry_run {
        return dry_run::run(context, &checkpoint, &recipe);
    }
    let Some(out) = &args.out else {
        anyhow::bail!("`--out` is missing");
    };
    // Before anything slow: what can not be done or not be written should fail now.
    let earlier = Earlier::of(out);
    if args.resume && earlier == Earlier::Nothing {
        return Err(nothing_to_resume("run", out).into());
    }
    if !(args.resume && earlier == Earlier::Finished) {
        OutputDirectory::check(out, args.overwrite)?;
    }
    check_places(&checkpoint, out, args.work.as_deref())?;
    check(&checkpoint, &recipe)?;
    let mut job = Job {
        checkpoint: &checkpoint,
        recipe: &recipe,
        text: None,
        out,
        overwrite: args.overwrite,
        resume: args.resume,
        work: args.work.as_deref(),
        tool_version: env!("CARGO_PKG_VERSION").into(),
        threads: context.threads,
    };
    if args.resume {
        check_resume(&job, &context.device)?;
    } else if earlier == Earlier::Interrupted {
        context
            .printer
            .warn("an interrupted run is thrown away; `--resume` would have gone on with it");
    }
    let own_text = recipe
        .calibration
        .as_ref()
        .is_some_and(|c| c.corpus == OWN_TEXT);
    let done = args.resume && earlier == Earlier::Finished;
    // What the model would write follows from what was compared already.
    let text = match done && own_text {
        true => None,
        false => calibration_text(context, &checkpoint, &recipe)?,
    };
    job.text = text.as_ref();
    let outcome = match done {
        true => {
            check_resume(&job, &context.device)?;
            context.printer.say("this run is finished already");
            finished(out)?
        }
        false => compress(&job, &context.device, &context.printer)?,
    };
    for warning in &outcome.warnings {
        context.printer.warn(warning);
    }
    if let Some(path) = &args.spectra {
        match spectra(&checkpoint, &outcome)? {
            Some(spectra) => write_lines(path, &[spectra])?,
            None => context.printer.warn(&format!(
                "`{}` is not written: this run has looked at no singular values",
                path.display()
            )),
        }
    }
    let mut value = outcome_json(&outcome);
    value["peak_rss_bytes"] = json!(peak_resident_bytes());
    context.printer.result(&value, &outcome_text(&outcome))?;
    Ok(ExitCode::SUCCESS)
}

/// What a run has found about singular values; none where it did not look.
pub fn spectra(checkpoint: &Checkpoint, outcome: &Outcome) -> Result<Option<Spectra>> {
    if outcome.spectra.is_empty() {
        return Ok(None);
    }
    let name = outcome.manifest.recipe["name"].as_str();
    Ok(Some(Spectra {
        kind: SPECTRA_KIND.into(),
        schema: SPECTRA_SCHEMA,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        model: checkpoint.name(),
        model_sha256: checkpoint.sha256()?,
        recipe: name.unwrap_or_default().into(),
        spectra: outcome.spectra.clone(),
    }))
}

/// The refusal of a `--resume` that finds nothing.
pub fn nothing_to_resume(what: &str, out: &Path) -> Usage {
    Usage::new(
        format!("there is no interrupted {what} for `{}`", out.display()),
        "run without `--resume`",
    )
}

/// What `compress --json` prints, and a sweep keeps of each of its points.
pub fn outcome_json(outcome: &Outcome) -> Value {
    let m = &outcome.manifest;
    let sites: Vec<Value> = m
        .sites
        .iter()
        .zip(&outcome.site_seconds)
        .map(|(site, seconds)| {
            let mut value = json!(site);
            value["seconds"] = json!(seconds);
            value
        })
        .collect();
    let stages: serde_json::Map<String, Value> = outcome
        .stages
        .iter()
        .map(|(name, seconds)| ((*name).to_owned(), json!(seconds)))
        .collect();
    json!({
        "path": outcome.out,
        "recipe": m.recipe["name"],
        "keep_ratio": m.keep_ratio,
        "kv_keep_ratio": m.kv_keep_ratio(),
        "cache_format": m.cache_format,
        "residual_window": m.residual_window,
        "projection_scalars_before": m.projection_scalars_before,
        "projection_scalars_after": m.projection_scalars_after,
        "bytes_before": m.bytes_before,
        "bytes_after": m.bytes_after,
        "dtype": m.dtype,
        "source_bytes_on_disk": m.source.bytes_on_disk,
        "directory_bytes": outcome.directory_bytes,
        "seconds": outcome.seconds,
        "stage_seconds": stages,
        "fallbacks": m.fallbacks,
        "warnings": outcome.warnings,
        "head": m.head,
        "sites": sites,
    })
}

fn outcome_text(outcome: &Outcome) -> String {
    let m = &outcome.manifest;
    let stages: Vec<String> = outcome
        .stages
        .iter()
        .map(|(name, seconds)| format!("{name} {seconds:.0} s"))
        .collect();
    let mut text = format!(
        "{}: kept {:.4} of the decoder projections' scalars ({} of {}) in {:.0} s{}, {} fallbacks\n{}\n\
         all weights as {}: {} before, {} after",
        outcome.out.display(),
        m.keep_ratio,
        count(m.projection_scalars_after),
        count(m.projection_scalars_before),
        outcome.seconds,
        match stages.is_empty() {
            true => String::new(),
            false => format!(" ({})", stages.join(", ")),
        },
        m.fallbacks,
        kinds(outcome),
        m.dtype,
        bytes(m.bytes_before),
        bytes(m.bytes_after),
    );
    if let (Some(kept), Some(format)) = (m.kv_keep_ratio(), m.cache_format) {
        text += &format!("\nKV cache: latents of {kept:.4} of its numbers, stored as {format}");
        if m.residual_window > 0 {
            let tokens = m.residual_window;
            text += &format!("; the last {tokens} tokens as f16 too");
        }
    }
    if let Some(line) = low_bit(outcome) {
        text += &line;
    }
    if let Some(head) = &m.head {
        text += &format!(
            "\noutput head as codes of {} bits: {:.3} bits a weight, {}; relative error of the weights {:.4}",
            head.bits,
            head.bits_per_weight,
            bytes(head.bytes),
            head.error
        );
    }
    if m.source.stored_as.contains('Q') {
        text += &format!(
            "\nnote: the source is quantised ({}, {} on disk); its dequantised weights are the baseline here",
            m.source.stored_as,
            bytes(m.source.bytes_on_disk)
        );
    }
    text
}

/// What low-bit codes take and lose, if there are any.
fn low_bit(outcome: &Outcome) -> Option<String> {
    let coded = outcome.manifest.sites.iter();
    let coded = coded.filter_map(|site| Some((site, site.bits_per_weight?)));
    let (mut bits, mut weights, mut errors) = (0.0, 0.0, (f64::INFINITY, 0.0f64));
    for (site, each) in coded {
        let count = site.shape[0] as f64 * site.shape[1] as f64;
        (bits, weights) = (bits + each * count, weights + count);
        errors = (errors.0.min(site.error), errors.1.max(site.error));
    }
    (weights > 0.0).then(|| {
        let each = bits / weights;
        let (least, most) = errors;
        format!("\nlow-bit codes: {each:.3} bits a weight; relative error of the weights {least:.4} to {most:.4}")
    })
}

/// How many projections are of each kind.
fn kinds(outcome: &Outcome) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for site in &outcome.manifest.sites {
        *counts.entry(site.kind.as_str()).or_insert(0) += 1;
    }
    let counts = counts.iter().map(|(kind, n)| format!("{n} {kind}"));
    format!("projections: {}", counts.collect::<Vec<_>>().join(", "))
}
