//! Running a model that does not fit in memory: its blocks are read, one ahead of the one that is computed, in every pass.
//!
//! The engine of SubSpec's target (arXiv 2509.18344, §3.3 and appendix H): embedding, head, norms and KV cache stay, the
//! matrices of the decoder's blocks come from a file (`layout.rs` describes it) or from host memory through two staging buffers, and
//! as many of the first blocks as a budget of bytes allows stay too. The logits are bit for bit those of the model in memory.
//!
//! Nothing is computed from a file that changed: before each pass the file is looked at (there, the same file, of the same
//! length and time of change), and the checksum of every block is compared each time it is read.

mod budget;
mod buffer;
mod checksum;
mod layout;
mod link;
mod partial;
mod reader;
mod source;
mod statistics;
mod streamed;
mod weights;
mod write;

pub use budget::MemoryPlan;
pub(crate) use budget::size;
pub use statistics::OffloadStatistics;
pub use streamed::{OffloadSettings, OffloadSource, StreamedDecoder};
