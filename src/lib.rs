//! Training-free compression of language models: factor, measure, run.
//!
//! This crate is a thin facade over the workspace: [`models`] (the decoder as Burn modules, checkpoints, tokenizers,
//! decoding), [`compress`] (calibration, linear algebra, passes, recipes), [`eval`] (perplexity and zero-shot tasks), [`reports`]
//! (charts and pages), and [`fetch`] (the default model and data).

pub mod fetch;

pub use cinder_compress as compress;
pub use cinder_eval as eval;
pub use cinder_models as models;
pub use cinder_reports as reports;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
