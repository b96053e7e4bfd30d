//! Every level gives the scalar twin's bits.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

/// Everything a vector can do, done to the given numbers; the bits of all results.
struct Everything<'a> {
    a: &'a [f32; 16],
    b: &'a [f32; 16],
    halves: &'a [u16; 32],
    bytes: &'a [u8; 64],
    more: &'a [u8; 64],
    signed: &'a [i8; 8],
}

impl Kernel for Everything<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<u32> {
        let mut out: Vec<u32> = Vec::new();
        // SAFETY: all arrays are as long as what is read and written.
        unsafe {
            let mut lanes = [0.0f32; LANES];
            let (a, b) = (S::load(self.a.as_ptr()), S::load(self.b.as_ptr()));
            let c = S::splat(1.25);
            let all = [
                S::add(a, b),
                S::sub(a, b),
                S::mul(a, b),
                S::div(a, b),
                S::fma(a, b, c),
                S::max(a, b),
                S::min(a, b),
                S::round(a),
                S::exp2(S::max(
                    S::splat(-126.0),
                    S::min(S::splat(127.0), S::round(a)),
                )),
                S::zero_below(a, b, c),
                S::exp(a),
                S::load_some(self.a.as_ptr(), 5),
                S::load_some(self.a.as_ptr(), 11),
                S::load_f16(self.halves.as_ptr()),
                S::load_some_f16(self.halves.as_ptr(), 9),
                S::dot_bf16(
                    a,
                    S::load_some_bf16(self.halves.as_ptr(), 21),
                    S::load_bf16(self.halves.as_ptr()),
                ),
                S::dot_bf16(
                    a,
                    S::load_bf16(self.halves.as_ptr()),
                    S::load_bf16(self.halves.as_ptr()),
                ),
            ];
            for v in all {
                S::store(lanes.as_mut_ptr(), v);
                out.extend(lanes.map(f32::to_bits));
            }
            let turned = S::transpose([a, b, c, a, b, c, a, b, c, a, b, c, a, b, c, a]);
            for v in turned {
                S::store(lanes.as_mut_ptr(), v);
                out.extend(lanes.map(f32::to_bits));
            }
            out.push(S::sum(a).to_bits());
            out.push(S::largest(a).to_bits());
            let sums = S::sums([a, b, c, S::add(a, b), S::sub(a, b), S::mul(a, b), a, b]);
            out.extend(sums.map(f32::to_bits));
            out.push(S::sum(S::mul(a, b)).to_bits());
            let mut narrow = [0u16; LANES];
            S::store_as_bf16(narrow.as_mut_ptr(), a);
            out.extend(narrow.map(u32::from));
            let mut tiny = [0i8; LANES];
            let small = S::round(S::max(S::splat(-128.0), S::min(S::splat(127.0), a)));
            S::store_as_i8(tiny.as_mut_ptr(), small);
            out.extend(tiny.map(|v| v as u32));
            let (low, high) = S::load_nibbles(self.bytes.as_ptr());
            let mut codes = [0u8; 64];
            let planes = [
                S::load_planes::<2>(self.bytes.as_ptr().add(3)),
                S::load_planes::<3>(self.bytes.as_ptr().add(40)),
            ];
            for v in planes {
                S::store_u8(codes.as_mut_ptr(), v);
                out.extend(codes.map(u32::from));
            }
            for four in [
                S::load_pairs(self.bytes.as_ptr()),
                S::load_threes::<0>(self.bytes.as_ptr(), self.more.as_ptr()),
                S::load_threes::<4>(self.more.as_ptr(), self.bytes.as_ptr()),
            ] {
                for v in four {
                    S::store_u8(codes.as_mut_ptr(), v);
                    out.extend(codes.map(u32::from));
                }
            }
            for v in S::spread_u8(S::load_u8(self.bytes.as_ptr())) {
                S::store(lanes.as_mut_ptr(), v);
                out.extend(lanes.map(f32::to_bits));
            }
            let mut dots = S::dot_u8(
                S::splat_i32(-7),
                S::load_u8(self.bytes.as_ptr()),
                self.signed.as_ptr(),
            );
            dots = S::dot_u8(dots, low, self.signed.as_ptr().add(4));
            dots = S::join(dots, S::dot_u8(dots, high, self.signed.as_ptr()));
            S::store(lanes.as_mut_ptr(), S::to_f32(dots));
            out.extend(lanes.map(f32::to_bits));
        }
        out
    }
}

fn numbers() -> impl Strategy<Value = [f32; 16]> {
    prop::array::uniform16(prop_oneof![
        -100f32..100.0,
        -1f32..1.0,
        Just(0.5),
        Just(-2.5),
        Just(-87.3),
        Just(88.6),
        Just(127.0),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_level_is_the_scalar_twin(
        a in numbers(), b in numbers(),
        halves in prop::collection::vec(-50f32..50.0, 32),
        bytes in prop::collection::vec(any::<u8>(), 64),
        signed in prop::array::uniform8(any::<i8>()),
    ) {
        let mut bits = [0; 32];
        // Half of them as f16, half as bf16: either way they are read as both.
        for (i, (bits, v)) in bits.iter_mut().zip(&halves).enumerate() {
            *bits = if i < 16 { f16::from_f32(*v).to_bits() } else { bf16::from_f32(*v).to_bits() };
        }
        let more: [u8; 64] = std::array::from_fn(|i| bytes[63 - i] ^ i as u8);
        let bytes: [u8; 64] = bytes.try_into().expect("64");
        let run = |level: Level| {
            let work = Everything { a: &a, b: &b, halves: &bits, bytes: &bytes, more: &more, signed: &signed };
            // SAFETY: the level is available and the arrays are long enough.
            unsafe { level.run(work) }
        };
        let scalar = run(Level::Scalar);
        for level in Level::available() {
            prop_assert_eq!(run(level), scalar.clone(), "{:?}", level);
        }
    }
}

#[test]
fn exp_is_good_to_two_units_in_the_last_place() {
    struct Exp([f32; 16]);
    impl Kernel for Exp {
        type Output = [f32; 16];
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> [f32; 16] {
            let mut out = [0.0; 16];
            // SAFETY: both arrays have 16 places.
            unsafe { S::store(out.as_mut_ptr(), S::exp(S::load(self.0.as_ptr()))) };
            out
        }
    }
    let mut worst = 0f64;
    for i in 0..40_000 {
        let x = std::array::from_fn(|j| -87.0 + 175.6 * (16 * i + j) as f32 / 640_000.0);
        // SAFETY: the kernel holds its own numbers.
        for (x, y) in x.into_iter().zip(unsafe { run(Exp(x)) }) {
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(y) - exact) / exact).abs());
        }
    }
    assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
    let ends = [
        f32::NEG_INFINITY,
        -100.0,
        0.0,
        100.0,
        f32::INFINITY,
        f32::NAN,
        1.0,
        0.0,
    ]
    .map(|x| {
        // SAFETY: as above.
        unsafe { run(Exp([x; 16]))[0] }
    });
    assert_eq!(ends[..3], [0.0, 0.0, 1.0]);
    assert!(ends[3] == f32::INFINITY && ends[5].is_nan());
    assert!(!ends[4].is_finite());
}
