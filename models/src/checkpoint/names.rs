//! Hugging Face tensor names and the paths of the same parameters in Cinder's module tree.

/// Segments that differ between the two namings, below one decoder layer: (Hugging Face, Cinder).
const LAYER_PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "input_norm"),
    ("self_attn.q_proj", "attention.qkv.members.0"),
    ("self_attn.k_proj", "attention.qkv.members.1"),
    ("self_attn.v_proj", "attention.qkv.members.2"),
    ("self_attn.o_proj", "attention.output"),
    ("self_attn.q_norm", "attention.q_norm"),
    ("self_attn.k_norm", "attention.k_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("mlp.gate_proj", "feed_forward.gate_up.members.0"),
    ("mlp.up_proj", "feed_forward.gate_up.members.1"),
    ("mlp.down_proj", "feed_forward.down"),
];

/// What a projection or norm may store; anything else (quantised pieces, adapters) is not a plain checkpoint.
const LEAVES: [&str; 5] = [
    "weight",
    "bias",
    "basis.weight",
    "expansion.weight",
    "expansion.bias",
];

/// Hugging Face's prefix of a projection, such as `model.layers.3.mlp.up_proj`.
pub fn projection_prefix(layer: usize, projection: &str) -> String {
    let block = match projection {
        "gate" | "up" | "down" => "mlp",
        _ => "self_attn",
    };
    format!("model.layers.{layer}.{block}.{projection}_proj")
}

/// Path within a [`DecoderLayer`](crate::decoder::DecoderLayer) of a name below
/// `model.layers.N.`; none for a name that belongs to no parameter.
pub(crate) fn layer_path(name: &str) -> Option<String> {
    LAYER_PARTS.iter().find_map(|(theirs, ours)| {
        let leaf = name.strip_prefix(theirs)?.strip_prefix('.')?;
        LEAVES.contains(&leaf).then(|| format!("{ours}.{leaf}"))
    })
}

/// The inverse of [`layer_path`], with the layer's index put in front.
pub(crate) fn layer_name(layer: usize, path: &str) -> Option<String> {
    LAYER_PARTS.iter().find_map(|(theirs, ours)| {
        let rest = path.strip_prefix(ours)?;
        // burn-store keeps Burn's name for a norm's weight.
        let rest = rest.replace(".gamma", ".weight");
        rest.starts_with('.')
            .then(|| format!("model.layers.{layer}.{theirs}{rest}"))
    })
}

/// Tensors some exporters leave behind that are derived from the configuration.
pub(crate) fn is_derived(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_inverse() {
        for (theirs, _) in LAYER_PARTS {
            for leaf in LEAVES {
                let name = format!("{theirs}.{leaf}");
                let path = layer_path(&name).expect("known");
                assert_eq!(
                    layer_name(7, &path).expect("known"),
                    format!("model.layers.7.{name}")
                );
            }
        }
        assert_eq!(layer_path("self_attn.q_proj_extra.weight"), None);
        assert_eq!(layer_path("self_attn.q_proj.qweight"), None);
        assert_eq!(projection_prefix(0, "q"), "model.layers.0.self_attn.q_proj");
        assert_eq!(projection_prefix(1, "down"), "model.layers.1.mlp.down_proj");
    }
}
