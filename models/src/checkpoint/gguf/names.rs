//! llama.cpp's tensor names and Hugging Face's for the same tensors.

/// Whose rows a tensor's rows are, for the reordering of rotary pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    Query,
    KeyValue,
}

/// What a tensor name in a GGUF file means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A weight of the model, under its Hugging Face name; `heads` if its rows are rotated.
    Weight {
        name: String,
        layer: Option<usize>,
        rotated: Option<Heads>,
    },
    /// Divisors of the rotary frequencies: part of the configuration.
    RopeDivisors,
    /// A tensor that repeats what the configuration says (old converters stored the rotary frequencies).
    Harmless,
    Unknown,
}

/// Tensors outside the layers.
const GLOBAL: [(&str, &str); 3] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// Tensors of a layer: after `blk.N.` and after `model.layers.N.`.
const LAYER: [(&str, &str, Option<Heads>); 11] = [
    ("attn_norm", "input_layernorm", None),
    ("attn_q", "self_attn.q_proj", Some(Heads::Query)),
    ("attn_k", "self_attn.k_proj", Some(Heads::KeyValue)),
    ("attn_v", "self_attn.v_proj", None),
    ("attn_output", "self_attn.o_proj", None),
    ("attn_q_norm", "self_attn.q_norm", None),
    ("attn_k_norm", "self_attn.k_norm", None),
    ("ffn_norm", "post_attention_layernorm", None),
    ("ffn_gate", "mlp.gate_proj", None),
    ("ffn_up", "mlp.up_proj", None),
    ("ffn_down", "mlp.down_proj", None),
];

/// Reads a GGUF tensor name.
pub(super) fn meaning(gguf: &str) -> Meaning {
    if gguf == "rope_freqs.weight" {
        return Meaning::RopeDivisors;
    }
    let Some((stem, kind)) = gguf.rsplit_once('.') else {
        return Meaning::Unknown;
    };
    if !matches!(kind, "weight" | "bias") {
        return Meaning::Unknown;
    }
    let Some((layer, stem)) = stem.strip_prefix("blk.").and_then(|s| s.split_once('.')) else {
        return GLOBAL
            .iter()
            .find(|(ours, _)| *ours == stem && kind == "weight")
            .map_or(Meaning::Unknown, |(_, name)| Meaning::Weight {
                name: format!("{name}.{kind}"),
                layer: None,
                rotated: None,
            });
    };
    // Only the number's own spelling: `blk.01` would be a second name for layer 1.
    let Some(layer) = layer
        .parse::<usize>()
        .ok()
        .filter(|n| n.to_string() == layer)
    else {
        return Meaning::Unknown;
    };
    if stem == "attn_rot_embd" {
        return Meaning::Harmless;
    }
    LAYER.iter().find(|(ours, _, _)| *ours == stem).map_or(
        Meaning::Unknown,
        |(_, name, rotated)| Meaning::Weight {
            name: format!("model.layers.{layer}.{name}.{kind}"),
            layer: Some(layer),
            rotated: *rotated,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_hugging_face() {
        let weight = |name: &str, layer, rotated| Meaning::Weight {
            name: name.into(),
            layer,
            rotated,
        };
        let cases = [
            (
                "token_embd.weight",
                weight("model.embed_tokens.weight", None, None),
            ),
            ("output.weight", weight("lm_head.weight", None, None)),
            (
                "blk.12.attn_k.bias",
                weight(
                    "model.layers.12.self_attn.k_proj.bias",
                    Some(12),
                    Some(Heads::KeyValue),
                ),
            ),
            (
                "blk.0.ffn_norm.weight",
                weight(
                    "model.layers.0.post_attention_layernorm.weight",
                    Some(0),
                    None,
                ),
            ),
            ("rope_freqs.weight", Meaning::RopeDivisors),
            ("blk.3.attn_rot_embd.weight", Meaning::Harmless),
            ("rope_factors_long.weight", Meaning::Unknown),
            ("blk.1.ffn_gate_exps.weight", Meaning::Unknown),
            ("blk.01.attn_q.weight", Meaning::Unknown),
            ("blk.x.attn_q.weight", Meaning::Unknown),
            ("token_embd.bias", Meaning::Unknown),
            ("token_embd", Meaning::Unknown),
        ];
        for (gguf, expected) in cases {
            assert_eq!(meaning(gguf), expected, "{gguf}");
        }
    }
}
