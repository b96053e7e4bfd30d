//! `cinder generate`

use std::process::ExitCode;

use anyhow::Result;
use cinder::models::decode::speculative::speculate;
use cinder::models::decode::{SamplingSettings, generate};
use serde_json::json;

use super::context::{Cache, Context, Usage, Weights};
use super::draft::DraftArgs;
use super::memory::Length;
use super::offload::{self, Offload};

/// Continue a prompt
///
/// The text is streamed as it is drawn. Greedy unless a temperature is given; equal seeds draw equal texts.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name (`smollm2`)
    model: String,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: Cache,
    #[command(flatten)]
    offload: Offload,
    /// The text to continue; it is used as it is, without a chat template
    #[arg(long)]
    prompt: String,
    /// Stop after this many tokens, or at the end of text
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_new_tokens: usize,
    /// Divides the logits before drawing; 0 always takes the most likely token
    #[arg(
        long,
        default_value_t = 0.0,
        value_name = "T",
        allow_negative_numbers = true
    )]
    temperature: f64,
    /// Draw among the K most likely tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw among the most likely tokens that together have this probability
    #[arg(
        long,
        default_value_t = 1.0,
        value_name = "P",
        allow_negative_numbers = true
    )]
    top_p: f64,
    #[command(flatten)]
    draft: DraftArgs,
}

pub fn run(context: &Context, args: Args) -> Result<ExitCode> {
    let settings = SamplingSettings {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: context.seed.unwrap_or(0),
    };
    settings
        .check()
        .map_err(|e| Usage::new(e.to_string(), "see `cinder generate --help`"))?;
    let checkpoint = context.open(&args.model)?;
    let cached = args.cache.of(&checkpoint)?;
    let plan = args.draft.plan(&checkpoint)?;
    let tokenizer = checkpoint.tokenizer()?;
    let prompt = tokenizer.encode_prompt(&args.prompt)?;
    let asked = prompt.len().saturating_add(args.max_new_tokens);
    let length = Length {
        held: asked.min(checkpoint.config().max_context),
        at_once: prompt.len(),
    };
    let weights = args.weights.weights;
    let offload = &args.offload;
    let mut model = offload.model(context, &checkpoint, weights, cached, length)?;
    let mut stream = tokenizer.stream(&prompt, true)?;
    let mut started = false;
    let mut drafter = match &plan {
        Some(plan) => Some(plan.drafter(context, &checkpoint, cached, length)?),
        None => None,
    };
    let mut emit = |id| {
        // Not before the first token: until then the request may still be refused.
        if !std::mem::replace(&mut started, true) {
            context.printer.stream(&args.prompt)?;
        }
        if let Some(text) = stream.push(id)? {
            context.printer.stream(&text)?;
        }
        Ok(())
    };
    let (tokens, eos_ids) = (args.max_new_tokens, tokenizer.eos_ids());
    let target = model.language_model();
    let (generation, speculation) = match (&plan, &mut drafter) {
        (Some(plan), Some(drafter)) => {
            let settings = plan.settings(settings);
            let drafter = drafter.as_mut();
            let (generation, found) = speculate(
                target, drafter, &prompt, tokens, eos_ids, &settings, &mut emit,
            )?;
            (generation, Some((plan, found)))
        }
        _ => {
            let done = generate(target, &prompt, tokens, eos_ids, settings, &mut emit);
            (done?, None)
        }
    };
    context
        .printer
        .stream(&stream.finish()?.unwrap_or_default())?;
    let text = tokenizer.decode(&generation.ids, true)?;
    let mut value = json!({
        "prompt_ids": prompt,
        "ids": generation.ids,
        "text": text,
        "ended": generation.ended,
        "prefill_seconds": generation.prefill_seconds,
        "tokens_per_second": generation.tokens_per_second(),
        "sampling": settings,
        "bos_ids": tokenizer.bos_ids(),
        "cache": cached.format,
        "kv_bytes_per_token": checkpoint.kv_bytes_per_token(cached.format),
        "residual_window": cached.residual_window,
        "residual_window_bytes": cached.window_bytes(&checkpoint),
        "speculation": speculation.as_ref().map(|(plan, found)| plan.record(found)),
    });
    let streamed = model.statistics();
    if let Some(statistics) = &streamed {
        value["offload"] = serde_json::to_value(statistics)?;
    }
    context.printer.result(&value, "\n")?;
    if let Some(speed) = generation.tokens_per_second() {
        context.printer.say(&format!(
            "{} tokens, first after {:.2} s, then {speed:.1} tokens/s",
            generation.ids.len(),
            generation.prefill_seconds
        ));
    }
    if let Some((plan, found)) = &speculation {
        context.printer.say(&plan.summary(found));
    }
    if let Some(statistics) = &streamed {
        context.printer.say(&offload::summary(statistics));
    }
    Ok(ExitCode::SUCCESS)
}
