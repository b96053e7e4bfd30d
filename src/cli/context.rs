//! What every verb shares: the device, the printer, and opening things by name.

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::tensor::Device;
use cinder::eval::{Corpus, CorpusFormat, Half, ModelIdentity, boolq};
use cinder::fetch::{self, Fetcher};
use cinder::models::cache::CacheFormat;
use cinder::models::checkpoint::Checkpoint;
use cinder::models::ops::ValueForm;
use cinder::models::{Decoder, Error, Hint, Precision, SubstituteSettings};

use super::Global;
use super::memory::{self, Demand, Length};
use crate::printer::Printer;

/// A command line that can not be carried out as it is written; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Usage {
    what: String,
    hint: String,
}

impl Usage {
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Usage {
            what: what.into(),
            hint: hint.into(),
        }
    }
}

impl Hint for Usage {
    fn hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }
}

/// Data that `cinder fetch eval-tasks` brings and that is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotFetched(String);

impl Hint for NotFetched {
    fn hint(&self) -> Option<String> {
        Some("run `cinder fetch eval-tasks` first".into())
    }
}

/// The option of every verb that loads a model.
#[derive(clap::Args, Clone, Copy)]
pub struct Weights {
    /// Keep the weights in memory as f32, f16, bf16, q8 (8 bits), q4 or q4min (4 bits; with a minimum for each block)
    ///
    /// Norms, biases and activations stay f32, but bf16 rounds what enters a product to bf16, and the block formats round
    /// it to 16 bits in blocks of 32. The 4-bit formats keep the embedding and the head at 8 bits.
    #[arg(long, value_name = "PRECISION", default_value_t = Precision::F32)]
    pub weights: Precision,
}

/// The option of every verb that runs a model, whose attention reads a KV cache.
#[derive(clap::Args, Clone, Copy)]
pub struct Cache {
    /// Keep the KV cache as f32, f16, q8, q4, q3 or q2 [default: what the model declares, else f32]
    ///
    /// f16 halves it and costs next to no quality. The q formats are for models that cache latents: a code of that many bits
    /// for each latent number, and a scale and a minimum for each token and group of heads. Perplexity is measured through
    /// the format too.
    #[arg(long, value_name = "FORMAT")]
    cache: Option<CacheFormat>,
    /// Keep the last N tokens of a packed cache (q8 to q2) as f16 too [default: what the model declares, else 0]
    ///
    /// Queries read their last N tokens, and up to 255 more, as f16 in place of the codes. That takes f16 latents of N + 255
    /// tokens (in whole sixteens) for each sequence, however long it gets; those of a prompt too, until its first new token.
    #[arg(long, value_name = "N")]
    residual_window: Option<usize>,
    /// How attention over latents sums values: `rebuilt` first, or as latents: `summed` and expanded, or `folded` [default: the fastest]
    ///
    /// Folded, the output projections read summed latents, of as many numbers for each head as its latent has; that is done unasked
    /// for latents of half a head's width and less, where weights are f32. The results differ by rounding alone.
    #[arg(long, value_name = "FORM")]
    values: Option<Values>,
}

impl Cache {
    /// What is asked for, else what the model declares.
    ///
    /// # Errors
    /// [`Usage`] for a format that this model's cache can not have, and a window that the format can not have.
    pub fn of(self, checkpoint: &Checkpoint) -> Result<Cached> {
        let usage = |error: Error| {
            let hint = error.hint().unwrap_or_default();
            Usage::new(error.to_string(), hint)
        };
        let mut cached = Cached::declared(checkpoint);
        if let Some(format) = self.cache {
            checkpoint.check_cache_format(format).map_err(usage)?;
            cached.format = format;
            if !format.is_packed() {
                cached.residual_window = 0;
            }
        }
        if let Some(tokens) = self.residual_window {
            let checked = checkpoint.check_residual_window(tokens, cached.format);
            checked.map_err(usage)?;
            cached.residual_window = tokens;
        }
        cached.values = self.values;
        Ok(cached)
    }
}

/// What attention over latents sums, and what expands it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    Form(ValueForm),
    /// Latents, which the output projections expand.
    Folded,
}

impl std::str::FromStr for Values {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "folded" {
            return Ok(Values::Folded);
        }
        let form = text.parse().map(Values::Form);
        form.map_err(|_| format!("values are `rebuilt`, `summed` or `folded`, not `{text}`"))
    }
}

/// How a run caches.
#[derive(Debug, Clone, Copy)]
pub struct Cached {
    pub format: CacheFormat,
    /// Tokens; 0 for none.
    pub residual_window: usize,
    /// How attention over latents sums values; none for the fastest way.
    pub values: Option<Values>,
}

impl Cached {
    /// What the model declares.
    pub fn declared(checkpoint: &Checkpoint) -> Self {
        Cached {
            format: checkpoint.cache_format(),
            residual_window: checkpoint.residual_window(),
            values: None,
        }
    }

    /// This format, with the window that the model declares where the format can have one.
    ///
    /// # Errors
    /// [`Usage`] for a format that this model's cache can not have.
    pub fn through(checkpoint: &Checkpoint, format: CacheFormat) -> Result<Self> {
        let cache = Cache {
            cache: Some(format),
            residual_window: None,
            values: None,
        };
        cache.of(checkpoint)
    }

    /// Bytes that its residual window takes, apart from those of each token.
    pub fn window_bytes(self, checkpoint: &Checkpoint) -> u64 {
        checkpoint.residual_window_bytes(self.residual_window)
    }
}

/// Shared by all verbs of one run.
pub struct Context {
    pub printer: Printer,
    pub device: Device,
    /// Such as `cpu (2 threads)`.
    pub device_name: String,
    pub threads: usize,
    pub seed: Option<u64>,
}

impl Context {
    pub fn new(global: &Global, printer: Printer) -> Result<Self> {
        let threads = match global.threads {
            Some(0) => {
                return Err(Usage::new("`--threads` is 0", "give at least one thread").into());
            }
            Some(n) => n,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()?;
        let device = device(&global.device)?;
        let device_name = match global.device.as_str() {
            "cpu" => format!("cpu ({threads} threads)"),
            other => other.to_owned(),
        };
        Ok(Context {
            printer,
            device,
            device_name,
            threads,
            seed: global.seed,
        })
    }

    /// Opens a model by path or fetched name.
    pub fn open(&self, model: &str) -> Result<Checkpoint> {
        Ok(Checkpoint::open(&cinder::fetch::resolve_model(model)?)?)
    }

    /// Loads all of a model, after a look at whether it and its cache fit in memory.
    ///
    /// # Errors
    /// [`DoesNotFit`](super::memory::DoesNotFit), and those of loading.
    pub fn decoder(
        &self,
        checkpoint: &Checkpoint,
        precision: Precision,
        cached: Cached,
        length: Length,
    ) -> Result<Decoder> {
        Demand::of(checkpoint, precision, cached, length).check(memory::available_bytes())?;
        let mut decoder = checkpoint.load(precision, &self.device, &self.printer)?;
        decoder.set_cache_format(cached.format)?;
        decoder.set_residual_window(cached.residual_window)?;
        match cached.values {
            None => drop(decoder.fold_values_where_it_pays()?),
            Some(Values::Folded) => decoder.fold_values()?,
            Some(Values::Form(form)) => decoder.set_value_form(Some(form)),
        }
        Ok(decoder)
    }

    /// Makes a low-bit copy of a model, with the model's own kind of cache, after a look at whether it fits in memory.
    ///
    /// # Errors
    /// [`DoesNotFit`](super::memory::DoesNotFit), and those of loading.
    pub fn substitute(
        &self,
        checkpoint: &Checkpoint,
        settings: &SubstituteSettings,
        cached: Cached,
        length: Length,
    ) -> Result<Decoder> {
        // Codes of more than 4 bits take no more than those of q8, and others no more than those of q4min.
        let wide = settings.format.bits() > 4;
        let size = if wide {
            Precision::Q8
        } else {
            Precision::Q4Min
        };
        Demand::of(checkpoint, size, cached, length).check(memory::available_bytes())?;
        let (device, printer) = (&self.device, &self.printer);
        let mut decoder = checkpoint.load_substitute(settings, Precision::F32, device, printer)?;
        decoder.set_cache_format(cached.format)?;
        decoder.set_residual_window(cached.residual_window)?;
        Ok(decoder)
    }

    /// Reads a text by path, or a half of BoolQ's passages by name.
    pub fn corpus(&self, text: &str) -> Result<Corpus> {
        let half = match text {
            "boolq:calibration" => Half::Calibration,
            "boolq:evaluation" => Half::Evaluation,
            path => return Ok(Corpus::read(Path::new(path), &CorpusFormat::Auto)?),
        };
        Ok(boolq(&evaluation_data(&format!("`{text}` is"))?, half)?)
    }
}

/// The folder that `cinder fetch eval-tasks` fills; `what` is looked for in it.
///
/// # Errors
/// [`NotFetched`].
pub fn evaluation_data(what: &str) -> Result<PathBuf> {
    let item = fetch::find("eval-tasks")?;
    let missing = || {
        NotFetched(format!(
            "{what} in the evaluation data, which is not fetched yet"
        ))
    };
    Ok(Fetcher::new()?.cached(item).ok_or_else(missing)?.path)
}

fn device(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::flex());
    }
    let index = match name.split_once(':') {
        None if name == "cuda" => Some(0),
        Some(("cuda", index)) => index.parse::<usize>().ok(),
        _ => None,
    };
    match index {
        None => Err(Usage::new(
            format!("there is no device `{name}`"),
            "the devices are `cpu` and `cuda[:N]`",
        )
        .into()),
        Some(index) => cuda(index),
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Device> {
    Err(Usage::new(
        "this build has no CUDA",
        "build with `cargo build --release --features cuda` (the README says what that needs)",
    )
    .into())
}

/// What an evaluation records of a model.
pub fn identity(
    checkpoint: &Checkpoint,
    precision: Precision,
    given: &str,
    name: Option<String>,
) -> Result<ModelIdentity> {
    let recipe = checkpoint.manifest().map(|m| &m.recipe["name"]);
    let recipe = recipe.and_then(|r| r.as_str()).map(str::to_owned);
    let scalars: u64 = checkpoint.projections().iter().map(|p| p.scalars).sum();
    let dense = checkpoint.config().dense_projection_scalars();
    let keep_ratio = scalars as f64 / dense as f64;
    let default_name = match &recipe {
        Some(recipe) => format!("{recipe} {keep_ratio:.2}"),
        None => given_name(given),
    };
    Ok(ModelIdentity {
        name: name.unwrap_or(default_name),
        path: given.into(),
        sha256: checkpoint.sha256()?,
        stored_as: checkpoint.stored_as(),
        parameters: checkpoint.parameters(),
        decoder_projection_scalars: scalars,
        keep_ratio,
        bytes: checkpoint.memory_bytes(precision),
        recipe,
    })
}

/// The last part of a path, without `.gguf`; other dots belong to the name.
fn given_name(given: &str) -> String {
    let name = Path::new(given).file_name().map(|n| n.to_string_lossy());
    let name = name.as_deref().unwrap_or(given);
    name.strip_suffix(".gguf").unwrap_or(name).to_owned()
}

/// The command line as the user typed it, for records.
pub fn command_line() -> String {
    let quote = |arg: String| match arg.contains(char::is_whitespace) {
        true => format!("'{arg}'"),
        false => arg,
    };
    let arguments = std::env::args_os()
        .skip(1)
        .map(|arg| quote(arg.to_string_lossy().into_owned()));
    let words: Vec<String> = std::iter::once("cinder".to_owned())
        .chain(arguments)
        .collect();
    words.join(" ")
}
