//! Gradients of RMSNorm and SwiGLU.

use super::{over_rows, store_some};
use crate::ops::parallel::Parts;
use crate::ops::simd::{self, Kernel, LANES, Simd};

/// The gradient of [`super::rms_norm`] in x, for each row of `width`: with `r = 1 / rms(x)` and `s = gradient * gamma`,
/// `r s - r³ x mean(s x)`.
///
/// # Panics
/// When the slices do not fit.
pub(crate) fn rms_norm_backward(
    x: &[f32],
    gamma: &[f32],
    epsilon: f32,
    gradient: &[f32],
    out: &mut [f32],
) {
    let width = gamma.len();
    assert!(
        width > 0
            && x.len().is_multiple_of(width)
            && x.len() == gradient.len()
            && x.len() == out.len(),
        "rows of {width}"
    );
    let out = Parts::new(out);
    over_rows(x.len() / width, width, |rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: the rows are inside `out`, and no other task has them.
        unsafe {
            simd::run(RmsNorm {
                x: &x[range.clone()],
                gamma,
                epsilon,
                out: out.pointer().add(range.start),
                gradient: &gradient[range],
            });
        }
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    epsilon: f32,
    gradient: &'a [f32],
    out: *mut f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.gamma.len();
        let rows = self.x.chunks_exact(width);
        for (row, (x, gradient)) in rows.zip(self.gradient.chunks_exact(width)).enumerate() {
            // SAFETY: x, gradient and gamma have `width` values, `out` as many in each row.
            unsafe {
                let part = |from: &[f32], at: usize| from.as_ptr().wrapping_add(at);
                let (mut squares, mut along) = (S::splat(0.0), S::splat(0.0));
                for at in (0..width).step_by(LANES) {
                    let n = LANES.min(width - at);
                    let x = S::load_some(part(x, at), n);
                    let gamma = S::load_some(part(self.gamma, at), n);
                    let scaled = S::mul(S::load_some(part(gradient, at), n), gamma);
                    squares = S::fma(x, x, squares);
                    along = S::fma(scaled, x, along);
                }
                let square = S::sum(squares) / width as f32 + self.epsilon;
                let inverse = 1.0 / square.sqrt();
                let back = -(S::sum(along) / width as f32) / square * inverse;
                let (inverse, back) = (S::splat(inverse), S::splat(back));
                for at in (0..width).step_by(LANES) {
                    let n = LANES.min(width - at);
                    let gamma = S::load_some(part(self.gamma, at), n);
                    let scaled = S::mul(S::load_some(part(gradient, at), n), gamma);
                    let back = S::mul(S::load_some(part(x, at), n), back);
                    let value = S::fma(scaled, inverse, back);
                    store_some::<S>(self.out.add(row * width + at), value, n);
                }
            }
        }
    }
}

/// The gradients of [`super::swiglu`], in the places of `gate` and `up`.
///
/// # Panics
/// When the slices differ in length.
pub(crate) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], gradient: &[f32]) {
    assert!(
        gate.len() == gradient.len() && up.len() == gradient.len(),
        "gate, up and gradient"
    );
    let (gate, up) = (Parts::new(gate), Parts::new(up));
    over_rows(gradient.len(), 1, |range| {
        // SAFETY: the range is inside all three, and no other task has it.
        unsafe {
            simd::run(SwiGlu {
                gate: gate.pointer().add(range.start),
                up: up.pointer().add(range.start),
                gradient: &gradient[range],
            });
        }
    });
}

struct SwiGlu<'a> {
    gate: *mut f32,
    up: *mut f32,
    gradient: &'a [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, gradient) in self.gradient.chunks(LANES).enumerate() {
            let n = gradient.len();
            // SAFETY: `gate` and `up` are as long as `gradient`.
            unsafe {
                let (gate_at, up_at) = (self.gate.add(i * LANES), self.up.add(i * LANES));
                let (gate, up) = (S::load_some(gate_at, n), S::load_some(up_at, n));
                let gradient = S::load_some(gradient.as_ptr(), n);
                let one = S::splat(1.0);
                let grown = S::add(one, S::exp(S::sub(S::splat(0.0), gate)));
                let (open, silu) = (S::div(one, grown), S::div(gate, grown));
                let slope = S::fma(silu, S::sub(one, open), open);
                store_some::<S>(gate_at, S::mul(S::mul(gradient, up), slope), n);
                store_some::<S>(up_at, S::mul(gradient, silu), n);
            }
        }
    }
}
