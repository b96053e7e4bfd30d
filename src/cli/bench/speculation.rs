//! `cinder bench --draft … --offload …`: speculative decoding beside what it has to be compared with, in one run.
//!
//! A draft takes memory, and memory is what an offloaded model lacks: it is compared with plain decoding that keeps as many
//! more blocks as the draft's bytes hold (SubSpec, arXiv 2509.18344, appendix H).

mod measure;
mod prompts;
mod record;
mod table;
mod ways;

use std::path::PathBuf;

use anyhow::Result;
use cinder::eval::SCHEMA;
use cinder::eval::speculation::{SPECULATION_KIND, SpeculationResult};
use cinder::models::Precision;
use cinder::models::checkpoint::Checkpoint;
use cinder::models::decode::speculative::Depth;

use super::super::context::{Cached, Context, Usage, command_line};
use super::super::draft::{DraftArgs, DraftPlan};
use super::super::eval::write_result;
use super::super::memory::Length;
use super::super::offload::Offload;
use measure::Request;
pub use table::table;
use ways::Bench;

/// Prompts where nothing is said.
const PROMPTS: usize = 3;

/// The options of a benchmark of speculative decoding.
#[derive(clap::Args)]
pub struct SpeculationArgs {
    #[command(flatten)]
    draft: DraftArgs,
    #[command(flatten)]
    offload: Offload,
    /// Continue prompts of this file of JSON Lines (the first of `turns`, `prompt`, `question` or `text`), with `--draft` or
    /// `--offload` [default: three built-in ones]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Take N prompts, evenly over the file; those that end at once are passed over [default: 3]
    #[arg(long, value_name = "N")]
    prompt_count: Option<usize>,
    /// Write what `--draft` and `--offload` came to into this file, for `cinder report`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The model that is measured.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub name: &'a str,
    pub checkpoint: &'a Checkpoint,
    pub weights: Precision,
    pub cached: Cached,
    /// Tokens to decode behind each first one.
    pub tokens: usize,
}

impl SpeculationArgs {
    pub fn is_asked(&self) -> bool {
        self.draft.is_asked() || self.offload.is_asked()
    }

    /// # Errors
    /// [`Usage`] for options that would change nothing.
    pub fn check(&self) -> Result<(), Usage> {
        let alone = self.prompts.is_some() || self.prompt_count.is_some() || self.out.is_some();
        if alone && !self.is_asked() {
            return Err(Usage::new(
                "`--prompts`, `--prompt-count` and `--out` are for speculative decoding",
                "give `--draft` or `--offload` too",
            ));
        }
        match self.prompt_count {
            Some(0) => Err(Usage::new("`--prompt-count` is 0", "give at least one")),
            _ => Ok(()),
        }
    }

    /// What is asked for, and drafting from the text itself where that is not.
    fn plans(&self, target: &Checkpoint) -> Result<Vec<DraftPlan>> {
        let mut plans = self.draft.plans(target)?;
        if !plans.iter().any(DraftPlan::is_ngram) {
            let depth = plans.first().map_or(Depth::Auto, DraftPlan::depth);
            plans.insert(0, DraftPlan::ngram(depth));
        }
        Ok(plans)
    }
}

/// Measures every way of decoding; none where none is asked for. A file that is asked for is written.
///
/// # Errors
/// [`Usage`] for options; [`OtherText`](ways::OtherText) when a way that must not change the text does; those of loading and of running.
pub fn run(
    context: &Context,
    args: &SpeculationArgs,
    subject: Subject<'_>,
) -> Result<Option<SpeculationResult>> {
    if !args.is_asked() {
        return Ok(None);
    }
    let plans = args.plans(subject.checkpoint)?;
    let tokenizer = subject.checkpoint.tokenizer()?;
    let new_tokens = subject.tokens + 1;
    let most = subject.checkpoint.config().max_context;
    let count = args.prompt_count.unwrap_or(PROMPTS);
    let room = most.saturating_sub(new_tokens);
    let candidates = prompts::candidates(args.prompts.as_deref(), count, &tokenizer, room)?;
    let longest = candidates.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    let given: Vec<String> = plans.iter().map(|p| format!("`{}`", p.given())).collect();
    let mut bench = Bench {
        context,
        subject,
        length: Length {
            held: longest + new_tokens,
            at_once: longest,
        },
        request: Request {
            new_tokens,
            eos_ids: tokenizer.eos_ids().to_vec(),
        },
        count,
        candidates,
        prompts: Vec::new(),
        reference: Vec::new(),
        result: SpeculationResult {
            kind: SPECULATION_KIND.into(),
            schema: SCHEMA,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            model: subject.name.into(),
            draft: given.join(", "),
            device: context.device_name.clone(),
            command: command_line(),
            baselines: Vec::new(),
            runs: Vec::new(),
        },
    };
    match bench.settings(&args.offload)? {
        Some(settings) => bench.offloaded(&plans, &settings, &args.offload.rates()?)?,
        None => bench.in_memory(&plans)?,
    }
    bench.copies(&plans)?;
    if let Some(path) = &args.out {
        write_result(path, &bench.result)?;
    }
    Ok(Some(bench.result))
}
