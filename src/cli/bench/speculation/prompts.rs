//! The prompts of a benchmark of speculative decoding.

use std::path::Path;

use anyhow::{Result, bail};
use cinder::models::tokenizer::Tokenizer;
use serde_json::Value;

/// Continued where no file is given: prose, code and arithmetic, which differ in how well they can be guessed.
const BUILT_IN: [&str; 3] = [
    "The water cycle begins when the sun warms the sea. Water rises into the air as vapour, and",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Question: Ann has 3 apples and buys 4 more. How many apples does she have now?\nAnswer:",
];
/// Prompts that are tried for each that is wanted: some end at once.
const TRIES: usize = 4;

/// A text to continue.
pub struct Prompt {
    pub ids: Vec<u32>,
}

/// The prompts to try, in their order, of which the first `count` that can be continued are measured: taken evenly over the
/// file, which may be sorted by kind. Those for which `room` tokens are too few are passed over.
///
/// # Errors
/// Those of reading the file, and a sentence for a line without a prompt and where no prompt has room.
pub fn candidates(
    path: Option<&Path>,
    count: usize,
    tokenizer: &Tokenizer,
    room: usize,
) -> Result<Vec<Prompt>> {
    let texts = match path {
        Some(path) => read(path)?,
        None => BUILT_IN.map(str::to_owned).to_vec(),
    };
    let mut found = Vec::new();
    for index in spread(texts.len(), count) {
        if found.len() == count.saturating_mul(TRIES) {
            break;
        }
        let ids = tokenizer.encode_prompt(&texts[index])?;
        if ids.len() <= room {
            found.push(Prompt { ids });
        }
    }
    if found.is_empty() {
        bail!(
            "no prompt has at most the {room} tokens that the model's context leaves for it: give fewer `--tokens`"
        );
    }
    Ok(found)
}

/// The prompts of a file of JSON Lines: the first of `turns` (Spec-Bench, MT-Bench), `prompt` (HumanEval), `question` (GSM8K)
/// or `text`.
fn read(path: &Path) -> Result<Vec<String>> {
    let text = fs_err::read_to_string(path)?;
    let mut prompts = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let at = || format!("`{}`, line {}", path.display(), index + 1);
        let value: Value = match serde_json::from_str(line) {
            Ok(value) => value,
            Err(error) => bail!("{} is no JSON: {error}", at()),
        };
        let named = ["prompt", "question", "text"].map(|name| &value[name]);
        let mut found = std::iter::once(&value["turns"][0]).chain(named);
        match found.find_map(Value::as_str) {
            Some(prompt) => prompts.push(prompt.to_owned()),
            None => bail!("{} has no `turns`, `prompt`, `question` or `text`", at()),
        }
    }
    if prompts.is_empty() {
        bail!("`{}` has no prompts", path.display());
    }
    Ok(prompts)
}

/// All of `length` indices, `count` spread evenly first, then those behind each of them, and so on.
fn spread(length: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.clamp(1, length.max(1));
    let stride = length / count;
    let even = (0..stride).flat_map(move |offset| (0..count).map(move |i| i * stride + offset));
    even.chain(count * stride..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_once_and_spread_first() {
        let all: Vec<usize> = spread(8, 3).collect();
        assert_eq!(all, [0, 2, 4, 1, 3, 5, 6, 7]);
        assert_eq!(spread(2, 5).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(spread(0, 3).count(), 0);
    }

    #[test]
    fn prompts_of_known_files() {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("prompts.jsonl");
        let lines = "{\"turns\": [\"a\", \"b\"]}\n\n{\"prompt\": \"c\"}\n{\"question\": \"d\", \"answer\": \"e\"}\n";
        fs_err::write(&path, lines).expect("writes");
        assert_eq!(read(&path).expect("reads"), ["a", "c", "d"]);
        for (text, wanted) in [
            ("{\"turns\": []}", "line 1 has no `turns`"),
            ("{\"text\": \"a\"}\nb", "line 2 is no JSON"),
            ("\n", "has no prompts"),
        ] {
            fs_err::write(&path, text).expect("writes");
            let error = read(&path).expect_err("refuses").to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
