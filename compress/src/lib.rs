//! Training-free compression of decoder-only language models.
//!
//! A [`recipe::Recipe`] names a calibration text and a list of passes; [`pipeline::compress`] walks the
//! model block by block, collects what the passes need, applies them and writes the result.

#![warn(missing_docs)]

pub mod allocation;
pub mod calibration;
mod error;
pub mod linalg;
pub mod linear;
pub mod passes;
pub mod perturbation;
pub mod pipeline;
pub mod recipe;

pub use error::{Error, Result};
