//! Drafts of a model.

use super::beam::{self, Choice, Leaf};
use super::drafter::{Drafter, Round};
use super::tree::Tree;
use crate::cache::KvCache;
use crate::decode::{LanguageModel, Sampler, rows_of};
use crate::error::Result;

/// Drafts chains and trees with a model of the target's vocabulary.
///
/// In [`Verification::Match`](super::Verification::Match) nodes are chosen: a beam of a width. For the other verifications
/// they are drawn: as many chains as the width, which differ from their first token on.
pub struct ModelDrafter<'m> {
    model: Box<dyn LanguageModel + 'm>,
    width: usize,
    temperature: Option<f64>,
    own: Option<OwnCache>,
}

/// The cache of a draft that can not use the target's.
struct OwnCache {
    cache: KvCache,
    /// The tokens in it.
    held: Vec<u32>,
    /// The last tree, how many tokens were held before its root, and how many of its nodes are held.
    last: Option<(Tree, usize, usize)>,
}

impl<'m> ModelDrafter<'m> {
    /// Temperature that sharpens chosen drafts (SubSpec §4 and its published settings).
    pub const SHARPENING: f64 = 0.2;

    /// Drafts with a copy of the target: its keys and values stand in for the copy's, and drafting needs no prefill. The
    /// caches of both have to be of one kind and shape, without a residual window.
    ///
    /// `temperature` divides the draft's logits; none is [`SHARPENING`](Self::SHARPENING) where nodes are chosen, and the
    /// target's temperature where they are drawn.
    pub fn shared(
        model: Box<dyn LanguageModel + 'm>,
        width: usize,
        temperature: Option<f64>,
    ) -> Self {
        ModelDrafter {
            model,
            width: width.max(1),
            temperature,
            own: None,
        }
    }

    /// Drafts with a model that has its own cache, which follows the text.
    pub fn own(model: Box<dyn LanguageModel + 'm>, width: usize, temperature: Option<f64>) -> Self {
        let own = OwnCache {
            cache: model.new_cache(0),
            held: Vec::new(),
            last: None,
        };
        ModelDrafter {
            own: Some(own),
            ..Self::shared(model, width, temperature)
        }
    }
}

impl OwnCache {
    /// Keeps what of the last tree and of the cache is the text, and says how long that is.
    fn follow(&mut self, text: &[u32]) -> Result<usize> {
        if let Some((tree, start, held)) = self.last.take() {
            let mut kept = vec![0];
            for token in text.get(start + 1..).unwrap_or_default() {
                let child = tree.child(kept[kept.len() - 1], *token);
                match child.filter(|child| *child < held) {
                    Some(child) => kept.push(child),
                    None => break,
                }
            }
            self.cache.compact(start, &kept)?;
            self.held.truncate(start);
            self.held.extend(kept.iter().map(|node| tree.token(*node)));
        }
        // At least the last token is fed, for its logits.
        let text = &text[..text.len() - 1];
        let same = self
            .held
            .iter()
            .zip(text)
            .take_while(|(a, b)| a == b)
            .count();
        self.held.truncate(same);
        self.cache.truncate(same);
        Ok(same)
    }
}

impl Drafter for ModelDrafter<'_> {
    fn prepare(&mut self, prompt: &[u32]) -> Result<()> {
        let Some(own) = &mut self.own else {
            return Ok(());
        };
        let before = &prompt[..prompt.len() - 1];
        let held = own.follow(prompt)?;
        // A prompt that the draft has no room for is one that it drafts nothing for.
        if held < before.len() && before.len() <= self.model.max_context() {
            self.model.hidden(&before[held..], None, &mut own.cache)?;
            own.held.extend(&before[held..]);
        }
        Ok(())
    }

    fn draft(&mut self, mut round: Round<'_>) -> Result<Tree> {
        let text = round.tokens;
        let start = text.len() - 1;
        let temperature = self.temperature;
        let width = self.width;
        let model = self.model.as_mut();
        // The last level is not fed.
        let depth = round.depth.min(model.max_context().saturating_sub(start));
        if depth == 0 {
            return Ok(Tree::new(text[start]));
        }
        let fed = match &mut self.own {
            None => start,
            Some(own) => own.follow(text)?,
        };
        let mut tree = Tree::new(text[start]);
        let cache = match &mut self.own {
            None => &mut *round.cache,
            Some(own) => &mut own.cache,
        };
        let mut levels = Levels {
            model,
            cache,
            start,
        };
        let mut rows = levels.first(&text[fed..])?;
        let settings = round.sampler.settings();
        let sampler = Sampler::new(crate::decode::SamplingSettings {
            temperature: temperature.unwrap_or(settings.temperature),
            ..*settings
        })?;
        let sharpening = temperature.unwrap_or(Self::SHARPENING).max(1e-3);
        let choice = Choice {
            width,
            temperature: sharpening,
            // A target that draws follows the draft less surely than one that does not.
            likely: round.stop.map(|_| sharpening.max(settings.temperature)),
        };
        let (mut leaves, mut held) = (vec![Leaf::ROOT], 1);
        for level in 1..=depth {
            leaves = match &mut round.chance {
                None => beam::choose(&mut tree, &leaves, &rows, choice),
                Some(chance) => beam::draw(&mut tree, &leaves, &rows, width, &sampler, *chance)?,
            };
            let likeliest = leaves
                .iter()
                .map(|l| l.likely)
                .fold(f64::NEG_INFINITY, f64::max);
            let enough = round.stop.is_some_and(|stop| likeliest < stop)
                || round.pause.is_some_and(|pause| pause.is_due(level));
            if level == depth || enough {
                break;
            }
            rows = levels.next(&tree, held)?;
            held = tree.nodes();
        }
        if let Some(own) = &mut self.own {
            own.held.extend(&text[fed..]);
            own.last = Some((tree.clone(), start, held));
        }
        Ok(tree)
    }

    fn width(&self) -> usize {
        self.width
    }
}

/// Feeds a tree to the draft model, level by level.
struct Levels<'a> {
    model: &'a mut dyn LanguageModel,
    cache: &'a mut KvCache,
    /// The root's position.
    start: usize,
}

impl Levels<'_> {
    /// Logits behind the root, which is the last of these tokens.
    fn first(&mut self, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        let hidden = self.model.hidden(ids, None, self.cache)?;
        let last = hidden.narrow(0, ids.len() - 1, 1);
        rows_of(self.model.logits(last))
    }

    /// Logits behind the nodes from `first` on.
    fn next(&mut self, tree: &Tree, first: usize) -> Result<Vec<Vec<f32>>> {
        let places = tree.places(first..tree.nodes(), self.start);
        let slice = places.as_ref().map(|places| places.slice());
        let hidden = self
            .model
            .hidden(&tree.tokens()[first..], slice, self.cache)?;
        rows_of(self.model.logits(hidden))
    }
}
