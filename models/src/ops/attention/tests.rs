//! The kernel at each level of instructions.

use half::f16;

use super::*;
use crate::ops::simd::Level;

/// One token's queries of three heads over 330 keys, at one level.
fn attend<E: Element>(level: Level, d: usize, keys: &[E], values: &[E]) -> Vec<f32> {
    let sizes = Sizes {
        batch: 1,
        tokens: 1,
        heads: 3,
        kv_heads: 1,
        head_dim: d,
        keys: 330,
    };
    let strided = |values| Strided {
        values,
        batch: 330 * d,
        head: 330 * d,
        key: d,
    };
    let q: Vec<f32> = (0..3 * d).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
    let mut out = vec![0.0; 3 * d];
    let work = Work {
        sizes,
        q: &q,
        k: strided(keys),
        v: strided(values),
        tree: None,
        out: out.as_mut_ptr(),
        batch: 0,
        kv_head: 0,
        first: 0,
        positions: 1,
        runs: 0..2,
        partial: std::ptr::null_mut(),
    };
    // SAFETY: the slices are as long as the sizes say, and the level is available.
    unsafe { level.run(work) };
    out
}

#[test]
fn every_level_is_the_scalar_twin_and_halves_are_what_they_stand_for() {
    for d in [8, 24, 64, 80] {
        let numbers = |step: f32| -> Vec<f16> {
            (0..330 * d)
                .map(|i| f16::from_f32((i as f32 * step).sin()))
                .collect()
        };
        let (k, v) = (numbers(0.37), numbers(1.3));
        let wide = |x: &[f16]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
        let expected = attend(Level::Scalar, d, &wide(&k), &wide(&v));
        assert!(expected.iter().all(|x| x.is_finite()));
        for level in Level::available() {
            assert_eq!(attend(level, d, &k, &v), expected, "{level:?} {d}");
            assert_eq!(
                attend(level, d, &wide(&k), &wide(&v)),
                expected,
                "{level:?} {d}"
            );
        }
    }
}
