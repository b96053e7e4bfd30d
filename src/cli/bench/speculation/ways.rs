//! The ways of decoding that are compared, one after another: few models are in memory at a time.

use anyhow::{Result, bail};
use cinder::eval::speculation::SpeculationResult;
use cinder::models::decode::offload::OffloadSettings;

use super::Subject;
use super::measure::{self, Draft, Found, Request};
use super::prompts::Prompt;
use super::record::{baseline, drafted};
use crate::cli::context::Context;
use crate::cli::draft::DraftPlan;
use crate::cli::memory::{DoesNotFit, Length};
use crate::cli::offload::{Model, Offload, streamed};

/// A way that must not change the text does.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{way}` does not put out plain decoding's text: prompt {prompt} differs from new token {token} on, so that nothing is \
     reported"
)]
pub struct OtherText {
    way: String,
    prompt: usize,
    token: usize,
}

/// A benchmark under way.
pub struct Bench<'a> {
    pub context: &'a Context,
    pub subject: Subject<'a>,
    pub length: Length,
    pub request: Request,
    /// Prompts that are wanted.
    pub count: usize,
    /// Those to choose from, until they are chosen.
    pub candidates: Vec<Prompt>,
    pub prompts: Vec<Prompt>,
    /// Plain decoding's text of each.
    pub reference: Vec<Vec<u32>>,
    pub result: SpeculationResult,
}

impl<'a> Bench<'a> {
    pub fn settings(&self, offload: &Offload) -> Result<Option<OffloadSettings>> {
        let Subject {
            checkpoint,
            weights,
            cached,
            ..
        } = self.subject;
        offload.settings(checkpoint, weights, cached, self.length)
    }

    fn resident(&self) -> Result<Model> {
        let Subject {
            checkpoint,
            weights,
            cached,
            ..
        } = self.subject;
        let decoder = self
            .context
            .decoder(checkpoint, weights, cached, self.length)?;
        Ok(Model::Resident(decoder))
    }

    fn streamed(&self, settings: &OffloadSettings) -> Result<Model> {
        streamed(
            self.context,
            self.subject.checkpoint,
            settings,
            self.subject.cached,
        )
    }

    pub fn in_memory(&mut self, plans: &[DraftPlan]) -> Result<()> {
        let mut model = self.resident()?;
        let label = "plain, in memory";
        let plain = self.plain(label, &mut model)?;
        self.keep_baseline(label, &plain, Some(1.0));
        for plan in plans {
            let mut draft = self.draft(plan)?;
            self.drafted(&mut draft, &mut model, &plain)?;
        }
        Ok(())
    }

    pub fn offloaded(
        &mut self,
        plans: &[DraftPlan],
        settings: &OffloadSettings,
        rates: &[f64],
    ) -> Result<()> {
        match self.resident() {
            Ok(mut model) => {
                let label = "plain, in memory";
                let found = self.plain(label, &mut model)?;
                self.keep_baseline(label, &found, None);
            }
            Err(error) if error.is::<DoesNotFit>() => {
                let text = format!("not measured in memory: {error}");
                self.context.printer.say(&text);
            }
            Err(error) => return Err(error),
        }
        let sizes = plans
            .iter()
            .map(|plan| plan.bytes(self.context, self.subject.checkpoint, self.length));
        let sizes: Vec<u64> = sizes.collect::<Result<_>>()?;
        let rates: Vec<Option<f64>> = match rates {
            [] => vec![None],
            rates => rates.iter().copied().map(Some).collect(),
        };
        // Copies take long to make.
        let drafts = plans.iter().map(|plan| self.draft(plan));
        let mut drafts: Vec<Draft<'_>> = drafts.collect::<Result<_>>()?;
        for link_bytes_per_second in rates {
            let settings = OffloadSettings {
                link_bytes_per_second,
                ..settings.clone()
            };
            self.streamed_at(&mut drafts, &sizes, &settings)?;
        }
        Ok(())
    }

    /// All ways over one link. One streamed model is in memory at a time.
    fn streamed_at(
        &mut self,
        drafts: &mut [Draft<'_>],
        sizes: &[u64],
        settings: &OffloadSettings,
    ) -> Result<()> {
        let label = "plain, nothing resident";
        let none = OffloadSettings {
            budget: None,
            ..settings.clone()
        };
        let nothing = self.plain(label, &mut self.streamed(&none)?)?;
        let speedup = settings.budget.is_none().then_some(1.0);
        self.keep_baseline(label, &nothing, speedup);
        let alone = match settings.budget {
            None => nothing,
            Some(_) => {
                let label = "plain, memory of the target";
                let found = self.plain(label, &mut self.streamed(settings)?)?;
                self.keep_baseline(label, &found, Some(1.0));
                found
            }
        };
        let taken = alone.streamed.as_ref().map_or(0, |s| s.memory.total());
        let held = settings.budget.unwrap_or(taken);
        let mut matched = Vec::new();
        for (draft, size) in drafts.iter().zip(sizes) {
            if *size == 0 {
                matched.push(None);
                continue;
            }
            let label = format!("plain, memory of {} too", draft.plan.given());
            let more = OffloadSettings {
                budget: Some(held.saturating_add(*size)),
                ..settings.clone()
            };
            let found = self.plain(&label, &mut self.streamed(&more)?)?;
            self.keep_baseline(&label, &found, Some(1.0));
            matched.push(Some(found));
        }
        let mut model = self.streamed(settings)?;
        for (draft, plain) in drafts.iter_mut().zip(&matched) {
            self.drafted(draft, &mut model, plain.as_ref().unwrap_or(&alone))?;
        }
        Ok(())
    }

    /// Each low-bit copy on its own, which puts out a text of its own.
    pub fn copies(&mut self, plans: &[DraftPlan]) -> Result<()> {
        for plan in plans {
            let Subject {
                checkpoint, cached, ..
            } = self.subject;
            let copy = plan.copy(self.context, checkpoint, cached, self.length)?;
            let Some(copy) = copy else {
                continue;
            };
            let label = format!("{} alone (lossy)", plan.given());
            let mut model = Model::Resident(copy);
            let found = self.measure(&label, &mut model, &mut None)?;
            self.keep_baseline(&label, &found, None);
        }
        Ok(())
    }

    fn draft<'p>(&self, plan: &'p DraftPlan) -> Result<Draft<'p>> {
        let Subject {
            checkpoint, cached, ..
        } = self.subject;
        let drafter = plan.drafter(self.context, checkpoint, cached, self.length)?;
        Ok(Draft { plan, drafter })
    }

    /// Plain decoding; the first time it chooses the prompts, and its text is what every other has to be.
    fn plain(&mut self, label: &str, model: &mut Model) -> Result<Found> {
        if !self.prompts.is_empty() {
            let found = self.measure(label, model, &mut None)?;
            same_text(label, &found.ids, &self.reference)?;
            return Ok(found);
        }
        let candidates = std::mem::take(&mut self.candidates);
        let (context, count) = (self.context, self.count);
        let (prompts, found) =
            measure::choose(context, label, model, candidates, count, &self.request)?;
        if prompts.is_empty() {
            bail!(
                "the model ends its text at once behind every prompt: give others with `--prompts`"
            );
        }
        if prompts.len() < count {
            context.printer.say(&format!(
                "{} prompts are measured, not {count}: behind others the text ends at once, or there are no more",
                prompts.len()
            ));
        }
        self.prompts = prompts;
        self.reference = found.ids.clone();
        Ok(found)
    }

    /// Decoding with a draft, which is compared with `plain`.
    fn drafted(&mut self, draft: &mut Draft<'_>, model: &mut Model, plain: &Found) -> Result<()> {
        let plan = draft.plan;
        let mut drafting = Some(draft);
        let found = self.measure(&plan.label(), model, &mut drafting)?;
        same_text(&plan.label(), &found.ids, &self.reference)?;
        let run = drafted(plan, &found, plain, self.identical(&found));
        self.result.runs.push(run);
        Ok(())
    }

    fn measure(
        &self,
        label: &str,
        model: &mut Model,
        draft: &mut Option<&mut Draft<'_>>,
    ) -> Result<Found> {
        let (context, prompts) = (self.context, &self.prompts);
        measure::measure(context, label, model, draft, prompts, &self.request)
    }

    fn keep_baseline(&mut self, label: &str, found: &Found, speedup: Option<f64>) {
        let run = baseline(label, found, speedup, self.identical(found));
        self.result.baselines.push(run);
    }

    /// Prompts whose text is plain decoding's.
    fn identical(&self, found: &Found) -> u64 {
        let pairs = found.ids.iter().zip(&self.reference);
        pairs.filter(|(ids, wanted)| ids == wanted).count() as u64
    }
}

/// # Errors
/// [`OtherText`] naming the first prompt whose text is not the wanted one.
fn same_text(way: &str, texts: &[Vec<u32>], wanted: &[Vec<u32>]) -> Result<(), OtherText> {
    for (index, (ids, wanted)) in texts.iter().zip(wanted).enumerate() {
        if ids != wanted {
            let same = ids.iter().zip(wanted).take_while(|(a, b)| a == b).count();
            return Err(OtherText {
                way: way.into(),
                prompt: index + 1,
                token: same + 1,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_text_is_an_error() {
        let wanted = [vec![1, 2, 3], vec![4, 5]];
        assert!(same_text("q4", &wanted, &wanted).is_ok());
        for (second, token) in [(vec![4, 6], 2), (vec![4], 2), (vec![4, 5, 6], 3)] {
            let found = [wanted[0].clone(), second];
            let error = same_text("q4", &found, &wanted).expect_err("refuses");
            assert_eq!((error.prompt, error.token), (2, token));
        }
    }
}
