//! Hugging Face tensor names and the paths of the same parameters in Cinder's module tree.

use crate::decoder::Site;

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

/// The same for the bases that the projections of a site share.
const SHARED_BASES: [(&str, &str); 2] = [
    ("self_attn.qkv_basis", "attention.qkv.basis"),
    ("mlp.gate_up_basis", "feed_forward.gate_up.basis"),
];

/// The same for keys and values that are rebuilt from latents; groups of heads are numbered.
const LATENT: (&str, &str) = ("self_attn.kv_latent", "attention.latent.basis");
const HEAD_GROUPS: [(&str, &str); 2] = [
    ("self_attn.k_proj.groups", "attention.latent.keys"),
    ("self_attn.v_proj.groups", "attention.latent.values"),
];

/// What a projection or norm may store; anything else (others' quantised pieces, adapters) is not a plain checkpoint.
const LEAVES: [&str; 9] = [
    "weight",
    "bias",
    "basis.weight",
    "basis.pivots",
    "expansion.weight",
    "expansion.bias",
    "codes",
    "scales",
    "minimums",
];

/// Hugging Face's prefix of a projection, such as `model.layers.3.mlp.up_proj`.
pub fn projection_prefix(layer: usize, projection: &str) -> String {
    let block = match projection {
        "gate" | "up" | "down" => "mlp",
        _ => "self_attn",
    };
    format!("model.layers.{layer}.{block}.{projection}_proj")
}

/// Prefix of the basis that a site's projections may share, such as `model.layers.3.mlp.gate_up_basis`; none for a site of
/// one projection.
pub fn shared_prefix(layer: usize, site: Site) -> Option<String> {
    let basis = match site {
        Site::Qkv => SHARED_BASES[0].0,
        Site::GateUp => SHARED_BASES[1].0,
        Site::O | Site::Down => return None,
    };
    Some(format!("model.layers.{layer}.{basis}"))
}

/// Prefix of the basis that makes a layer's key and value latents.
pub(crate) fn latent_prefix(layer: usize) -> String {
    format!("model.layers.{layer}.{}", LATENT.0)
}

/// Whether a tensor belongs to keys and values that are rebuilt from latents.
pub(crate) fn is_latent(name: &str) -> bool {
    name.ends_with(".kv_latent.weight") || is_expansion(name)
}

/// Whether a tensor rebuilds keys or values of a group of heads.
pub(crate) fn is_expansion(name: &str) -> bool {
    name.contains("_proj.groups.")
}

/// Whether a tensor holds the pivots of an identity block: indices, of whole numbers.
pub(crate) fn is_pivots(name: &str) -> bool {
    name.ends_with("basis.pivots")
}

/// Whether a parameter of the module tree follows from others and is not stored: the inputs that are no pivots.
pub(crate) fn is_implied(path: &str) -> bool {
    path.ends_with(".basis.others")
}

/// Path within a [`DecoderLayer`](crate::decoder::DecoderLayer) of a name below
/// `model.layers.N.`; none for a name that belongs to no parameter.
pub(crate) fn layer_path(name: &str) -> Option<String> {
    let path = |parts: &[(&str, &str)], leaves: &[&str]| {
        parts.iter().find_map(|(theirs, ours)| {
            let leaf = name.strip_prefix(theirs)?.strip_prefix('.')?;
            leaves.contains(&leaf).then(|| format!("{ours}.{leaf}"))
        })
    };
    let group = || {
        HEAD_GROUPS.iter().find_map(|(theirs, ours)| {
            let (index, leaf) = name
                .strip_prefix(theirs)?
                .strip_prefix('.')?
                .split_once('.')?;
            let plain = index.parse::<usize>().is_ok_and(|i| i.to_string() == index);
            (plain && ["weight", "bias"].contains(&leaf)).then(|| format!("{ours}.{index}.{leaf}"))
        })
    };
    path(&LAYER_PARTS, &LEAVES)
        .or_else(|| path(&SHARED_BASES, &["weight", "pivots"]))
        .or_else(|| path(&[LATENT], &["weight"]))
        .or_else(group)
}

/// The inverse of [`layer_path`], with the layer's index put in front.
pub(crate) fn layer_name(layer: usize, path: &str) -> Option<String> {
    let mut parts = LAYER_PARTS
        .iter()
        .chain(&SHARED_BASES)
        .chain([&LATENT])
        .chain(&HEAD_GROUPS);
    parts.find_map(|(theirs, ours)| {
        let rest = path.strip_prefix(ours)?;
        // burn-store keeps Burn's name for a norm's weight; an identity block's weight is a module of its own.
        let rest = rest
            .replace(".gamma", ".weight")
            .replace(".weight.weight", ".weight");
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
        for (theirs, ours) in SHARED_BASES {
            for leaf in ["weight", "pivots"] {
                let path = layer_path(&format!("{theirs}.{leaf}")).expect("known");
                assert_eq!(path, format!("{ours}.{leaf}"));
                let name = format!("model.layers.7.{theirs}.{leaf}");
                assert_eq!(layer_name(7, &path).expect("known"), name);
            }
            let path = format!("{ours}.weight.weight");
            let name = format!("model.layers.0.{theirs}.weight");
            assert_eq!(layer_name(0, &path).expect("known"), name);
        }
        for name in [
            "self_attn.kv_latent.weight",
            "self_attn.k_proj.groups.0.weight",
            "self_attn.v_proj.groups.12.bias",
        ] {
            let path = layer_path(name).expect("known");
            let full = format!("model.layers.3.{name}");
            assert_eq!(layer_name(3, &path).expect("known"), full);
            assert!(is_latent(&full));
        }
        assert_eq!(layer_path("self_attn.k_proj.groups.01.weight"), None);
        assert_eq!(layer_path("self_attn.q_proj.groups.0.weight"), None);
        assert!(is_implied("attention.output.basis.others"));
        assert!(is_pivots("model.layers.0.mlp.gate_up_basis.pivots"));
        let shared = shared_prefix(2, Site::GateUp).expect("two projections");
        assert_eq!(shared, "model.layers.2.mlp.gate_up_basis");
        assert_eq!(layer_path("self_attn.qkv_basis.bias"), None);
        assert_eq!(layer_path("self_attn.q_proj_extra.weight"), None);
        assert_eq!(layer_path("self_attn.q_proj.qweight"), None);
        assert_eq!(projection_prefix(0, "q"), "model.layers.0.self_attn.q_proj");
        assert_eq!(projection_prefix(1, "down"), "model.layers.1.mlp.down_proj");
    }
}
