//! Tiny models that draft and verify.

use std::path::Path;

use burn::tensor::{Device, Tensor};

use crate::cache::KvCache;
use crate::decode::{LanguageModel, TreeSlice};
use crate::error::Result;
use crate::progress::Silent;
use crate::{Checkpoint, Decoder, Precision};

pub const PROMPT: [u32; 6] = [1, 21, 42, 10, 24, 24];

pub fn load(family: &str, precision: Precision) -> Decoder {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/families");
    let checkpoint = Checkpoint::open(&goldens.join(family)).unwrap();
    checkpoint
        .load(precision, &Device::flex(), &Silent)
        .unwrap()
}

pub fn target() -> Decoder {
    load("llama3", Precision::F32)
}

/// A copy of the target that is often right.
pub fn draft() -> Decoder {
    load("llama3", Precision::Q4)
}

/// A copy that says last what it should say first.
pub struct Contrary(pub Decoder);

impl LanguageModel for Contrary {
    fn decoder(&self) -> &Decoder {
        &self.0
    }

    fn hidden(
        &mut self,
        ids: &[u32],
        tree: Option<TreeSlice<'_>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>> {
        LanguageModel::hidden(&mut self.0, ids, tree, cache)
    }

    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        -self.0.logits(hidden)
    }
}

/// Remembers the cache as it was before the last pass, and how many passes there were.
pub struct Watched {
    pub model: Decoder,
    pub before: Option<KvCache>,
    pub passes: usize,
}

impl LanguageModel for Watched {
    fn decoder(&self) -> &Decoder {
        &self.model
    }

    fn hidden(
        &mut self,
        ids: &[u32],
        tree: Option<TreeSlice<'_>>,
        cache: &mut KvCache,
    ) -> Result<Tensor<2>> {
        self.before = Some(cache.clone());
        self.passes += 1;
        LanguageModel::hidden(&mut self.model, ids, tree, cache)
    }
}
