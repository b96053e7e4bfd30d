//! Speculative decoding on the command line: what drafts, how far, and how it is verified.

use std::path::Path;

use anyhow::Result;
use cinder::models::checkpoint::Checkpoint;
use cinder::models::decode::SamplingSettings;
use cinder::models::decode::speculative::{
    Depth, Drafter, ModelDrafter, NGramDrafter, Speculation, SpeculationSettings, Verification,
};
use cinder::models::{Decoder, Precision, SubstituteSettings};
use serde_json::{Value, json};

use super::context::{Cached, Context, Usage};
use super::memory::Length;

/// Tokens that `ngram` looks for when no number is given.
const NGRAM: usize = 3;

/// The options of every verb that can draft.
#[derive(clap::Args, Clone)]
pub struct DraftArgs {
    /// Draft with SPEC and check several tokens in one pass: `hqq:4:64`, `q4` or the like (a low-bit copy of the model),
    /// `ngram[:N]` (what followed the last N tokens before), or a MODEL
    ///
    /// The text stays the model's own. `METHOD:BITS:GROUP` makes codes of 2, 3, 4 or 8 bits for groups of 32, 64 or 128 weights
    /// by `hqq` or `round`; `,head=8` adds a low-bit copy of the output head, `,down=8` other bits for one kind of projection.
    /// `q4`, `q4min` and `q8` are the formats of `--weights`. A copy shares the model's KV cache; a MODEL has its own, and must
    /// have the same tokenizer. `bench` compares several, each with its own `--draft`.
    #[arg(long, value_name = "SPEC")]
    draft: Vec<String>,
    /// Keep the weights of a drafting MODEL so, as `--weights` does [default: f32]
    #[arg(long, value_name = "PRECISION", requires = "draft")]
    draft_weights: Option<Precision>,
    /// Draft N tokens ahead, or as many as pay, none included [default: auto]
    #[arg(long, value_name = "N|auto", requires = "draft")]
    draft_depth: Option<String>,
    /// Draft a tree of K nodes a level; 1 is a chain [default: 1]
    #[arg(long, value_name = "K", requires = "draft")]
    draft_width: Option<usize>,
    /// Divides the draft's logits [default: 0.2 with `--verify match`, else `--temperature`]
    #[arg(
        long,
        value_name = "T",
        requires = "draft",
        allow_negative_numbers = true
    )]
    draft_temperature: Option<f64>,
    /// How drafts are checked: match (the same text as without, drawn or not), rejection (chains) or traversal
    /// [default: match]
    #[arg(long, value_name = "HOW", requires = "draft")]
    verify: Option<String>,
}

/// What drafts.
#[derive(Debug, Clone, PartialEq)]
enum Spec {
    /// The text itself; tokens looked for.
    NGram(usize),
    /// A copy of the model.
    Copy(Precision),
    /// A copy of the model in codes.
    Substitute(SubstituteSettings),
    /// Another model, by path or name.
    Model(String),
}

impl Spec {
    fn of(text: &str) -> Result<Self, Usage> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        if name == "ngram" {
            let length = number.map_or(Ok(NGRAM), str::parse);
            return match length {
                Ok(length) if length > 0 => Ok(Spec::NGram(length)),
                _ => Err(Usage::new(
                    format!("`--draft {text}` looks for no number of tokens"),
                    "give at least one, such as `ngram:3`",
                )),
            };
        }
        if matches!(name, "hqq" | "round") {
            let settings = text.parse().map_err(|why: String| {
                Usage::new(format!("`--draft {text}` is no low-bit copy"), why)
            })?;
            return Ok(Spec::Substitute(settings));
        }
        Ok(match text.parse() {
            Ok(precision) => Spec::Copy(precision),
            Err(_) => Spec::Model(text.to_owned()),
        })
    }
}

/// Checked options: how a run drafts.
#[derive(Debug, Clone)]
pub struct DraftPlan {
    /// As the user gave it.
    given: String,
    spec: Spec,
    /// Of a model of its own.
    weights: Precision,
    depth: Depth,
    width: usize,
    temperature: Option<f64>,
    verification: Verification,
}

impl DraftArgs {
    /// How to draft for this model; none without `--draft`.
    ///
    /// # Errors
    /// [`Usage`] for options that are out of range or do not go together.
    pub fn plan(&self, target: &Checkpoint) -> Result<Option<DraftPlan>> {
        match &self.draft[..] {
            [] => Ok(None),
            [given] => self.plan_of(given, target).map(Some),
            _ => Err(Usage::new(
                "`--draft` is given more than once",
                "draft with one; `cinder bench` compares several",
            )
            .into()),
        }
    }

    /// How to draft in each asked way.
    ///
    /// # Errors
    /// As [`DraftArgs::plan`].
    pub fn plans(&self, target: &Checkpoint) -> Result<Vec<DraftPlan>> {
        let given = self.draft.iter();
        given.map(|given| self.plan_of(given, target)).collect()
    }

    /// Whether a draft is asked for.
    pub fn is_asked(&self) -> bool {
        !self.draft.is_empty()
    }

    fn plan_of(&self, given: &str, target: &Checkpoint) -> Result<DraftPlan> {
        let spec = Spec::of(given)?;
        let width = self.draft_width.unwrap_or(1);
        let verify = self.verify.as_deref().unwrap_or("match");
        let verification: Verification = verify.parse().map_err(|names: String| {
            Usage::new(format!("there is no verification `{verify}`"), names)
        })?;
        let depth = self.draft_depth.as_deref().unwrap_or("auto");
        let depth = depth.parse().map_err(|depths: String| {
            Usage::new(format!("`--draft-depth {depth}` is no depth"), depths)
        })?;
        let wrong = |what: &str, hint: &str| Err(Usage::new(what, hint).into());
        if width == 0 {
            return wrong("`--draft-width` is 0", "1 is a chain");
        }
        if self
            .draft_temperature
            .is_some_and(|t| !(t > 0.0 && t.is_finite()))
        {
            return wrong(
                "`--draft-temperature` must be a positive number",
                "below 1 it sharpens; 0.2 is usual",
            );
        }
        if self.draft_weights.is_some() && !matches!(spec, Spec::Model(_)) {
            return wrong(
                "`--draft-weights` is for a MODEL that drafts",
                "a copy's name is its precision: `--draft q4`",
            );
        }
        if width > 1 {
            if let Spec::NGram(_) = spec {
                return wrong(
                    "`--draft ngram` drafts chains",
                    "leave `--draft-width` out, or draft with a model",
                );
            }
            if verification == Verification::Rejection {
                return wrong(
                    "`--verify rejection` is for chains",
                    "leave `--draft-width` out, or use `--verify traversal`",
                );
            }
            if target.has_latents() {
                return wrong(
                    "a model that caches latents verifies chains only",
                    "leave `--draft-width` out",
                );
            }
        }
        Ok(DraftPlan {
            given: given.to_owned(),
            spec,
            weights: self.draft_weights.unwrap_or_default(),
            depth,
            width,
            temperature: self.draft_temperature,
            verification,
        })
    }
}

impl DraftPlan {
    /// Drafts from the text itself, as deep as another plan.
    pub fn ngram(depth: Depth) -> Self {
        DraftPlan {
            given: format!("ngram:{NGRAM}"),
            spec: Spec::NGram(NGRAM),
            weights: Precision::default(),
            depth,
            width: 1,
            temperature: None,
            verification: Verification::Match,
        }
    }

    /// As the user gave it.
    pub fn given(&self) -> &str {
        &self.given
    }

    pub fn depth(&self) -> Depth {
        self.depth
    }

    pub fn width(&self) -> usize {
        self.width
    }

    pub fn verification(&self) -> Verification {
        self.verification
    }

    pub fn is_ngram(&self) -> bool {
        matches!(self.spec, Spec::NGram(_))
    }

    /// What charts call it, such as `q4, tree 6×4`.
    pub fn label(&self) -> String {
        match self.width {
            1 => format!("{}, chain {}", self.given, self.depth),
            width => format!("{}, tree {}×{width}", self.given, self.depth),
        }
    }

    /// Bytes of memory that drafting takes beside the target: weights, and the cache of a model that has its own.
    ///
    /// # Errors
    /// Those of opening a model.
    pub fn bytes(&self, context: &Context, target: &Checkpoint, length: Length) -> Result<u64> {
        Ok(match &self.spec {
            Spec::NGram(_) => 0,
            Spec::Copy(precision) => target.memory_bytes(*precision),
            Spec::Substitute(settings) => target.substitute_bytes(settings, Precision::F32),
            Spec::Model(name) => {
                let draft = context.open(name)?;
                let cached = Cached::declared(&draft);
                let cache = draft.kv_bytes_per_token(cached.format) * length.held as u64;
                draft.memory_bytes(self.weights) + cache
            }
        })
    }

    /// The copy of the target that drafts, where one does.
    ///
    /// # Errors
    /// Those of loading.
    pub fn copy(
        &self,
        context: &Context,
        target: &Checkpoint,
        cached: Cached,
        length: Length,
    ) -> Result<Option<Decoder>> {
        match &self.spec {
            Spec::Copy(precision) => context
                .decoder(target, *precision, cached, length)
                .map(Some),
            Spec::Substitute(settings) => context
                .substitute(target, settings, cached, length)
                .map(Some),
            Spec::NGram(_) | Spec::Model(_) => Ok(None),
        }
    }

    pub fn settings(&self, sampling: SamplingSettings) -> SpeculationSettings {
        SpeculationSettings {
            sampling,
            depth: self.depth,
            verification: self.verification,
            prefill_chunk: None,
        }
    }

    /// What drafts for a target that was loaded, with a cache of its own kind; `length` as for the target.
    ///
    /// # Errors
    /// [`Usage`] for a model with another tokenizer, and those of opening and loading.
    pub fn drafter(
        &self,
        context: &Context,
        target: &Checkpoint,
        cached: Cached,
        length: Length,
    ) -> Result<Box<dyn Drafter>> {
        let (width, temperature) = (self.width, self.temperature);
        // What a residual window holds depends on what was cached before it was forgotten.
        let shared = cached.residual_window == 0;
        let held = if shared { 0 } else { length.held };
        let copy_length = Length { held, ..length };
        let copy = |model: Decoder| -> Box<dyn Drafter> {
            Box::new(match shared {
                true => ModelDrafter::shared(Box::new(model), width, temperature),
                false => ModelDrafter::own(Box::new(model), width, temperature),
            })
        };
        Ok(match &self.spec {
            Spec::NGram(longest) => Box::new(NGramDrafter::new(*longest)),
            Spec::Copy(precision) => {
                copy(context.decoder(target, *precision, cached, copy_length)?)
            }
            Spec::Substitute(settings) => {
                copy(context.substitute(target, settings, cached, copy_length)?)
            }
            Spec::Model(name) => {
                let draft = context.open(name)?;
                same_tokens(target, &draft, name)?;
                if width > 1 && draft.has_latents() {
                    return Err(Usage::new(
                        format!("`{name}` caches latents and drafts chains only"),
                        "leave `--draft-width` out",
                    )
                    .into());
                }
                let cached = Cached::declared(&draft);
                let model = context.decoder(&draft, self.weights, cached, length)?;
                Box::new(ModelDrafter::own(Box::new(model), width, temperature))
            }
        })
    }

    /// What a result says of a run.
    pub fn record(&self, found: &Speculation) -> Value {
        let mut record = json!({
            "draft": self.given,
            "depth": self.depth.to_string(),
            "width": self.width,
            "draft_temperature": self.temperature,
            "verify": self.verification,
            "tau_with_bonus": found.tau_with_bonus(),
            "tau_without_bonus": found.tau_without_bonus(),
            "mean_depth": found.mean_depth(),
        });
        if let (Some(record), Ok(Value::Object(counts))) =
            (record.as_object_mut(), serde_json::to_value(found))
        {
            record.extend(counts);
        }
        record
    }

    /// The same in a line.
    pub fn summary(&self, found: &Speculation) -> String {
        let total = found.draft_seconds + found.verify_seconds + found.overhead_seconds;
        let part = |seconds: f64| 100.0 * seconds / total.max(f64::MIN_POSITIVE);
        format!(
            "drafts of `{}`: {:.2} tokens a pass of the model, {:.2} of them drafted; {:.0} % of the time drafting, {:.0} % \
             verifying",
            self.given,
            found.tau_with_bonus().unwrap_or_default(),
            found.tau_without_bonus().unwrap_or_default(),
            part(found.draft_seconds),
            part(found.verify_seconds)
        )
    }
}

/// # Errors
/// [`Usage`] where a token is not the same number in both.
fn same_tokens(target: &Checkpoint, draft: &Checkpoint, name: &str) -> Result<()> {
    let sizes = [target, draft].map(|c| c.config().vocab_size);
    if sizes[1] <= sizes[0] && target.tokenizer()?.same_vocabulary(&draft.tokenizer()?) {
        return Ok(());
    }
    let path = Path::new(name).display();
    Err(Usage::new(
        format!("`{path}` has another tokenizer than the model it would draft for"),
        "draft with a model of the same family, or with `q4`, a copy of the model itself",
    )
    .into())
}
