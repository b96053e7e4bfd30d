//! The scalar twin: what every other level must equal.

use super::{LANES, Simd};

/// Sixteen numbers in an array.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map2(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

// SAFETY of the blocks below: pointers are the caller's to vouch for; nothing else here is unsafe.
impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type U = [u8; 64];
    type B = [u16; 32];

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_some(from: *const f32, count: usize) -> Self::F {
        std::array::from_fn(|i| match i < count {
            true => unsafe { from.add(i).read_unaligned() },
            false => 0.0,
        })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::F) {
        unsafe { to.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| half::f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn exp2(n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn zero_below(x: Self::F, limit: Self::F, y: Self::F) -> Self::F {
        std::array::from_fn(|i| if x[i] < limit[i] { 0.0 } else { y[i] })
    }
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn largest(v: Self::F) -> f32 {
        v.iter()
            .fold(f32::NEG_INFINITY, |a, b| if a > *b { a } else { *b })
    }
    #[inline(always)]
    unsafe fn sums(v: [Self::F; 8]) -> [f32; 8] {
        v.map(|v| unsafe { Self::sum(v) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::B {
        unsafe { from.cast::<Self::B>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, a: Self::B, b: Self::B) -> Self::F {
        std::array::from_fn(|i| {
            let (even, odd) = (2 * i, 2 * i + 1);
            let odd = bf16(a[odd]).mul_add(bf16(b[odd]), acc[i]);
            bf16(a[even]).mul_add(bf16(b[even]), odd)
        })
    }
    #[inline(always)]
    unsafe fn store_as_bf16(to: *mut u16, v: Self::F) {
        let bits = v.map(|v| half::bf16::from_f32(v).to_bits());
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> Self::I {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        v.map(|v| v as f32)
    }
    #[inline(always)]
    unsafe fn join(high: Self::I, low: Self::I) -> Self::I {
        std::array::from_fn(|i| 256 * high[i] + low[i])
    }
    #[inline(always)]
    unsafe fn store_as_i8(to: *mut i8, v: Self::F) {
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(v.map(|v| v as i8)) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::U {
        unsafe { from.cast::<Self::U>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_u8(to: *mut u8, v: Self::U) {
        unsafe { to.cast::<Self::U>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_planes<const BITS: usize>(from: *const u8) -> Self::U {
        let planes = unsafe { from.cast::<[[u8; 8]; BITS]>().read_unaligned() };
        std::array::from_fn(|i| {
            (0..BITS)
                .map(|b| (planes[b][i / 8] >> (i % 8) & 1) << b)
                .sum()
        })
    }
    #[inline(always)]
    unsafe fn spread_u8(v: Self::U) -> [Self::F; 4] {
        std::array::from_fn(|j| std::array::from_fn(|i| f32::from(v[4 * i + j])))
    }
    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8) -> (Self::U, Self::U) {
        let bytes = unsafe { Self::load_u8(from) };
        (bytes.map(|b| b & 15), bytes.map(|b| b >> 4))
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u8) -> [Self::U; 4] {
        let bytes = unsafe { Self::load_u8(from) };
        std::array::from_fn(|i| bytes.map(|b| b >> (2 * i) & 3))
    }
    #[inline(always)]
    unsafe fn load_threes<const FIRST: usize>(
        pairs: *const u8,
        highest: *const u8,
    ) -> [Self::U; 4] {
        let (pairs, highest) = unsafe { (Self::load_pairs(pairs), Self::load_u8(highest)) };
        std::array::from_fn(|i| {
            std::array::from_fn(|j| pairs[i][j] | (highest[j] >> (FIRST + i) & 1) << 2)
        })
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, w: Self::U, x: *const i8) -> Self::I {
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        std::array::from_fn(|i| {
            (0..4).fold(acc[i], |sum, j| {
                sum + i32::from(w[4 * i + j]) * i32::from(x[j])
            })
        })
    }
}
