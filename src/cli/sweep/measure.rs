//! What each model of a sweep is measured through and on.

use std::path::PathBuf;

use anyhow::Result;
use cinder::eval::{Corpus, EvalResult, WindowChoice};
use cinder::models::Precision;
use cinder::models::cache::CacheFormat;
use cinder::models::checkpoint::Checkpoint;
use fs_err as fs;
use serde_json::{Value, json};

use super::Sweep;
use crate::cli::context::Cached;
use crate::cli::eval::{Question, measure, write_result};
use crate::cli::format::{bytes, table};

/// The dense model's name in a sweep.
pub const DENSE: &str = "dense";

/// The formats that a model's cache can have, as a point's record keeps them.
pub fn possible(checkpoint: &Checkpoint) -> Vec<CacheFormat> {
    let can = |format: &CacheFormat| checkpoint.check_cache_format(*format).is_ok();
    CacheFormat::ALL.into_iter().filter(can).collect()
}

impl Sweep<'_> {
    /// The caches that a model is measured through: those asked for that it can have, widest first; else what it declares.
    pub fn formats(&self, possible: &[CacheFormat]) -> Vec<Option<CacheFormat>> {
        let asked = |format: &&CacheFormat| self.args.cache.contains(format);
        let formats: Vec<_> = possible.iter().filter(asked).copied().map(Some).collect();
        match formats.is_empty() {
            true => vec![None],
            false => formats,
        }
    }

    /// [`Sweep::formats`] of a point whose record is there, or of the dense model.
    fn formats_of(&self, name: &str) -> Result<Vec<Option<CacheFormat>>> {
        if name == DENSE {
            return Ok(self.formats(&possible(self.checkpoint)));
        }
        let record: Value = serde_json::from_str(&fs::read_to_string(self.record(name))?)?;
        let possible: Vec<CacheFormat> = serde_json::from_value(record["cache_formats"].clone())?;
        Ok(self.formats(&possible))
    }

    /// Where a model's result on a text goes.
    fn result(&self, name: &str, text: &Corpus, format: Option<CacheFormat>) -> PathBuf {
        let mut file = name.to_owned();
        if self.texts.len() > 1 {
            file += &format!("-{}", text.name.replace(['/', ':'], "-"));
        }
        if let Some(format) = format {
            file += &format!("-{format}");
        }
        self.folder.join("results").join(file + ".json")
    }

    /// The results of a model, through each cache on each text.
    pub fn results(&self, name: &str) -> Result<Vec<PathBuf>> {
        let formats = self.formats_of(name)?;
        let of = |format| self.texts.iter().map(move |t| self.result(name, t, format));
        Ok(formats.into_iter().flat_map(of).collect())
    }

    /// Measures a model through each cache on each text, as far as that is not done.
    pub fn measured(
        &self,
        name: &str,
        compressed: Option<&Value>,
        open: impl Fn() -> Result<Checkpoint>,
    ) -> Result<Value> {
        let mut row = json!({"name": name, "keep_ratio": 1.0});
        if let Some(compressed) = compressed {
            for key in [
                "keep_ratio",
                "kv_keep_ratio",
                "bytes_after",
                "directory_bytes",
                "seconds",
            ] {
                row[key] = compressed[key].clone();
            }
        }
        let mut caches = Vec::new();
        for format in self.formats_of(name)? {
            let mut cache = json!({});
            for (corpus, text) in self.texts.iter().zip(&self.args.text) {
                let result = self.one(name, compressed.is_some(), corpus, text, format, &open)?;
                cache["cache"] = json!(result.cache);
                cache["kv_bytes_per_token"] = json!(result.kv_bytes_per_token);
                cache["residual_window"] = json!(result.residual_window);
                cache["texts"][&corpus.name] = json!({"perplexity": result.perplexity.perplexity,
                    "stderr": result.perplexity.stderr,
                    "tokens_per_second": result.perplexity.tokens_per_second});
            }
            caches.push(cache);
        }
        let first = caches.first().map(|cache| cache["texts"].clone());
        row["texts"] = first.filter(Value::is_object).unwrap_or(json!({}));
        if !self.texts.is_empty() {
            row["caches"] = json!(caches);
        }
        Ok(row)
    }

    /// One measurement; what an earlier run made of it is read.
    fn one(
        &self,
        name: &str,
        compressed: bool,
        corpus: &Corpus,
        text: &str,
        format: Option<CacheFormat>,
        open: impl Fn() -> Result<Checkpoint>,
    ) -> Result<EvalResult> {
        let path = self.result(name, corpus, format);
        if !path.is_file() {
            let model = match compressed {
                true => {
                    let model = self.args.out.join("models").join(name);
                    model.display().to_string()
                }
                false => self.args.model.clone(),
            };
            let question = Question {
                corpus,
                window: self.args.window,
                windows: self.args.windows.clone().unwrap_or(WindowChoice::All),
                command: self.command(&model, text, format),
                model,
                name: None,
            };
            let (checkpoint, precision) = (open()?, self.args.weights.weights);
            let cached = match format {
                Some(format) => Cached::through(&checkpoint, format)?,
                None => Cached::declared(&checkpoint),
            };
            let result = measure(self.context, &checkpoint, precision, cached, &question)?;
            let p = &result.perplexity;
            self.context.printer.say(&format!(
                "{name}: perplexity {:.2} ± {:.2} on {}{}",
                p.perplexity,
                p.stderr,
                corpus.name,
                format.map_or(String::new(), |f| format!(" through {f} cache"))
            ));
            write_result(&path, &result)?;
        }
        Ok(serde_json::from_str(&fs::read_to_string(&path)?)?)
    }

    /// The command that measures the same.
    fn command(&self, model: &str, text: &str, format: Option<CacheFormat>) -> String {
        let mut command = format!(
            "cinder eval ppl {model} --text {text} --window {}",
            self.args.window
        );
        match &self.args.windows {
            Some(WindowChoice::First(count)) => command += &format!(" --windows {count}"),
            Some(WindowChoice::Indices(indices)) => {
                let list: Vec<String> = indices.iter().map(usize::to_string).collect();
                command += &format!(" --windows {}", list.join(","));
            }
            Some(WindowChoice::All) | None => {}
        }
        if self.args.weights.weights != Precision::F32 {
            command += &format!(" --weights {}", self.args.weights.weights);
        }
        if let Some(format) = format {
            command += &format!(" --cache {format}");
        }
        command
    }
}

/// One line a point, or a point and cache where there are several.
pub fn points_table(rows: &[Value]) -> String {
    let texts: Vec<&String> = rows
        .first()
        .and_then(|r| r["texts"].as_object())
        .map(|t| t.keys().collect())
        .unwrap_or_default();
    let nothing = vec![json!({})];
    let caches = |row: &'_ Value| {
        let caches = row["caches"].as_array();
        caches.cloned().unwrap_or_else(|| nothing.clone())
    };
    let mut all: Vec<Value> = rows.iter().flat_map(caches).map(cache_name).collect();
    all.dedup();
    let by_cache = all.len() > 1;
    let mut head = vec!["point", "keep", "bytes", "seconds"];
    if by_cache {
        head.extend(["cache", "bytes/token"]);
    }
    head.extend(texts.iter().map(|t| t.as_str()));
    let mut out = table(&head);
    for row in rows {
        let number = |key: &str| row[key].as_f64();
        for cache in caches(row) {
            let mut cells = vec![
                row["name"].as_str().unwrap_or_default().to_owned(),
                number("keep_ratio").map_or(String::new(), |v| format!("{v:.4}")),
                row["bytes_after"].as_u64().map_or(String::new(), bytes),
                number("seconds").map_or(String::new(), |v| format!("{v:.0}")),
            ];
            if by_cache {
                cells.push(cache["cache"].as_str().unwrap_or_default().to_owned());
                let bytes = cache["kv_bytes_per_token"].as_u64();
                cells.push(bytes.map_or(String::new(), |bytes| bytes.to_string()));
            }
            cells.extend(texts.iter().map(|text| {
                let measured = &cache["texts"][text.as_str()];
                format!(
                    "{:.3} ± {:.3}",
                    measured["perplexity"].as_f64().unwrap_or(f64::NAN),
                    measured["stderr"].as_f64().unwrap_or(f64::NAN)
                )
            }));
            out.add_row(cells);
        }
    }
    out.to_string()
}

fn cache_name(cache: Value) -> Value {
    cache["cache"].clone()
}
