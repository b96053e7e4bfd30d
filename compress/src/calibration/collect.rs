//! The two walks over a dense model that give its statistics, on disk and resumable.
//!
//! Forward, block by block: the second moments of each site's inputs. Backward, from the last block to the first: those
//! of each projection's output gradients. In memory at any time: one block (twice on the way back), one block's moments
//! and the hidden states of the windows; or the frame, while windows are embedded and while the loss is taken. On disk:
//! the moments of all blocks, and on the way the inputs of each block for the windows that gradients are taken on.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use cinder_models::decoder::Rotary;
use cinder_models::decoder::backward::{BackwardHead, BackwardLayer, Labels};
use cinder_models::progress::Progress;
use cinder_models::{Checkpoint, Precision, Site};
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::store::{load, save};
use super::windows::even_indices;
use super::{Moments, Windows, finite_values};
use crate::error::{Error, Result};
use crate::linalg::Gram;

/// Which token each position's gradient is taken for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LabelSource {
    /// The text's own next token (the empirical Fisher).
    #[default]
    Text,
    /// One drawn from the model's own distribution (the true Fisher).
    Sampled,
}

/// How gradient moments are collected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GradientSettings {
    /// How many of the calibration windows, evenly spread; all of them when there are fewer.
    #[schemars(range(min = 1))]
    pub windows: usize,
    /// Which token each gradient is taken for.
    pub labels: LabelSource,
    /// Share of each window's tokens left out at either end, in [0, 0.5).
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 0.5))]
    pub trim: f64,
    /// Least and largest norm of a token's gradient, as multiples of the window's mean norm: smaller ones are lengthened
    /// and larger ones shortened (KFAC-SVD takes [0.1, 10]); none takes them as they are.
    #[schemars(inner(inner(range(min = 0))))]
    pub clip: Option<[f64; 2]>,
}

impl Default for GradientSettings {
    fn default() -> Self {
        GradientSettings {
            windows: 24,
            labels: LabelSource::Text,
            trim: 0.0,
            clip: None,
        }
    }
}

/// What statistics are collected from.
#[derive(Clone, Copy)]
pub struct Collection<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// The tokens that go through it.
    pub windows: &'a Windows,
    /// How gradients are taken.
    pub gradients: &'a GradientSettings,
    /// Decides sampled labels.
    pub seed: u64,
    /// Where it is computed.
    pub device: &'a Device,
}

/// The statistics of a model on disk.
pub struct Statistics {
    folder: PathBuf,
}

impl Statistics {
    /// Statistics in `folder`, which is made when missing. `identity` is everything that decides them.
    ///
    /// # Errors
    /// [`Error::Drift`] when the folder has statistics of something else; I/O errors.
    pub fn open(folder: &Path, identity: &Value) -> Result<Self> {
        fs::create_dir_all(folder)?;
        crate::pipeline::check_identity(&folder.join("statistics.json"), identity)?;
        Ok(Statistics {
            folder: folder.into(),
        })
    }

    /// One layer's part.
    pub fn layer(&self, layer: usize) -> LayerStatistics {
        LayerStatistics {
            folder: self.folder.clone(),
            layer,
        }
    }

    /// Hidden states that enter `layer`, of all windows.
    fn hidden(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("hidden-{layer:05}"))
    }

    /// Hidden states that enter `layer`, of the windows that gradients are taken on.
    fn inputs(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("inputs-{layer:05}"))
    }

    /// Gradients of what enters `layer`.
    fn arriving(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("back-{layer:05}"))
    }

    /// How many steps [`Statistics::collect`] will report.
    pub fn steps(job: &Collection<'_>, gradients: bool) -> u64 {
        let layers = job.checkpoint.config().layers;
        let back = if gradients { chosen(job).len() } else { 0 };
        (layers * (job.windows.ids.len() + back)) as u64
    }

    /// Collects what is not there yet: input moments, and with `gradients` those of the outputs' gradients too.
    ///
    /// # Errors
    /// [`cinder_models::Error::NonFinite`] when an activation or a gradient overflows; reading and writing errors.
    pub fn collect(
        &self,
        job: &Collection<'_>,
        gradients: bool,
        progress: &dyn Progress,
    ) -> Result<()> {
        let layers = job.checkpoint.config().layers;
        let finished = self.hidden(layers);
        let back_finished = self.arriving(0);
        if finished.exists() && (!gradients || back_finished.exists()) {
            return Ok(());
        }
        progress.start("collecting statistics", Self::steps(job, gradients));
        // What earlier runs have not kept: inputs of blocks, when they needed no gradients.
        let on_the_way_back = || (0..=layers).any(|l| self.arriving(l).exists());
        let lacking =
            gradients && finished.exists() && !self.inputs(layers).exists() && !on_the_way_back();
        if !finished.exists() || lacking {
            if lacking {
                fs::remove_file(&finished)?;
            }
            self.forward(job, gradients, progress)?;
        } else {
            progress.advance((layers * job.windows.ids.len()) as u64);
        }
        if gradients && !back_finished.exists() {
            self.backward(job, progress)?;
        }
        progress.finish();
        Ok(())
    }

    fn forward(
        &self,
        job: &Collection<'_>,
        keep_inputs: bool,
        progress: &dyn Progress,
    ) -> Result<()> {
        let layers = job.checkpoint.config().layers;
        let chosen = chosen(job);
        let window = job.windows.ids[0].len();
        let rotary = Rotary::new(job.checkpoint.config()).table(0, window, job.device);
        let begun = (0..layers).rev().find(|l| self.hidden(*l).exists());
        let kept = |layer: usize| !keep_inputs || (0..layer).all(|l| self.inputs(l).exists());
        let (first, mut hidden) = match begun.filter(|layer| kept(*layer)) {
            Some(layer) => (layer, load_states(&self.hidden(layer), job.device)?),
            None => (0, embed_windows(job.checkpoint, job.windows, job.device)?),
        };
        progress.advance((first * hidden.len()) as u64);
        for layer in first..layers {
            progress.note(&format!("forward, block {}/{layers}", layer + 1));
            if keep_inputs {
                save_states(&self.inputs(layer), chosen.iter().map(|i| &hidden[*i]))?;
            }
            let block = job
                .checkpoint
                .load_layer(layer, Precision::F32, job.device)?;
            let mut grams: [Option<Gram>; 4] = Default::default();
            for states in &mut hidden {
                let mut failure = None;
                *states = block.forward(states.clone(), &rotary, None, &mut |site, input| {
                    let what = || format!("an input of `{}` in layer {layer}", site.name());
                    let gram = &mut grams[index(site)];
                    match finite_values(input, what) {
                        Ok(values) => gram
                            .get_or_insert_with(|| Gram::new(input.dims()[1]))
                            .add(&values),
                        Err(error) => failure = Some(error),
                    }
                });
                if let Some(error) = failure {
                    return Err(error);
                }
                progress.advance(1);
            }
            let statistics = self.layer(layer);
            for (site, gram) in Site::ALL.iter().zip(&grams) {
                if let Some(gram) = gram {
                    save_gram(&statistics.input_path(*site), gram, 0.0)?;
                }
            }
            if layer + 1 == layers && keep_inputs {
                save_states(&self.inputs(layers), chosen.iter().map(|i| &hidden[*i]))?;
            }
            // The states after the last block are needed by nobody; their file says that all is done.
            match layer + 1 == layers {
                true => save_states(&self.hidden(layers), std::iter::empty())?,
                false => save_states(&self.hidden(layer + 1), hidden.iter())?,
            }
            remove(&self.hidden(layer))?;
        }
        Ok(())
    }

    fn backward(&self, job: &Collection<'_>, progress: &dyn Progress) -> Result<()> {
        let layers = job.checkpoint.config().layers;
        let chosen = chosen(job);
        let window = job.windows.ids[0].len();
        let rotary = Rotary::new(job.checkpoint.config()).table(0, window, job.device);
        let begun = (1..=layers).find(|l| self.arriving(*l).exists());
        let (first, mut gradients) = match begun {
            Some(layer) => (layer, load_states(&self.arriving(layer), job.device)?),
            None => {
                progress.note("the loss");
                let gradients = self.at_the_end(job, &chosen)?;
                save_states(&self.arriving(layers), gradients.iter())?;
                remove(&self.inputs(layers))?;
                (layers, gradients)
            }
        };
        progress.advance(((layers - first) * chosen.len()) as u64);
        for layer in (0..first).rev() {
            progress.note(&format!("backward, block {}/{layers}", layer + 1));
            let inputs = load_states(&self.inputs(layer), job.device)?;
            let block = job
                .checkpoint
                .load_layer(layer, Precision::F32, job.device)?;
            let block = BackwardLayer::new(&block)?;
            let mut sums: Vec<Vec<Sum>> = Site::ALL
                .iter()
                .map(|s| s.projections().iter().map(|_| Sum::default()).collect())
                .collect();
            for (gradient, input) in gradients.iter_mut().zip(inputs) {
                let mut failure = None;
                *gradient = block.backward(
                    input,
                    gradient.clone(),
                    &rotary,
                    &mut |site, member, x, g| {
                        let sum = &mut sums[index(site)][member];
                        if let Err(error) = sum.add(job.gradients, x, g, (layer, site, member)) {
                            failure = Some(error);
                        }
                    },
                );
                if let Some(error) = failure {
                    return Err(error);
                }
                progress.advance(1);
            }
            let statistics = self.layer(layer);
            for (site, sums) in Site::ALL.iter().zip(&sums) {
                for (member, sum) in sums.iter().enumerate() {
                    if let Some(gram) = &sum.gram {
                        let fisher = sum.fisher / sum.tokens.max(1) as f64;
                        save_gram(&statistics.gradient_path(*site, member), gram, fisher)?;
                    }
                }
            }
            // As on the way there: the file of the last step only says that all is done.
            match layer {
                0 => save_states(&self.arriving(0), std::iter::empty())?,
                _ => save_states(&self.arriving(layer), gradients.iter())?,
            }
            remove(&self.arriving(layer + 1))?;
            remove(&self.inputs(layer))?;
        }
        Ok(())
    }

    /// Gradients of the loss in what leaves the last block.
    fn at_the_end(&self, job: &Collection<'_>, chosen: &[usize]) -> Result<Vec<Tensor<3>>> {
        let last = load_states(&self.inputs(job.checkpoint.config().layers), job.device)?;
        let frame = job.checkpoint.load_frame(Precision::F32, job.device)?;
        let head = BackwardHead::new(&frame.norm, &frame.embedding, frame.lm_head.as_ref())?;
        drop(frame);
        let gradient = |(states, window): (Tensor<3>, &usize)| {
            let labels = match job.gradients.labels {
                LabelSource::Text => Labels::Text,
                LabelSource::Sampled => Labels::Sampled {
                    seed: job.seed,
                    window: *window as u64,
                },
            };
            let ids = &job.windows.ids[*window];
            Ok(head.loss_and_gradient(states, ids, labels)?.1)
        };
        last.into_iter().zip(chosen).map(gradient).collect()
    }
}

/// The windows that gradients are taken on.
fn chosen(job: &Collection<'_>) -> Vec<usize> {
    let all = job.windows.ids.len();
    even_indices(all, job.gradients.windows.clamp(1, all))
}

fn index(site: Site) -> usize {
    Site::ALL.iter().position(|s| *s == site).unwrap_or(0)
}

/// The hidden states of all windows as the first block reads them, `[1, window, hidden]` each.
pub(crate) fn embed_windows(
    checkpoint: &Checkpoint,
    windows: &Windows,
    device: &Device,
) -> Result<Vec<Tensor<3>>> {
    let frame = checkpoint.load_frame(Precision::F32, device)?;
    let rows = windows.ids.iter();
    rows.map(|ids| Ok(frame.embedding.embed(std::slice::from_ref(ids))?))
        .collect()
}

/// Moments of one projection's gradients.
#[derive(Default)]
struct Sum {
    gram: Option<Gram>,
    fisher: f64,
    tokens: usize,
}

impl Sum {
    fn add(
        &mut self,
        settings: &GradientSettings,
        inputs: &Tensor<2>,
        gradients: &Tensor<2>,
        (layer, site, member): (usize, Site, usize),
    ) -> Result<()> {
        let name = site.projections()[member];
        let what = || format!("a gradient of `{name}` in layer {layer}");
        let width = gradients.dims()[1];
        let mut g = finite_values(gradients, what)?;
        let rows = g.len() / width;
        let squares = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let norms: Vec<f64> = g.chunks(width).map(|row| squares(row).sqrt()).collect();
        let x = finite_values(inputs, || format!("an input of `{name}` in layer {layer}"))?;
        let x = x.chunks(inputs.dims()[1]).map(squares);
        self.fisher += x.zip(&norms).map(|(x, g)| x * g * g).sum::<f64>();
        self.tokens += rows;
        if let Some([least, most]) = settings.clip {
            let mean = norms.iter().sum::<f64>() / rows.max(1) as f64;
            for (row, norm) in g.chunks_mut(width).zip(&norms).filter(|(_, n)| **n > 0.0) {
                let scale = (norm.clamp(least * mean, most * mean) / norm) as f32;
                row.iter_mut().for_each(|v| *v *= scale);
            }
        }
        let cut = (settings.trim * rows as f64) as usize;
        let gram = self.gram.get_or_insert_with(|| Gram::new(width));
        gram.add(&g[cut * width..(rows - cut) * width]);
        Ok(())
    }
}

/// The statistics of one layer on disk.
pub struct LayerStatistics {
    folder: PathBuf,
    layer: usize,
}

impl LayerStatistics {
    fn input_path(&self, site: Site) -> PathBuf {
        let name = format!("input-{:05}-{}", self.layer, site.name());
        self.folder.join(name)
    }

    fn gradient_path(&self, site: Site, member: usize) -> PathBuf {
        let name = format!("gradient-{:05}-{}", self.layer, site.projections()[member]);
        self.folder.join(name)
    }
}

impl Moments for LayerStatistics {
    fn input(&self, site: Site) -> Result<Gram> {
        Ok(load_gram(&self.input_path(site))?.0)
    }

    fn gradient(&self, site: Site, member: usize) -> Result<Gram> {
        Ok(load_gram(&self.gradient_path(site, member))?.0)
    }

    fn fisher(&self, site: Site, member: usize) -> Result<f64> {
        Ok(load_gram(&self.gradient_path(site, member))?.1)
    }
}

fn save_gram(path: &Path, gram: &Gram, fisher: f64) -> Result<()> {
    let (values, rows) = gram.parts();
    save(path, &json!({"rows": rows, "fisher": fisher}), &values)
}

fn load_gram(path: &Path) -> Result<(Gram, f64)> {
    let (note, values) = load::<f64>(path)?;
    let gram = note["rows"]
        .as_u64()
        .and_then(|rows| Gram::from_parts(&values, rows));
    let gram = gram.ok_or_else(|| Error::Work {
        path: path.into(),
        why: "it holds no moment".into(),
    })?;
    Ok((gram, note["fisher"].as_f64().unwrap_or(0.0)))
}

/// Writes hidden states `[1, tokens, hidden]` of several windows.
pub(crate) fn save_states<'a>(
    path: &Path,
    states: impl Iterator<Item = &'a Tensor<3>>,
) -> Result<()> {
    let mut values: Vec<f32> = Vec::new();
    let mut shape = [0, 0, 0];
    for window in states {
        let [_, tokens, hidden] = window.dims();
        shape = [shape[0] + 1, tokens, hidden];
        values.extend(finite_values(window, || "a hidden state".into())?);
    }
    save(path, &json!({"shape": shape}), &values)
}

/// Reads what [`save_states`] wrote.
pub(crate) fn load_states(path: &Path, device: &Device) -> Result<Vec<Tensor<3>>> {
    let (note, values) = load::<f32>(path)?;
    let damaged = || Error::Work {
        path: path.into(),
        why: "it holds no hidden states".into(),
    };
    let shape: [usize; 3] = serde_json::from_value(note["shape"].clone()).map_err(|_| damaged())?;
    let [windows, tokens, hidden] = shape;
    if values.len() != windows * tokens * hidden {
        return Err(damaged());
    }
    let window = |rows: &[f32]| {
        Tensor::from_data(TensorData::new(rows.to_vec(), [1, tokens, hidden]), device)
    };
    match windows {
        0 => Ok(Vec::new()),
        _ => Ok(values.chunks(tokens * hidden).map(window).collect()),
    }
}

fn remove(path: &Path) -> Result<()> {
    match path.exists() {
        true => Ok(fs::remove_file(path)?),
        false => Ok(()),
    }
}
