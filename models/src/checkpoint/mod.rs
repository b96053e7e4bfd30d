//! Checkpoints in and out.
//!
//! Reading is lazy: a [`Checkpoint`] knows names and shapes; tensors are read one at a time as the module tree is built,
//! so that loading peaks at the model plus one tensor. What a file stores in the precision that is asked for is not read
//! at all, but mapped.

mod companions;
mod export;
pub mod gguf;
mod hash;
mod huggingface;
mod latent;
mod lazy;
mod load;
mod lock;
mod manifest;
mod memory;
mod names;
mod native;
mod open;
mod output;
mod pivots;
mod prefix;
mod quantized;
mod safetensors_file;
mod source;
mod spectra;
mod structure;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::path::Path;

use crate::error::Error;

pub use export::export_dense;
pub use hash::{Hashing, sha256, sha256_file, sha256_reader};
pub use huggingface::{INDEX_FILE, SINGLE_FILE};
pub use load::Frame;
pub use lock::DirectoryLock;
pub(crate) use lock::{Owned, try_own};
pub use manifest::{
    CalibrationRecord, FileRecord, HeadRecord, MANIFEST_FILE, MANIFEST_SCHEMA, Manifest, Piece,
    SiteRecord, SourceRecord, TensorRecord,
};
pub use names::{projection_prefix, shared_prefix};
pub use native::{CompressedWriter, ShardRecord};
pub use open::{Checkpoint, Format};
pub use output::{DEMO_FILE, OutputDirectory, SEARCH_FILE, SWEEP_FILE};
pub use source::{TensorInfo, TensorSource};
pub use spectra::{SPECTRA_KIND, SPECTRA_SCHEMA, Spectra, Spectrum};
pub use structure::ProjectionInfo;
pub use verify::{Verification, verify};
pub use writer::{StoredDtype, write_safetensors};

pub(crate) fn refuse_pickle(path: &Path) -> Error {
    Error::Unsupported {
        path: path.into(),
        what: "PyTorch pickle".into(),
        hint: "a pickle can run code when it is loaded; convert it to safetensors first, for example with \
               transformers' `save_pretrained(..., safe_serialization=True)` in a place you trust"
            .into(),
    }
}
