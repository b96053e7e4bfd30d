//! AVX2 with FMA and F16C: a vector is two registers.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Compiles and runs a kernel with these instructions.
///
/// # Safety
/// The CPU has them, and what the kernel points to is valid.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: passed on to the caller.
    unsafe { kernel.run::<Avx2>() }
}

/// Applies a two-operand instruction to both registers.
macro_rules! both {
    ($f:ident, $a:expr, $b:expr) => {
        unsafe { [$f($a[0], $b[0]), $f($a[1], $b[1])] }
    };
}

/// Lanes 4, 2 and 1 apart added.
#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: the caller's CPU has AVX.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Eight values rounded to bf16 (ties to even; NaN stays NaN), in the low halves of 32-bit lanes.
#[inline(always)]
unsafe fn round_bf16(v: __m256) -> __m256i {
    // SAFETY: the caller's CPU has AVX2.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan))
    }
}

/// The even and the odd bf16 of each 32-bit lane, as f32.
#[inline(always)]
unsafe fn split_bf16(v: __m256i) -> (__m256, __m256) {
    // SAFETY: the caller's CPU has AVX2.
    unsafe {
        let odd = _mm256_and_si256(v, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        (
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)),
            _mm256_castsi256_ps(odd),
        )
    }
}

/// `2^n` for whole n.
#[inline(always)]
unsafe fn exp2(n: __m256) -> __m256 {
    // SAFETY: the caller's CPU has AVX2.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

/// `acc + a1 b1`, then `+ a0 b0`.
#[inline(always)]
unsafe fn dot_bf16(acc: __m256, a: __m256i, b: __m256i) -> __m256 {
    // SAFETY: the caller's CPU has AVX2 and FMA.
    unsafe {
        let ((a0, a1), (b0, b1)) = (split_bf16(a), split_bf16(b));
        _mm256_fmadd_ps(a0, b0, _mm256_fmadd_ps(a1, b1, acc))
    }
}

// SAFETY of the blocks below: the trait's contract (the CPU has the instructions, pointers are valid); every load and
// store is of the unaligned kind.
impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type U = [__m256i; 2];
    type B = [__m256i; 2];

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_some(from: *const f32, count: usize) -> Self::F {
        unsafe {
            let wanted = _mm256_set1_epi32(count as i32);
            let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
            [
                _mm256_maskload_ps(from, _mm256_cmpgt_epi32(wanted, low)),
                // Lanes that are not wanted are not read: their addresses may lie anywhere.
                _mm256_maskload_ps(from.wrapping_add(8), _mm256_cmpgt_epi32(wanted, high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe {
            [
                _mm256_round_ps::<NEAREST>(a[0]),
                _mm256_round_ps::<NEAREST>(a[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn exp2(n: Self::F) -> Self::F {
        unsafe { [exp2(n[0]), exp2(n[1])] }
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: Self::F, y: Self::F) -> Self::F {
        unsafe {
            let kept = [
                _mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], limit[0]),
                _mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], limit[1]),
            ];
            [_mm256_and_ps(kept[0], y[0]), _mm256_and_ps(kept[1], y[1])]
        }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        unsafe { sum8(_mm256_add_ps(v[0], v[1])) }
    }
    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(v[0], v[1]);
            let four = _mm_max_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn sums(v: [Self::F; 8]) -> [f32; 8] {
        let mut sums = [0.0; 8];
        for (sum, v) in sums.iter_mut().zip(v) {
            *sum = unsafe { sum8(_mm256_add_ps(v[0], v[1])) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::B {
        unsafe { Self::load_u8(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, a: Self::B, b: Self::B) -> Self::F {
        unsafe { [dot_bf16(acc[0], a[0], b[0]), dot_bf16(acc[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn store_as_bf16(to: *mut u16, v: Self::F) {
        unsafe {
            // Packing works within 128-bit halves: put the quarters back in order.
            let packed = _mm256_packus_epi32(round_bf16(v[0]), round_bf16(v[1]));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0xd8>(packed));
        }
    }

    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(value); 2] }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    unsafe fn join(high: Self::I, low: Self::I) -> Self::I {
        unsafe {
            [
                _mm256_add_epi32(_mm256_slli_epi32::<8>(high[0]), low[0]),
                _mm256_add_epi32(_mm256_slli_epi32::<8>(high[1]), low[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_as_i8(to: *mut i8, v: Self::F) {
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            let words = _mm256_permute4x64_epi64::<0xd8>(words);
            let low = _mm256_castsi256_si128(words);
            _mm_storeu_si128(
                to.cast(),
                _mm_packs_epi16(low, _mm256_extracti128_si256::<1>(words)),
            );
        }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::U {
        unsafe {
            [
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(32).cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_u8(to: *mut u8, v: Self::U) {
        unsafe {
            _mm256_storeu_si256(to.cast(), v[0]);
            _mm256_storeu_si256(to.add(32).cast(), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_planes<const BITS: usize>(from: *const u8) -> Self::U {
        unsafe {
            // Each byte of the plane eight times, then the bit that is each one's own.
            const EACH: i64 = 0x0101_0101_0101_0101;
            let bytes = _mm256_setr_epi64x(0, EACH, 2 * EACH, 3 * EACH);
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let mut all = [_mm256_setzero_si256(); 2];
            for bit in 0..BITS {
                for (half, all) in all.iter_mut().enumerate() {
                    let plane = from.add(8 * bit + 4 * half).cast::<i32>().read_unaligned();
                    let each = _mm256_shuffle_epi8(_mm256_set1_epi32(plane), bytes);
                    let set = _mm256_cmpeq_epi8(_mm256_and_si256(each, own), own);
                    let value = _mm256_and_si256(set, _mm256_set1_epi8(1 << bit));
                    *all = _mm256_or_si256(*all, value);
                }
            }
            all
        }
    }
    #[inline(always)]
    unsafe fn spread_u8(v: Self::U) -> [Self::F; 4] {
        unsafe {
            let mask = _mm256_set1_epi32(255);
            let mut all = [[_mm256_setzero_ps(); 2]; 4];
            for half in 0..2 {
                let v = v[half];
                let parts = [
                    v,
                    _mm256_srli_epi32::<8>(v),
                    _mm256_srli_epi32::<16>(v),
                    _mm256_srli_epi32::<24>(v),
                ];
                for j in 0..4 {
                    all[j][half] = _mm256_cvtepi32_ps(_mm256_and_si256(parts[j], mask));
                }
            }
            all
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (Self::U, Self::U) {
        unsafe {
            let bytes = Self::load_u8(from);
            let mask = _mm256_set1_epi8(15);
            let high = [
                _mm256_srli_epi16::<4>(bytes[0]),
                _mm256_srli_epi16::<4>(bytes[1]),
            ];
            let low = [
                _mm256_and_si256(bytes[0], mask),
                _mm256_and_si256(bytes[1], mask),
            ];
            (
                low,
                [
                    _mm256_and_si256(high[0], mask),
                    _mm256_and_si256(high[1], mask),
                ],
            )
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u8) -> [Self::U; 4] {
        unsafe {
            let bytes = Self::load_u8(from);
            let mask = _mm256_set1_epi8(3);
            let mut all = [bytes; 4];
            // Shifts are of words: what comes in from the byte beside is masked off.
            for half in 0..2 {
                let v = bytes[half];
                all[0][half] = _mm256_and_si256(v, mask);
                all[1][half] = _mm256_and_si256(_mm256_srli_epi16::<2>(v), mask);
                all[2][half] = _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask);
                all[3][half] = _mm256_and_si256(_mm256_srli_epi16::<6>(v), mask);
            }
            all
        }
    }
    #[inline(always)]
    unsafe fn load_threes<const FIRST: usize>(
        pairs: *const u8,
        highest: *const u8,
    ) -> [Self::U; 4] {
        unsafe {
            let mut all = Self::load_pairs(pairs);
            let bits = Self::load_u8(highest);
            let mask = _mm256_set1_epi8(4);
            for half in 0..2 {
                let v = bits[half];
                let third = match FIRST {
                    0 => [
                        _mm256_slli_epi16::<2>(v),
                        _mm256_slli_epi16::<1>(v),
                        v,
                        _mm256_srli_epi16::<1>(v),
                    ],
                    _ => [
                        _mm256_srli_epi16::<2>(v),
                        _mm256_srli_epi16::<3>(v),
                        _mm256_srli_epi16::<4>(v),
                        _mm256_srli_epi16::<5>(v),
                    ],
                };
                for i in 0..4 {
                    let third = _mm256_and_si256(third[i], mask);
                    all[i][half] = _mm256_or_si256(all[i][half], third);
                }
            }
            all
        }
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, w: Self::U, x: *const i8) -> Self::I {
        unsafe {
            // The byte product instruction saturates at 16 bits; words do not.
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let x_odd = _mm256_srai_epi16::<8>(x);
            let low = _mm256_set1_epi16(255);
            let mut sums = acc;
            for i in 0..2 {
                let even = _mm256_madd_epi16(_mm256_and_si256(w[i], low), x_even);
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w[i]), x_odd);
                sums[i] = _mm256_add_epi32(sums[i], _mm256_add_epi32(even, odd));
            }
            sums
        }
    }
}
