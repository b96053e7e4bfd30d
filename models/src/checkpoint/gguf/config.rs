//! [`ModelConfig`] from GGUF metadata, with a Hugging Face `config.json` made to match.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use crate::config::{FAMILIES, Family, ModelConfig, RopeScaling};
use crate::error::{Error, Result};

// Far beyond any model, near enough to keep every product of two in range and every table small.
const MAX_LAYERS: u64 = 1 << 12;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_HEADS: u64 = 1 << 12;
const MAX_HEAD_DIM: u64 = 1 << 12;
const MAX_VOCABULARY: u64 = 1 << 24;
const MAX_CONTEXT: u64 = 1 << 30;

/// What Cinder's families are called when a file has another architecture.
const ARCHITECTURE_HINT: &str =
    "Cinder reads Llama-style decoders: llama (with SmolLM2, Mistral), qwen2, qwen3";

/// Builds the configuration. `tensors` are the Hugging Face names in the file (their presence says what is tied
/// and what has biases), `embedding_rows` the rows of the embedding, `divisors` the `rope_freqs.weight` tensor.
pub(super) fn model_config(
    metadata: &Metadata,
    tensors: &HashSet<&str>,
    embedding_rows: usize,
    divisors: Option<Vec<f32>>,
) -> Result<ModelConfig> {
    let family = family(metadata)?;
    let read = Reader { metadata, family };
    let layers = read.count("block_count", MAX_LAYERS)?;
    let hidden_size = read.count("embedding_length", MAX_WIDTH)?;
    let heads = read.count("attention.head_count", MAX_HEADS)?;
    let kv_heads = read
        .optional_count("attention.head_count_kv", MAX_HEADS)?
        .unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(metadata.error(format!(
            "{heads} attention heads do not divide among {kv_heads} key/value heads"
        )));
    }
    let head_dim = match read.optional_count("attention.key_length", MAX_HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(metadata.error(format!(
                "width {hidden_size} does not divide among {heads} heads and no head width is given"
            )));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(metadata.error(format!(
            "head width {head_dim} is odd: rotary pairs need it even"
        )));
    }
    read.refuse_unsupported(head_dim)?;

    let context = read.count("context_length", MAX_CONTEXT)?;
    // Full attention beyond a sliding window is not what the model was trained with.
    let max_context = read
        .metadata
        .unsigned(&read.key("attention.sliding_window"))?
        .and_then(|window| usize::try_from(window).ok())
        .filter(|window| *window > 0)
        .map_or(context, |window| context.min(window));

    let rms_norm_eps = read
        .metadata
        .required_float(&read.key("attention.layer_norm_rms_epsilon"))?;
    if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
        return Err(metadata.error(format!("RMS norm epsilon {rms_norm_eps} is not in (0, 1)")));
    }
    let rope_theta = metadata
        .float(&read.key("rope.freq_base"))?
        .unwrap_or(10_000.0);
    if !(rope_theta.is_finite() && rope_theta >= 1.0) {
        return Err(metadata.error(format!("rotary base {rope_theta} is not a number from 1")));
    }

    let presence = Presence {
        metadata,
        tensors,
        layers,
    };
    let qkv_bias = presence.all_or_none(&[
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
    ])?;
    let output_bias = presence.all_or_none(&["self_attn.o_proj.bias"])?;
    let feed_forward_bias = presence.all_or_none(&[
        "mlp.gate_proj.bias",
        "mlp.up_proj.bias",
        "mlp.down_proj.bias",
    ])?;
    let qk_norm = presence.all_or_none(&["self_attn.q_norm.weight", "self_attn.k_norm.weight"])?;

    let mut config = ModelConfig {
        family,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: read.count("feed_forward_length", MAX_WIDTH)?,
        vocab_size: read.vocabulary(embedding_rows)?,
        max_context,
        rms_norm_eps: shortest(rms_norm_eps),
        rope_theta: shortest(rope_theta),
        rope_scaling: read.rope_scaling(divisors, head_dim)?,
        tied_embeddings: !tensors.contains("lm_head.weight"),
        qkv_bias,
        output_bias,
        feed_forward_bias,
        qk_norm,
        source: Map::new(),
    };
    config.check(metadata.path())?;
    config.source = hugging_face(&config, metadata)?;
    check_expressible(&config, metadata)?;
    Ok(config)
}

/// What is written from this file must be readable again: the Hugging Face configuration has to say the same model.
fn check_expressible(config: &ModelConfig, metadata: &Metadata) -> Result<()> {
    let text = Value::Object(config.source.clone()).to_string();
    let again = ModelConfig::from_json(&text, metadata.path())?;
    let options = |c: &ModelConfig| (c.qkv_bias, c.output_bias, c.feed_forward_bias, c.qk_norm);
    if options(&again) == options(config) {
        return Ok(());
    }
    Err(Error::Unsupported {
        path: metadata.path().into(),
        what: format!(
            "{} with this combination of biases and query/key norms",
            config.family.name
        ),
        hint: "Hugging Face's configuration of this family can not express it".into(),
    })
}

/// GGUF keeps these as f32, Hugging Face as decimal text: the shortest decimal of the f32 is the number that was
/// converted (1e-5, not 9.999999747378752e-6).
fn shortest(value: f64) -> f64 {
    let narrow = value as f32;
    if f64::from(narrow) == value {
        narrow.to_string().parse().unwrap_or(value)
    } else {
        value
    }
}

fn family(metadata: &Metadata) -> Result<&'static Family> {
    let key = "general.architecture";
    let name = metadata.required(key, metadata.string(key)?)?;
    FAMILIES
        .iter()
        .find(|family| family.gguf == name)
        .ok_or_else(|| Error::Unsupported {
            path: metadata.path().to_owned(),
            what: format!("architecture `{name}`"),
            hint: ARCHITECTURE_HINT.into(),
        })
}

impl Metadata {
    fn required_float(&self, key: &str) -> Result<f64> {
        self.required(key, self.float(key)?)
    }
}

/// Getters for keys under the architecture's name.
struct Reader<'a> {
    metadata: &'a Metadata,
    family: &'static Family,
}

impl Reader<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.family.gguf)
    }

    fn optional_count(&self, suffix: &str, cap: u64) -> Result<Option<usize>> {
        let key = self.key(suffix);
        self.metadata
            .uniform(&key)?
            .map(|value| {
                usize::try_from(value)
                    .ok()
                    .filter(|_| (1..=cap).contains(&value))
                    .ok_or_else(|| {
                        self.metadata
                            .error(format!("metadata `{key}` = {value}, expected 1 to {cap}"))
                    })
            })
            .transpose()
    }

    fn count(&self, suffix: &str, cap: u64) -> Result<usize> {
        let value = self.optional_count(suffix, cap)?;
        self.metadata.required(&self.key(suffix), value)
    }

    /// What the file says of its vocabulary, which must be what the embedding has room for.
    fn vocabulary(&self, embedding_rows: usize) -> Result<usize> {
        let declared = self.optional_count("vocab_size", MAX_VOCABULARY)?;
        let tokens = self
            .metadata
            .strings("tokenizer.ggml.tokens")?
            .map(<[String]>::len);
        let size = declared.or(tokens).unwrap_or(embedding_rows);
        if size != embedding_rows || size == 0 {
            return Err(Error::Tensor {
                path: self.metadata.path().to_owned(),
                name: "token_embd.weight".into(),
                why: format!("has {embedding_rows} rows for a vocabulary of {size}"),
            });
        }
        Ok(size)
    }

    /// Refuses what would be computed wrongly rather than not at all.
    fn refuse_unsupported(&self, head_dim: usize) -> Result<()> {
        let refuse = |what: String, hint: &str| {
            Err(Error::Unsupported {
                path: self.metadata.path().to_owned(),
                what,
                hint: hint.into(),
            })
        };
        if self
            .metadata
            .unsigned(&self.key("expert_count"))?
            .is_some_and(|experts| experts > 0)
        {
            return refuse("it is a mixture of experts".into(), ARCHITECTURE_HINT);
        }
        if let Some(count) = self.metadata.unsigned("split.count")?.filter(|n| *n > 1) {
            return refuse(
                format!("one of {count} pieces of a split model"),
                "join the pieces with llama.cpp's `llama-gguf-split --merge`",
            );
        }
        for suffix in ["attention.value_length", "rope.dimension_count"] {
            let value = self.metadata.uniform(&self.key(suffix))?;
            if value.is_some_and(|value| value != head_dim as u64) {
                return refuse(
                    format!("`{}` is not the head width {head_dim}", self.key(suffix)),
                    "Cinder reads decoders whose keys, values and rotary embedding have one width",
                );
            }
        }
        let attention_factor = self.metadata.float(&self.key("rope.scaling.attn_factor"))?;
        if attention_factor.is_some_and(|factor| factor != 1.0) {
            return refuse(
                format!("`{}` is not 1", self.key("rope.scaling.attn_factor")),
                "Cinder reads unscaled, linear and Llama 3 rotary embeddings",
            );
        }
        Ok(())
    }

    fn rope_scaling(&self, divisors: Option<Vec<f32>>, head_dim: usize) -> Result<RopeScaling> {
        let kind = self
            .metadata
            .string(&self.key("rope.scaling.type"))?
            // As llama.cpp reads a factor without a type.
            .unwrap_or("linear");
        let factor = match self.metadata.float(&self.key("rope.scaling.factor"))? {
            Some(factor) => Some(factor),
            // The key before scaling had types.
            None => self.metadata.float(&self.key("rope.scale_linear"))?,
        };
        let linear = match (kind, factor) {
            ("none", _) | ("linear", None) => None,
            ("linear", Some(factor)) if factor.is_finite() && factor >= 1.0 => {
                Some(factor).filter(|factor| *factor != 1.0)
            }
            ("linear", Some(factor)) => {
                return Err(self.metadata.error(format!(
                    "rotary scaling factor {factor}, expected a number from 1"
                )));
            }
            _ => {
                return Err(Error::Unsupported {
                    path: self.metadata.path().to_owned(),
                    what: format!("rotary scaling `{kind}`"),
                    hint: "Cinder reads unscaled, linear and Llama 3 rotary embeddings".into(),
                });
            }
        };
        match (linear, divisors) {
            (None, None) => Ok(RopeScaling::None),
            (Some(factor), None) => Ok(RopeScaling::Linear { factor }),
            (Some(_), Some(_)) => Err(Error::Unsupported {
                path: self.metadata.path().to_owned(),
                what: "linear rotary scaling together with `rope_freqs.weight`".into(),
                hint: "Cinder reads one or the other".into(),
            }),
            (None, Some(divisors)) => self.divisors(divisors, head_dim),
        }
    }

    fn divisors(&self, divisors: Vec<f32>, head_dim: usize) -> Result<RopeScaling> {
        let error = |why: String| Error::Tensor {
            path: self.metadata.path().to_owned(),
            name: "rope_freqs.weight".into(),
            why,
        };
        if divisors.len() != head_dim / 2 {
            return Err(error(format!(
                "has {} values for {} rotary frequencies",
                divisors.len(),
                head_dim / 2
            )));
        }
        if !divisors.iter().all(|d| d.is_finite() && *d > 0.0) {
            return Err(error("has divisors that are not positive".into()));
        }
        let theta = self
            .metadata
            .float(&self.key("rope.freq_base"))?
            .unwrap_or(10_000.0);
        Ok(match llama3_scaling(&divisors, theta) {
            Some(scaling) => scaling,
            None if divisors.iter().all(|d| *d == 1.0) => RopeScaling::None,
            None => RopeScaling::Divisors(divisors),
        })
    }
}

/// The Llama 3 scaling that these divisors came from, if they came from one with the published settings (only the
/// factor varies between Llama 3.1, 3.2 and 3.3). The lowest frequencies are divided by the whole factor.
fn llama3_scaling(divisors: &[f32], theta: f64) -> Option<RopeScaling> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL_CONTEXT: f64 = 8192.0;
    let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    if factor <= 1.0 {
        return None;
    }
    let count = divisors.len() as f64;
    let matches = divisors.iter().enumerate().all(|(index, divisor)| {
        let wavelength = std::f64::consts::TAU * theta.powf(index as f64 / count);
        // Turns the wave makes in the original context: few turns mean a low frequency.
        let turns = ORIGINAL_CONTEXT / wavelength;
        let expected = if turns > HIGH {
            1.0
        } else if turns < LOW {
            factor
        } else {
            let smooth = (turns - LOW) / (HIGH - LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        (f64::from(*divisor) - expected).abs() <= 1e-3 * expected
    });
    matches.then_some(RopeScaling::Llama3 {
        factor,
        low_freq_factor: LOW,
        high_freq_factor: HIGH,
        original_context: ORIGINAL_CONTEXT,
    })
}

/// Which of a layer's tensors a file has.
struct Presence<'a> {
    metadata: &'a Metadata,
    tensors: &'a HashSet<&'a str>,
    layers: usize,
}

impl Presence<'_> {
    /// Whether every layer has all of these, or none has any.
    fn all_or_none(&self, suffixes: &[&str]) -> Result<bool> {
        let names = (0..self.layers).flat_map(|layer| {
            suffixes
                .iter()
                .map(move |suffix| format!("model.layers.{layer}.{suffix}"))
        });
        let (there, missing): (Vec<_>, Vec<_>) =
            names.partition(|name| self.tensors.contains(name.as_str()));
        match (there.first(), missing.first()) {
            (Some(there), Some(missing)) => Err(Error::Tensor {
                path: self.metadata.path().to_owned(),
                name: missing.clone(),
                why: format!("is missing, though there is `{there}`"),
            }),
            (there, _) => Ok(there.is_some()),
        }
    }
}

/// The `config.json` transformers would need for these tensors.
fn hugging_face(config: &ModelConfig, metadata: &Metadata) -> Result<Map<String, Value>> {
    let rope_scaling = match &config.rope_scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": *original_context as u64,
        }),
        // No name of transformers' says this; an unknown name makes it refuse instead of computing nonsense.
        RopeScaling::Divisors(divisors) => json!({"rope_type": "divisors", "divisors": divisors}),
    };
    let mut source = Map::new();
    let mut put = |key: &str, value: Value| source.insert(key.into(), value);
    put("architectures", json!([config.family.class]));
    put("model_type", json!(config.family.name));
    put("hidden_size", json!(config.hidden_size));
    put("num_hidden_layers", json!(config.layers));
    put("num_attention_heads", json!(config.heads));
    put("num_key_value_heads", json!(config.kv_heads));
    put("head_dim", json!(config.head_dim));
    put("intermediate_size", json!(config.intermediate_size));
    put("vocab_size", json!(config.vocab_size));
    put("max_position_embeddings", json!(config.max_context));
    put("rms_norm_eps", json!(config.rms_norm_eps));
    put("rope_theta", json!(config.rope_theta));
    put("rope_scaling", rope_scaling);
    put("tie_word_embeddings", json!(config.tied_embeddings));
    put(
        "attention_bias",
        json!(config.output_bias || (config.qkv_bias && !config.family.qkv_bias)),
    );
    put("mlp_bias", json!(config.feed_forward_bias));
    put("hidden_act", json!("silu"));
    if let Some(id) = metadata.token_id("tokenizer.ggml.bos_token_id")? {
        put("bos_token_id", json!(id));
    }
    match end_ids(metadata)?.as_slice() {
        [] => {}
        [id] => drop(put("eos_token_id", json!(id))),
        ids => drop(put("eos_token_id", json!(ids))),
    }
    put("torch_dtype", json!("float32"));
    Ok(source)
}

/// The ids that end a text or a turn, without repetition, in the order of the file's keys.
pub(crate) fn end_ids(metadata: &Metadata) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Some(id) = metadata.token_id(key)?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}
