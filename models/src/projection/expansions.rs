//! The expansions of latents as the attention kernel multiplies them.

use std::sync::OnceLock;

use burn::nn::Linear;
use burn::tensor::{DType, Tensor};

use super::Matrix;
use crate::cache::CacheFormat;
use crate::ops::{Expansion, LateExpansion, Stored, ValueForm, Values, WeightForm};

/// The forms that were needed so far. A clone starts without any, since its expansions may be changed.
#[derive(Debug, Default)]
pub(super) struct Expansions {
    keys: [OnceLock<Vec<Expansion>>; 3],
    values: [OnceLock<Vec<Expansion>>; 3],
    late: OnceLock<Vec<LateExpansion>>,
}

impl Clone for Expansions {
    fn clone(&self) -> Self {
        Expansions::default()
    }
}

impl Expansions {
    /// The keys' groups, for a cache of this format.
    pub fn keys(&self, groups: &[Matrix], head_dim: usize, format: CacheFormat) -> &[Expansion] {
        let form = WeightForm::of(format);
        self.keys[form.parts()].get_or_init(|| {
            let each = |group| with(group, head_dim, |stored| Expansion::of_keys(stored, form));
            groups.iter().map(each).collect()
        })
    }

    /// The values' groups in one of the two forms.
    pub fn values(
        &self,
        groups: &[Matrix],
        head_dim: usize,
        format: CacheFormat,
        form: ValueForm,
    ) -> Values<'_> {
        match form {
            ValueForm::Rebuilt => {
                let form = WeightForm::of(format);
                Values::Rebuilt(self.values[form.parts()].get_or_init(|| {
                    let each =
                        |group| with(group, head_dim, |stored| Expansion::of_values(stored, form));
                    groups.iter().map(each).collect()
                }))
            }
            ValueForm::Summed => Values::Summed(self.late.get_or_init(|| {
                let each = |group| with(group, head_dim, LateExpansion::new);
                groups.iter().map(each).collect()
            })),
        }
    }

    /// Bytes of all forms there are.
    pub fn bytes(&self) -> u64 {
        let whole = self.keys.iter().chain(&self.values);
        let whole = whole
            .filter_map(OnceLock::get)
            .flatten()
            .map(Expansion::bytes);
        let late = self
            .late
            .get()
            .into_iter()
            .flatten()
            .map(LateExpansion::bytes);
        whole.chain(late).sum()
    }
}

/// Calls `f` with a group's weight and bias on the host, in f32.
fn with<R>(group: &Matrix, head_dim: usize, f: impl FnOnce(Stored<'_>) -> R) -> R {
    fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.cast(DType::F32).into_data().try_into_vec().expect("f32")
    }
    let Linear { weight, bias } = group.to_dense();
    let (weight, bias) = (numbers(weight.val()), bias.map(|bias| numbers(bias.val())));
    f(Stored {
        rank: group.shape().1,
        weight: &weight,
        bias: bias.as_deref(),
        head_dim,
    })
}
