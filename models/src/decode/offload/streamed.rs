//! The decoder whose blocks are streamed.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};

use super::budget::MemoryPlan;
use super::buffer::BlockBytes;
use super::layout::Layout;
use super::reader::{Reader, ReadingCost};
use super::source::{BlockFile, BlockSource};
use super::statistics::OffloadStatistics;
use super::{weights, write};
use crate::cache::{CacheFormat, KvCache};
use crate::checkpoint::Checkpoint;
use crate::decode::{LanguageModel, TreeSlice};
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::progress::Progress;

/// Where blocks are streamed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffloadSource {
    /// A block file of the model, which is made when it is not there.
    File(PathBuf),
    /// The memory of this machine, which then stands for something slower.
    Memory,
}

/// How to run a model that does not fit.
#[derive(Debug, Clone)]
pub struct OffloadSettings {
    pub source: OffloadSource,
    /// f32, f16 or bf16.
    pub weights: Precision,
    /// Bytes of memory that may be taken: see [`MemoryPlan`]. With none, no block stays.
    pub budget: Option<u64>,
    /// Bytes of memory that there are, where that is known: no budget makes them more.
    pub available: Option<u64>,
    /// Of these, what the caller's KV cache and activations will take.
    pub cache_and_activations: u64,
    /// Bytes per second that the source is slowed down to.
    pub link_bytes_per_second: Option<f64>,
}

/// A decoder whose first blocks are in memory, and whose others are read in every pass.
pub struct StreamedDecoder {
    /// Its layers behind the resident ones are hollow.
    shell: Decoder,
    layout: Arc<Layout>,
    plan: MemoryPlan,
    /// None when every block stays.
    reader: Option<Reader>,
    device: Device,
    /// What the statistics say of the source, which does not change.
    facts: Facts,
    counts: Counts,
}

struct Facts {
    source: &'static str,
    path: Option<PathBuf>,
    reading: &'static str,
    rate: Option<f64>,
    source_bytes: u64,
}

#[derive(Default)]
struct Counts {
    passes: u64,
    tokens: u64,
    waited: Duration,
    computed: Duration,
    /// The reader's cost when counting began.
    before: ReadingCost,
}

/// What a pass has taken.
#[derive(Default)]
struct Pass {
    waited: Duration,
}

impl StreamedDecoder {
    /// What blocks can be streamed in: what is run from a disk is the model itself, not codes of it.
    pub const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::Bf16];

    /// Opens the model's block file, or makes it; loads what stays in memory; starts to read.
    ///
    /// # Errors
    /// [`Error::Budget`] when the budget does not even do without resident blocks; [`Error::Unsupported`] for codes and
    /// latents; [`Error::Offload`] for a file that holds something else; [`Error::Output`] when it can not be made; those of
    /// loading.
    pub fn new(
        checkpoint: &Checkpoint,
        settings: &OffloadSettings,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<Self> {
        if let Some(rate) = settings.link_bytes_per_second
            && !(rate.is_finite() && rate > 0.0)
        {
            return Err(Error::Request(
                "a link needs a rate above 0 bytes per second".into(),
            ));
        }
        let wanted = write::layout(checkpoint, settings.weights, device)?;
        let plan = plan(checkpoint, &wanted, settings)?;
        let (layout, mut source) = match &settings.source {
            OffloadSource::Memory => {
                let (layout, buffers) = write::in_memory(checkpoint, wanted, device, progress)?;
                (layout, BlockSource::Memory(buffers))
            }
            OffloadSource::File(path) => {
                // A name that leads nowhere is an error of the file that is to be made.
                if !path.try_exists().unwrap_or(true) {
                    write::file(checkpoint, wanted.clone(), path, device, progress)?;
                }
                let (layout, file) = BlockFile::open(path, &wanted)?;
                (layout, BlockSource::File(file))
            }
        };
        let frame = checkpoint.load_frame(settings.weights, device)?;
        let layout = Arc::new(layout);
        let mut layers = Vec::new();
        for index in 0..layout.blocks.len() {
            let hollow = checkpoint.hollow_layer(index, settings.weights, device)?;
            layers.push(match index < plan.resident_blocks {
                true => {
                    let bytes = BlockBytes::resident(source.block(&layout, index)?);
                    weights::filled(&hollow, &layout.blocks[index], &bytes, device)
                }
                false => hollow,
            });
        }
        let config = checkpoint.config();
        let facts = Facts {
            source: match source {
                BlockSource::File(_) => "file",
                BlockSource::Memory(_) => "memory",
            },
            path: source.path().map(PathBuf::from),
            reading: source.reading(),
            rate: settings.link_bytes_per_second,
            source_bytes: source.keep_from(plan.resident_blocks),
        };
        let streams = plan.resident_blocks < layout.blocks.len();
        let reader = streams.then(|| {
            let first = plan.resident_blocks;
            Reader::start(source, layout.clone(), first, facts.rate)
        });
        Ok(StreamedDecoder {
            shell: Decoder::new(config, frame.embedding, layers, frame.norm, frame.lm_head),
            layout,
            plan,
            reader: reader.transpose()?,
            device: device.clone(),
            facts,
            counts: Counts::default(),
        })
    }

    /// How many blocks stay, and what takes how much memory.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// As [`Decoder::set_cache_format`].
    ///
    /// # Errors
    /// As there.
    pub fn set_cache_format(&mut self, format: CacheFormat) -> Result<()> {
        self.shell.set_cache_format(format)
    }

    /// As [`Decoder::allow_context`].
    pub fn allow_context(&mut self, tokens: usize) {
        self.shell.allow_context(tokens);
    }

    /// What was read and waited for since the decoder was made, or since [`StreamedDecoder::reset_statistics`].
    pub fn statistics(&self) -> OffloadStatistics {
        let cost = self.cost();
        let before = &self.counts.before;
        let streamed = &self.layout.blocks[self.plan.resident_blocks..];
        let seconds = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64();
        OffloadStatistics {
            source: self.facts.source,
            path: self.facts.path.clone(),
            reading: self.facts.reading,
            link: match self.facts.rate {
                Some(rate) => format!("simulated link of {} GB/s", rate / 1e9),
                None => "no simulated link".into(),
            },
            link_bytes_per_second: self.facts.rate,
            weights: self.layout.precision,
            blocks: self.layout.blocks.len(),
            memory: self.plan,
            source_bytes: self.facts.source_bytes,
            passes: self.counts.passes,
            tokens: self.counts.tokens,
            bytes_per_pass: streamed.iter().map(|block| block.length).sum(),
            bytes_read: cost.bytes - before.bytes,
            wait_seconds: self.counts.waited.as_secs_f64(),
            compute_seconds: self.counts.computed.as_secs_f64(),
            read_seconds: seconds(cost.reading, before.reading),
            checksum_seconds: seconds(cost.checking, before.checking),
        }
    }

    /// Counts from here on.
    pub fn reset_statistics(&mut self) {
        self.counts = Counts {
            before: self.cost(),
            ..Counts::default()
        };
    }

    fn cost(&self) -> ReadingCost {
        self.reader.as_ref().map(Reader::cost).unwrap_or_default()
    }

    /// A pass through all layers.
    fn pass(
        &mut self,
        ids: &[u32],
        tree: Option<TreeSlice<'_>>,
        cache: &mut KvCache,
        pass: &mut Pass,
    ) -> Result<Tensor<2>> {
        if let Some(reader) = &self.reader {
            reader.source().check()?;
        }
        let (reader, resident) = (&mut self.reader, self.plan.resident_blocks);
        let (layout, device) = (&self.layout, &self.device);
        // The block's buffer goes back to be filled again when its layer is dropped.
        let turn = |index: usize, layer| match reader {
            Some(reader) if index >= resident => {
                let start = Instant::now();
                let bytes = reader.block(index)?;
                pass.waited += start.elapsed();
                let block = &layout.blocks[index];
                Ok(Cow::Owned(weights::filled(layer, block, &bytes, device)))
            }
            _ => Ok(Cow::Borrowed(layer)),
        };
        let ids = [ids.to_vec()];
        let hidden = self.shell.hidden_through(&ids, tree, Some(cache), turn)?;
        Ok(hidden.flatten(0, 1))
    }
}

impl LanguageModel for StreamedDecoder {
    fn decoder(&self) -> &Decoder {
        &self.shell
    }

    /// # Errors
    /// As the decoder in memory; [`Error::Offload`] when the block file is not what it was. The cache is then as it was
    /// before, and every later call that needs the file fails too.
    fn hidden(
        &mut self,
        ids: &[u32],
        tree: Option<TreeSlice<'_>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>> {
        let (past, start) = (cache.length(), Instant::now());
        let mut pass = Pass::default();
        let outcome = self.pass(ids, tree, cache, &mut pass);
        match outcome {
            Ok(_) => {
                self.counts.passes += 1;
                self.counts.tokens += ids.len() as u64;
                self.counts.waited += pass.waited;
                self.counts.computed += start.elapsed().saturating_sub(pass.waited);
            }
            // Some layers have the new tokens already.
            Err(_) => cache.truncate(past),
        }
        outcome
    }

    fn least_seconds(&self) -> Option<f64> {
        let passes = self.counts.passes;
        (passes > 0).then(|| self.counts.waited.as_secs_f64() / passes as f64)
    }
}

/// What stays in memory.
fn plan(
    checkpoint: &Checkpoint,
    layout: &Layout,
    settings: &OffloadSettings,
) -> Result<MemoryPlan> {
    let streamable: u64 = layout.blocks.iter().map(|b| b.tensor_bytes()).sum();
    let frame = checkpoint.memory_bytes(settings.weights);
    let blocks: Vec<u64> = layout.blocks.iter().map(|b| b.length).collect();
    // All blocks are made before those that stay are taken out of the disk's place.
    let in_disks_place = match settings.source {
        OffloadSource::File(_) => 0,
        OffloadSource::Memory => blocks.iter().sum(),
    };
    MemoryPlan::new(
        settings.budget,
        settings.available.map(|a| a.saturating_sub(in_disks_place)),
        frame.saturating_sub(streamable),
        settings.cache_and_activations,
        &blocks,
    )
}
