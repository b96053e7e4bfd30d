//! Training-free compression of language models: factor, measure, run.

pub mod fetch;
