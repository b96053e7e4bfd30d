//! The closed-form map from other inputs to the outputs a weight should have given.

use super::decompose::{divide_by_square, dot, energy};
use super::{Cross, Gram, Weight, Whitening};

/// The weight W* that minimises `E‖W t - W* x‖²`: `W E[t xᵀ] (E[x xᵀ] + ridge)⁻¹`.
///
/// `t` is what W was made for and `x` what its successor will read: fewer neurons, or those of compressed layers. The
/// ridge pulls towards the columns of W at `kept`, the places of x's entries among t's, so that nothing changes where
/// x and t are the same.
///
/// # Panics
/// When the widths do not fit.
pub fn refit(weight: &Weight, cross: &Cross, input: &Whitening, kept: &[usize]) -> Weight {
    let mut moment = cross.mean();
    for (column, row) in kept.iter().enumerate() {
        moment[(*row, column)] += input.added;
    }
    Weight {
        m: divide_by_square(&weight.m * moment, &input.l),
    }
}

/// Relative output error `√(E‖W x - Ŵ x‖² / E‖W x‖²)` on the same inputs.
pub fn error_between(weight: &Weight, approximation: &Weight, inputs: &Gram) -> f64 {
    let mean = inputs.mean();
    let difference = &weight.m - &approximation.m;
    let lost = energy(&difference, &mean).max(0.0);
    (lost / energy(&weight.m, &mean).max(f64::MIN_POSITIVE)).sqrt()
}

/// Relative output error `√(E‖W t - Ŵ x‖² / E‖W t‖²)` on different inputs.
pub fn removal_error(
    weight: &Weight,
    targets: &Gram,
    approximation: &Weight,
    cross: &Cross,
    inputs: &Gram,
) -> f64 {
    let whole = energy(&weight.m, &targets.mean());
    let shared = dot(&(&weight.m * cross.mean()), &approximation.m);
    let own = energy(&approximation.m, &inputs.mean());
    ((whole - 2.0 * shared + own).max(0.0) / whole.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::whiten;
    use super::*;

    #[test]
    fn the_same_inputs_give_the_same_weight_whatever_the_ridge() {
        let x: Vec<f32> = (0..60).map(|i| ((i * 37 % 19) as f32) - 9.0).collect();
        let mut gram = Gram::new(3);
        gram.add(&x);
        let w = Weight::new(&[1.0, -2.0, 0.5, 3.0, 0.0, 1.0], 2, 3);
        let input = whiten(&gram, 0.1).expect("positive definite");
        let same = refit(&w, &gram.columns(&[0, 1, 2]), &input, &[0, 1, 2]);
        for (a, b) in w.values().iter().zip(same.values()) {
            assert!((a - b).abs() < 1e-6);
        }
        assert!(error_between(&w, &same, &gram) < 1e-6);
    }

    #[test]
    fn a_removed_input_that_others_repeat_costs_nothing() {
        // The third entry is the sum of the first two.
        let x: Vec<f32> = (0..20)
            .flat_map(|i| {
                let (a, b) = ((i * 7 % 11) as f32 - 5.0, (i * 5 % 13) as f32 - 6.0);
                [a, b, a + b]
            })
            .collect();
        let mut gram = Gram::new(3);
        gram.add(&x);
        let w = Weight::new(&[1.0, -2.0, 0.5], 1, 3);
        let kept = [0, 1];
        let inputs = gram.subset(&kept);
        let cross = gram.columns(&kept);
        let less = refit(&w, &cross, &whiten(&inputs, 0.0).expect("definite"), &kept);
        assert!((less.values()[0] - 1.5).abs() < 1e-5 && (less.values()[1] + 1.5).abs() < 1e-5);
        assert!(removal_error(&w, &gram, &less, &cross, &inputs) < 1e-6);
    }
}
