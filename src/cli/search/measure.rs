//! The perplexity of a search's models, window by window only once.

use std::path::{Path, PathBuf};

use anyhow::Result;
use cinder::eval::search::SearchRow;
use cinder::eval::{EvalResult, WindowChoice};
use cinder::models::Precision;
use cinder::models::checkpoint::Checkpoint;
use fs_err as fs;

use super::halving::Search;
use crate::cli::context::Cached;
use crate::cli::eval::{Question, measure, write_result};

impl Search<'_> {
    /// Measures a model on the first windows of the text, as far as that is not done; none is the dense one.
    ///
    /// Each rung's first windows are those of the rung before: only those behind them are measured, and the result that is written
    /// is of all of them, as if they had been measured at once.
    pub fn measured(&self, name: &str, model: Option<&Path>, windows: usize) -> Result<SearchRow> {
        let path = self.result(name, windows);
        let mut before = 0;
        if !path.is_file() {
            let earlier = self.earlier(name, windows)?;
            before = earlier.as_ref().map_or(0, |(count, _)| *count);
            let result = self.behind(name, model, before..windows)?;
            let whole = match earlier {
                Some((_, earlier)) => EvalResult {
                    command: result.command.clone(),
                    ..earlier.together(result)?
                },
                None => result,
            };
            write_result(&path, &whole)?;
        }
        let result: EvalResult = serde_json::from_str(&fs::read_to_string(&path)?)?;
        let p = &result.perplexity;
        let known = match before {
            0 => String::new(),
            before => format!(", {before} of them measured before"),
        };
        self.context.printer.say(&format!(
            "{name}: perplexity {:.2} ± {:.2} on {windows} windows{known}",
            p.perplexity, p.stderr
        ));
        Ok(SearchRow {
            name: name.to_owned(),
            perplexity: p.perplexity,
            stderr: p.stderr,
            windows: windows as u64,
            candidate: None,
            perplexity_ratio: None,
        })
    }

    /// Where a model's result on so many windows goes.
    fn result(&self, name: &str, windows: usize) -> PathBuf {
        let results = self.folder.join("results");
        results.join(format!("{name}-{windows}.json"))
    }

    /// The model's result on most of the first windows, of fewer than `windows`, and how many these are.
    fn earlier(&self, name: &str, windows: usize) -> Result<Option<(usize, EvalResult)>> {
        let known = (1..windows)
            .rev()
            .map(|count| (count, self.result(name, count)))
            .find(|(_, path)| path.is_file());
        let Some((count, path)) = known else {
            return Ok(None);
        };
        let result = serde_json::from_str(&fs::read_to_string(path)?)?;
        Ok(Some((count, result)))
    }

    /// Measures a model on these windows; the command that the result names measures all up to the last of them.
    fn behind(
        &self,
        name: &str,
        model: Option<&Path>,
        windows: std::ops::Range<usize>,
    ) -> Result<EvalResult> {
        let shown = match model {
            Some(_) => self.args.out.join("models").join(name),
            None => PathBuf::from(&self.args.model),
        };
        let shown = shown.display().to_string();
        let question = Question {
            corpus: self.corpus,
            window: self.args.window,
            command: format!(
                "cinder eval ppl {shown} --text {} --window {} --windows {}",
                self.args.text, self.args.window, windows.end
            ),
            windows: match windows.start {
                0 => WindowChoice::First(windows.end),
                _ => WindowChoice::Indices(windows.collect()),
            },
            model: shown,
            name: None,
        };
        let opened = model.map(Checkpoint::open).transpose()?;
        let checkpoint = opened.as_ref().unwrap_or(self.checkpoint);
        let cached = Cached::declared(checkpoint);
        measure(self.context, checkpoint, Precision::F32, cached, &question)
    }
}
