//! The options of verbs that run a model whose blocks are streamed.

use std::path::PathBuf;

use anyhow::Result;
use cinder::fetch::cache_root;
use cinder::models::checkpoint::Checkpoint;
use cinder::models::decode::LanguageModel;
use cinder::models::decode::offload::{
    OffloadSettings, OffloadSource, OffloadStatistics, StreamedDecoder,
};
use cinder::models::{Decoder, Precision};

use super::context::{Cached, Context, Usage};
use super::format::{bytes, parse_bytes};
use super::memory::{self, Demand, Length};

/// How to run a model that does not fit in memory.
#[derive(clap::Args, Clone, Debug)]
pub struct Offload {
    /// Stream the decoder's blocks in every pass: from FILE, from `memory`, or `auto`
    ///
    /// FILE holds the model's blocks as they are wanted in memory; it is made when it is not there, and read past the system's
    /// cache where the file system allows it. `auto` is such a file in the cache folder. With `memory` this machine's memory
    /// stands for something slower (see `--link-bandwidth`). The text is the same as without.
    #[arg(long, value_name = "FILE|memory|auto")]
    offload: Option<String>,
    /// Take no more memory than this (`500MB`, `1.5GB`, `2GiB`), and keep as many blocks in it as fit [default: keep none]
    ///
    /// Counted are embedding, head, norms, KV cache, activations, two blocks' buffers and the blocks that stay.
    #[arg(long, value_name = "BYTES", requires = "offload", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Slow the reading of blocks down to this many gigabytes (10⁹ bytes) per second; results call it a simulated link
    ///
    /// `bench` measures each of several speeds, with commas between them.
    #[arg(
        long,
        value_name = "GB/S",
        requires = "offload",
        allow_negative_numbers = true,
        value_delimiter = ','
    )]
    link_bandwidth: Vec<f64>,
}

/// A model in memory, or one whose blocks are streamed.
#[allow(clippy::large_enum_variant, reason = "a run has one")]
pub enum Model {
    Resident(Decoder),
    Streamed(StreamedDecoder),
}

impl Model {
    /// What decoding runs.
    pub fn language_model(&mut self) -> &mut dyn LanguageModel {
        match self {
            Model::Resident(decoder) => decoder,
            Model::Streamed(decoder) => decoder,
        }
    }

    /// The same, to look at.
    pub fn as_language_model(&self) -> &dyn LanguageModel {
        match self {
            Model::Resident(decoder) => decoder,
            Model::Streamed(decoder) => decoder,
        }
    }

    /// What was streamed, where something was.
    pub fn statistics(&self) -> Option<OffloadStatistics> {
        match self {
            Model::Resident(_) => None,
            Model::Streamed(decoder) => Some(decoder.statistics()),
        }
    }
}

impl Offload {
    /// Loads the model the way the options ask for.
    ///
    /// # Errors
    /// [`Usage`] for options that can not be meant; those of [`Context::decoder`] or [`StreamedDecoder::new`].
    pub fn model(
        &self,
        context: &Context,
        checkpoint: &Checkpoint,
        weights: Precision,
        cached: Cached,
        length: Length,
    ) -> Result<Model> {
        let Some(mut settings) = self.settings(checkpoint, weights, cached, length)? else {
            let decoder = context.decoder(checkpoint, weights, cached, length)?;
            return Ok(Model::Resident(decoder));
        };
        settings.link_bytes_per_second = match self.rates()?[..] {
            [] => None,
            [rate] => Some(rate),
            _ => {
                return Err(Usage::new(
                    "`--link-bandwidth` has several speeds",
                    "give one; `cinder bench` measures several",
                )
                .into());
            }
        };
        streamed(context, checkpoint, &settings, cached)
    }

    /// Whether blocks are to be streamed.
    pub fn is_asked(&self) -> bool {
        self.offload.is_some()
    }

    /// Speeds of a simulated link, in bytes per second.
    ///
    /// # Errors
    /// [`Usage`] for what is no speed.
    pub fn rates(&self) -> Result<Vec<f64>> {
        let rates: Vec<f64> = self.link_bandwidth.iter().map(|g| g * 1e9).collect();
        if rates.iter().any(|rate| !(rate.is_finite() && *rate > 0.0)) {
            return Err(Usage::new(
                "`--link-bandwidth` must be above 0",
                "give gigabytes per second, such as 0.5",
            )
            .into());
        }
        Ok(rates)
    }

    /// How blocks are streamed, without a simulated link; none where they are not.
    ///
    /// # Errors
    /// [`Usage`] for options that can not be meant.
    pub fn settings(
        &self,
        checkpoint: &Checkpoint,
        weights: Precision,
        cached: Cached,
        length: Length,
    ) -> Result<Option<OffloadSettings>> {
        let Some(place) = &self.offload else {
            return Ok(None);
        };
        if cached.values.is_some() {
            return Err(Usage::new(
                "`--values` is for a model in memory",
                "leave it out: with `--offload` the faster of `rebuilt` and `summed` is taken",
            )
            .into());
        }
        if !StreamedDecoder::PRECISIONS.contains(&weights) {
            return Err(Usage::new(
                format!("blocks can not be streamed in {weights}"),
                "stream them in f32, f16 or bf16 (`--weights`)",
            )
            .into());
        }
        let demand = Demand::of(checkpoint, weights, cached, length);
        Ok(Some(OffloadSettings {
            source: source(place, checkpoint, weights)?,
            weights,
            budget: self.memory,
            available: memory::available_bytes(),
            cache_and_activations: demand.beside_weights(),
            link_bytes_per_second: None,
        }))
    }
}

/// A model that is streamed so.
///
/// # Errors
/// Those of [`StreamedDecoder::new`].
pub fn streamed(
    context: &Context,
    checkpoint: &Checkpoint,
    settings: &OffloadSettings,
    cached: Cached,
) -> Result<Model> {
    let (device, printer) = (&context.device, &context.printer);
    let mut decoder = StreamedDecoder::new(checkpoint, settings, device, printer)?;
    decoder.set_cache_format(cached.format)?;
    Ok(Model::Streamed(decoder))
}

/// What the option's value names.
fn source(place: &str, checkpoint: &Checkpoint, weights: Precision) -> Result<OffloadSource> {
    Ok(match place {
        "" => {
            return Err(Usage::new(
                "`--offload` names no file",
                "give a file, `memory` or `auto`",
            )
            .into());
        }
        "memory" => OffloadSource::Memory,
        "auto" => {
            let folder = cache_root()?.join("offload");
            fs_err::create_dir_all(&folder)?;
            // As many digits as tell models apart; the file itself has all of them.
            let model: String = checkpoint.sha256()?.chars().take(16).collect();
            OffloadSource::File(folder.join(format!("{model}-{weights}.blocks")))
        }
        file => OffloadSource::File(PathBuf::from(file)),
    })
}

/// What streaming came to, in one line.
pub fn summary(statistics: &OffloadStatistics) -> String {
    let memory = &statistics.memory;
    let seconds = statistics.wait_seconds + statistics.compute_seconds;
    let waited = match seconds > 0.0 {
        true => 100.0 * statistics.wait_seconds / seconds,
        false => 0.0,
    };
    format!(
        "{} of {} blocks in memory ({} in all), {} streamed a pass from {}: {}, {}; {waited:.0} % of {seconds:.2} s waited for",
        memory.resident_blocks,
        statistics.blocks,
        bytes(memory.total()),
        bytes(statistics.bytes_per_pass),
        statistics.source,
        statistics.reading,
        statistics.link,
    )
}
