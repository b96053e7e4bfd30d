//! The pivots of an identity block, read from a file and found to be what they should be.

use std::path::Path;

use super::source::TensorSource;
use crate::error::{Error, Result};

/// Reads the pivots `name` of a basis of `input` inputs.
///
/// # Errors
/// [`Error::Tensor`] when they do not ascend or name an input that is not there; those of reading.
pub(crate) fn read_pivots(
    source: &dyn TensorSource,
    path: &Path,
    name: &str,
    input: usize,
) -> Result<Vec<usize>> {
    let wrong = |why: String| Error::Tensor {
        path: path.into(),
        name: name.into(),
        why,
    };
    let mut pivots: Vec<usize> = Vec::new();
    for value in source.read_i32(name)? {
        let pivot = usize::try_from(value).ok().filter(|pivot| *pivot < input);
        let Some(pivot) = pivot else {
            return Err(wrong(format!("names input {value} of {input}")));
        };
        if let Some(before) = pivots.last().filter(|before| **before >= pivot) {
            let why = format!("has {pivot} after {before}: pivots ascend, and none comes twice");
            return Err(wrong(why));
        }
        pivots.push(pivot);
    }
    Ok(pivots)
}

/// A basis with an identity block multiplied out on the host: `[rank, input]` of `weight` `[rank, input - rank]`.
pub(crate) fn spread(pivots: &[usize], input: usize, weight: &[f32]) -> Vec<f32> {
    let (rank, rest) = (pivots.len(), input - pivots.len());
    let mut dense = vec![0.0; rank * input];
    for (k, row) in dense.chunks_exact_mut(input).enumerate() {
        let mut values = weight[k * rest..(k + 1) * rest].iter();
        let mut ahead = pivots.iter().peekable();
        for (i, to) in row.iter_mut().enumerate() {
            if ahead.next_if(|pivot| **pivot == i).is_none() {
                *to = values.next().copied().unwrap_or(0.0);
            }
        }
        row[pivots[k]] = 1.0;
    }
    dense
}
