//! How alike the outputs of several heads are.

use super::decompose::times_lower;
use super::{Weight, Whitening};

/// Linear CKA (Kornblith et al. 2019, arXiv 1905.00414, §3) of every two heads' outputs, without centring: `[heads][heads]` in
/// `[0, 1]`, of `weight` whose rows are heads of `head_dim`. With the input moment C it is
/// `‖Wᵢ C Wⱼᵀ‖² / (‖Wᵢ C Wᵢᵀ‖ ‖Wⱼ C Wⱼᵀ‖)` in Frobenius norms; 0 for a head that puts nothing out.
pub fn similarity(weight: &Weight, input: &Whitening, head_dim: usize) -> Vec<Vec<f64>> {
    let outputs = times_lower(&weight.m, &input.l);
    let heads = weight.shape().0 / head_dim.max(1);
    let of = |head: usize| outputs.subrows(head * head_dim, head_dim);
    let square = |a: usize, b: usize| (of(a) * of(b).transpose()).squared_norm_l2();
    let own: Vec<f64> = (0..heads).map(|head| square(head, head).sqrt()).collect();
    let of_two = |a: usize, b: usize| match own[a] * own[b] {
        sizes if sizes > 0.0 => square(a, b) / sizes,
        _ => 0.0,
    };
    let row = |a: usize| (0..heads).map(|b| of_two(a.min(b), a.max(b))).collect();
    (0..heads).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::test_data::{values, whitening};
    use super::*;

    #[test]
    fn a_turned_head_is_the_same_and_another_is_not() {
        let (d, n) = (4, 24);
        let head = values(d * n, 3);
        let mut all = head.clone();
        all.extend(values(d * n, 8));
        // The first with its rows swapped, negated and twice as large.
        let swapped = [2, 0, 3, 1].map(|row| head[row * n..(row + 1) * n].to_vec());
        all.extend(swapped.concat().iter().map(|v| -2.0 * v));
        all.extend(vec![0.0; d * n]);
        let alike = similarity(&Weight::new(&all, 4 * d, n), &whitening(n, 5), d);
        assert!((alike[0][2] - 1.0).abs() < 1e-6 && (alike[1][1] - 1.0).abs() < 1e-9);
        assert!(alike[0][1] < 0.7, "{}", alike[0][1]);
        assert_eq!(alike[0][1], alike[1][0]);
        assert_eq!(alike[3], [0.0; 4]);
    }
}
