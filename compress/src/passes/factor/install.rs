//! Factors as modules of a decoder layer.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, TensorData};
use cinder_models::projection::{
    Basis, IdentityBasis, LowRank, Matrix, Projection, ProjectionGroup,
};
use cinder_models::{DecoderLayer, Site};

use crate::linalg::{Factors, IdentityFactors, PivotRule, Weight};

/// The values of one unit as they will be stored, row-major.
pub(super) struct Stored {
    /// B `[out, rank]`, or the whole matrix `[out, in]`.
    expansion: Vec<f32>,
    width: usize,
    basis: StoredBasis,
}

enum StoredBasis {
    None,
    /// A `[rank, in]`.
    Plain {
        values: Vec<f32>,
        input: usize,
    },
    /// A' `[rank, in - rank]`.
    Identity {
        pivots: Vec<usize>,
        values: Vec<f32>,
        input: usize,
    },
}

impl Stored {
    pub fn dense(weight: &Weight) -> Self {
        Stored {
            expansion: weight.values(),
            width: weight.shape().1,
            basis: StoredBasis::None,
        }
    }

    pub fn plain(factors: &Factors) -> Self {
        let values = factors.basis_values();
        Stored {
            expansion: factors.expansion_values(),
            width: factors.rank(),
            basis: StoredBasis::Plain {
                input: values.len() / factors.rank().max(1),
                values,
            },
        }
    }

    pub fn identity(factors: &IdentityFactors) -> Self {
        let (rank, values) = (factors.pivots.len(), factors.rest_values());
        Stored {
            expansion: factors.expansion_values(),
            width: rank,
            basis: StoredBasis::Identity {
                input: rank + values.len() / rank.max(1),
                pivots: factors.pivots.clone(),
                values,
            },
        }
    }

    /// The module of one projection of `out` outputs.
    fn projection(self, out: usize, bias: Option<Tensor<1>>, device: &Device) -> Projection {
        let rank = self.width;
        let b = transposed(self.expansion, out, rank, device);
        match self.basis {
            StoredBasis::None => Projection::Dense(linear(b, bias)),
            StoredBasis::Plain { values, input } => {
                let a = transposed(values, rank, input, device);
                Projection::LowRank(LowRank::new(a, b, bias))
            }
            StoredBasis::Identity {
                pivots,
                values,
                input,
            } => {
                let a = transposed(values, rank, input - rank, device);
                Projection::LowRank(LowRank::with_identity(&pivots, input, a, b, bias))
            }
        }
    }

    /// The modules of projections that read the same input, of `outs` outputs each.
    fn group(
        self,
        outs: &[usize],
        biases: Vec<Option<Tensor<1>>>,
        device: &Device,
    ) -> ProjectionGroup {
        let rank = self.width;
        let mut rest = self.expansion.into_iter();
        let expansions = outs.iter().zip(biases).map(|(out, bias)| {
            let own: Vec<f32> = rest.by_ref().take(out * rank).collect();
            Projection::Dense(linear(transposed(own, *out, rank, device), bias))
        });
        let expansions = expansions.collect();
        match self.basis {
            StoredBasis::None => ProjectionGroup::new(expansions),
            StoredBasis::Plain { values, input } => {
                let a = transposed(values, rank, input, device);
                let basis = Matrix::from(linear(a, None)).into();
                ProjectionGroup::shared(basis, expansions)
            }
            StoredBasis::Identity {
                pivots,
                values,
                input,
            } => {
                let a = transposed(values, rank, input - rank, device);
                let basis = IdentityBasis::new(&pivots, input, a).into();
                ProjectionGroup::shared(basis, expansions)
            }
        }
    }

    pub fn is_finite(&self) -> bool {
        let basis = match &self.basis {
            StoredBasis::None => &[][..],
            StoredBasis::Plain { values, .. } | StoredBasis::Identity { values, .. } => values,
        };
        self.expansion.iter().chain(basis).all(|v| v.is_finite())
    }
}

/// A row-major `[out, in]` matrix in Burn's layout `[in, out]`, its memory left as it is.
pub(in super::super) fn transposed(
    values: Vec<f32>,
    out: usize,
    input: usize,
    device: &Device,
) -> Tensor<2> {
    Tensor::<2>::from_data(TensorData::new(values, [out, input]), device).transpose()
}

pub(in super::super) fn linear(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Linear {
    Linear {
        weight: Param::from_tensor(weight),
        bias: bias.map(Param::from_tensor),
    }
}

/// Puts a unit in the place of its projections. `rows` are the outputs that are kept, of which biases keep theirs.
pub(super) fn install(
    dense: &DecoderLayer,
    block: &mut DecoderLayer,
    site: Site,
    members: &[usize],
    stored: Stored,
    rows: Option<&[usize]>,
) {
    let originals = dense.site(site);
    let device = block.input_norm.gamma.val().device();
    let bias = |member: usize| match originals[member] {
        Projection::Dense(linear) => linear.bias.as_ref().map(|b| kept(b.val(), rows, &device)),
        _ => None,
    };
    let outs: Vec<usize> = members
        .iter()
        .map(|m| rows.map_or_else(|| originals[*m].shape().0, <[usize]>::len))
        .collect();
    if let [member] = members {
        *block.site_mut(site)[*member] = stored.projection(outs[0], bias(*member), &device);
    } else if let Some(group) = block.group_mut(site) {
        let biases = members.iter().map(|m| bias(*m)).collect();
        *group = stored.group(&outs, biases, &device);
    }
}

/// The entries of a bias that belong to kept outputs.
fn kept(bias: Tensor<1>, rows: Option<&[usize]>, device: &Device) -> Tensor<1> {
    let Some(rows) = rows else { return bias };
    let rows: Vec<i32> = rows.iter().map(|r| *r as i32).collect();
    let shape = [rows.len()];
    bias.select(0, Tensor::from_data(TensorData::new(rows, shape), device))
}

/// A plain low-rank projection with an identity block in its basis: the same product, `rank²` scalars less. Returns the
/// growth of the block; none when the projection is nothing of the kind.
///
/// # Errors
/// A sentence when the factors are not finite or not of their rank.
pub(in super::super) fn identity_block(
    projection: &Projection,
    bound: f64,
) -> Result<Option<(Projection, f64)>, String> {
    let Projection::LowRank(low_rank) = projection else {
        return Ok(None);
    };
    if matches!(low_rank.basis, Basis::Identity(_)) {
        return Ok(None);
    }
    let (out, input) = projection.shape();
    let (basis, expansion) = (low_rank.basis.to_dense(), low_rank.expansion.to_dense());
    let b = expansion.weight.val();
    let (stored, growth) = converted(&basis, values(&b)?, out, input, bound)?;
    let bias = expansion.bias.as_ref().map(|b| b.val());
    let made = stored.projection(out, bias, &b.device());
    Ok(Some((made, growth)))
}

/// As [`identity_block`], for the plain basis that a group shares.
///
/// # Errors
/// As [`identity_block`].
pub(in super::super) fn shared_identity_block(
    group: &ProjectionGroup,
    bound: f64,
) -> Result<Option<(ProjectionGroup, f64)>, String> {
    let Some(Basis::Dense(basis)) = &group.basis else {
        return Ok(None);
    };
    let input = basis.shape().1;
    let members: Vec<Linear> = group.members.iter().map(Projection::to_dense).collect();
    let outs: Vec<usize> = members.iter().map(|m| m.weight.val().dims()[1]).collect();
    let expansions = members.iter().map(|m| values(&m.weight.val()));
    let stack = expansions.collect::<Result<Vec<_>, _>>()?.concat();
    let out = outs.iter().sum();
    let (stored, growth) = converted(&basis.to_dense(), stack, out, input, bound)?;
    let device = members[0].weight.val().device();
    let biases = members.iter().map(|m| m.bias.as_ref().map(|b| b.val()));
    Ok(Some((
        stored.group(&outs, biases.collect(), &device),
        growth,
    )))
}

/// The values `[out, in]` of a weight `[in, out]`, row-major.
fn values(weight: &Tensor<2>) -> Result<Vec<f32>, String> {
    let values = weight.clone().transpose().into_data().convert::<f32>();
    values.try_into_vec::<f32>().map_err(|e| format!("{e:?}"))
}

/// Plain factors with an identity block, and the block's growth.
fn converted(
    basis: &Linear,
    expansion: Vec<f32>,
    out: usize,
    input: usize,
    bound: f64,
) -> Result<(Stored, f64), String> {
    let a = values(&basis.weight.val())?;
    let factors = Factors::new(&expansion, &a, out, input, a.len() / input.max(1));
    let scale = vec![1.0; input];
    let rule = PivotRule {
        scale: &scale,
        bound,
    };
    let identity = factors.identity(rule)?;
    let stored = Stored::identity(&identity);
    match stored.is_finite() {
        true => Ok((stored, identity.growth)),
        false => Err("the identity block is not finite".into()),
    }
}

/// Factors as a module, with an identity block where a rule for its pivots is given.
///
/// # Errors
/// A sentence when the factors are not finite or not of their rank.
pub(crate) fn project(
    factors: Factors,
    rule: Option<PivotRule<'_>>,
    bias: Option<Tensor<1>>,
    device: &Device,
) -> Result<Projection, String> {
    let out = factors.outputs();
    let stored = match rule {
        Some(rule) => Stored::identity(&factors.identity(rule)?),
        None => Stored::plain(&factors.balanced()),
    };
    match stored.is_finite() {
        true => Ok(stored.projection(out, bias, device)),
        false => Err("the factors are not finite".into()),
    }
}
