//! Asking a model all documents of a task, and the record of it.

use std::collections::BTreeMap;
use std::time::Instant;

use cinder_models::Decoder;
use cinder_models::cache::CacheFormat;
use cinder_models::progress::Progress;
use cinder_models::tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::data::{FileIdentity, TaskData};
use super::document::{Document, Request};
use super::encode::encode;
use super::metrics::{DocumentScores, Metrics};
use super::plan::Plan;
use super::task::Task;
use crate::error::{Error, Result};
use crate::result::ModelIdentity;

/// What stands between documents that are shown (lm-evaluation-harness's `fewshot_delimiter`).
const BETWEEN: &str = "\n\n";

/// What a record says of shots. lm-evaluation-harness draws them from a task's training or validation split; the files that are
/// evaluated hold one split, so its rule `first_n` is applied to that one, leaving out the document that is asked.
const SHOTS_FROM: &str = "the first documents of the evaluated file other than the one that is asked \
                          (lm-evaluation-harness' `first_n`, from the evaluated split in place of the training split)";

/// One evaluation of one model on several tasks.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TasksResult {
    /// Version of this layout: [`SCHEMA`](crate::SCHEMA).
    pub schema: u32,
    /// Cinder's version.
    pub tool_version: String,
    pub model: ModelIdentity,
    /// By name.
    pub tasks: BTreeMap<String, TaskResult>,
    /// Where it ran, such as `cpu (2 threads)`.
    pub device: String,
    /// Type the weights were computed in, such as `f32`.
    pub dtype: String,
    /// How the KV cache stores what it keeps, through which everything is scored.
    #[schemars(with = "String")]
    pub cache: CacheFormat,
    /// Bytes that one token takes in that cache.
    pub kv_bytes_per_token: u64,
    /// Tokens that a packed cache keeps in f16 too; 0 for none.
    #[serde(default)]
    pub residual_window: usize,
    /// Tokens the tokenizer puts before a text of its own accord; empty when it adds none.
    pub bos_ids: Vec<u32>,
    /// The side file with the scores of each document, which `cinder compare` pairs; none where none was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents_file: Option<FileIdentity>,
    /// The command line that made this.
    pub command: String,
    /// Seconds spent scoring, without loading.
    pub seconds: f64,
}

/// How well a model does a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskResult {
    /// Version of the task's definition.
    pub version: u32,
    /// Documents scored, the first of the file.
    pub n: u64,
    /// Documents of the file.
    pub documents: u64,
    /// Documents shown before each.
    pub shots: u64,
    /// Where these come from, in words; none without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots_from: Option<String>,
    #[serde(flatten)]
    pub metrics: Metrics,
    /// Standard error of `acc`, by its short name.
    pub stderr: f64,
    /// Requests that lost tokens at their beginning because they do not fit the model's context.
    pub truncated: u64,
    /// Tokens that were computed, and those that the requests have together.
    pub tokens: u64,
    pub tokens_unshared: u64,
    pub files: Vec<FileIdentity>,
    pub seconds: f64,
}

/// The documents of a task as tokens, ready to be scored.
#[derive(Debug, Clone)]
pub struct Questions {
    task: Task,
    shots: usize,
    all: usize,
    documents: Vec<Document>,
    files: Vec<FileIdentity>,
    plan: Plan,
}

impl Questions {
    /// Takes the first `limit` documents, each behind the first `shots` others of the file, for a model of `max_context` tokens.
    ///
    /// lm-evaluation-harness draws what it shows from other splits, by Python's random numbers: with shots, scores are to be
    /// compared among results of Cinder.
    ///
    /// # Errors
    /// [`Error::TooFewForShots`], and those of [`encode`].
    pub fn new(
        task: Task,
        data: TaskData,
        limit: Option<usize>,
        shots: usize,
        tokenizer: &Tokenizer,
        max_context: usize,
    ) -> Result<Self> {
        let TaskData {
            mut documents,
            files,
        } = data;
        let all = documents.len();
        if shots >= all {
            return Err(Error::TooFewForShots {
                shots,
                documents: all,
            });
        }
        let scored = limit.unwrap_or(all).min(all);
        let examples: Vec<String> = documents[..=shots].iter().map(Document::example).collect();
        let mut encoded = Vec::with_capacity(scored);
        for (index, document) in documents[..scored].iter().enumerate() {
            let others = examples
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index);
            let shown: String = others
                .take(shots)
                .map(|(_, e)| format!("{e}{BETWEEN}"))
                .collect();
            let requests = document.requests.iter().map(|request| {
                let behind = Request {
                    context: format!("{shown}{}", request.context),
                    continuation: request.continuation.clone(),
                };
                encode(tokenizer, &behind, max_context)
            });
            encoded.push(requests.collect::<Result<Vec<_>>>()?);
        }
        documents.truncate(scored);
        Ok(Questions {
            task,
            shots,
            all,
            documents,
            files,
            plan: Plan::new(encoded),
        })
    }

    /// Name of the task.
    pub fn name(&self) -> &str {
        &self.task.name
    }

    /// In which passes the requests are scored.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Scores every request; the documents' scores are in the order of the file.
    ///
    /// # Errors
    /// Those of the model.
    pub fn ask(
        &self,
        decoder: &Decoder,
        progress: &dyn Progress,
    ) -> Result<(TaskResult, Vec<DocumentScores>)> {
        let start = Instant::now();
        let scores = self.plan.score(decoder, &self.task.name, progress)?;
        let scored = self.documents.iter().zip(&scores).enumerate();
        let scored: Vec<DocumentScores> = scored
            .map(|(index, (document, scores))| {
                DocumentScores::new(&self.task, index, document, scores)
            })
            .collect();
        let metrics = Metrics::of(&self.task, &scored);
        let result = TaskResult {
            version: self.task.version,
            n: scored.len() as u64,
            documents: self.all as u64,
            shots: self.shots as u64,
            shots_from: (self.shots > 0).then(|| SHOTS_FROM.into()),
            metrics,
            stderr: metrics.acc_stderr,
            truncated: self.plan.truncated() as u64,
            tokens: self.plan.tokens() as u64,
            tokens_unshared: self.plan.tokens_unshared() as u64,
            files: self.files.clone(),
            seconds: start.elapsed().as_secs_f64(),
        };
        Ok((result, scored))
    }
}
