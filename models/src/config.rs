//! What a decoder looks like, from Hugging Face `config.json`. Families are rows of data, not code paths.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What sets one family of decoders apart from another.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// `model_type` in `config.json`, and the name Cinder prints.
    pub name: &'static str,
    /// The transformers class, written into configurations made from GGUF files.
    pub class: &'static str,
    /// `general.architecture` in GGUF files.
    pub gguf: &'static str,
    /// Whether llama.cpp stores Q and K rows with each head's rotary pairs interleaved.
    pub gguf_interleaved_rotary: bool,
    /// Q, K and V have biases whatever the configuration says.
    pub qkv_bias: bool,
    /// Q and K are RMS-normalised per head before the rotary embedding.
    pub qk_norm: bool,
}

/// Every family Cinder knows. SmolLM2 and Llama 1–3 are `llama`; CONTRIBUTING.md tells how to add a row.
pub static FAMILIES: [Family; 4] = [
    Family {
        name: "llama",
        class: "LlamaForCausalLM",
        gguf: "llama",
        gguf_interleaved_rotary: true,
        qkv_bias: false,
        qk_norm: false,
    },
    Family {
        name: "mistral",
        class: "MistralForCausalLM",
        gguf: "mistral",
        gguf_interleaved_rotary: true,
        qkv_bias: false,
        qk_norm: false,
    },
    Family {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        gguf: "qwen2",
        gguf_interleaved_rotary: false,
        qkv_bias: true,
        qk_norm: false,
    },
    Family {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        gguf: "qwen3",
        gguf_interleaved_rotary: false,
        qkv_bias: false,
        qk_norm: true,
    },
];

/// How rotary frequencies are stretched for contexts longer than the pre-trained one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// Every frequency divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// Frequency `i` divided by the `i`-th of `head_dim / 2` values: what GGUF files store when it is no known rule.
    Divisors(Vec<f32>),
}

/// The shape of a decoder. Sizes are counts of scalars unless named otherwise.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    pub family: &'static Family,
    /// Width of the residual stream (d).
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Neurons of the feed-forward.
    pub intermediate_size: usize,
    pub vocab_size: usize,
    /// Longest context in tokens for which full causal attention is what the model was trained with.
    pub max_context: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// The output head is the embedding.
    pub tied_embeddings: bool,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub feed_forward_bias: bool,
    pub qk_norm: bool,
    /// The `config.json` this came from (or, for GGUF, one made to match), written beside every output.
    pub source: Map<String, Value>,
}
