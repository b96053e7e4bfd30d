//! Every kind against the plain product of what it stores.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, Tensor, TensorData, Tolerance};
use proptest::prelude::*;

use super::*;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn matrix(values: &[f32], shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

fn close<const D: usize>(ours: Tensor<D>, expected: Tensor<D>, relative: f32) {
    let scale = values(expected.clone().abs().max().reshape([1]))[0].max(1e-3);
    let tolerance = Tolerance::relative(relative).set_absolute(relative * scale);
    let (ours, expected) = (ours.into_data(), expected.into_data());
    ours.assert_approx_eq::<f32>(&expected, tolerance);
}

fn expansion(rank: usize, out: usize, bias: bool) -> Linear {
    Linear {
        weight: Param::from_tensor(random([rank, out])),
        bias: bias.then(|| Param::from_tensor(random([out]))),
    }
}

/// `rank` of `input` indices, ascending, spread by a seed.
fn some_pivots(rank: usize, input: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..input).collect();
    order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
    order.truncate(rank);
    order.sort_unstable();
    order
}

/// A as the definition has it, `[in, rank]`: ones at the pivots, the rows of `weight` elsewhere.
fn plain_basis(pivots: &[usize], input: usize, weight: &[f32]) -> Tensor<2> {
    let rank = pivots.len();
    let (mut all, mut next) = (vec![0.0; input * rank], 0);
    for i in 0..input {
        match pivots.iter().position(|p| *p == i) {
            Some(k) => all[i * rank + k] = 1.0,
            None => {
                all[i * rank..][..rank].copy_from_slice(&weight[next * rank..][..rank]);
                next += 1;
            }
        }
    }
    matrix(&all, [input, rank])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn low_rank_equals_its_dense_form(m in 1usize..24, n in 1usize..24, r in 1usize..12, bias: bool) {
        let low_rank = LowRank::new(random([n, r]), random([r, m]), bias.then(|| random([m])));
        let projection = Projection::LowRank(low_rank);
        let x = random([2, 3, n]);
        let dense = Projection::from(projection.to_dense());
        prop_assert_eq!((projection.kind(), dense.kind()), ("low-rank", "dense"));
        prop_assert_eq!(projection.shape(), (m, n));
        prop_assert_eq!(dense.shape(), (m, n));
        prop_assert_eq!(projection.scalars(), (r * (m + n)) as u64);
        close(projection.forward(x.clone()), dense.forward(x), 1e-4);
    }

    #[test]
    fn an_identity_block_equals_the_plain_product_at_every_rank(
        m in 1usize..40, n in 1usize..40, bias: bool, seed: u64,
    ) {
        for r in 1..=n {
            let pivots = some_pivots(r, n, seed);
            let weight = random([n - r, r]);
            let expected = plain_basis(&pivots, n, &values(weight.clone()));
            let basis = Basis::from(IdentityBasis::new(&pivots, n, weight.clone()));
            prop_assert_eq!((basis.rank(), basis.input()), (r, n));
            prop_assert_eq!(basis.scalars(), (r * (n - r)) as u64);
            // The definition's own numbers, not nearly so.
            prop_assert_eq!(values(basis.to_dense().weight.val()), values(expected.clone()));
            let x = random([2, 3, n]);
            let flat = x.clone().reshape([6, n]);
            close(basis.forward(x.clone()).reshape([6, r]), flat.clone().matmul(expected.clone()), 1e-5);

            let (b, c) = (random([r, m]), bias.then(|| random([m])));
            let low_rank = LowRank::with_identity(&pivots, n, weight, b.clone(), c.clone());
            let projection = Projection::LowRank(low_rank);
            prop_assert_eq!((projection.kind(), projection.rank()), ("identity-block", Some(r)));
            prop_assert_eq!(projection.shape(), (m, n));
            prop_assert_eq!(projection.scalars(), (r * (m + n - r)) as u64);
            let y = projection.forward(x.clone());
            prop_assert_eq!(y.dims(), [2, 3, m]);
            let mut plain = flat.matmul(expected).matmul(b);
            if let Some(c) = c {
                plain = plain + c.unsqueeze();
            }
            close(y.clone().reshape([6, m]), plain, 1e-5);
            close(y, Projection::from(projection.to_dense()).forward(x), 1e-5);
        }
    }

    #[test]
    fn a_shared_basis_equals_its_members_dense_forms(
        n in 1usize..30, outs in prop::collection::vec(1usize..20, 1..4), r in 1usize..30, bias: bool, identity: bool, seed: u64,
    ) {
        let r = r.min(n);
        let basis = match identity {
            true => Basis::from(IdentityBasis::new(&some_pivots(r, n, seed), n, random([n - r, r]))),
            false => Basis::from(Matrix::from(Linear { weight: Param::from_tensor(random([n, r])), bias: None })),
        };
        let basis_scalars = basis.scalars();
        let members = outs.iter().map(|m| expansion(r, *m, bias).into()).collect();
        let group = ProjectionGroup::shared(basis, members);
        let total: usize = outs.iter().sum();
        prop_assert_eq!(group.scalars(), basis_scalars + (r * total) as u64);
        let x = random([2, 5, n]);
        let dense = group.to_dense();
        prop_assert_eq!(dense.len(), outs.len());
        for ((y, dense), m) in group.forward(x.clone()).into_iter().zip(dense).zip(outs) {
            prop_assert_eq!(y.dims(), [2, 5, m]);
            prop_assert_eq!(dense.bias.is_some(), bias);
            close(y, Projection::from(dense).forward(x.clone()), 1e-5);
        }
    }
}

/// `A = [[2,1,4,0,1],[1,3,0,2,5]]`, `B = [[1,2],[0,-1],[3,1]]`: factors worked out by hand for two choices of pivots.
#[test]
fn the_same_product_from_any_pivots() {
    let x = matrix(&[1.0, -2.0, 0.5, 3.0, -1.0], [1, 5]);
    let cases: [(&[usize], [f32; 6], [f32; 6]); 2] = [
        (
            &[0, 1],
            [2.4, -0.8, -0.4, 0.8, -0.4, 1.8],
            [4.0, -1.0, 7.0, 7.0, -3.0, 6.0],
        ),
        (
            &[2, 4],
            [0.45, 0.2, 0.1, 0.6, -0.1, 0.4],
            [4.0, 0.0, 12.0, 11.0, -5.0, 8.0],
        ),
    ];
    for (pivots, weight, expansion) in cases {
        let low_rank = LowRank::with_identity(
            pivots,
            5,
            matrix(&weight, [3, 2]),
            matrix(&expansion, [2, 3]),
            None,
        );
        let y = matrix(&[-7.0, 4.0, -1.0], [1, 3]);
        close(low_rank.forward(x.clone()), y, 1e-6);
        let dense = [4.0, 7.0, 4.0, 4.0, 11.0, -1.0, -3.0, 0.0, -2.0, -5.0];
        let dense = matrix(&[&dense[..], &[7.0, 6.0, 12.0, 2.0, 8.0]].concat(), [3, 5]);
        close(low_rank.to_dense().weight.val(), dense.transpose(), 1e-6);
    }
}

#[test]
fn pivots_that_make_no_basis_are_refused() {
    for pivots in [&[1usize, 0][..], &[2, 2], &[0, 5], &[]] {
        let made = std::panic::catch_unwind(|| {
            IdentityBasis::new(pivots, 5, random([5 - pivots.len(), pivots.len()]))
        });
        assert!(made.is_err(), "{pivots:?}");
    }
}
