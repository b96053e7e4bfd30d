//! Inputs picked by their index: what an identity block moves before its product, and adds after it.
//!
//! In a product with one row an index in the innermost loop would cost the vector loads, so the inputs are gathered first;
//! that is as many moves as there are inputs, for as many rows of weights.

use super::elementwise::over_rows;
use super::parallel::Parts;

/// `[rows, indices]` of `x` `[rows, width]`.
///
/// # Panics
/// For an index that is not below the width.
pub(crate) fn pick(x: &[f32], width: usize, indices: &[i32]) -> Vec<f32> {
    let rows = x.len() / width.max(1);
    let mut y = vec![0.0; rows * indices.len()];
    each_row(x, width, indices, &mut y, |to, x, indices| {
        for (to, index) in to.iter_mut().zip(indices) {
            *to = x[*index as usize];
        }
    });
    y
}

/// Adds `[rows, indices]` of `x` `[rows, width]` to `y`.
///
/// # Panics
/// As [`pick`], and when `y` is not as long.
pub(crate) fn add_picked(x: &[f32], width: usize, indices: &[i32], y: &mut [f32]) {
    let rows = x.len() / width.max(1);
    assert_eq!(y.len(), rows * indices.len(), "{rows} rows of latents");
    each_row(x, width, indices, y, |to, x, indices| {
        for (to, index) in to.iter_mut().zip(indices) {
            *to += x[*index as usize];
        }
    });
}

/// Calls `f` with each row of `y`, `[rows, indices]`, and its row of `x`, on all threads when there are many values.
fn each_row(
    x: &[f32],
    width: usize,
    indices: &[i32],
    y: &mut [f32],
    f: impl Fn(&mut [f32], &[f32], &[i32]) + Sync,
) {
    let count = indices.len();
    if count == 0 || width == 0 {
        return;
    }
    let y = Parts::new(y);
    over_rows(x.len() / width, width, |rows| {
        for row in rows {
            // SAFETY: the row is inside `y`, and no other task has it.
            let to = unsafe { std::slice::from_raw_parts_mut(y.pointer().add(row * count), count) };
            f(to, &x[row * width..(row + 1) * width], indices);
        }
    });
}
