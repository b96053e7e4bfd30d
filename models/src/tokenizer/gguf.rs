//! Tokenizers from the metadata of GGUF files.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, SplitDelimiterBehavior,
};

use super::{error, sentencepiece};
use crate::checkpoint::gguf::Metadata;
use crate::error::{Error, Result};

/// How a byte-level tokenizer cuts a text into words before merging.
struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Digits stand alone before anything else is cut.
    single_digits: bool,
    /// The words; `None` for GPT-2's expression.
    words: Option<&'static str>,
    nfc: bool,
    /// A word that is a token is that token, whatever the merges make of it.
    ignore_merges: bool,
    /// Whether a text starts with BOS when the file does not say.
    add_bos: bool,
}

const PRE_TOKENIZERS: [PreTokenizer; 4] = [
    PreTokenizer {
        names: &["default", "gpt-2"],
        single_digits: false,
        words: None,
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["smollm"],
        single_digits: true,
        words: None,
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        single_digits: false,
        words: Some(concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )),
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["qwen2"],
        single_digits: false,
        words: Some(concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )),
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
];

/// Token types of GGUF that matter here.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// The tokenizer that the metadata describes.
pub(super) fn build(metadata: &Metadata, path: &Path) -> Result<tokenizers::Tokenizer> {
    let key = "tokenizer.ggml.model";
    let vocabulary = Vocabulary::read(metadata, path)?;
    match metadata.required(key, metadata.string(key)?)? {
        "gpt2" => byte_level(metadata, &vocabulary),
        "llama" => sentence_piece(metadata, &vocabulary),
        other => Err(vocabulary.unsupported(format!("tokenizer kind `{other}`"))),
    }
}

/// The token list, checked: names are unique, there is a type for each.
struct Vocabulary<'a> {
    path: &'a Path,
    tokens: Vec<String>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata, path: &'a Path) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens: Vec<String> = metadata
            .required(key, metadata.strings(key)?)?
            .iter()
            .enumerate()
            // Empty tokens can not be looked up, and there may be several: llama.cpp's stand-in for them.
            .map(|(id, token)| {
                if token.is_empty() {
                    format!("[EMPTY_{id}]")
                } else {
                    token.clone()
                }
            })
            .collect();
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            return Err(error(path, format!("it has {} tokens", tokens.len())));
        }
        // Type 1 is a normal token.
        let types = metadata
            .integers("tokenizer.ggml.token_type")?
            .unwrap_or_else(|| vec![1; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(error(
                path,
                format!("{} token types for {} tokens", types.len(), tokens.len()),
            ));
        }
        Ok(Vocabulary {
            path,
            tokens,
            types,
        })
    }

    fn ids(&self) -> Result<HashMap<String, u32>> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in (0..).zip(&self.tokens) {
            if let Some(other) = ids.insert(token.clone(), id) {
                return Err(error(
                    self.path,
                    format!("tokens {other} and {id} are both {token:?}"),
                ));
            }
        }
        Ok(ids)
    }

    fn token(&self, key: &str, id: u32) -> Result<&str> {
        usize::try_from(id)
            .ok()
            .and_then(|id| self.tokens.get(id))
            .map(String::as_str)
            .ok_or_else(|| {
                error(
                    self.path,
                    format!("`{key}` = {id}, but there are {} tokens", self.tokens.len()),
                )
            })
    }

    /// Control tokens are special; user-defined ones are only matched before anything else.
    fn added(&self) -> Vec<AddedToken> {
        self.tokens
            .iter()
            .zip(&self.types)
            .filter(|(_, kind)| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED))
            .map(|(token, kind)| {
                AddedToken::from(token.clone(), *kind != USER_DEFINED).normalized(false)
            })
            .collect()
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported {
            path: self.path.to_owned(),
            what,
            hint: "use the model's Hugging Face directory, which has a `tokenizer.json`".into(),
        }
    }

    fn failed(&self, cause: tokenizers::Error) -> Error {
        error(self.path, cause.to_string())
    }
}

fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<tokenizers::Tokenizer> {
    let failed = |cause| vocabulary.failed(cause);
    let name = metadata.string("tokenizer.ggml.pre")?.ok_or_else(|| {
        vocabulary.unsupported("a byte-level tokenizer without `tokenizer.ggml.pre`".into())
    })?;
    let pre = PRE_TOKENIZERS
        .iter()
        .find(|pre| pre.names.contains(&name))
        .ok_or_else(|| vocabulary.unsupported(format!("pre-tokenizer `{name}`")))?;

    let ids = vocabulary.ids()?;
    let key = "tokenizer.ggml.merges";
    let merges = metadata
        .required(key, metadata.strings(key)?)?
        .iter()
        .map(|merge| {
            split_merge(merge)
                // Building panics on merges that are not made of tokens.
                .filter(|(left, right)| {
                    ids.contains_key(*left)
                        && ids.contains_key(*right)
                        && ids.contains_key(&format!("{left}{right}"))
                })
                .map(|(left, right)| (left.to_owned(), right.to_owned()))
                .ok_or_else(|| {
                    error(
                        vocabulary.path,
                        format!("merge {merge:?} is not made of tokens of the vocabulary"),
                    )
                })
        })
        .collect::<Result<Vec<_>>>()?;
    let model = BPE::builder()
        .vocab_and_merges(ids.into_iter().collect::<Vocab>(), merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(failed)?;

    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if pre.nfc {
        tokenizer
            .with_normalizer(Some(NormalizerWrapper::from(NFC)))
            .map_err(failed)?;
    }
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    if pre.single_digits {
        steps.push(Digits::new(true).into());
    }
    if let Some(words) = pre.words {
        let pattern = SplitPattern::Regex(words.into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
        steps.push(split.into());
    }
    steps.push(ByteLevel::new(false, true, pre.words.is_none()).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    finish(tokenizer, metadata, vocabulary, pre.add_bos)
}

/// The two halves of a merge. A token may itself begin with a space, never with a space and then be empty.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let at = merge
        .char_indices()
        .skip(1)
        .find(|(_, character)| *character == ' ')?
        .0;
    let (left, right) = merge.split_at_checked(at)?;
    Some((left, right.strip_prefix(' ')?))
}

fn sentence_piece(metadata: &Metadata, vocabulary: &Vocabulary) -> Result<tokenizers::Tokenizer> {
    let failed = |cause| vocabulary.failed(cause);
    if metadata.boolean("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
        return Err(vocabulary.unsupported("a tokenizer that removes extra white space".into()));
    }
    let key = "tokenizer.ggml.scores";
    let scores = metadata.required(key, metadata.floats(key)?)?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(error(
            vocabulary.path,
            format!(
                "{} scores for {} tokens",
                scores.len(),
                vocabulary.tokens.len()
            ),
        ));
    }
    let pieces: Vec<(u32, &str, f32)> = (0..)
        .zip(&vocabulary.tokens)
        .zip(scores)
        .zip(&vocabulary.types)
        .filter(|(_, kind)| !matches!(**kind, UNKNOWN | CONTROL | BYTE))
        .map(|(((id, token), score), _)| (id, token.as_str(), *score))
        .collect();
    let unknown_key = "tokenizer.ggml.unknown_token_id";
    let unknown = vocabulary.token(unknown_key, metadata.token_id(unknown_key)?.unwrap_or(0))?;
    let model = BPE::builder()
        .vocab_and_merges(
            vocabulary.ids()?.into_iter().collect::<Vocab>(),
            sentencepiece::merges(&pieces),
        )
        .unk_token(unknown.to_owned())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .map_err(failed)?;

    let prefix = metadata
        .boolean("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new("▁", " ").map_err(failed)?.into(),
        ByteFallback::default().into(),
        Fuse::default().into(),
    ];
    if prefix {
        normalizers.push(Prepend::new("▁".into()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(Replace::new(" ", "▁").map_err(failed)?.into());
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(NormalizerSequence::new(normalizers)))
        .map_err(failed)?;
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    finish(tokenizer, metadata, vocabulary, true)
}

/// Added tokens, and what goes around every text.
fn finish(
    mut tokenizer: tokenizers::Tokenizer,
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    add_bos: bool,
) -> Result<tokenizers::Tokenizer> {
    tokenizer
        .add_tokens(vocabulary.added())
        .map_err(|cause| vocabulary.failed(cause))?;

    let mut special = serde_json::Map::new();
    let mut piece = |flag: &str, default: bool, key: &str| -> Result<Vec<serde_json::Value>> {
        if !metadata.boolean(flag)?.unwrap_or(default) {
            return Ok(Vec::new());
        }
        let id = metadata.required(key, metadata.token_id(key)?)?;
        let token = vocabulary.token(key, id)?;
        special.insert(
            token.into(),
            json!({"id": token, "ids": [id], "tokens": [token]}),
        );
        Ok(vec![json!({"SpecialToken": {"id": token, "type_id": 0}})])
    };
    let bos = piece(
        "tokenizer.ggml.add_bos_token",
        add_bos,
        "tokenizer.ggml.bos_token_id",
    )?;
    let eos = piece(
        "tokenizer.ggml.add_eos_token",
        false,
        "tokenizer.ggml.eos_token_id",
    )?;
    if special.is_empty() {
        return Ok(tokenizer);
    }
    let around = |sequence: &str| {
        let text = json!({"Sequence": {"id": sequence, "type_id": 0}});
        [bos.as_slice(), &[text], eos.as_slice()].concat()
    };
    // Built from JSON because the template's text form can not express every token name.
    let pair = [around("A"), around("B")].concat();
    let template: PostProcessorWrapper = serde_json::from_value(json!({
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": pair,
        "special_tokens": special,
    }))
    .map_err(|cause| error(vocabulary.path, cause.to_string()))?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}
