//! One way of decoding, measured over all prompts.

use anyhow::Result;
use burn::tensor::Tensor;
use cinder::models::Decoder;
use cinder::models::cache::KvCache;
use cinder::models::decode::offload::OffloadStatistics;
use cinder::models::decode::speculative::{Drafter, Speculation, speculate};
use cinder::models::decode::{Generation, LanguageModel, SamplingSettings, TreeSlice, generate};
use cinder::models::progress::Progress;

use super::prompts::Prompt;
use crate::cli::context::Context;
use crate::cli::draft::DraftPlan;
use crate::cli::offload::Model;

/// Tokens before anything counts: weights are brought into memory, and the first draft is made.
const WARM_UP: usize = 4;

/// What drafts, and how.
pub struct Draft<'a> {
    pub plan: &'a DraftPlan,
    pub drafter: Box<dyn Drafter>,
}

/// What is asked of every way.
pub struct Request {
    pub new_tokens: usize,
    pub eos_ids: Vec<u32>,
}

/// What a way did, over all prompts.
#[derive(Default)]
pub struct Found {
    /// The continuation of each prompt.
    pub ids: Vec<Vec<u32>>,
    pub prefill_seconds: f64,
    /// Seconds of all tokens but each first.
    pub decode_seconds: f64,
    /// Of them, those that passes waited for blocks.
    pub wait_seconds: f64,
    /// Passes of the model behind prompts.
    pub passes: u64,
    pub speculation: Option<Speculation>,
    pub resident_blocks: u64,
    pub streamed: Option<OffloadStatistics>,
}

impl Found {
    pub fn tokens(&self) -> u64 {
        self.ids.iter().map(|ids| ids.len() as u64).sum()
    }

    /// Tokens but each first, which comes from the prompt.
    pub fn decoded(&self) -> u64 {
        self.ids
            .iter()
            .map(|ids| ids.len().saturating_sub(1) as u64)
            .sum()
    }

    pub fn tokens_per_second(&self) -> f64 {
        self.decoded() as f64 / self.decode_seconds.max(f64::MIN_POSITIVE)
    }

    /// Bytes that were streamed for a token.
    pub fn bytes_per_token(&self) -> f64 {
        let pass = self.streamed.as_ref().map_or(0, |s| s.bytes_per_pass);
        (pass * self.passes) as f64 / self.decoded().max(1) as f64
    }

    fn look_at(&mut self, model: &Model) {
        self.streamed = model.statistics();
        self.resident_blocks = match model {
            Model::Resident(decoder) => decoder.layers.len(),
            Model::Streamed(decoder) => decoder.plan().resident_blocks,
        } as u64;
    }

    fn add(&mut self, generation: Generation, speculation: Option<Speculation>, seen: Seen) {
        self.ids.push(generation.ids);
        self.prefill_seconds += generation.prefill_seconds;
        self.decode_seconds += generation.decode_seconds;
        self.wait_seconds += seen.wait_seconds;
        self.passes += seen.passes;
        if let Some(speculation) = speculation {
            self.speculation.get_or_insert_default().add(&speculation);
        }
    }
}

/// Continues every prompt, the first one a little before anything counts.
pub fn measure(
    context: &Context,
    label: &str,
    model: &mut Model,
    draft: &mut Option<&mut Draft<'_>>,
    prompts: &[Prompt],
    request: &Request,
) -> Result<Found> {
    let mut found = Found::default();
    warm_up(model, draft, prompts, request)?;
    context.printer.start(label, prompts.len() as u64);
    for prompt in prompts {
        let (generation, speculation, seen) =
            once(model, draft, prompt, request.new_tokens, request)?;
        found.add(generation, speculation, seen);
        context.printer.advance(1);
    }
    context.printer.finish();
    found.look_at(model);
    say(context, label, &found);
    Ok(found)
}

/// Plain decoding of candidates until `count` of them are continued by more than one token; those, and what it did. None may
/// be.
pub fn choose(
    context: &Context,
    label: &str,
    model: &mut Model,
    candidates: Vec<Prompt>,
    count: usize,
    request: &Request,
) -> Result<(Vec<Prompt>, Found)> {
    let (mut kept, mut found) = (Vec::new(), Found::default());
    warm_up(model, &mut None, &candidates, request)?;
    context.printer.start(label, count as u64);
    for prompt in candidates {
        let (generation, _, seen) = once(model, &mut None, &prompt, request.new_tokens, request)?;
        if generation.ids.len() > 1 {
            found.add(generation, None, seen);
            kept.push(prompt);
            context.printer.advance(1);
        }
        if kept.len() == count {
            break;
        }
    }
    context.printer.finish();
    found.look_at(model);
    say(context, label, &found);
    Ok((kept, found))
}

fn say(context: &Context, label: &str, found: &Found) {
    let link = found
        .streamed
        .as_ref()
        .map_or(String::new(), |s| format!(", {}", s.link));
    let speed = found.tokens_per_second();
    context
        .printer
        .say(&format!("{label}{link}: {speed:.2} tokens/s"));
}

fn warm_up(
    model: &mut Model,
    draft: &mut Option<&mut Draft<'_>>,
    prompts: &[Prompt],
    request: &Request,
) -> Result<()> {
    if let Some(prompt) = prompts.first() {
        once(
            model,
            draft,
            prompt,
            WARM_UP.min(request.new_tokens),
            request,
        )?;
    }
    Ok(())
}

fn once(
    model: &mut Model,
    draft: &mut Option<&mut Draft<'_>>,
    prompt: &Prompt,
    new_tokens: usize,
    request: &Request,
) -> Result<(Generation, Option<Speculation>, Seen)> {
    let mut watched = Watched {
        model,
        seen: Seen::default(),
    };
    let (ids, eos) = (&prompt.ids, &request.eos_ids);
    let emit = &mut |_| Ok(());
    let (generation, speculation) = match draft {
        None => {
            let greedy = SamplingSettings::GREEDY;
            let done = generate(&mut watched, ids, new_tokens, eos, greedy, emit)?;
            (done, None)
        }
        Some(draft) => {
            let settings = draft.plan.settings(SamplingSettings::GREEDY);
            let drafter = draft.drafter.as_mut();
            let (done, found) =
                speculate(&mut watched, drafter, ids, new_tokens, eos, &settings, emit)?;
            (done, Some(found))
        }
    };
    Ok((generation, speculation, watched.seen))
}

/// Passes behind a prompt, and what they waited for.
#[derive(Default)]
struct Seen {
    passes: u64,
    wait_seconds: f64,
}

/// A model whose passes behind the prompt are told from the prompt's own, which statistics of streaming count together.
struct Watched<'a> {
    model: &'a mut Model,
    seen: Seen,
}

impl Watched<'_> {
    fn waited(&self) -> f64 {
        self.model.statistics().map_or(0.0, |s| s.wait_seconds)
    }
}

impl LanguageModel for Watched<'_> {
    fn decoder(&self) -> &Decoder {
        self.model.as_language_model().decoder()
    }

    fn hidden(
        &mut self,
        ids: &[u32],
        tree: Option<TreeSlice<'_>>,
        cache: &mut KvCache,
    ) -> cinder::models::Result<Tensor<2>> {
        let prompt = cache.length() == 0;
        let before = self.waited();
        let hidden = self.model.language_model().hidden(ids, tree, cache)?;
        if !prompt {
            self.seen.passes += 1;
            self.seen.wait_seconds += self.waited() - before;
        }
        Ok(hidden)
    }
}
