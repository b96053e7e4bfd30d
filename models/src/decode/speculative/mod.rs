//! Speculative decoding: a cheap drafter proposes tokens, the model verifies several in one pass, the text is the model's.
//!
//! What proposes is a [`Drafter`]: a low-bit copy of the model, another model, or the text itself. [`speculate`] is the loop,
//! [`Verification`] how drafts are judged, [`Depth`] how far ahead they go.

mod beam;
mod depth;
mod drafter;
mod model_draft;
mod ngram;
mod run;
mod statistics;
#[cfg(test)]
mod tests;
mod traversal;
mod tree;
mod verify;

pub use depth::Depth;
pub use drafter::{Drafter, Pause, Round};
pub use model_draft::ModelDrafter;
pub use ngram::NGramDrafter;
pub use run::{SpeculationSettings, speculate};
pub use statistics::{DepthAcceptance, Speculation};
pub use traversal::traversal;
pub use tree::{Places, Tree};
pub use verify::{Target, Verdict, Verification, matching, rejection};
