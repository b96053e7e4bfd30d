//! Requests as token ids, as lm-evaluation-harness 0.4.13 makes them (`TemplateLM._encode_pair`, `HFLM._loglikelihood_tokens`).

use cinder_models::tokenizer::Tokenizer;

use super::document::Request;
use super::filter::is_space;
use crate::error::{Error, Result};

/// What a model is given, and what it should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// All tokens but the last.
    pub input: Vec<u32>,
    /// The tokens of the continuation: the input ends in all of them but the last.
    pub targets: Vec<u32>,
    /// Whether tokens of the context were left out, because all of it does not fit.
    pub truncated: bool,
}

impl Encoded {
    /// Index in the input of the token behind which the first target is scored.
    pub fn first(&self) -> usize {
        self.input.len() - self.targets.len()
    }
}

/// Encodes a request for a model of `max` tokens of context.
///
/// White space at the end of the context moves to the continuation. What is scored are the tokens of the whole text behind
/// as many as the context has alone. A text that is too long loses tokens at its beginning. Behind no context at all, the
/// continuation follows the token that begins a text, else the one that ends it.
///
/// # Errors
/// Those of the tokenizer, [`Error::ContinuationTooLong`] and [`Error::NoPrefix`].
pub fn encode(tokenizer: &Tokenizer, request: &Request, max: usize) -> Result<Encoded> {
    let context = request.context.trim_end_matches(is_space);
    let continuation = &request.context[context.len()..];
    let whole = format!("{context}{continuation}{}", request.continuation);
    let whole = tokenizer.encode_prompt(&whole)?;
    let context = match context {
        "" => Vec::new(),
        text => tokenizer.encode_prompt(text)?,
    };
    match (context.len(), tokenizer.bos_ids().len()) {
        // Nothing, not even what the tokenizer itself begins with.
        (0, 0) => {
            let end = tokenizer.eos_ids().first().ok_or(Error::NoPrefix)?;
            let mut tokens = vec![*end];
            tokens.extend(whole);
            cut(tokens, 1, max)
        }
        (0, begin) => cut(whole, begin, max),
        (tokens, _) => cut(whole, tokens, max),
    }
}

/// The request whose first `context` tokens are not scored.
fn cut(mut tokens: Vec<u32>, context: usize, max: usize) -> Result<Encoded> {
    // A tokenizer may join the context's end with what follows; at least the last token is scored.
    let scored = tokens.len().saturating_sub(context).max(1);
    if scored > max {
        return Err(Error::ContinuationTooLong {
            tokens: scored,
            max,
        });
    }
    let targets = tokens.split_off(tokens.len() - scored);
    tokens.extend(&targets[..scored - 1]);
    let extra = tokens.len().saturating_sub(max);
    tokens.drain(..extra);
    Ok(Encoded {
        input: tokens,
        targets,
        truncated: extra > 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_target_is_not_read_and_the_first_tokens_give_way() {
        let all = cut(vec![1, 2, 3, 4, 5], 3, 9).unwrap();
        assert_eq!(
            (all.input.as_slice(), all.targets.as_slice()),
            (&[1, 2, 3, 4][..], &[4, 5][..])
        );
        assert_eq!((all.first(), all.truncated), (2, false));
        let fits = cut(vec![1, 2, 3, 4, 5], 3, 4).unwrap();
        assert_eq!(fits, all);
        let left = cut(vec![1, 2, 3, 4, 5], 3, 2).unwrap();
        assert_eq!(
            (left.input.as_slice(), left.first(), left.truncated),
            (&[3, 4][..], 0, true)
        );
        let error = cut(vec![1, 2, 3, 4, 5], 2, 2).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a continuation of 3 tokens does not fit the model's context of 2"
        );
    }

    #[test]
    fn a_pair_is_cut_where_the_context_alone_ends() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/goldens/gguf/tiny-llama.gguf"
        );
        let tokenizer = cinder_models::checkpoint::Checkpoint::open(std::path::Path::new(path))
            .unwrap()
            .tokenizer()
            .unwrap();
        let encoded = |context: &str, continuation: &str| {
            let request = Request {
                context: context.into(),
                continuation: continuation.into(),
            };
            encode(&tokenizer, &request, 100).unwrap()
        };
        let pair = encoded("The quick brown", " fox jumps");
        let whole = tokenizer
            .encode_prompt("The quick brown fox jumps")
            .unwrap();
        let context = tokenizer.encode_prompt("The quick brown").unwrap();
        assert_eq!(pair.input, whole[..whole.len() - 1]);
        assert_eq!(pair.targets, whole[context.len()..]);
        // Spaces move over.
        let moved = encoded("The quick brown \n", "fox jumps");
        let whole = tokenizer
            .encode_prompt("The quick brown \nfox jumps")
            .unwrap();
        assert_eq!(moved.targets, whole[context.len()..]);
        // Nothing before: a token that stands for it.
        let alone = encoded("", " fox");
        let fox = tokenizer.encode_plain(" fox").unwrap();
        let mut before = tokenizer.bos_ids().to_vec();
        if before.is_empty() {
            before.push(tokenizer.eos_ids()[0]);
        }
        assert_eq!((alone.first() + 1, &alone.targets), (before.len(), &fox));
    }
}
