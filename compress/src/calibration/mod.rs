//! What calibration collects, from a text to the statistics of every block.

mod collect;
mod documents;
mod own_text;
mod store;
mod windows;

use burn::tensor::Tensor;
use cinder_models::Site;

use crate::error::{Error, Result};
use crate::linalg::{Cross, Gram};

pub use collect::{Collection, GradientSettings, LabelSource, LayerStatistics, Statistics};
pub(crate) use collect::{embed_windows, load_states, save_states};
pub use own_text::{OwnText, own_text};
pub(crate) use store::{read_json, write_whole};
pub use windows::{Draw, Piece, Tokens, Windows, draw_windows};

/// The corpus that is text the model writes itself.
pub const OWN_TEXT: &str = "self";

/// The second moments of one layer, wherever they are kept.
pub trait Moments: Sync {
    /// `Σ x xᵀ` of the inputs x of a site.
    ///
    /// # Errors
    /// When it was not collected or can not be read.
    fn input(&self, site: Site) -> Result<Gram>;

    /// `Σ g gᵀ` of the gradients g of a projection's outputs; the projection is named by its place in the site.
    ///
    /// # Errors
    /// As [`Moments::input`].
    fn gradient(&self, site: Site, member: usize) -> Result<Gram>;

    /// The mean over tokens of `‖g‖² ‖x‖²`: the trace of a projection's Fisher information, token by token.
    ///
    /// # Errors
    /// As [`Moments::input`].
    fn fisher(&self, site: Site, member: usize) -> Result<f64>;
}

/// What a site reads at the time it is compressed.
#[derive(Debug, Clone)]
pub struct SiteInputs {
    /// The second moment of its inputs.
    pub gram: Gram,
    /// Of what it would read if the block before it were dense, and of that with its inputs; none where it is the same.
    pub targets: Option<(Gram, Cross)>,
}

/// The values of rows `[rows, width]`, checked to be finite.
///
/// # Errors
/// [`cinder_models::Error::NonFinite`] with `what`.
pub(crate) fn finite_values<const D: usize>(
    rows: &Tensor<D>,
    what: impl FnOnce() -> String,
) -> Result<Vec<f32>> {
    match rows
        .clone()
        .into_data()
        .convert::<f32>()
        .try_into_vec::<f32>()
    {
        Ok(values) if values.iter().all(|v| v.is_finite()) => Ok(values),
        _ => Err(Error::Model(cinder_models::Error::NonFinite {
            what: what(),
        })),
    }
}
