//! What several tests use: real files where they are present, and lists of what there is to try.

use std::path::PathBuf;

use crate::ops::{BlockFormat, LowBit};

/// Every block format, those with a minimum in all bits and groups.
pub(crate) fn block_formats() -> Vec<BlockFormat> {
    let groups = |bits| LowBit::GROUPS.into_iter().map(move |group| (bits, group));
    let low = LowBit::BITS.into_iter().flat_map(groups);
    let low = low.filter_map(|(bits, group)| LowBit::new(bits, group));
    let own = [BlockFormat::Q8, BlockFormat::Q4, BlockFormat::Q4Min];
    own.into_iter().chain(low.map(BlockFormat::Low)).collect()
}

/// The default model: the file named by `CINDER_SMOLLM2`, or where `cinder fetch smollm2` puts it.
/// Where it is absent the test says so and passes.
pub(crate) fn smollm2() -> Option<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let cache = || {
        let default = || Some(variable("HOME")?.join(".cache"));
        variable("CINDER_CACHE")
            .or_else(|| Some(variable("XDG_CACHE_HOME").or_else(default)?.join("cinder")))
    };
    let fetched = || Some(cache()?.join("smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"));
    let path = variable("CINDER_SMOLLM2")
        .or_else(fetched)
        .filter(|p| p.is_file());
    if path.is_none() {
        println!("skipped: SmolLM2 is not here; `cinder fetch smollm2` brings it");
    }
    path
}
