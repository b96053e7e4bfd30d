//! Opening a model: Hugging Face directory, GGUF file or compressed directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use burn::tensor::Device;

use super::companions::gguf_companions;
use super::gguf::GgufSource;
use super::hash::sha256_files;
use super::huggingface::{HuggingFaceSource, is_pickle};
use super::latent::LatentInfo;
use super::load::{EMBEDDING, Frame, HEAD, HEAD_PREFIX, Loader, NORM};
use super::manifest::{MANIFEST_FILE, Manifest};
use super::names::{is_derived, is_pivots, layer_path};
use super::quantized::{QuantizedInfo, is_packed};
use super::source::{TensorInfo, TensorSource};
use super::structure::{ProjectionInfo, Structure};
use crate::cache::CacheFormat;
use crate::config::ModelConfig;
use crate::decoder::{Decoder, DecoderLayer};
use crate::error::{Error, Result};
use crate::ops::LowBit;
use crate::precision::Precision;
use crate::progress::Progress;
use crate::substitute::{SubstituteSettings, substitute_layer};
use crate::tokenizer::Tokenizer;

/// Names of the frame's tensors.
pub(super) const FRAME: [&str; 3] = [EMBEDDING, NORM, HEAD];

/// Whether a tensor belongs to an output head that is stored as codes.
pub(super) fn is_packed_head(name: &str) -> bool {
    let leaf = name
        .strip_prefix(HEAD_PREFIX)
        .and_then(|rest| rest.strip_prefix('.'));
    is_packed(name) && leaf.is_some_and(|leaf| !leaf.contains('.'))
}

/// What kind of thing a model was opened from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    HuggingFace,
    Gguf,
    /// A Hugging Face directory with Cinder's manifest.
    Compressed,
}

impl Format {
    /// Name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Format::HuggingFace => "Hugging Face directory",
            Format::Gguf => "GGUF file",
            Format::Compressed => "Cinder compressed directory",
        }
    }
}

/// A model on disk: its configuration and the means to read its tensors one by one.
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    config: ModelConfig,
    source: Arc<dyn TensorSource>,
    /// Every file whose content makes the model what it is.
    files: Vec<PathBuf>,
    manifest: Option<Manifest>,
    gguf: Option<Arc<GgufSource>>,
    /// Known once it was asked for: hashing a large model takes minutes.
    sha256: OnceLock<String>,
}

impl Checkpoint {
    /// Opens a model without reading any weight.
    ///
    /// # Errors
    /// [`Error::NotAModel`], [`Error::Corrupt`], [`Error::Unsupported`], [`Error::Config`], [`Error::Tensor`] or [`Error::Io`],
    /// each naming the file and the reason.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = fs_err::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NotAModel {
                path: path.into(),
                why: "there is no such file or directory".into(),
                hint: "give a Hugging Face directory, a `.gguf` file, a compressed directory, or a fetched name such as `smollm2`".into(),
            },
            _ => Error::Io(e),
        })?;
        let checkpoint = if metadata.is_dir() {
            Self::open_directory(path)?
        } else if is_pickle(path) {
            return Err(super::refuse_pickle(path));
        } else {
            Self::open_gguf(path)?
        };
        checkpoint.check_names()?;
        let path = &checkpoint.path;
        let wrong = |(name, why)| Error::Tensor {
            path: path.clone(),
            name,
            why,
        };
        checkpoint.structure().check().map_err(wrong)?;
        let format = checkpoint.cache_format();
        checkpoint.check_cache_format(format)?;
        checkpoint.check_residual_window(checkpoint.residual_window(), format)?;
        Ok(checkpoint)
    }

    fn open_directory(path: &Path) -> Result<Self> {
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            return Err(Error::NotAModel {
                path: path.into(),
                why: "it has no `config.json`".into(),
                hint: "give a Hugging Face directory with `config.json` and safetensors weights, or a `.gguf` file".into(),
            });
        }
        let source = HuggingFaceSource::open(path)?;
        let config = ModelConfig::from_json(&fs_err::read_to_string(&config_path)?, &config_path)?;
        let manifest = Manifest::read(path)?;
        let mut files = source.paths().to_vec();
        files.push(config_path);
        let tokenizer = path.join("tokenizer.json");
        if tokenizer.is_file() {
            files.push(tokenizer);
        }
        Ok(Checkpoint {
            path: path.into(),
            format: match manifest {
                Some(_) => Format::Compressed,
                None => Format::HuggingFace,
            },
            config,
            source: Arc::new(source),
            files,
            manifest,
            gguf: None,
            sha256: OnceLock::new(),
        })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let gguf = Arc::new(GgufSource::open(path)?);
        Ok(Checkpoint {
            path: path.into(),
            format: Format::Gguf,
            config: gguf.config().clone(),
            source: gguf.clone(),
            files: vec![path.into()],
            manifest: None,
            gguf: Some(gguf),
            sha256: OnceLock::new(),
        })
    }

    /// A tensor we have no place for would silently change what the model computes.
    fn check_names(&self) -> Result<()> {
        for name in self.source.names() {
            let known = is_derived(&name)
                || FRAME.contains(&name.as_str())
                || is_packed_head(&name)
                || layer_of(&name).is_some_and(|(layer, rest)| {
                    layer < self.config.layers && layer_path(rest).is_some()
                });
            if !known {
                return Err(Error::Unsupported {
                    path: self.path.clone(),
                    what: format!(
                        "a {}-layer {} decoder has no place for tensor `{name}`",
                        self.config.layers, self.config.family.name
                    ),
                    hint: "only plain decoder-only checkpoints are read".into(),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn structure(&self) -> Structure<'_> {
        Structure {
            source: &*self.source,
            config: &self.config,
            pruned: self.manifest.is_some(),
            cached_basis: (self.manifest.as_ref()).is_some_and(|m| m.caches_shared_basis),
        }
    }

    /// The output head where it is stored as codes of its own, beside the embedding or in the place of a head.
    pub(crate) fn head_codes(&self) -> Option<QuantizedInfo> {
        QuantizedInfo::find(&*self.source, HEAD_PREFIX, self.config.hidden_size)
    }

    /// Bits, group and bytes of the output head where it is stored as low-bit codes; none where it is not.
    pub fn coded_head(&self) -> Option<(LowBit, u64)> {
        self.head_codes().map(|codes| (codes.format, codes.bytes))
    }

    /// Where the model is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A short name: the file's or directory's.
    pub fn name(&self) -> String {
        let full = self
            .path
            .canonicalize()
            .unwrap_or_else(|_| self.path.clone());
        full.file_name().map_or_else(
            || full.display().to_string(),
            |n| n.to_string_lossy().into_owned(),
        )
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The manifest of a compressed directory.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// How the KV cache stores what it keeps: what the manifest declares, else f32.
    pub fn cache_format(&self) -> CacheFormat {
        let declared = self.manifest.as_ref().and_then(|m| m.cache_format);
        declared.unwrap_or_default()
    }

    /// Checks that this model can be cached so.
    ///
    /// # Errors
    /// [`Error::CacheFormat`] for a packed format where a layer has no latents.
    pub fn check_cache_format(&self, format: CacheFormat) -> Result<()> {
        format.check(self.latents().map(|latent| latent.is_some()))
    }

    /// Tokens of the KV cache's residual window: what the manifest declares, else none.
    pub fn residual_window(&self) -> usize {
        let manifest = self.manifest.as_ref();
        manifest.map_or(0, |manifest| manifest.residual_window)
    }

    /// Checks that a cache of this format can have a residual window of `tokens`.
    ///
    /// # Errors
    /// [`Error::ResidualWindow`] where the format is not packed, unless `tokens` is 0.
    pub fn check_residual_window(&self, tokens: usize, format: CacheFormat) -> Result<()> {
        format.check_window(tokens)
    }

    /// Bytes that a residual window of `tokens` takes in all layers, whatever the length of the context: f16 latents of the
    /// window and 255 tokens more, in whole panels of 16. While a prompt is read, its tokens come on top.
    pub fn residual_window_bytes(&self, tokens: usize) -> u64 {
        let layers = self.latents().flatten();
        let layers = layers.map(|latent| CacheFormat::residual_bytes(tokens, &latent.ranks()));
        layers.fold(0, u64::saturating_add)
    }

    /// Bytes that one token takes in the KV cache: keys and values, or the latents they are rebuilt from with their scales
    /// and minimums.
    pub fn kv_bytes_per_token(&self, format: CacheFormat) -> u64 {
        let layer = |latent: Option<LatentInfo>| match latent {
            Some(latent) => format.latent_bytes(&latent.ranks()),
            None => {
                let numbers = 2 * self.config.kv_heads * self.config.head_dim;
                (numbers * format.bits() / 8) as u64
            }
        };
        self.latents().map(layer).sum()
    }

    /// Numbers that one token takes in each layer's cache: latent values, or those of keys and values.
    pub fn kv_numbers_per_token(&self) -> Vec<usize> {
        let dense = 2 * self.config.kv_heads * self.config.head_dim;
        self.latents()
            .map(|latent| latent.map_or(dense, |l| l.rank))
            .collect()
    }

    /// Whether any keys and values are rebuilt from latents.
    pub fn has_latents(&self) -> bool {
        self.latents().any(|latent| latent.is_some())
    }

    /// The latents of each layer, where it has them.
    fn latents(&self) -> impl Iterator<Item = Option<LatentInfo>> {
        (0..self.config.layers).map(|layer| self.structure().latent(layer))
    }

    /// The tensors, by Hugging Face names.
    pub fn source(&self) -> &Arc<dyn TensorSource> {
        &self.source
    }

    /// SHA-256 over the files that make the model: weights, configuration, tokenizer.
    pub fn sha256(&self) -> Result<String> {
        if let Some(known) = self.sha256.get() {
            return Ok(known.clone());
        }
        let sha256 = sha256_files(&self.files)?;
        Ok(self.sha256.get_or_init(|| sha256).clone())
    }

    /// The model's own tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when there is none, or it can not be built.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        if let Some(gguf) = &self.gguf {
            return Tokenizer::from_gguf(gguf.metadata(), &self.path);
        }
        let file = self.path.join("tokenizer.json");
        if !file.is_file() {
            return Err(Error::Tokenizer {
                path: self.path.clone(),
                why: "`tokenizer.json` is missing".into(),
            });
        }
        Ok(Tokenizer::from_file(&file)?.with_eos_ids(self.eos_ids()))
    }

    /// End-of-text ids of a Hugging Face directory: `generation_config.json`, else `config.json`.
    fn eos_ids(&self) -> Vec<u32> {
        let generation: serde_json::Value =
            fs_err::read_to_string(self.path.join("generation_config.json"))
                .ok()
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default();
        let ids = match &generation["eos_token_id"] {
            serde_json::Value::Null => self.config.source.get("eos_token_id").cloned(),
            ids => Some(ids.clone()),
        };
        let id = |v: &serde_json::Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        match ids {
            Some(serde_json::Value::Array(list)) => list.iter().filter_map(id).collect(),
            Some(one) => id(&one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The tensors the model reads.
    pub fn tensors(&self) -> Vec<(String, TensorInfo)> {
        self.source
            .names()
            .into_iter()
            .filter(|n| self.is_used(n))
            .filter_map(|n| self.source.info(&n).map(|i| (n, i)))
            .collect()
    }

    /// Whether the model reads this tensor: not what follows from the configuration, nor a copy of a tied head.
    fn is_used(&self, name: &str) -> bool {
        let tied_head = name == HEAD && self.config.tied_embeddings;
        !(is_derived(name) || tied_head)
    }

    /// All parameters, tied ones once, even where their head is stored as codes beside them. Pivots are indices, not
    /// parameters; of codes, what they stand for counts.
    pub fn parameters(&self) -> u64 {
        let count = |i: &TensorInfo| i.shape.iter().product::<usize>() as u64;
        let tensors = self.tensors();
        let weights = tensors
            .iter()
            .filter(|(name, _)| !(is_pivots(name) || is_packed(name)));
        let projections = self.projections().into_iter();
        let quantized = projections.filter(|p| p.quantized.is_some());
        let head = match self.head_codes() {
            Some(_) if !self.config.tied_embeddings => {
                self.config.vocab_size as u64 * self.config.hidden_size as u64
            }
            _ => 0,
        };
        let quantized = quantized.map(|p| p.scalars).sum::<u64>();
        weights.map(|(_, i)| count(i)).sum::<u64>() + quantized + head
    }

    /// The stored types, the one with most bytes first, such as `Q4_1+Q8_0+F32`.
    pub fn stored_as(&self) -> String {
        let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
        for (_, info) in self.tensors() {
            *bytes.entry(info.dtype).or_default() += info.bytes;
        }
        let mut types: Vec<_> = bytes.into_iter().collect();
        types.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        let names: Vec<_> = types.into_iter().map(|(name, _)| name).collect();
        names.join("+")
    }

    /// The stored form of every projection, layer by layer.
    pub fn projections(&self) -> Vec<ProjectionInfo> {
        self.structure().projections()
    }

    /// Loads the embedding, the last norm and the head.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that is missing, of another shape or has no place in the model; those of reading.
    pub fn load_frame(&self, precision: Precision, device: &Device) -> Result<Frame> {
        Loader::new(self, precision, device).frame()
    }

    /// Loads one layer.
    ///
    /// # Errors
    /// As [`Checkpoint::load_frame`].
    pub fn load_layer(
        &self,
        layer: usize,
        precision: Precision,
        device: &Device,
    ) -> Result<DecoderLayer> {
        Loader::new(self, precision, device).layer(layer)
    }

    /// A layer without its matrices, which are zeros that take no memory; norms, biases and pivots are read. Not for codes in
    /// blocks.
    ///
    /// # Errors
    /// As [`Checkpoint::load_frame`].
    pub(crate) fn hollow_layer(
        &self,
        layer: usize,
        precision: Precision,
        device: &Device,
    ) -> Result<DecoderLayer> {
        Loader::new(self, precision, device).hollow().layer(layer)
    }

    /// Loads the whole model. Memory peaks at the model and one tensor; what the file stores in this precision already
    /// is mapped instead of read, and takes no memory of its own (unless it lies at an odd address, or its rows have to
    /// change places, as those of queries and keys in some GGUF files).
    ///
    /// # Errors
    /// As [`Checkpoint::load_frame`].
    pub fn load(
        &self,
        precision: Precision,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<Decoder> {
        self.load_as(precision, device, progress, "loading", Ok)
    }

    /// A low-bit copy of the whole model ([`substitute`](crate::substitute())), made layer by layer: memory peaks at the copy and
    /// one layer. What is shared with the model in memory is loaded in `precision`.
    ///
    /// # Errors
    /// As [`Checkpoint::load_frame`] and [`substitute`](crate::substitute()).
    pub fn load_substitute(
        &self,
        settings: &SubstituteSettings,
        precision: Precision,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<Decoder> {
        let mut copy = self.load_as(precision, device, progress, "making the draft", |layer| {
            substitute_layer(&layer, settings)
        })?;
        copy.take_head(settings)?;
        Ok(copy)
    }

    /// The model with each layer turned into another as soon as it is loaded.
    fn load_as(
        &self,
        precision: Precision,
        device: &Device,
        progress: &dyn Progress,
        what: &str,
        turn: impl Fn(DecoderLayer) -> Result<DecoderLayer>,
    ) -> Result<Decoder> {
        progress.start(what, self.config.layers as u64);
        let frame = self.load_frame(precision, device)?;
        let layers = (0..self.config.layers)
            .map(|layer| {
                let loaded = turn(self.load_layer(layer, precision, device)?)?;
                progress.advance(1);
                Ok(loaded)
            })
            .collect::<Result<_>>()?;
        progress.finish();
        Ok(Decoder::new(
            &self.config,
            frame.embedding,
            layers,
            frame.norm,
            frame.lm_head,
        ))
    }

    /// Files other than weights that an output directory carries along: `(name, content)`.
    ///
    /// A Hugging Face directory's own files are copied; from a GGUF file a `tokenizer.json` and its
    /// configuration are made.
    pub fn companions(&self) -> Result<Vec<(String, Vec<u8>)>> {
        if let Some(gguf) = &self.gguf {
            return gguf_companions(gguf.metadata(), &self.tokenizer()?);
        }
        let kept = |name: &str| {
            let text =
                name.ends_with(".json") || name.ends_with(".txt") || name.ends_with(".jinja");
            let ours =
                name == "config.json" || name == MANIFEST_FILE || name.ends_with(".index.json");
            (text && !ours) || name == "tokenizer.model"
        };
        let mut files = Vec::new();
        for entry in fs_err::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if kept(&name) && entry.path().is_file() {
                files.push((name, fs_err::read(entry.path())?));
            }
        }
        files.sort();
        Ok(files)
    }
}

/// Splits `model.layers.N.rest` into `(N, rest)`.
fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (index, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((index.parse().ok()?, rest))
}
