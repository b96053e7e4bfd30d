//! What a decoder looks like. Families are rows of data, not code paths. GGUF metadata: see `checkpoint::gguf`.

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
    /// A `sliding_window` in the configuration is in force without `use_sliding_window`.
    pub sliding_window: bool,
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
        sliding_window: false,
    },
    Family {
        name: "mistral",
        class: "MistralForCausalLM",
        gguf: "mistral",
        gguf_interleaved_rotary: true,
        qkv_bias: false,
        qk_norm: false,
        sliding_window: true,
    },
    Family {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        gguf: "qwen2",
        gguf_interleaved_rotary: false,
        qkv_bias: true,
        qk_norm: false,
        sliding_window: false,
    },
    Family {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        gguf: "qwen3",
        gguf_interleaved_rotary: false,
        qkv_bias: false,
        qk_norm: true,
        sliding_window: false,
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

impl ModelConfig {
    /// Reads a Hugging Face `config.json`; both the older keys (`rope_theta`, `rope_scaling`) and
    /// transformers 5's `rope_parameters` are understood.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another architecture, activation or rotary variant;
    /// [`Error::Config`] for a field that is missing, of another type, or out of bounds.
    pub fn from_json(json: &str, path: &Path) -> Result<Self> {
        let source: Map<String, Value> = serde_json::from_str(json).map_err(|e| Error::Config {
            path: path.into(),
            why: format!("not a JSON object: {e}"),
        })?;
        let fields = Fields { map: &source, path };

        let model_type = fields.text("model_type")?;
        let family = FAMILIES
            .iter()
            .find(|f| f.name == model_type)
            .ok_or_else(|| Error::Unsupported {
                path: path.into(),
                what: format!("architecture `{model_type}`"),
                hint: supported_families(),
            })?;
        let activation = fields.text_or("hidden_act", "silu")?;
        if activation != "silu" {
            return Err(fields.unsupported(format!("activation `{activation}`")));
        }

        if fields.number_or("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(fields.unsupported("a rotary embedding of part of each head".into()));
        }
        if let Some(quantization) = source.get("quantization_config") {
            let method = quantization["quant_method"].as_str().unwrap_or("unknown");
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("quantisation `{method}`"),
                hint: "give the unquantised checkpoint, or a GGUF file".into(),
            });
        }

        let hidden_size = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let attention_bias = fields.flag("attention_bias", false)?;
        let mut max_context = fields.size_or("max_position_embeddings", 2048)?;
        if fields.flag("use_sliding_window", family.sliding_window)?
            && let Some(window) = fields.optional_size("sliding_window")?
        {
            // Up to the window, sliding attention is full attention; beyond it we would be wrong.
            max_context = max_context.min(window);
        }
        let (rope_theta, rope_scaling) = rope(&fields)?;

        let config = ModelConfig {
            family,
            hidden_size,
            layers: fields.size("num_hidden_layers")?,
            heads,
            kv_heads: fields.size_or("num_key_value_heads", heads)?,
            head_dim: fields.size_or("head_dim", hidden_size / heads.max(1))?,
            intermediate_size: fields.size("intermediate_size")?,
            vocab_size: fields.size("vocab_size")?,
            max_context,
            rms_norm_eps: fields.number_or("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            tied_embeddings: fields.flag("tie_word_embeddings", false)?,
            qkv_bias: family.qkv_bias || attention_bias,
            output_bias: attention_bias && !family.qkv_bias,
            feed_forward_bias: fields.flag("mlp_bias", false)?,
            qk_norm: family.qk_norm,
            source: source.clone(),
        };
        config.check(path)?;
        Ok(config)
    }

    /// Refuses shapes no model has, before anything is allocated for them.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let fail = |why: String| {
            Err(Error::Config {
                path: path.into(),
                why,
            })
        };
        for (what, value, most) in [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("num_hidden_layers", self.layers, 4096),
            ("num_attention_heads", self.heads, 1 << 14),
            ("num_key_value_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("vocab_size", self.vocab_size, 1 << 24),
            ("max_position_embeddings", self.max_context, 1 << 32),
        ] {
            if value == 0 || value > most {
                return fail(format!("`{what}` is {value}; it must be in 1..={most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return fail(format!(
                "{} attention heads are not a multiple of {} key/value heads",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "`head_dim` is {}; the rotary embedding needs an even one",
                self.head_dim
            ));
        }
        let sound = |v: f64| v.is_finite() && v > 0.0;
        let scaling = match &self.rope_scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => sound(*factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                [factor, low_freq_factor, high_freq_factor, original_context]
                    .into_iter()
                    .all(|v| sound(*v))
                    && low_freq_factor < high_freq_factor
            }
            RopeScaling::Divisors(values) => {
                values.len() == self.head_dim / 2 && values.iter().all(|v| sound(f64::from(*v)))
            }
        };
        if !scaling {
            return fail(format!(
                "rotary scaling {:?} is out of range for heads of {}",
                self.rope_scaling, self.head_dim
            ));
        }
        if !(self.rms_norm_eps > 0.0 && self.rope_theta > 0.0) {
            return fail("`rms_norm_eps` and `rope_theta` must be positive".into());
        }
        Ok(())
    }

    /// Scalars of the decoder projections of the dense model, biases not counted: the
    /// denominator of every keep ratio.
    pub fn dense_projection_scalars(&self) -> u64 {
        let (d, q, kv, f) = (
            self.hidden_size as u64,
            (self.heads * self.head_dim) as u64,
            (self.kv_heads * self.head_dim) as u64,
            self.intermediate_size as u64,
        );
        self.layers as u64 * (d * (q + 2 * kv) + q * d + 3 * d * f)
    }
}

/// The hint for an architecture we do not know.
pub(crate) fn supported_families() -> String {
    let names: Vec<_> = FAMILIES.iter().map(|f| f.name).collect();
    format!("supported architectures: {}", names.join(", "))
}

fn rope(fields: &Fields<'_>) -> Result<(f64, RopeScaling)> {
    let nested = match fields.map.get("rope_parameters") {
        None | Some(Value::Null) => fields.map.get("rope_scaling"),
        some => some,
    };
    let nested = match nested {
        None | Some(Value::Null) => None,
        Some(Value::Object(map)) => Some(Fields {
            map,
            path: fields.path,
        }),
        Some(_) => return Err(fields.wrong("rope_scaling", "an object")),
    };
    let theta = match &nested {
        Some(n) if n.map.contains_key("rope_theta") => n.number("rope_theta")?,
        _ => fields.number_or("rope_theta", 10_000.0)?,
    };
    let Some(n) = nested else {
        return Ok((theta, RopeScaling::None));
    };
    let kind = match n.map.get("rope_type") {
        Some(_) => n.text("rope_type")?,
        None => n.text_or("type", "default")?,
    };
    let scaling = match kind.as_str() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear {
            factor: n.number("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: n.number("factor")?,
            low_freq_factor: n.number("low_freq_factor")?,
            high_freq_factor: n.number("high_freq_factor")?,
            original_context: n.number("original_max_position_embeddings")?,
        },
        // Our own word, for the irregular divisors some GGUF files carry.
        "divisors" => RopeScaling::Divisors(n.numbers("divisors")?),
        other => return Err(fields.unsupported(format!("rotary scaling `{other}`"))),
    };
    Ok((theta, scaling))
}

/// Typed access to a JSON object, with errors that name the field.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

impl Fields<'_> {
    fn wrong(&self, key: &str, want: &str) -> Error {
        Error::Config {
            path: self.path.into(),
            why: match self.map.get(key) {
                None | Some(Value::Null) => format!("`{key}` is missing"),
                Some(v) => format!("`{key}` is `{v}`; it must be {want}"),
            },
        }
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported {
            path: self.path.into(),
            what,
            hint: "open an issue with the model's name if you need it".into(),
        }
    }

    fn given(&self, key: &str) -> bool {
        !matches!(self.map.get(key), None | Some(Value::Null))
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.map
            .get(key)
            .and_then(Value::as_u64)
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| self.wrong(key, "a positive whole number"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        self.given(key).then(|| self.size(key)).transpose()
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    fn number(&self, key: &str) -> Result<f64> {
        self.map
            .get(key)
            .and_then(Value::as_f64)
            .filter(|v| v.is_finite())
            .ok_or_else(|| self.wrong(key, "a number"))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.given(key) {
            self.number(key)
        } else {
            Ok(default)
        }
    }

    fn numbers(&self, key: &str) -> Result<Vec<f32>> {
        let list = self.map.get(key).and_then(Value::as_array);
        list.and_then(|l| l.iter().map(|v| v.as_f64().map(|v| v as f32)).collect())
            .ok_or_else(|| self.wrong(key, "a list of numbers"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        if !self.given(key) {
            return Ok(default);
        }
        self.map
            .get(key)
            .and_then(Value::as_bool)
            .ok_or_else(|| self.wrong(key, "true or false"))
    }

    fn text(&self, key: &str) -> Result<String> {
        self.map
            .get(key)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| self.wrong(key, "a string"))
    }

    fn text_or(&self, key: &str, default: &str) -> Result<String> {
        if self.given(key) {
            self.text(key)
        } else {
            Ok(default.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":96,"vocab_size":100}"#;

    fn read(change: impl Fn(&mut Map<String, Value>)) -> Result<ModelConfig> {
        let mut map: Map<String, Value> = serde_json::from_str(LLAMA).expect("valid");
        change(&mut map);
        ModelConfig::from_json(
            &serde_json::to_string(&map).expect("valid"),
            Path::new("config.json"),
        )
    }

    #[test]
    fn defaults_follow_transformers() {
        let c = read(|_| {}).expect("reads");
        assert_eq!((c.head_dim, c.kv_heads, c.tied_embeddings), (16, 2, false));
        assert_eq!(c.rope_scaling, RopeScaling::None);
        assert_eq!(
            c.dense_projection_scalars(),
            2 * (64 * 128 + 64 * 64 + 3 * 64 * 96)
        );
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let scaling = serde_json::json!({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,
            "high_freq_factor":4.0,"original_max_position_embeddings":8192});
        let old = read(|m| {
            m.insert("rope_theta".into(), 5e5.into());
            m.insert("rope_scaling".into(), scaling.clone());
        })
        .expect("reads");
        let new = read(|m| {
            let mut s = scaling.clone();
            s["rope_theta"] = 5e5.into();
            m.insert("rope_parameters".into(), s);
        })
        .expect("reads");
        assert_eq!(
            (old.rope_theta, old.rope_scaling),
            (new.rope_theta, new.rope_scaling)
        );
    }

    #[test]
    fn errors_name_the_field() {
        let cases: [(&str, Value, &str); 5] = [
            ("model_type", "gpt2".into(), "architecture `gpt2`"),
            ("num_key_value_heads", 3.into(), "not a multiple of 3"),
            ("hidden_size", "x".into(), "`hidden_size` is `\"x\"`"),
            ("vocab_size", 0.into(), "`vocab_size` is 0"),
            ("hidden_act", "gelu".into(), "activation `gelu`"),
        ];
        for (key, value, expected) in cases {
            let error = read(|m| {
                m.insert(key.into(), value.clone());
            })
            .expect_err("refused")
            .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
