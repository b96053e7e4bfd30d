//! The last walk: every block compressed as planned, written, and forgotten.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use cinder_models::checkpoint::{CompressedWriter, HeadRecord, ShardRecord, SiteRecord};
use cinder_models::decoder::{Rotary, RotaryTable};
use cinder_models::progress::Progress;
use cinder_models::{DecoderLayer, Precision, Site};
use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Job;
use super::inputs::Stream;
use crate::calibration::{
    LayerStatistics, Moments, SiteInputs, Statistics, embed_windows, load_states, read_json,
    save_states, write_whole,
};
use crate::error::Result;
use crate::passes::{LayerPlan, Needs, Pass, Plan, SiteWork, works_on};
use crate::recipe::Propagate;

pub(super) struct Walk<'a> {
    pub job: &'a Job<'a>,
    pub statistics: Option<&'a Statistics>,
    pub plans: &'a [Plan],
    pub work: &'a Path,
    pub device: &'a Device,
    pub progress: &'a dyn Progress,
}

/// What a layer that is done leaves behind, or the frame.
#[derive(Serialize, Deserialize)]
struct Done {
    shard: ShardRecord,
    sites: Vec<SiteRecord>,
    #[serde(default)]
    head: Option<HeadRecord>,
}

/// A site's record and the seconds it took, if this process did it.
pub(super) type Timed = (SiteRecord, Option<f64>);

impl Walk<'_> {
    /// Writes the frame and every layer, or takes them from an interrupted run. Returns what became of the projections, and of
    /// the output head where it is codes now.
    pub fn run(&self, writer: &mut CompressedWriter) -> Result<(Vec<Timed>, Option<HeadRecord>)> {
        let config = self.job.checkpoint.config();
        let mut sites = Vec::new();
        self.progress.start("compressing", config.layers as u64 + 1);
        let head = match self.done(writer, "frame")? {
            Some(done) => {
                writer.adopt(done.shard);
                done.head
            }
            None => self.frame(writer)?,
        };
        self.progress.advance(1);
        let mut propagated = self.propagate().then(|| Propagated {
            rotary: self.rotary(),
            hidden: None,
        });
        let earlier = self.earlier(writer)?;
        // Layers that do not depend on each other are made a few at a time.
        let mut ahead = VecDeque::new();
        for (layer, done) in earlier.into_iter().enumerate() {
            if let Some(done) = done {
                writer.adopt(done.shard);
                sites.extend(done.sites.into_iter().map(|site| (site, None)));
                ahead.pop_front();
                self.progress.advance(1);
                continue;
            }
            self.progress
                .note(&format!("block {}/{}", layer + 1, config.layers));
            if let Some(propagated) = &mut propagated
                && propagated.hidden.is_none()
            {
                propagated.hidden = Some(self.entering(layer)?);
            }
            if ahead.is_empty() && propagated.is_none() {
                let next = layer..config.layers.min(layer + super::side_by_side(self.job));
                let made = next.into_par_iter().map(|l| self.layer(l, None));
                ahead = made.collect::<Result<VecDeque<_>>>()?;
            }
            let (block, timed) = match ahead.pop_front() {
                Some(made) => made,
                None => self.layer(layer, propagated.as_mut())?,
            };
            if let Some(Propagated {
                hidden: Some(hidden),
                ..
            }) = &propagated
                && layer + 1 < config.layers
            {
                save_states(&self.states(layer + 1), hidden.iter())?;
            }
            let shard = writer.write_layer(layer, &block)?;
            let (records, seconds): (Vec<_>, Vec<_>) = timed.into_iter().unzip();
            let done = Done {
                shard,
                sites: records,
                head: None,
            };
            let records = self.remember(&layer_name(layer), &done)?.sites;
            if propagated.is_some() && self.states(layer).exists() {
                fs::remove_file(self.states(layer))?;
            }
            sites.extend(records.into_iter().zip(seconds));
            self.progress.advance(1);
        }
        self.progress.finish();
        Ok((sites, head))
    }

    /// Writes what stands around the layers: as it is, but for a head that a pass makes codes of.
    fn frame(&self, writer: &mut CompressedWriter) -> Result<Option<HeadRecord>> {
        let checkpoint = self.job.checkpoint;
        let mut passes = self.job.recipe.passes.iter();
        let made = match passes.find(|pass| pass.head_format().is_some()) {
            Some(pass) => pass.head(&checkpoint.load_frame(Precision::F32, self.device)?)?,
            None => None,
        };
        let (head, record) = made.unzip();
        // Codes that are there already are copied, with what is known of them.
        let earlier = || checkpoint.manifest().and_then(|m| m.head.clone());
        let done = Done {
            shard: writer.write_frame(checkpoint, head.as_ref())?,
            sites: Vec::new(),
            head: record.or_else(earlier),
        };
        Ok(self.remember("frame", &done)?.head)
    }

    fn propagate(&self) -> bool {
        let calibration = self.job.recipe.calibration.as_ref();
        calibration.is_some_and(|c| c.propagate != Propagate::None)
            && self.job.recipe.needs() > Needs::Nothing
    }

    /// Hidden states of the compressed prefix that enter a layer.
    fn states(&self, layer: usize) -> PathBuf {
        self.work.join(format!("states-{layer:05}"))
    }

    fn rotary(&self) -> RotaryTable {
        let window = self.job.text.map_or(0, |t| t.windows.ids[0].len());
        Rotary::new(self.job.checkpoint.config()).table(0, window, self.device)
    }

    fn entering(&self, layer: usize) -> Result<Vec<Tensor<3>>> {
        if layer > 0 {
            return load_states(&self.states(layer), self.device);
        }
        match self.job.text {
            Some(text) => embed_windows(self.job.checkpoint, &text.windows, self.device),
            None => Ok(Vec::new()),
        }
    }

    /// Compresses one layer.
    fn layer(
        &self,
        layer: usize,
        propagated: Option<&mut Propagated>,
    ) -> Result<(DecoderLayer, Vec<Timed>)> {
        let dense = self
            .job
            .checkpoint
            .load_layer(layer, Precision::F32, self.device)?;
        let mut block = dense.clone();
        let moments = self.statistics.map(|s| s.layer(layer));
        let plans: Vec<(&dyn Pass, &LayerPlan)> = self
            .job
            .recipe
            .passes
            .iter()
            .zip(self.plans)
            .filter_map(|(pass, plan)| Some((&**pass, plan.layers.get(layer)?)))
            .collect();
        let neurons = plans.iter().find_map(|(_, plan)| plan.neurons.as_deref());
        let mut timed = Vec::new();
        let mut stream = propagated.map(|p| {
            let calibration = self.job.recipe.calibration.as_ref();
            let propagate = calibration.map_or(Propagate::None, |c| c.propagate);
            let hidden = p.hidden.take().unwrap_or_default();
            (
                Stream::new(&p.rotary, propagate, layer, hidden),
                &mut p.hidden,
            )
        });
        let mut changed = false;
        for site in Site::ALL {
            let start = Instant::now();
            let removed = neurons.filter(|_| site == Site::Down);
            let owners = plans.iter().filter(|(pass, _)| works_on(*pass, site));
            let inputs = match (&mut stream, &moments) {
                (Some((stream, _)), _) => {
                    Some(stream.inputs(site, &dense, &block, changed, removed)?)
                }
                (None, Some(moments)) => self.collected(moments, owners.clone(), site)?,
                (None, None) => None,
            };
            let calibrated = inputs
                .as_ref()
                .zip(moments.as_ref().map(|m| m as &dyn Moments));
            let mut records = Vec::new();
            let config = self.job.checkpoint.config();
            for (pass, plan) in owners {
                let work = SiteWork {
                    config,
                    plan,
                    site,
                    dense: &dense,
                    calibrated,
                };
                let mut own = pass.apply(work, &mut block)?;
                for record in &mut own {
                    record.pass = pass.name();
                }
                records.extend(own);
            }
            records.sort_by_key(|r| site.projections().iter().position(|p| *p == r.projection));
            changed = records.iter().any(|r| r.kind != "dense");
            if let Some((stream, _)) = &mut stream {
                stream.pass(site, &block);
            }
            let seconds = start.elapsed().as_secs_f64() / records.len().max(1) as f64;
            timed.extend(records.into_iter().map(|r| (r, Some(seconds))));
        }
        if let Some((stream, hidden)) = stream {
            *hidden = Some(stream.hidden);
        }
        Ok((block, timed))
    }

    /// What the dense site read, when it will be asked for: moments of wide inputs are large.
    fn collected<'p>(
        &self,
        moments: &LayerStatistics,
        mut owners: impl Iterator<Item = &'p (&'p dyn Pass, &'p LayerPlan)>,
        site: Site,
    ) -> Result<Option<SiteInputs>> {
        let feed_forward = matches!(site, Site::GateUp | Site::Down);
        let asked_for = owners.any(|(pass, plan)| {
            let own = plan.units.iter().filter(|u| u.site == site);
            let touched = own.clone().any(|u| u.rank.is_some())
                || (feed_forward && plan.neurons.is_some() && own.count() > 0);
            touched && pass.needs() > Needs::Nothing
        });
        if !asked_for {
            return Ok(None);
        }
        Ok(Some(SiteInputs {
            gram: moments.input(site)?,
            targets: None,
        }))
    }

    /// The layers that an interrupted run has made and that need not be made again.
    fn earlier(&self, writer: &CompressedWriter) -> Result<Vec<Option<Done>>> {
        let layers = self.job.checkpoint.config().layers;
        let mut earlier = (0..layers)
            .map(|layer| self.done(writer, &layer_name(layer)))
            .collect::<Result<Vec<_>>>()?;
        let made = earlier.iter().take_while(|done| done.is_some()).count();
        if self.propagate() && made < layers {
            // What is missing reads what the layers before it give: all is made again from where that is known.
            let known = (1..=made).rev().find(|l| self.states(*l).exists());
            earlier[known.unwrap_or(0)..].fill_with(|| None);
        }
        Ok(earlier)
    }

    /// What an interrupted run noted of a shard, if the shard is there.
    fn done(&self, writer: &CompressedWriter, name: &str) -> Result<Option<Done>> {
        let path = self.work.join(format!("{name}.json"));
        if !self.job.resume || !path.is_file() {
            return Ok(None);
        }
        let done: Done = read_json(&path)?;
        Ok(writer.holds(&done.shard)?.then_some(done))
    }

    /// Notes that a shard is done. The records are returned as they will be read by a run that goes on: JSON may move a
    /// number by its last bit, and both ways must end in the same manifest.
    fn remember(&self, name: &str, done: &Done) -> Result<Done> {
        let path = self.work.join(format!("{name}.json"));
        let text = serde_json::to_vec(done).map_err(std::io::Error::from)?;
        write_whole(&path, &text)?;
        read_json(&path)
    }
}

fn layer_name(layer: usize) -> String {
    format!("layer-{layer:05}")
}

/// The windows on their way through the compressed layers.
struct Propagated {
    rotary: RotaryTable,
    /// What enters the next layer; none before the first, and after layers that were taken from an interrupted run.
    hidden: Option<Vec<Tensor<3>>>,
}
