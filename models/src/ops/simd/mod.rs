//! Vectors of sixteen, the same on every CPU.
//!
//! A kernel is written once over [`Simd`]: 16 lanes of f32 (or i32), whatever the registers are. Each instruction set
//! does the same operations on the same lanes in the same order, so a kernel gives the same bits on all of them (but that
//! the BF16 instructions take subnormal numbers for zero); the scalar twin is the meaning of the others, and a test holds
//! them equal.
//!
//! The level is chosen once, at run time. AVX-512 here means what its BF16 and VNNI instructions need too (Zen 4,
//! Sapphire Rapids and later); other x86 CPUs with FMA use AVX2. Elsewhere the scalar twin's fixed arrays are left to
//! the compiler, which makes NEON of them on ARM.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

pub(crate) use scalar::Scalar;

/// Lanes of [`Simd::F`].
pub(crate) const LANES: usize = 16;

/// One instruction set's sixteen-lane vectors.
///
/// # Safety
/// Every method may only run on a CPU that has the instruction set, which [`run`] sees to; pointers must be valid for
/// what the method reads or writes, without any demand on alignment.
pub(crate) trait Simd: Copy + 'static {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;
    /// 64 × u8.
    type U: Copy;
    /// 32 × bf16.
    type B: Copy;

    /// Whether 32 vectors fit the registers; otherwise about 8 do.
    const MANY_REGISTERS: bool;

    /// Asks for a cache line that will be read soon; any address will do.
    unsafe fn prefetch(at: *const u8);
    unsafe fn splat(value: f32) -> Self::F;
    /// 16 values.
    unsafe fn load(from: *const f32) -> Self::F;
    /// `count` ≤ 16 values, zeros behind them.
    unsafe fn load_some(from: *const f32, count: usize) -> Self::F;
    unsafe fn store(to: *mut f32, v: Self::F);
    /// 16 halves, as their bits.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// `count` ≤ 16 halves, zeros behind them.
    #[inline(always)]
    unsafe fn load_some_f16(from: *const u16, count: usize) -> Self::F {
        // SAFETY: passed on to the caller; the copy is as long as what is loaded.
        unsafe { Self::load_f16(padded(from, count).as_ptr()) }
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a b + c` with one rounding.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: b when they can not be compared.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// The nearest whole number, even at a tie.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for whole n in -126..=127.
    unsafe fn exp2(n: Self::F) -> Self::F;
    /// Zero where `x < limit`, else `y`.
    unsafe fn zero_below(x: Self::F, limit: Self::F, y: Self::F) -> Self::F;
    /// The sum of the lanes, adding lanes 8, then 4, 2 and 1 apart.
    unsafe fn sum(v: Self::F) -> f32;
    /// The largest lane; any when one is not a number.
    unsafe fn largest(v: Self::F) -> f32;
    /// Eight sums over lanes, each as [`Simd::sum`].
    unsafe fn sums(v: [Self::F; 8]) -> [f32; 8];

    /// 32 values of bf16, as their bits.
    unsafe fn load_bf16(from: *const u16) -> Self::B;
    /// `count` ≤ 32 values of bf16, zeros behind them.
    #[inline(always)]
    unsafe fn load_some_bf16(from: *const u16, count: usize) -> Self::B {
        // SAFETY: as for halves.
        unsafe { Self::load_bf16(padded(from, count).as_ptr()) }
    }
    /// In each lane, `acc + a1 b1`, then `+ a0 b0`, over the lane's two values.
    unsafe fn dot_bf16(acc: Self::F, a: Self::B, b: Self::B) -> Self::F;
    /// 16 values rounded to bf16, ties to even.
    unsafe fn store_as_bf16(to: *mut u16, v: Self::F);

    unsafe fn splat_i32(value: i32) -> Self::I;
    unsafe fn to_f32(v: Self::I) -> Self::F;
    /// `256 high + low`.
    unsafe fn join(high: Self::I, low: Self::I) -> Self::I;
    /// 16 values, whole numbers in -128..=127, as bytes.
    unsafe fn store_as_i8(to: *mut i8, v: Self::F);
    unsafe fn load_u8(from: *const u8) -> Self::U;
    unsafe fn store_u8(to: *mut u8, v: Self::U);
    /// 64 numbers of `BITS` bits: 64 bits of 8 bytes for each bit, the lowest first.
    unsafe fn load_planes<const BITS: usize>(from: *const u8) -> Self::U;
    /// The four bytes of each lane as numbers.
    unsafe fn spread_u8(v: Self::U) -> [Self::F; 4];
    /// The low and the high halves of 64 bytes.
    unsafe fn load_nibbles(from: *const u8) -> (Self::U, Self::U);
    /// The quarters of 64 bytes, of two bits each, the lowest first.
    unsafe fn load_pairs(from: *const u8) -> [Self::U; 4];
    /// [`Simd::load_pairs`] with a third bit: in the i-th, that is bit `FIRST + i` of the 64 bytes at `highest`. `FIRST` is 0 or 4.
    unsafe fn load_threes<const FIRST: usize>(pairs: *const u8, highest: *const u8)
    -> [Self::U; 4];
    /// In each lane, `acc` plus the lane's four bytes of `w` times the four bytes at `x`.
    unsafe fn dot_u8(acc: Self::I, w: Self::U, x: *const i8) -> Self::I;

    /// Rows and columns of 16 × 16 values exchanged.
    #[inline(always)]
    unsafe fn transpose(rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut all = [[0.0; LANES]; LANES];
        // SAFETY: each array has 16 places.
        unsafe {
            for (to, row) in all.iter_mut().zip(rows) {
                Self::store(to.as_mut_ptr(), row);
            }
            let mut turned = rows;
            for (j, to) in turned.iter_mut().enumerate() {
                let column: [f32; LANES] = std::array::from_fn(|i| all[i][j]);
                *to = Self::load(column.as_ptr());
            }
            turned
        }
    }

    /// `e^x` to about one unit in the last place; 0 below -87.3, infinity above 88.7.
    ///
    /// Cephes' scheme (S. Moshier, `expf.c`): `x = n ln 2 + r`, a polynomial in r, and n put into the exponent.
    #[inline(always)]
    #[allow(clippy::excessive_precision)] // ln 2 in two parts, and the published coefficients
    unsafe fn exp(x: Self::F) -> Self::F {
        // SAFETY: the caller holds the trait's contract.
        unsafe {
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // 2^128 does not fit one factor; two halves do.
            let n = Self::min(Self::splat(200.0), Self::max(Self::splat(-127.0), n));
            let r = Self::fma(n, Self::splat(-0.693_359_375), x);
            let r = Self::fma(n, Self::splat(2.121_944_40e-4), r);
            let mut p = Self::splat(1.987_569_15e-4);
            for c in [
                1.398_199_95e-3,
                8.333_451_9e-3,
                4.166_579_6e-2,
                1.666_666_55e-1,
                5.000_000_1e-1,
            ] {
                p = Self::fma(p, r, Self::splat(c));
            }
            let p = Self::fma(Self::mul(p, r), r, Self::add(r, Self::splat(1.0)));
            let half = Self::round(Self::mul(n, Self::splat(0.5)));
            let y = Self::mul(
                Self::mul(p, Self::exp2(half)),
                Self::exp2(Self::sub(n, half)),
            );
            Self::zero_below(x, Self::splat(-87.3), y)
        }
    }
}

/// `count` ≤ 32 elements, zeros behind them.
#[inline(always)]
unsafe fn padded(from: *const u16, count: usize) -> [u16; 32] {
    let mut out = [0; 32];
    // SAFETY: the caller's pointer is good for `count` elements.
    unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), count) };
    out
}

/// Work that is compiled for every instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Does it. Implementations are `#[inline(always)]`, so that [`run`] can compile them for each instruction set; for
    /// the same reason no vector is made inside a closure, which would be compiled without the instructions.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`, and what the kernel points to is valid.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// An instruction set, or the lack of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Scalar,
}

impl Level {
    /// The levels this CPU has, best first.
    pub(crate) fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx512bf16")
            {
                levels.push(Level::Avx512);
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Level::Avx2);
            }
        }
        levels.push(Level::Scalar);
        levels
    }

    /// The level kernels run at.
    pub(crate) fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::available()[0])
    }

    /// Runs a kernel at this level.
    ///
    /// # Safety
    /// The level is [`Level::available`], and what the kernel points to is valid.
    #[inline]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::run(kernel),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::run(kernel),
                Level::Scalar => kernel.run::<Scalar>(),
            }
        }
    }
}

/// The instructions that products are made with on this CPU, such as `x86_64 avx2`: how sums are rounded may depend on
/// them, if not in our kernels then in the linear algebra of the crates we use.
pub fn instructions() -> String {
    let name = match Level::best() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => "avx512-bf16-vnni",
        // Too few of them for our kernels, but not for others'.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 if is_x86_feature_detected!("avx512f") => "avx512",
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => "avx2",
        Level::Scalar => "baseline",
    };
    format!("{} {name}", std::env::consts::ARCH)
}

/// Runs a kernel at the best level of this CPU.
///
/// # Safety
/// What the kernel points to is valid.
#[inline]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: `best` is available; the rest is the caller's.
    unsafe { Level::best().run(kernel) }
}
