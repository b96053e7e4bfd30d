//! The end of the way forward, where the way back begins: the loss of each next token.

use burn::module::Param;
use burn::nn::{Linear, RmsNorm};
use burn::tensor::Tensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{by_input, norm_backward};
use crate::decoder::{TokenEmbedding, norm};
use crate::error::{Error, Result};
use crate::ops::{self, Target};
use crate::projection::Projection;

/// Rows of logits made at a time: as many as a product takes at once.
const ROWS: usize = 128;

/// What each position is asked to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// The text's own next token: gradients give the empirical Fisher.
    Text,
    /// A token drawn from the model's own distribution: gradients give the true Fisher (Kunstner et al. 2019,
    /// arXiv 1905.12558, §3). The draw depends on these two and the position alone, not on what was done before.
    Sampled {
        seed: u64,
        /// The window's number.
        window: u64,
    },
}

/// The last norm and the output head, made ready for going back through them: the head's weight is held a second time.
#[derive(Debug)]
pub struct BackwardHead {
    norm: RmsNorm,
    head: Projection,
    /// `W` `[vocab, hidden]`, each input's weights together in memory.
    by_input: Tensor<2>,
}

impl BackwardHead {
    /// Prepares the end of a decoder; without `lm_head` the embedding is the head.
    ///
    /// # Errors
    /// [`Error::Request`] when the head is not dense f32.
    pub fn new(
        norm: &RmsNorm,
        embedding: &TokenEmbedding,
        lm_head: Option<&Projection>,
    ) -> Result<Self> {
        let head = match (lm_head, embedding) {
            (Some(head), _) => head.clone(),
            (None, TokenEmbedding::Float(table)) => Projection::Dense(Linear {
                weight: Param::from_tensor(table.weight.val().transpose()),
                bias: None,
            }),
            (None, TokenEmbedding::Blocks(blocks)) => Projection::Quantized(blocks.clone()),
        };
        Ok(BackwardHead {
            norm: norm.clone(),
            by_input: by_input(&head, "lm_head")?,
            head,
        })
    }

    /// The loss of one window and its gradient in `hidden`, of the same shape.
    ///
    /// `hidden` `[1, tokens, hidden]` is what leaves the last layer for the tokens `ids`. The loss is the sum, not the
    /// mean, of the cross-entropy in nats of what follows each token but the last; the last one's gradient is zero.
    /// Logits are made for some rows at a time.
    ///
    /// # Errors
    /// [`Error::Request`] when there are fewer than two tokens, other than `hidden` has, or one outside the vocabulary;
    /// [`Error::NonFinite`] when the loss is not a number.
    pub fn loss_and_gradient(
        &self,
        hidden: Tensor<3>,
        ids: &[u32],
        labels: Labels,
    ) -> Result<(f64, Tensor<3>)> {
        let [batch, tokens, width] = hidden.dims();
        if batch != 1 || tokens != ids.len() || tokens < 2 {
            return Err(Error::Request(format!(
                "a loss needs one window of at least two tokens: {} ids were given with hidden states {:?}",
                ids.len(),
                hidden.dims()
            )));
        }
        let vocab = self.head.shape().0;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Request(format!(
                "token id {id} is outside the vocabulary of {vocab}"
            )));
        }
        let targets = targets(ids, labels);
        let hidden = hidden.reshape([tokens, width]);
        let normed = norm(&self.norm, hidden.clone());
        let mut loss = 0.0;
        let mut back = Vec::with_capacity(tokens.div_ceil(ROWS) + 1);
        for start in (0..targets.len()).step_by(ROWS) {
            let end = (start + ROWS).min(targets.len());
            let logits = self
                .head
                .forward(normed.clone().narrow(0, start, end - start));
            let (gradient, losses) = ops::cross_entropy(logits, &targets[start..end]);
            loss += losses.into_data().iter::<f64>().sum::<f64>();
            back.push(ops::linear(gradient, self.by_input.clone()));
        }
        if !loss.is_finite() {
            return Err(Error::NonFinite {
                what: "the loss".into(),
            });
        }
        back.push(Tensor::zeros([1, width], &hidden.device()));
        let gradient = norm_backward(&self.norm, hidden, Tensor::cat(back, 0));
        Ok((loss, gradient.reshape([1, tokens, width])))
    }
}

/// What each token but the last is held against.
fn targets(ids: &[u32], labels: Labels) -> Vec<Target> {
    match labels {
        Labels::Text => ids[1..].iter().map(|id| Target::Token(*id)).collect(),
        Labels::Sampled { seed, window } => {
            // One key, a stream for each window, two words of it for each position.
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(window);
            ids[1..]
                .iter()
                .map(|_| Target::Draw(rng.random()))
                .collect()
        }
    }
}
