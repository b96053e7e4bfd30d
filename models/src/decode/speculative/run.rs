//! Rounds of drafting and verifying.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::depth::{Depth, FIRST, Outcome, Plan, Planner};
use super::drafter::{Drafter, Pause, Round};
use super::statistics::Speculation;
use super::traversal::traversal;
use super::tree::Tree;
use super::verify::{Verdict, Verification, matching, rejection};
use crate::cache::KvCache;
use crate::decode::autoregressive::{Generation, check_request, prefill};
use crate::decode::chance::{Chance, Keyed, Purpose};
use crate::decode::{LanguageModel, Sampler, SamplingSettings, rows_of};
use crate::error::{Error, Result};

/// How to speculate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpeculationSettings {
    pub sampling: SamplingSettings,
    pub depth: Depth,
    pub verification: Verification,
    /// Tokens of the prompt that the target takes at once; none for all. A target that is streamed is read once for each
    /// such piece.
    pub prefill_chunk: Option<usize>,
}

/// Continues `prompt` as [`generate`](crate::decode::generate) does, by drafting tokens and verifying several of them in one
/// pass of the target. With [`Verification::Match`] the tokens are those of `generate` with the same settings, greedy or
/// drawn; with the others they follow the same law.
///
/// Each round drafts behind the text's last token, at the target's cached length `L`; the draft's keys and values from there
/// on are forgotten, the target caches the whole tree in their place, and the accepted nodes are moved together (SubSpec,
/// arXiv 2509.18344).
///
/// # Errors
/// Those of `generate`, those of the drafter, and [`Error::Request`] for rejection of drafts that are wider than a chain.
pub fn speculate(
    target: &mut dyn LanguageModel,
    drafter: &mut dyn Drafter,
    prompt: &[u32],
    max_new_tokens: usize,
    eos_ids: &[u32],
    settings: &SpeculationSettings,
    emit: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<(Generation, Speculation)> {
    check_request(target, prompt, max_new_tokens)?;
    let width = drafter.width();
    if settings.verification == Verification::Rejection && width > 1 {
        return Err(Error::Request(format!(
            "rejection verifies chains, and the drafts are {width} wide"
        )));
    }
    let sampler = Sampler::new(settings.sampling)?;
    let start = Instant::now();
    let mut run = Run {
        cache: target.new_cache(prompt.len() + max_new_tokens + spare(settings.depth, width)),
        target,
        drafter,
        settings,
        sampler,
        text: prompt.to_vec(),
        statistics: Speculation::default(),
    };
    let mut planner = Planner::new(settings.depth, width);
    let mut ended = max_new_tokens == 0;
    let mut left = max_new_tokens;
    let mut give = |run: &mut Run, token: u32| -> Result<bool> {
        run.text.push(token);
        left -= 1;
        emit(token)?;
        Ok(left == 0 || eos_ids.contains(&token))
    };
    if !ended {
        run.drafter.prepare(prompt)?;
        let logits = prefill(run.target, prompt, settings.prefill_chunk, &mut run.cache)?;
        planner.expect(run.target.least_seconds());
        let first = run.sampler.sample(&logits, prompt.len())?;
        run.statistics.prefill_seconds = start.elapsed().as_secs_f64();
        ended = give(&mut run, first)?;
    }
    while !ended {
        let before = run.text.len();
        let most = max_new_tokens - (before - prompt.len()) - 1;
        let begun = Instant::now();
        let (tree, verdict, mut outcome) = run.round(&mut planner, most)?;
        let accepted = verdict.accepted.iter().map(|node| tree.token(*node));
        for token in accepted.chain([verdict.bonus]) {
            ended = give(&mut run, token)?;
            if ended {
                break;
            }
        }
        let given = run.text.len() - before;
        outcome.overhead_seconds =
            begun.elapsed().as_secs_f64() - outcome.draft_seconds - outcome.verify_seconds;
        run.count(&outcome, given);
        planner.learn(&outcome);
    }
    let ids = run.text.split_off(prompt.len());
    let generation = Generation {
        ended: ids.last().is_some_and(|id| eos_ids.contains(id)),
        prefill_seconds: run.statistics.prefill_seconds,
        decode_seconds: start.elapsed().as_secs_f64() - run.statistics.prefill_seconds,
        ids,
    };
    Ok((generation, run.statistics))
}

/// Tokens that a tree holds in the cache beyond a chain's.
fn spare(depth: Depth, width: usize) -> usize {
    match depth {
        Depth::Fixed(depth) => (width - 1) * depth,
        Depth::Auto => 0,
    }
}

struct Run<'a> {
    target: &'a mut dyn LanguageModel,
    drafter: &'a mut dyn Drafter,
    settings: &'a SpeculationSettings,
    sampler: Sampler,
    /// The prompt and what was given out; the cache holds all of it but the last token.
    text: Vec<u32>,
    cache: KvCache,
    statistics: Speculation,
}

impl Run<'_> {
    /// Drafts and verifies at most `most` tokens; accepted ones are in the cache afterwards.
    fn round(&mut self, planner: &mut Planner, most: usize) -> Result<(Tree, Verdict, Outcome)> {
        let past = self.text.len() - 1;
        debug_assert_eq!(self.cache.length(), past);
        let plan = planner.plan(most);
        let begun = Instant::now();
        let tree = match plan.depth {
            0 => Tree::new(self.text[past]),
            _ => self.draft(plan)?,
        };
        let draft_seconds = begun.elapsed().as_secs_f64();
        self.cache.truncate(past);
        let begun = Instant::now();
        let rows = self.verify(&tree, past)?;
        let verify_seconds = begun.elapsed().as_secs_f64();
        let verdict = self.judge(&tree, &rows, past)?;
        let mut kept = vec![0];
        kept.extend(&verdict.accepted);
        self.cache.compact(past, &kept)?;
        let open = tree.children(kept[kept.len() - 1]).next().is_some();
        let outcome = Outcome {
            asked: plan.depth > 0,
            levels: tree.levels(),
            nodes: tree.nodes(),
            accepted: verdict.accepted.len(),
            open,
            draft_seconds,
            verify_seconds,
            overhead_seconds: 0.0,
        };
        Ok((tree, verdict, outcome))
    }

    fn draft(&mut self, plan: Plan) -> Result<Tree> {
        let seed = self.settings.sampling.seed;
        let mut keyed = Keyed::new(seed, Purpose::Draft, self.text.len());
        let drawn = self.settings.verification != Verification::Match;
        self.drafter.draft(Round {
            tokens: &self.text,
            cache: &mut self.cache,
            depth: plan.depth,
            sampler: &self.sampler,
            chance: drawn.then_some(&mut keyed as &mut dyn Chance),
            stop: plan.stop,
            pause: plan.seconds.map(|seconds| Pause {
                levels: FIRST,
                at: Instant::now() + Duration::from_secs_f64(seconds),
            }),
        })
    }

    /// The target's logits behind each node, which are cached from `past` on.
    fn verify(&mut self, tree: &Tree, past: usize) -> Result<Vec<Vec<f32>>> {
        let places = tree.places(0..tree.nodes(), past);
        let slice = places.as_ref().map(|places| places.slice());
        let hidden = self.target.hidden(tree.tokens(), slice, &mut self.cache)?;
        rows_of(self.target.logits(hidden))
    }

    fn judge(&self, tree: &Tree, rows: &[Vec<f32>], past: usize) -> Result<Verdict> {
        let mut depth = 0;
        let next = &mut |node: usize| {
            depth += 1;
            self.sampler.sample(&rows[node], past + depth)
        };
        let law = &mut |node: usize| self.sampler.distribution(&rows[node]);
        let mut keyed = Keyed::new(self.settings.sampling.seed, Purpose::Verification, past);
        match self.settings.verification {
            Verification::Match => matching(tree, next),
            Verification::Rejection => rejection(tree, law, &mut keyed),
            Verification::Traversal => traversal(tree, law, &mut keyed),
        }
    }

    /// Counts a round of which `given` tokens were given out: fewer than it found where the text ended among them.
    fn count(&mut self, outcome: &Outcome, given: usize) {
        let statistics = &mut self.statistics;
        statistics.rounds += 1;
        statistics.plain_rounds += usize::from(outcome.nodes == 1);
        statistics.tokens += given;
        statistics.drafted_tokens += given.min(outcome.accepted);
        statistics.nodes_verified += outcome.nodes;
        statistics.levels += outcome.levels;
        statistics.count_acceptance(outcome.accepted, outcome.open);
        statistics.draft_seconds += outcome.draft_seconds;
        statistics.verify_seconds += outcome.verify_seconds;
        statistics.overhead_seconds += outcome.overhead_seconds;
    }
}
