//! Zero-shot tasks, with the requests, scores and metrics of lm-evaluation-harness 0.4.13.
//!
//! A [`Task`] is data: a TOML file in `eval/tasks` that says where its documents are, how a record becomes requests, and
//! what is counted. [`read`] makes documents of a file, [`Questions::new`] tokens of documents, [`Questions::ask`] scores of
//! tokens, in passes that [`plan`](Plan) shares out so that what requests have in common is computed once.
//!
//! ```no_run
//! use cinder_eval::tasks::{Questions, Task, read};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let checkpoint = cinder_models::Checkpoint::open("model".as_ref())?;
//! # let decoder: cinder_models::Decoder = unimplemented!();
//! let task = Task::find("piqa").ok_or("no such task")?;
//! let data = read(&task, "data".as_ref())?;
//! let (tokenizer, limit, shots) = (checkpoint.tokenizer()?, Some(100), 0);
//! let questions = Questions::new(task, data, limit, shots, &tokenizer, decoder.max_context())?;
//! let (result, documents) = questions.ask(&decoder, &cinder_models::progress::Silent)?;
//! println!("{} of {} documents", result.metrics.acc, documents.len());
//! # Ok(())
//! # }
//! ```

mod data;
mod document;
mod encode;
mod expression;
mod filter;
mod metrics;
mod plan;
mod result;
mod score;
mod task;

pub use data::{FileIdentity, TaskData, read};
pub use document::{Document, Request};
pub use encode::{Encoded, encode};
pub use metrics::{DocumentScores, Metrics};
pub use plan::Plan;
pub use result::{Questions, TaskResult, TasksResult};
pub use score::Score;
pub use task::{FileEntry, Metric, Task};
