//! AVX-512 with BF16 and VNNI: a vector is one register.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Compiles and runs a kernel with these instructions.
///
/// # Safety
/// The CPU has them, and what the kernel points to is valid.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: passed on to the caller.
    unsafe { kernel.run::<Avx512>() }
}

/// Adds the halves of `a` and of `b` where `LOW` and `HIGH` say which 128-bit quarters they are.
#[inline(always)]
unsafe fn fold<const LOW: i32, const HIGH: i32>(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's CPU has AVX-512.
    unsafe {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<LOW>(a, b),
            _mm512_shuffle_f32x4::<HIGH>(a, b),
        )
    }
}

/// The same bits under the type that products take.
#[inline(always)]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without structure.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

// SAFETY of the blocks below: the trait's contract (the CPU has the instructions, pointers are valid); every load and
// store is of the unaligned kind, and masked ones touch only the lanes asked for.
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type U = __m512i;
    type B = __m512i;

    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_some(from: *const f32, count: usize) -> Self::F {
        unsafe { _mm512_maskz_loadu_ps(((1u32 << count) - 1) as u16, from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::F) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_some_f16(from: *const u16, count: usize) -> Self::F {
        let lanes = ((1u32 << count) - 1) as u16;
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, from.cast())) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn exp2(n: Self::F) -> Self::F {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: Self::F, y: Self::F) -> Self::F {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, limit), y) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn sums(v: [Self::F; 8]) -> [f32; 8] {
        unsafe {
            // Quarters [a0+a2, a1+a3, b0+b2, b1+b3]: lanes 8 apart are added.
            let ab = fold::<0x44, 0xee>(v[0], v[1]);
            let cd = fold::<0x44, 0xee>(v[2], v[3]);
            let ef = fold::<0x44, 0xee>(v[4], v[5]);
            let gh = fold::<0x44, 0xee>(v[6], v[7]);
            // Quarters a, b, c, d: lanes 4 apart are added.
            let abcd = fold::<0x88, 0xdd>(ab, cd);
            let efgh = fold::<0x88, 0xdd>(ef, gh);
            // Lanes 2 apart, then 1: each quarter ends as a, e.
            let twos = _mm512_add_ps(
                _mm512_shuffle_ps::<0x44>(abcd, efgh),
                _mm512_shuffle_ps::<0xee>(abcd, efgh),
            );
            let ones = _mm512_add_ps(twos, _mm512_permute_ps::<0xb1>(twos));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
            let packed = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, ones));
            let mut out = [0.0; 8];
            _mm256_storeu_ps(out.as_mut_ptr(), packed);
            out
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [Self::F; 16]) -> [Self::F; 16] {
        unsafe {
            // Pairs of rows, then of pairs, within the 128-bit quarters ...
            let mut a = rows;
            for i in (0..16).step_by(2) {
                a[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                a[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut b = a;
            for i in (0..16).step_by(4) {
                b[i] = _mm512_shuffle_ps::<0x44>(a[i], a[i + 2]);
                b[i + 1] = _mm512_shuffle_ps::<0xee>(a[i], a[i + 2]);
                b[i + 2] = _mm512_shuffle_ps::<0x44>(a[i + 1], a[i + 3]);
                b[i + 3] = _mm512_shuffle_ps::<0xee>(a[i + 1], a[i + 3]);
            }
            // ... then the quarters: b[4 g + c] has column c of each quarter, for rows 4 g to 4 g + 3.
            let mut out = rows;
            for c in 0..4 {
                let low02 = _mm512_shuffle_f32x4::<0x88>(b[c], b[4 + c]);
                let low13 = _mm512_shuffle_f32x4::<0xdd>(b[c], b[4 + c]);
                let high02 = _mm512_shuffle_f32x4::<0x88>(b[8 + c], b[12 + c]);
                let high13 = _mm512_shuffle_f32x4::<0xdd>(b[8 + c], b[12 + c]);
                out[c] = _mm512_shuffle_f32x4::<0x88>(low02, high02);
                out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(low02, high02);
                out[4 + c] = _mm512_shuffle_f32x4::<0x88>(low13, high13);
                out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(low13, high13);
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::B {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_some_bf16(from: *const u16, count: usize) -> Self::B {
        let lanes = ((1u64 << count) - 1) as u32;
        unsafe { _mm512_maskz_loadu_epi16(lanes, from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, a: Self::B, b: Self::B) -> Self::F {
        unsafe { _mm512_dpbf16_ps(acc, as_bf16(a), as_bf16(b)) }
    }
    #[inline(always)]
    unsafe fn store_as_bf16(to: *mut u16, v: Self::F) {
        unsafe {
            _mm256_storeu_si256(
                to.cast(),
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)),
            )
        }
    }

    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> Self::I {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn join(high: Self::I, low: Self::I) -> Self::I {
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low) }
    }
    #[inline(always)]
    unsafe fn store_as_i8(to: *mut i8, v: Self::F) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::U {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_u8(to: *mut u8, v: Self::U) {
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_planes<const BITS: usize>(from: *const u8) -> Self::U {
        unsafe {
            let mut all = _mm512_setzero_si512();
            for bit in 0..BITS {
                let plane = from.add(8 * bit).cast::<u64>().read_unaligned();
                all = _mm512_or_si512(all, _mm512_maskz_set1_epi8(plane, 1 << bit));
            }
            all
        }
    }
    #[inline(always)]
    unsafe fn spread_u8(v: Self::U) -> [Self::F; 4] {
        unsafe {
            let mask = _mm512_set1_epi32(255);
            [
                _mm512_cvtepi32_ps(_mm512_and_si512(v, mask)),
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(v), mask)),
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<16>(v), mask)),
                _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(v)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (Self::U, Self::U) {
        unsafe {
            let bytes = _mm512_loadu_si512(from.cast());
            let mask = _mm512_set1_epi8(15);
            let high = _mm512_srli_epi16::<4>(bytes);
            (_mm512_and_si512(bytes, mask), _mm512_and_si512(high, mask))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u8) -> [Self::U; 4] {
        unsafe {
            let bytes = _mm512_loadu_si512(from.cast());
            let mask = _mm512_set1_epi8(3);
            // Shifts are of words: what comes in from the byte beside is masked off.
            [
                _mm512_and_si512(bytes, mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(bytes), mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask),
                _mm512_and_si512(_mm512_srli_epi16::<6>(bytes), mask),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_threes<const FIRST: usize>(
        pairs: *const u8,
        highest: *const u8,
    ) -> [Self::U; 4] {
        unsafe {
            let pairs = Self::load_pairs(pairs);
            let bits = _mm512_loadu_si512(highest.cast());
            let mask = _mm512_set1_epi8(4);
            let third = match FIRST {
                0 => [
                    _mm512_slli_epi16::<2>(bits),
                    _mm512_slli_epi16::<1>(bits),
                    bits,
                    _mm512_srli_epi16::<1>(bits),
                ],
                _ => [
                    _mm512_srli_epi16::<2>(bits),
                    _mm512_srli_epi16::<3>(bits),
                    _mm512_srli_epi16::<4>(bits),
                    _mm512_srli_epi16::<5>(bits),
                ],
            };
            let mut all = pairs;
            for i in 0..4 {
                all[i] = _mm512_or_si512(pairs[i], _mm512_and_si512(third[i], mask));
            }
            all
        }
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, w: Self::U, x: *const i8) -> Self::I {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
}
