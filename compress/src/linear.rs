//! One `nn::Linear` at a time: for Burn users whose model is none of Cinder's.

use burn::nn::Linear;
use burn::tensor::Tensor;
use cinder_models::projection::Projection;

use crate::allocation::{Ladder, Matrix, Ranks};
use crate::calibration::finite_values;
use crate::error::{Error, Result};
use crate::linalg::{Decomposition, Gram, PivotRule, Weight, error_between, whiten};
use crate::passes::project;

/// How a `Linear` is compressed.
#[derive(Debug, Clone)]
pub struct LinearSettings {
    /// Scalars kept of the weight's, in (0, 1].
    pub keep: f64,
    /// Store the basis with an identity block: more rank for the same scalars.
    pub identity: bool,
    /// Ridge added to the inputs' second moment, relative to its mean diagonal.
    pub ridge: f64,
    /// The most an entry of the identity block may weigh against its pivot.
    pub growth: f64,
}

impl Default for LinearSettings {
    fn default() -> Self {
        LinearSettings {
            keep: 0.5,
            identity: true,
            ridge: 1e-6,
            growth: 2.0,
        }
    }
}

/// What became of a `Linear`.
#[derive(Debug)]
pub struct CompressedLinear {
    /// A module of the same shapes; dense when nothing smaller fits the keep ratio.
    pub projection: Projection,
    /// Relative error of the output on the inputs that were given.
    pub error: f64,
    /// What had to be done differently for numerical reasons, if anything.
    pub fallback: Option<String>,
}

/// Replaces a `Linear` of weight `[in, out]` by the best low-rank map on the inputs it saw, `[tokens, in]`, of at most
/// `keep` times its scalars (SVD-LLM, arXiv 2403.07378, §3.1; SkipCat's identity block, arXiv 2512.13494). The bias stays.
///
/// # Errors
/// [`Error::Setting`] for a setting out of range, a keep ratio too small for one rank, or inputs of another width;
/// [`Error::Model`] when the weight or the inputs are not finite; [`Error::Numerical`] when all inputs are zero.
pub fn compress_linear(
    linear: &Linear,
    inputs: &Tensor<2>,
    settings: &LinearSettings,
) -> Result<CompressedLinear> {
    let [input, out] = linear.weight.val().dims();
    let wrong = |what: &str, value: String, range: String| Error::Setting {
        what: what.into(),
        value,
        range,
        hint: "change it in the `LinearSettings`, or the inputs",
    };
    if !(settings.keep > 0.0 && settings.keep <= 1.0) {
        let range = "above 0 and at most 1".into();
        return Err(wrong("`keep`", settings.keep.to_string(), range));
    }
    if !(0.0..=1.0).contains(&settings.ridge) {
        let range = "between 0 and 1".into();
        return Err(wrong("`ridge`", settings.ridge.to_string(), range));
    }
    if !(settings.growth >= 1.0 && settings.growth.is_finite()) {
        let range = "at least 1".into();
        return Err(wrong("`growth`", settings.growth.to_string(), range));
    }
    if inputs.dims()[1] != input {
        let width = inputs.dims()[1].to_string();
        return Err(wrong(
            "the inputs' width",
            width,
            format!("the weight's {input}"),
        ));
    }
    let numerical = |why| Error::Numerical {
        layer: 0,
        site: "linear".into(),
        why,
    };
    let matrix = Matrix {
        out,
        input,
        identity: settings.identity,
    };
    let ladder = Ladder::of_ranks(matrix, Ranks::ALL, &[]);
    let budget = settings.keep * matrix.dense() as f64;
    let rung = ladder.rungs[ladder.below(budget)];
    if rung.scalars as f64 > budget {
        let least = rung.scalars as f64 / matrix.dense() as f64;
        let range = format!(
            "at least {:.4}, its smallest size",
            (least * 1e4).ceil() / 1e4
        );
        return Err(wrong("`keep`", settings.keep.to_string(), range));
    }
    let Some(rank) = rung.size else {
        return Ok(CompressedLinear {
            projection: linear.clone().into(),
            error: 0.0,
            fallback: None,
        });
    };
    let values = finite_values(&linear.weight.val().transpose(), || "the weight".into())?;
    let weight = Weight::new(&values, out, input);
    let mut gram = Gram::new(input);
    gram.add(&finite_values(inputs, || "the inputs".into())?);
    let whitening = whiten(&gram, settings.ridge).map_err(numerical)?;
    let decomposition = Decomposition::of(&weight, &whitening, &[]).map_err(numerical)?;
    let factors = decomposition.factors(&weight, &whitening, &[], rank);
    let error = error_between(&weight, &factors.product(), &gram);
    let scale = gram.rms();
    let rule = settings.identity.then_some(PivotRule {
        scale: &scale,
        bound: settings.growth,
    });
    let bias = linear.bias.as_ref().map(|b| b.val());
    let device = linear.weight.val().device();
    let projection = project(factors, rule, bias, &device).map_err(numerical)?;
    let fallback = whitening.raised.then(|| {
        let (asked, used) = (settings.ridge, whitening.ridge);
        format!("ridge raised from {asked:e} to {used:e}")
    });
    Ok(CompressedLinear {
        projection,
        error,
        fallback,
    })
}

#[cfg(test)]
mod tests {
    use burn::nn::LinearConfig;
    use burn::tensor::{Device, Distribution, Tolerance};

    use super::*;

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
    }

    #[test]
    fn what_is_stored_and_lost_is_what_it_says() {
        let linear = LinearConfig::new(24, 40).init(&Device::flex());
        let x = random([400, 24]);
        let wanted = linear.forward(x.clone());
        for identity in [false, true] {
            let settings = LinearSettings {
                keep: 0.6,
                identity,
                ..LinearSettings::default()
            };
            let made = compress_linear(&linear, &x, &settings).expect("compresses");
            assert!(made.projection.scalars() <= 576);
            let got = made.projection.forward(x.clone());
            got.clone().into_data().assert_approx_eq::<f32>(
                &made.projection.to_dense().forward(x.clone()).into_data(),
                Tolerance::relative(1e-4).set_absolute(1e-5),
            );
            // The bias is no part of the error's base.
            let plain = wanted.clone() - linear.bias.as_ref().expect("bias").val().unsqueeze();
            let lost = (got - wanted.clone())
                .powi_scalar(2)
                .sum()
                .into_scalar::<f32>();
            let whole = plain.powi_scalar(2).sum().into_scalar::<f32>();
            assert!(((lost / whole).sqrt() - made.error as f32).abs() < 1e-3);
        }
    }

    #[test]
    fn bad_requests_are_named() {
        let linear = LinearConfig::new(24, 40).init(&Device::flex());
        let settings = |keep| LinearSettings {
            keep,
            ..LinearSettings::default()
        };
        for (inputs, keep) in [([100, 24], 0.0), ([100, 23], 0.5), ([100, 24], 1e-3)] {
            assert!(compress_linear(&linear, &random(inputs), &settings(keep)).is_err());
        }
        let dense = compress_linear(&linear, &random([100, 24]), &settings(1.0)).expect("stays");
        assert_eq!((dense.projection.kind(), dense.error), ("dense", 0.0));
    }
}
