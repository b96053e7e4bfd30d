//! What this machine can do at most: products a second, and bytes a second from memory.

use std::hint::black_box;
use std::time::Instant;

use super::parallel;
use super::simd::{self, Kernel, LANES, Simd};

/// Peaks of all threads together.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Multiplications and additions of f32 a second, from registers.
    pub flops: f64,
    /// The same for products of bf16 summed in f32.
    pub bf16_flops: f64,
    /// Bytes a second read from memory in long runs.
    pub read_bytes_per_second: f64,
}

/// Measures this machine; takes about a second and `READ_BYTES` of memory. The best of a few tries: a peak is what the
/// machine does when it is left alone.
pub fn machine() -> Machine {
    const STEPS: usize = 2_000_000;
    let threads = parallel::threads();
    let rate = |bf16: bool| {
        best(5, || {
            // SAFETY: the kernel touches registers only.
            parallel::for_each(threads, |_| unsafe {
                simd::run(Products { bf16, steps: STEPS })
            });
        })
    };
    let each = (2 * CHAINS * STEPS * threads) as f64;
    let memory = vec![1.0f32; READ_BYTES / 4];
    let part = memory.len() / (16 * threads);
    let seconds = best(5, || {
        parallel::for_each(16 * threads, |i| {
            // SAFETY: the kernel points to the part only.
            unsafe { simd::run(Sum(&memory[i * part..(i + 1) * part])) };
        });
    });
    Machine {
        flops: each * LANES as f64 / rate(false),
        bf16_flops: each * 2.0 * LANES as f64 / rate(true),
        read_bytes_per_second: (16 * threads * part * 4) as f64 / seconds,
    }
}

/// Enough to be past every cache.
const READ_BYTES: usize = 256 << 20;
/// Products under way at a time: enough to hide their latency.
const CHAINS: usize = 12;

fn best(tries: usize, mut work: impl FnMut()) -> f64 {
    let times = (0..tries).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

struct Products {
    bf16: bool,
    steps: usize,
}

impl Kernel for Products {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the array has the 32 values that are read; nothing else is memory.
        unsafe {
            let halves = black_box([0x3f00u16; 32]);
            let (a, b) = (S::splat(black_box(0.5)), S::splat(black_box(0.25)));
            let half = S::load_bf16(halves.as_ptr());
            let mut acc = [S::splat(0.0); CHAINS];
            for _ in 0..self.steps {
                for acc in &mut acc {
                    *acc = match self.bf16 {
                        true => S::dot_bf16(*acc, half, half),
                        false => S::fma(a, b, *acc),
                    };
                }
            }
            for acc in acc {
                black_box(S::sum(acc));
            }
        }
    }
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: whole chunks are read.
        unsafe {
            let mut acc = [S::splat(0.0); 8];
            for chunk in self.0.chunks_exact(8 * LANES) {
                for i in 0..8 {
                    acc[i] = S::add(acc[i], S::load(chunk.as_ptr().add(i * LANES)));
                }
            }
            for acc in acc {
                black_box(S::sum(acc));
            }
        }
    }
}
