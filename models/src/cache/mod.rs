//! What attention remembers of earlier tokens, one file a kind.

mod dense;

pub use dense::{KvCache, LayerCache};
