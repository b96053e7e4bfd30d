//! What a search may spend, as a keep ratio.

use anyhow::Result;
use cinder::compress::recipe::Recipe;
use cinder::models::checkpoint::Checkpoint;

use crate::cli::context::Usage;
use crate::cli::format::bytes;

/// Keep ratios are whole multiples of this.
const STEP: f64 = 1e-4;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Of the decoder projections' scalars.
    Keep(f64),
    /// Of all weights as the recipe stores them.
    Bytes(u64),
    /// The least size within this ratio of the dense model's perplexity.
    Ratio(f64),
}

impl Budget {
    /// The keep ratio at which candidates are compared; `nominal` where the budget is of quality.
    ///
    /// # Errors
    /// [`Usage`] for bytes that are too few for what is not compressed, or enough for the dense model.
    pub fn keep(
        self,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        nominal: f64,
    ) -> Result<f64, Usage> {
        let most = match self {
            Budget::Keep(keep) => return Ok(keep),
            Budget::Ratio(_) => return Ok(nominal),
            Budget::Bytes(most) => most,
        };
        let each = recipe.output.dtype.bytes();
        let projections = checkpoint.config().dense_projection_scalars();
        // Identity blocks have an index for each rank, of four bytes; no projection has a rank above its smaller side.
        let ranks = checkpoint.projections().into_iter().map(|p| {
            let (out, input) = checkpoint.config().projection_shape(p.projection);
            out.min(input) as u64
        });
        let fixed =
            checkpoint.parameters().saturating_sub(projections) * each + 4 * ranks.sum::<u64>();
        let dense = checkpoint.parameters() * each;
        if most >= dense {
            return Err(Usage::new(
                format!("the dense model takes {} in this precision", bytes(dense)),
                "give fewer `--bytes`",
            ));
        }
        let left = most.saturating_sub(fixed) as f64;
        let keep = (left / (projections * each) as f64 / STEP).floor() * STEP;
        match keep > 0.0 {
            true => Ok(keep),
            false => Err(Usage::new(
                format!(
                    "{} is less than what is not compressed: {}",
                    bytes(most),
                    bytes(fixed)
                ),
                "give more `--bytes`, or recipes with `output.dtype = \"f16\"`",
            )),
        }
    }
}

/// An increase from the command line, `5%` or `5`, as a ratio of perplexities.
pub fn parse_increase(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').trim();
    match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent.is_finite() => Ok(1.0 + percent / 100.0),
        _ => Err("an increase is a percentage above 0, such as `5%`".into()),
    }
}

/// The keep ratio in the middle of two.
pub fn middle(low: f64, high: f64) -> f64 {
    (0.5 * (low + high) / STEP).round() * STEP
}
