//! Operations on each row or value by itself: RMSNorm, the rotary embedding, SwiGLU, log-sum-exp.

pub(crate) mod backward;

use super::parallel::{self, Parts};
use super::simd::{self, Kernel, LANES, Simd};

/// Values in one task.
const SHARE: usize = 16384;

/// Calls `f` with ranges of rows that cover `0..rows`, on all threads when there are many values.
pub(super) fn over_rows(rows: usize, width: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
    let share = (SHARE / width.max(1)).clamp(1, rows.max(1));
    parallel::for_each(rows.div_ceil(share), |task| {
        f(task * share..((task + 1) * share).min(rows));
    });
}

/// `y = x / rms(x) * gamma` for each row of `width` (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4).
///
/// # Panics
/// When the slices do not fit.
pub(crate) fn rms_norm(x: &[f32], gamma: &[f32], epsilon: f32, y: &mut [f32]) {
    let width = gamma.len();
    assert!(
        width > 0 && x.len().is_multiple_of(width) && x.len() == y.len(),
        "rows of {width}"
    );
    let y = Parts::new(y);
    over_rows(x.len() / width, width, |rows| {
        let x = &x[rows.start * width..rows.end * width];
        // SAFETY: the rows are inside `y`, and no other task has them.
        unsafe {
            let y = y.pointer().add(rows.start * width);
            simd::run(RmsNorm {
                x,
                gamma,
                epsilon,
                y,
            });
        }
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    epsilon: f32,
    y: *mut f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.gamma.len();
        for (row, x) in self.x.chunks_exact(width).enumerate() {
            // SAFETY: chunks are never read past their ends; `y` has as many rows as `x`.
            unsafe {
                let mut squares = S::splat(0.0);
                for x in x.chunks(LANES) {
                    let x = S::load_some(x.as_ptr(), x.len());
                    squares = S::fma(x, x, squares);
                }
                let mean = S::sum(squares) / width as f32;
                let inverse = S::splat(1.0 / (mean + self.epsilon).sqrt());
                let y = self.y.add(row * width);
                for (chunk, (x, gamma)) in x.chunks(LANES).zip(self.gamma.chunks(LANES)).enumerate()
                {
                    let gamma = S::load_some(gamma.as_ptr(), gamma.len());
                    let value = S::mul(S::mul(S::load_some(x.as_ptr(), x.len()), inverse), gamma);
                    store_some::<S>(y.add(chunk * LANES), value, x.len());
                }
            }
        }
    }
}

/// Stores the first `count` ≤ 16 lanes.
#[inline(always)]
unsafe fn store_some<S: Simd>(to: *mut f32, v: S::F, count: usize) {
    // SAFETY: the caller's place has `count` values.
    unsafe {
        if count == LANES {
            return S::store(to, v);
        }
        let mut lanes = [0.0; LANES];
        S::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
    }
}

/// Rotates the halves of each head of `x` `[batch, tokens, heads, head_dim]` in place; `cos` and `sin` are
/// `[tokens, head_dim / 2]`. The last three sizes are `[tokens, heads, head_dim]`.
///
/// # Panics
/// When the slices do not fit.
pub(crate) fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], sizes: [usize; 3]) {
    let [tokens, heads, head_dim] = sizes;
    let half = head_dim / 2;
    assert!(
        cos.len() == tokens * half && sin.len() == cos.len(),
        "tables of {tokens} tokens"
    );
    if x.is_empty() {
        return;
    }
    assert!(
        head_dim.is_multiple_of(2) && x.len().is_multiple_of(tokens * heads * head_dim),
        "{sizes:?}"
    );
    let rows = x.len() / head_dim;
    let x_parts = Parts::new(x);
    over_rows(rows, head_dim, |range| {
        // SAFETY: the rows are inside `x`, and no other task has them.
        unsafe {
            simd::run(Rotate {
                x: x_parts.pointer(),
                cos,
                sin,
                range,
                sizes,
            });
        }
    });
}

struct Rotate<'a> {
    x: *mut f32,
    cos: &'a [f32],
    sin: &'a [f32],
    range: std::ops::Range<usize>,
    sizes: [usize; 3],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let [tokens, heads, head_dim] = self.sizes;
        let half = head_dim / 2;
        for row in self.range {
            let table = row / heads % tokens * half;
            for i in (0..half).step_by(LANES) {
                let n = LANES.min(half - i);
                // SAFETY: the row has 2 × half values, the tables half for each token.
                unsafe {
                    let (a_at, b_at) = (
                        self.x.add(row * head_dim + i),
                        self.x.add(row * head_dim + half + i),
                    );
                    let (a, b) = (S::load_some(a_at, n), S::load_some(b_at, n));
                    let cos = S::load_some(self.cos.as_ptr().add(table + i), n);
                    let sin = S::load_some(self.sin.as_ptr().add(table + i), n);
                    store_some::<S>(a_at, S::sub(S::mul(a, cos), S::mul(b, sin)), n);
                    store_some::<S>(b_at, S::fma(b, cos, S::mul(a, sin)), n);
                }
            }
        }
    }
}

/// `gate = silu(gate) * up` in place.
///
/// # Panics
/// When the slices differ in length.
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    let gate_parts = Parts::new(gate);
    over_rows(up.len(), 1, |range| {
        // SAFETY: the range is inside both, and no other task has it.
        unsafe {
            simd::run(SwiGlu {
                gate: gate_parts.pointer().add(range.start),
                up: &up[range.clone()],
            });
        }
    });
}

struct SwiGlu<'a> {
    gate: *mut f32,
    up: &'a [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, up) in self.up.chunks(LANES).enumerate() {
            // SAFETY: `gate` is as long as `up`.
            unsafe {
                let at = self.gate.add(i * LANES);
                let gate = S::load_some(at, up.len());
                let grown = S::add(S::splat(1.0), S::exp(S::sub(S::splat(0.0), gate)));
                let value = S::mul(S::div(gate, grown), S::load_some(up.as_ptr(), up.len()));
                store_some::<S>(at, value, up.len());
            }
        }
    }
}

/// `ln Σ exp(x)`, summed in f64 over pieces of f32; NaN when a value is NaN or infinite.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    // SAFETY: the kernel points to the slice only.
    unsafe { simd::run(LogSumExp(x)) }
}

struct LogSumExp<'a>(&'a [f32]);

impl Kernel for LogSumExp<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        let top = self.0.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        // A piece's sum of a few dozen terms a lane is good to what the exponentials are.
        for piece in self.0.chunks(64 * LANES) {
            // SAFETY: chunks are never read past their ends.
            unsafe {
                let mut sum = S::splat(0.0);
                let whole = piece.chunks_exact(LANES);
                let rest = whole.remainder();
                for x in whole {
                    sum = S::add(sum, S::exp(S::sub(S::load(x.as_ptr()), S::splat(top))));
                }
                total += f64::from(S::sum(sum));
                total += rest.iter().map(|x| f64::from(x - top).exp()).sum::<f64>();
            }
        }
        f64::from(top) + total.ln()
    }
}

/// Values rounded to bf16, ties to even, as their bits.
pub(crate) fn to_bf16(x: &[f32]) -> Vec<u16> {
    let mut y = vec![0; x.len()];
    let parts = Parts::new(&mut y);
    over_rows(x.len(), 1, |range| {
        // SAFETY: the range is inside both, and no other task has it.
        unsafe {
            simd::run(ToBf16 {
                y: parts.pointer().add(range.start),
                x: &x[range],
            });
        }
    });
    y
}

struct ToBf16<'a> {
    x: &'a [f32],
    y: *mut u16,
}

impl Kernel for ToBf16<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, x) in self.x.chunks(LANES).enumerate() {
            // SAFETY: `y` is as long as `x`.
            unsafe {
                let at = self.y.add(i * LANES);
                let value = S::load_some(x.as_ptr(), x.len());
                if x.len() == LANES {
                    S::store_as_bf16(at, value);
                } else {
                    let mut lanes = [0; LANES];
                    S::store_as_bf16(lanes.as_mut_ptr(), value);
                    std::ptr::copy_nonoverlapping(lanes.as_ptr(), at, x.len());
                }
            }
        }
    }
}
