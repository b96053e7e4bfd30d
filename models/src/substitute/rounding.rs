//! From weights to low-bit codes without any data: round to nearest, and HQQ.
//!
//! Both give a group of weights the scale `(max - min) / most`, where `most` is the largest code, and a zero: a weight is
//! `(code - zero) · scale`, which is stored as `scale · code + minimum` with `minimum = -zero · scale`. Round to nearest
//! leaves the zero where it puts the minimum on code 0.
//!
//! HQQ (Badri and Shaji 2023, "Half-Quadratic Quantization", mobiusml/hqq) moves it to where the codes lose least in the norm
//! `Σ |w - ŵ|^p` with p = 0.7, which heeds large errors less than squares do. With an auxiliary matrix that problem splits in
//! two that are solved in turns: `Wₑ = shrink(W - Ŵ)` and `zero = mean(codes - (W - Wₑ) / scale)`, where
//! `shrink(e) = sign(e) · max(|e| - |e|^(p-1) / β, 0)` with β = 10. Here as in the reference's default, β stays as it is
//! and the scale is left alone. What differs: a group stops on its own, when its zero stands still; of the zeros that were
//! tried the one of least squares is kept; and scales below 5e-5 and ranges below 1e-4, which the reference cuts off, are f16's
//! own limits.
//!
//! The shrinkage is not free of units: an error below `β^(-1/(2-p))` = 0.17 is shrunk to nothing, so that for weights of
//! the usual size the zero is simply that of least squares for the codes at hand.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::ops::{BlockFormat, Blocks, LowBit, ends, half, nearest_codes};

/// How codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The zero that loses least in the norm of p = 0.7, by [`ITERATIONS`] half-quadratic steps.
    #[default]
    Hqq,
    /// The nearest code between the smallest and the largest weight of a group.
    Round,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 2] = [Method::Hqq, Method::Round];

    /// The name users give.
    pub fn name(self) -> &'static str {
        match self {
            Method::Hqq => "hqq",
            Method::Round => "round",
        }
    }
}

/// Steps that HQQ takes for a group at most.
pub const ITERATIONS: usize = 20;
/// The norm's exponent.
const P: f32 = 0.7;
/// The weight of the auxiliary matrix.
const BETA: f32 = 10.0;
/// A zero that moves by less, in codes, stands still: f16 would not tell.
const STILL: f32 = 1e-3;
/// Sums run side by side, so that the compiler makes vectors of them.
const SIDE_BY_SIDE: usize = 16;

/// What decides a group's codes beside its weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounding {
    pub method: Method,
    /// Whether the zero that is started from is a whole code, as the reference has it for 4 bits.
    pub round_zero: bool,
    /// Steps at most.
    pub iterations: usize,
}

/// Codes for a matrix `[out, input]`, row-major, of values that [`Blocks::can_hold`].
pub(super) fn quantize(
    weights: &[f32],
    (out, input): (usize, usize),
    format: LowBit,
    rounding: Rounding,
) -> Blocks {
    let round = |group: &[f32], codes: &mut [u8]| round_group(group, format, rounding, codes);
    Blocks::build(weights, out, input, BlockFormat::Low(format), round)
}

/// Codes, scale and minimum of one group.
fn round_group(
    weights: &[f32],
    format: LowBit,
    rounding: Rounding,
    codes: &mut [u8],
) -> (f16, f16) {
    let (smallest, largest) = ends(weights);
    let most = f32::from(format.most());
    let scale = half((largest - smallest) / most);
    if scale == f16::ZERO {
        // One value for all of them, or all but one.
        return (scale, half(smallest + 0.5 * (largest - smallest)));
    }
    let scaled = Scaled {
        weights,
        scale: scale.to_f32(),
        inverse: 1.0 / scale.to_f32(),
        most,
    };
    let mut zero = -smallest * scaled.inverse;
    if rounding.round_zero {
        zero = zero.round_ties_even();
    }
    if rounding.method == Method::Hqq {
        zero = scaled.best_zero(zero, rounding.iterations);
    }
    let minimum = half(-zero * scaled.scale);
    nearest_codes(weights, scale, minimum, format.most(), codes);
    (scale, minimum)
}

/// A group of weights on a scale.
struct Scaled<'a> {
    weights: &'a [f32],
    scale: f32,
    /// `1 / scale`.
    inverse: f32,
    /// The largest code.
    most: f32,
}

impl Scaled<'_> {
    /// The best of the zeros that HQQ's steps lead to from `zero`.
    fn best_zero(&self, zero: f32, iterations: usize) -> f32 {
        let mut best = (f32::INFINITY, zero);
        let mut zero = zero;
        for _ in 0..=iterations {
            let (error, next) = self.step(zero);
            if error < best.0 {
                best = (error, zero);
            }
            if (next - zero).abs() < STILL {
                break;
            }
            zero = next;
        }
        best.1
    }

    /// The squared error with a zero, and the zero that its codes ask for.
    fn step(&self, zero: f32) -> (f32, f32) {
        // Below this an error is shrunk to nothing.
        let least = BETA.powf(-1.0 / (2.0 - P));
        let mut moves = [0.0; SIDE_BY_SIDE];
        let mut squares = [0.0; SIDE_BY_SIDE];
        let mut largest = [0.0f32; SIDE_BY_SIDE];
        for weights in self.weights.chunks(SIDE_BY_SIDE) {
            for (i, weight) in weights.iter().enumerate() {
                let (code, error) = self.code(*weight, zero);
                moves[i] += code - weight * self.inverse;
                squares[i] += error * error;
                largest[i] = largest[i].max(error.abs());
            }
        }
        let mut moved: f32 = moves.iter().sum();
        if largest.iter().any(|error| *error > least) {
            for weight in self.weights {
                let error = self.code(*weight, zero).1;
                let size = error.abs();
                if size > least {
                    let kept = (size - size.powf(P - 1.0) / BETA).max(0.0);
                    moved += kept.copysign(error) * self.inverse;
                }
            }
        }
        (squares.iter().sum(), moved / self.weights.len() as f32)
    }

    /// The code nearest to a weight, and what it is off by.
    #[inline(always)]
    fn code(&self, weight: f32, zero: f32) -> (f32, f32) {
        // Adding and taking away a number without room for fractions rounds, ties to even, in instructions every CPU has.
        const WHOLE: f32 = 12_582_912.0;
        let place = (weight * self.inverse + zero).max(0.0).min(self.most);
        let code = (place + WHOLE) - WHOLE;
        (code, weight - (code - zero) * self.scale)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers that are the same on every machine: xorshift, and Box and Muller's normals.
    struct Numbers(u64);

    impl Numbers {
        fn uniform(&mut self) -> f64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            let radius = (-2.0 * self.uniform().ln()).sqrt();
            radius * (std::f64::consts::TAU * self.uniform()).cos()
        }

        /// Student's t of four degrees of freedom.
        fn heavy(&mut self) -> f64 {
            let squares: f64 = (0..4).map(|_| self.normal().powi(2)).sum();
            self.normal() / (squares / 4.0).sqrt()
        }
    }

    fn rounding(method: Method, iterations: usize) -> Rounding {
        Rounding {
            method,
            round_zero: false,
            iterations,
        }
    }

    /// `‖W - Ŵ‖_F / ‖W‖_F`.
    fn relative_error(weights: &[f32], blocks: &Blocks) -> f64 {
        let square = |v: f64| v * v;
        let all = weights.iter().map(|w| square(f64::from(*w))).sum::<f64>();
        let pairs = weights.iter().zip(blocks.dequantize());
        let off = pairs.map(|(w, v)| square(f64::from(*w) - f64::from(v)));
        (off.sum::<f64>() / all).sqrt()
    }

    /// The table of `speculative.md` §8.2: relative Frobenius errors of 512 × 4096 numbers, here of 256 × 4096 others. The last
    /// column says how many steps its HQQ must have taken: with shrinkage at work (2 bits, heavy tails) twenty do not get there.
    #[test]
    #[allow(clippy::approx_constant, reason = "an error that looks like π / 8")]
    fn errors_are_those_of_the_published_table() {
        let (out, input) = (256, 4096);
        let mut numbers = Numbers(88_172_645_463_325_252);
        let normal: Vec<f32> = (0..out * input).map(|_| numbers.normal() as f32).collect();
        let heavy: Vec<f32> = (0..out * input).map(|_| numbers.heavy() as f32).collect();
        let table = [
            (&normal, 4, 32, 0.0782, 0.0739, 20),
            (&normal, 4, 64, 0.0897, 0.0860, 20),
            (&normal, 4, 128, 0.0998, 0.0969, 20),
            (&normal, 3, 64, 0.1924, 0.1846, 20),
            (&normal, 2, 32, 0.3927, 0.3708, 20),
            (&normal, 2, 128, 0.5008, 0.4852, 20),
            (&heavy, 4, 32, 0.0937, 0.0885, 20),
            (&heavy, 4, 64, 0.1175, 0.1127, 20),
            (&heavy, 4, 128, 0.1443, 0.1400, 20),
            (&heavy, 3, 64, 0.2519, 0.2405, 20),
            (&heavy, 2, 32, 0.4724, 0.4258, 60),
            (&heavy, 2, 128, 0.7255, 0.6074, 100),
        ];
        for (weights, bits, group, nearest, hqq, iterations) in table {
            let format = LowBit::new(bits, group).expect("a format");
            let error = |rounding| {
                relative_error(weights, &quantize(weights, (out, input), format, rounding))
            };
            let round = error(rounding(Method::Round, 0));
            let best = error(rounding(Method::Hqq, iterations));
            let default = match iterations {
                ITERATIONS => best,
                _ => error(rounding(Method::Hqq, ITERATIONS)),
            };
            println!(
                "{bits}/{group}: round {round:.4} ({nearest}), hqq {default:.4}, {best:.4} in {iterations} steps ({hqq})"
            );
            for (found, published) in [(round, nearest), (best, hqq)] {
                let off = (found / published - 1.0).abs();
                assert!(off < 0.03, "{bits}/{group}: {found:.4}, not {published}");
            }
            assert!(default < round, "{bits}/{group}");
        }
        // A whole first zero costs a little, as the text beneath the table says: .0871 and .0911.
        let format = LowBit::new(4, 64).expect("a format");
        for (method, published) in [(Method::Hqq, 0.0871), (Method::Round, 0.0911)] {
            let whole = Rounding {
                round_zero: true,
                ..rounding(method, ITERATIONS)
            };
            let found = relative_error(&normal, &quantize(&normal, (out, input), format, whole));
            assert!(
                (found / published - 1.0).abs() < 0.03,
                "{found:.4}, not {published}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(80))]
        #[test]
        fn codes_are_finite_and_within_a_step(
            out in 1usize..20,
            input in 1usize..300,
            size in prop::sample::select(vec![1e-7f32, 1e-3, 0.05, 1.0, 300.0, 10_000.0]),
            shift in prop::sample::select(vec![0.0f32, 0.5, -3.0]),
            format in prop::sample::select(crate::test_data::block_formats()),
            method in prop::sample::select(Method::ALL.to_vec()),
            round_zero: bool,
            seed in 1u64..u64::MAX,
        ) {
            let BlockFormat::Low(low) = format else { return Ok(()) };
            let mut numbers = Numbers(seed);
            let weights: Vec<f32> = (0..out * input).map(|_| size * (numbers.normal() as f32).clamp(-2.9, 2.9) + shift * size).collect();
            let rounding = Rounding { method, round_zero, iterations: ITERATIONS };
            let blocks = quantize(&weights, (out, input), low, rounding);
            let back = blocks.dequantize();
            prop_assert!(back.iter().all(|v| v.is_finite()));
            let nearest = Rounding { method: Method::Round, ..rounding };
            let nearest = quantize(&weights, (out, input), low, nearest).dequantize();
            let groups = |all: &[f32]| -> Vec<Vec<f32>> {
                all.chunks(input).flat_map(|row| row.chunks(low.group())).map(<[f32]>::to_vec).collect()
            };
            for ((weights, back), nearest) in groups(&weights).iter().zip(groups(&back)).zip(groups(&nearest)) {
                let (smallest, largest) = ends(weights);
                let step = (largest - smallest) / f32::from(low.most());
                // f16 tells numbers below 6e-8 apart no more, and others to 1 in 2048.
                let fine = 3e-8 * f32::from(low.most()) + smallest.abs().max(largest.abs()) / 1000.0;
                let squares = |values: &[f32]| -> f32 {
                    values.iter().zip(weights).map(|(v, w)| (v - w).powi(2)).sum()
                };
                prop_assert!(squares(&back) <= 1.05 * squares(&nearest) + fine * fine * weights.len() as f32);
                for (w, v) in weights.iter().zip(nearest) {
                    // Half a step, and another where a whole zero cuts off an end.
                    prop_assert!((w - v).abs() <= 1.01 * step + fine, "{w} became {v}, step {step}");
                }
            }
            // Nothing depends on what is beside a row.
            let alone = quantize(&weights[..input], (1, input), low, rounding);
            prop_assert_eq!(&alone.dequantize()[..], &back[..input]);
        }
    }

    #[test]
    fn groups_of_one_value_are_kept() {
        for method in Method::ALL {
            for bits in LowBit::BITS {
                let format = LowBit::new(bits, 32).expect("a format");
                // f16 has these.
                let values = [0.0, -0.5, 1.75, 0.0];
                let weights: Vec<f32> = values.iter().flat_map(|v| [*v; 40]).collect();
                let blocks = quantize(&weights, (4, 40), format, rounding(method, ITERATIONS));
                assert_eq!(blocks.dequantize(), weights, "{} {bits}", method.name());
            }
        }
    }

    #[test]
    fn what_the_codes_can_say_is_said() {
        // Codes times a scale of f16's: nothing is lost, whatever the method.
        for method in Method::ALL {
            for bits in LowBit::BITS {
                let format = LowBit::new(bits, 64).expect("a format");
                let code = |i: usize| match i % 64 {
                    0 => 0,
                    1 => format.most(),
                    _ => (i * 37) as u8 & format.most(),
                };
                let weight = |i| 0.25 * f32::from(code(i)) - 0.5;
                let weights: Vec<f32> = (0..8 * 320).map(weight).collect();
                let blocks = quantize(&weights, (8, 320), format, rounding(method, ITERATIONS));
                assert_eq!(blocks.dequantize(), weights, "{} {bits}", method.name());
            }
        }
    }
}
