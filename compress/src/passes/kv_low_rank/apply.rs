//! One layer's keys and values as latents and expansions.

use burn::tensor::Tensor;
use cinder_models::checkpoint::SiteRecord;
use cinder_models::projection::{GroupHeads, Matrix, Projection};
use cinder_models::{DecoderLayer, Site};
use rayon::prelude::*;

use super::analysis::{KeyValues, NoGradient, Weighed};
use super::order::{move_queries, moved_bias, rows};
use super::{KEYS, KvLowRankSettings, Latent, Slice, VALUES};
use crate::error::Result;
use crate::linalg::{Decomposition, Factors, Gram, Weight, Whitening, error_between, whiten};
use crate::passes::factor::{linear, raised, transposed};
use crate::passes::{PlannedUnit, SiteWork};

/// The factors of one slice.
struct Solved<'a> {
    slice: &'a Slice,
    unit: &'a PlannedUnit,
    factors: Factors,
    /// What had to be done differently.
    fallbacks: Vec<String>,
}

pub(super) fn apply(
    settings: &KvLowRankSettings,
    work: SiteWork<'_>,
    block: &mut DecoderLayer,
) -> Result<Vec<SiteRecord>> {
    let SiteWork { plan, dense, .. } = work;
    let Some((inputs, moments)) = work.calibrated else {
        return Err(work.numerical("no inputs were collected".into()));
    };
    let own = KeyValues::new(settings, plan.layer, dense, moments)?;
    let input = own.numerical(whiten(&inputs.gram, settings.input_ridge))?;
    let head_dim = dense.attention.head_dim;
    let slices = settings.slices(own.weights[0].shape().0 / head_dim, head_dim);
    let solve = |(slice, unit)| solve(settings, &own, slice, unit, &input);
    let solved = slices.par_iter().zip(&plan.units).map(solve);
    let solved: Vec<Solved> = solved.collect::<Result<_>>()?;
    let heads = own.numerical(install(settings, dense, &solved, own.order.as_deref()))?;
    block.attention.latent = Some(heads);
    block.attention.cache_format = settings.cache;
    block.attention.residual_window = settings.residual_window;
    block.attention.qkv.members.truncate(KEYS);
    if let Some(order) = &own.order {
        move_queries(plan.layer, block, order)?;
    }
    let records = [KEYS, VALUES].map(|member| {
        let original = &own.weights[member - KEYS];
        SiteRecord {
            kind: match settings.latent {
                Latent::Joint => "joint-group-head".into(),
                Latent::Separate => "group-head".into(),
            },
            condition: Some(input.condition),
            ..record(work, member, original, &solved, &inputs.gram)
        }
    });
    Ok(records.into())
}

fn solve<'a>(
    settings: &KvLowRankSettings,
    own: &KeyValues<'_>,
    slice: &'a Slice,
    unit: &'a PlannedUnit,
    input: &Whitening,
) -> Result<Solved<'a>> {
    let Weighed {
        stack,
        outputs,
        notes,
    } = own.of(slice, NoGradient::Little)?;
    let mut fallbacks: Vec<String> = raised("input", input, settings.input_ridge)
        .into_iter()
        .collect();
    fallbacks.extend(notes);
    let outputs: Vec<&Whitening> = outputs.iter().collect();
    let rank = unit.rank.unwrap_or(slice.out());
    let decomposition = own.numerical(Decomposition::of(&stack, input, &outputs))?;
    let factors = decomposition.factors(&stack, input, &outputs, rank);
    let factors = factors.evened(input, &outputs);
    Ok(Solved {
        slice,
        unit,
        factors: match settings.rotate {
            true => factors.rotated(),
            false => factors,
        },
        fallbacks,
    })
}

impl Solved<'_> {
    /// The place of a projection's rows among those of the slice; none when it has none there.
    fn place(&self, member: usize) -> Option<std::ops::Range<usize>> {
        let place = self.slice.members.iter().position(|m| *m == member)?;
        let height = self.slice.rows.len();
        Some(place * height..(place + 1) * height)
    }
}

/// What became of one projection.
fn record(
    work: SiteWork<'_>,
    member: usize,
    original: &Weight,
    solved: &[Solved],
    inputs: &Gram,
) -> SiteRecord {
    let (out, width) = original.shape();
    let mut record = work.record(Site::Qkv.projections()[member], [out, width]);
    let mut products = Vec::new();
    let mut fallbacks: Vec<&str> = Vec::new();
    let mut total = 0;
    for part in solved {
        let Some(rows) = part.place(member) else {
            continue;
        };
        let rank = part.factors.rank();
        total += rank;
        record.scalars += (rank * rows.len()) as u64;
        // A joint latent, and what it loses, is counted with the keys.
        let counts = rows.start == 0;
        if counts {
            record.scalars += (rank * width) as u64;
        }
        let loss = part
            .unit
            .predicted_loss
            .map(|loss| if counts { loss } else { 0.0 });
        record.predicted_loss = loss.map(|loss| loss + record.predicted_loss.unwrap_or(0.0));
        products.push(part.factors.product().rows(&rows.collect::<Vec<_>>()));
        let new = part.fallbacks.iter().map(String::as_str);
        fallbacks.extend(new.filter(|f| !fallbacks.contains(f)).collect::<Vec<_>>());
    }
    let product = Weight::stack(&products.iter().collect::<Vec<_>>());
    record.rank = Some(total);
    record.keep_ratio = record.scalars as f64 / (out * width) as f64;
    record.error = error_between(original, &product, inputs);
    record.fallback = (!fallbacks.is_empty()).then(|| fallbacks.join("; "));
    record
}

/// The factors as a module, with the dense maps' biases on the expansions.
///
/// # Errors
/// A sentence when a factor is not finite.
fn install(
    settings: &KvLowRankSettings,
    dense: &DecoderLayer,
    solved: &[Solved],
    order: Option<&[usize]>,
) -> Result<GroupHeads, String> {
    let device = dense.input_norm.gamma.val().device();
    let basis: Vec<f32> = solved
        .iter()
        .flat_map(|s| s.factors.basis_values())
        .collect();
    let mut finite = basis.iter().all(|v| v.is_finite());
    let ranks: usize = solved.iter().map(|s| s.factors.rank()).sum();
    let width = basis.len() / ranks.max(1);
    let mut expansions = |member: usize| -> Vec<Matrix> {
        let bias: Option<Tensor<1>> = match dense.site(Site::Qkv)[member] {
            Projection::Dense(linear) => linear.bias.as_ref().map(|bias| bias.val()),
            _ => None,
        };
        let bias = match order {
            Some(order) => {
                bias.map(|bias| moved_bias(bias, &rows(order, dense.attention.head_dim)))
            }
            None => bias,
        };
        let own = solved.iter().filter_map(|s| Some((s, s.place(member)?)));
        own.map(|(part, rows)| {
            let rank = part.factors.rank();
            let values = &part.factors.expansion_values()[rows.start * rank..rows.end * rank];
            finite &= values.iter().all(|v| v.is_finite());
            let weight = transposed(values.to_vec(), rows.len(), rank, &device);
            let bias = bias
                .clone()
                .map(|bias| bias.slice([part.slice.rows.clone()]));
            linear(weight, bias).into()
        })
        .collect()
    };
    let (keys, values) = (expansions(KEYS), expansions(VALUES));
    match finite {
        true => {
            let basis = linear(transposed(basis, ranks, width, &device), None).into();
            let joint = settings.latent == Latent::Joint;
            Ok(GroupHeads::new(basis, keys, values, joint))
        }
        false => Err("the factors of keys and values are not finite".into()),
    }
}
