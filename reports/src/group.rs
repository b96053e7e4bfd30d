//! Which measurements may stand on one chart, and how each compares with the dense model.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cinder_eval::EvalResult;
use cinder_models::cache::CacheFormat;

use crate::check::check;
use crate::error::ReportError;
use crate::input::{Evaluation, Sourced};
use crate::records::{BenchResult, PositionLoss};

/// How far two measurements of the same model may lie apart before one of them must be wrong. Thread counts and devices
/// change the order of sums, which moves a perplexity by far less.
const REPEATABILITY: f64 = 5e-3;

/// How far a model's dense size, `scalars / keep ratio`, may lie from the reference's: rounding of the ratio only.
const LINEAGE: f64 = 1e-2;

/// How many times dearer counts as no dearer on a Pareto front.
const SAME_COST: f64 = 1.005;

/// What perplexity is drawn against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axis {
    KeepRatio,
    /// Bytes that a token takes in the KV cache.
    CacheBytes,
    /// Megabytes of the weights in memory.
    WeightBytes,
    /// Tokens per second while the perplexity was measured.
    Scoring,
    /// Tokens per second of decoding, from a benchmark of the same model.
    Decoding,
}

/// Measurements made the same way: same text, same tokens, same windows. Only these are comparable.
#[derive(Debug, Clone)]
pub(crate) struct Group<'a> {
    pub axis: Axis,
    /// Dense first, then by recipe and cache format, then from the largest keep ratio to the smallest.
    pub rows: Vec<Row<'a>>,
}

/// One measurement in a group.
#[derive(Debug, Clone)]
pub(crate) struct Row<'a> {
    pub file: &'a Path,
    /// Other files that hold exactly this measurement.
    pub also: Vec<&'a Path>,
    pub result: &'a EvalResult,
    /// Name of the series: the recipe, or `dense`, with the cache's format where there are several.
    pub series: String,
    /// Whether this is the dense model's line.
    pub reference: bool,
    /// Against the dense reference; none without one.
    pub relative: Option<Relative>,
    /// The loss by position in the window, where the result says so.
    pub by_position: &'a [PositionLoss],
    /// Tokens per second of decoding, where a benchmark of the model is there.
    pub decode: Option<f64>,
}

/// A perplexity as a multiple of the dense model's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Relative {
    pub times: f64,
    /// Standard error from the windows' paired differences; none with a single window.
    pub stderr: Option<f64>,
}

impl Row<'_> {
    pub fn is_dense(&self) -> bool {
        self.result.model.recipe.is_none()
    }

    /// The recipe, or `dense`.
    pub fn recipe(&self) -> &str {
        self.result.model.recipe.as_deref().unwrap_or("dense")
    }

    /// Standard error of the perplexity; none with a single window, which says nothing about spread.
    pub fn stderr(&self) -> Option<f64> {
        (self.result.perplexity.window_indices.len() > 1).then_some(self.result.perplexity.stderr)
    }
}

impl<'a> Group<'a> {
    /// The dense reference.
    pub fn dense(&self) -> Option<&Row<'a>> {
        self.rows.first().filter(|row| row.is_dense())
    }

    /// The rows that are points of the chart, the dense model's last: against the keep ratio it is a line alone.
    pub fn points(&self) -> impl Iterator<Item = &Row<'a>> {
        let all = self.axis != Axis::KeepRatio;
        let dense = self.rows.iter().filter(move |row| all && row.is_dense());
        self.rows.iter().filter(|row| !row.is_dense()).chain(dense)
    }

    /// The points by series, in their order; each from the largest keep ratio to the smallest.
    pub fn series(&self) -> Vec<(&str, Vec<&Row<'a>>)> {
        let mut series: Vec<(&str, Vec<&Row<'a>>)> = Vec::new();
        for row in self.points() {
            match series.last_mut() {
                Some((name, rows)) if *name == row.series => rows.push(row),
                _ => series.push((&row.series, vec![row])),
            }
        }
        series
    }

    /// Where a row stands on the x axis.
    pub fn x(&self, row: &Row<'_>) -> f64 {
        match self.axis {
            Axis::KeepRatio => row.result.model.keep_ratio,
            Axis::CacheBytes => row.result.kv_bytes_per_token.unwrap_or(0) as f64,
            Axis::WeightBytes => row.result.model.bytes as f64 / 1e6,
            Axis::Scoring => row.result.perplexity.tokens_per_second,
            Axis::Decoding => row.decode.unwrap_or(0.0),
        }
    }

    /// Whether more is better on the x axis.
    pub fn more_is_better(&self) -> bool {
        matches!(self.axis, Axis::Scoring | Axis::Decoding)
    }

    /// Indices of the rows that no other is at least as good as on both axes and better on one. On the x axis less than
    /// half a percent is no difference: budgets are met to the nearest rank, and speeds are measured.
    pub fn front(&self) -> Vec<usize> {
        let place = |row: &Row<'_>| {
            let x = self.x(row);
            let cost = if self.more_is_better() { 1.0 / x } else { x };
            (cost, row.result.perplexity.perplexity)
        };
        let beaten = |row: &Row<'_>| {
            let own = place(row);
            self.rows.iter().map(place).any(|other| {
                let no_dearer = other.0 <= SAME_COST * own.0;
                let cheaper = SAME_COST * other.0 < own.0;
                (no_dearer && other.1 < own.1) || (cheaper && other.1 <= own.1)
            })
        };
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, row)| !beaten(row))
            .map(|(index, _)| index)
            .collect()
    }

    /// The front's points of the chart, from left to right.
    pub fn front_points(&self) -> Vec<&Row<'a>> {
        let front = self.front().into_iter().map(|index| &self.rows[index]);
        let mut points: Vec<&Row<'a>> = front
            .filter(|row| self.axis != Axis::KeepRatio || !row.is_dense())
            .collect();
        points.sort_by(|a, b| self.x(a).total_cmp(&self.x(b)));
        points
    }

    /// Whether the front tells points apart: where all are on it, there is nothing to mark.
    pub fn has_front(&self) -> bool {
        self.front().len() < self.rows.len()
    }

    /// The same measurements against other things, where these differ.
    pub fn views(&self) -> Vec<Self> {
        let mut views: Vec<Self> = self.by_cache().into_iter().collect();
        for axis in [Axis::WeightBytes, Axis::Scoring, Axis::Decoding] {
            let mut view = Group {
                axis,
                rows: self.rows.clone(),
            };
            view.rows
                .retain(|row| axis != Axis::Decoding || row.decode.is_some());
            let x: Vec<f64> = view.rows.iter().map(|row| view.x(row)).collect();
            if x.iter().all(|x| *x > 0.0) && x.windows(2).any(|pair| pair[0] != pair[1]) {
                views.push(view);
            }
        }
        views
    }

    /// Takes the decoding speeds of benchmarks of the same models in the same precision.
    pub fn take_benches(&mut self, benches: &[Sourced<BenchResult>]) {
        for row in &mut self.rows {
            let own = |each: &&Sourced<BenchResult>| {
                each.result.model == row.result.model.path
                    && each.result.weights == row.result.dtype
            };
            let found = benches.iter().find(own);
            row.decode = found
                .and_then(|each| each.result.decode_tokens_per_second)
                .filter(|speed| speed.is_finite());
        }
    }

    /// The same measurements against the bytes of the KV cache; none where these do not differ.
    pub fn by_cache(&self) -> Option<Self> {
        let known = |row: &&Row<'_>| row.result.kv_bytes_per_token.is_some_and(|n| n > 0);
        let mut rows: Vec<_> = self.rows.iter().filter(known).cloned().collect();
        let bytes = |row: &Row<'_>| row.result.kv_bytes_per_token;
        let differ = rows
            .windows(2)
            .any(|pair| bytes(&pair[0]) != bytes(&pair[1]));
        // Formats of the dense model are one line, from f32 on.
        for row in rows.iter_mut().filter(|row| row.is_dense()) {
            row.series = row.recipe().to_owned();
        }
        differ.then_some(Group {
            axis: Axis::CacheBytes,
            rows,
        })
    }

    /// The result all rows agree with about corpus and protocol.
    pub fn protocol(&self) -> Option<&'a EvalResult> {
        self.rows.first().map(|row| row.result)
    }

    /// Name of the model the group is about: the dense one's, or the only one's.
    pub fn model(&self) -> Option<&'a str> {
        let names = || self.rows.iter().map(|row| row.result.model.name.as_str());
        match self.dense() {
            Some(dense) => Some(&dense.result.model.name),
            None => names()
                .next()
                .filter(|first| names().all(|name| name == *first)),
        }
    }
}

/// What must be equal for two perplexities to be comparable. The token count and the BOS ids stand for the tokenizer.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Protocol<'a> {
    corpus_sha256: &'a str,
    tokens: u64,
    window: u64,
    stride: u64,
    windows: &'a [u64],
    bos_ids: &'a [u32],
}

impl<'a> Protocol<'a> {
    fn of(result: &'a EvalResult) -> Self {
        let (corpus, measured) = (&result.corpus, &result.perplexity);
        Self {
            corpus_sha256: &corpus.sha256,
            tokens: corpus.tokens,
            window: measured.window,
            stride: measured.stride,
            windows: &measured.window_indices,
            bos_ids: &measured.bos_ids,
        }
    }
}

/// Checks every evaluation and sorts them into comparable groups. The order of the input does not matter.
pub(crate) fn group(evaluations: &[Evaluation]) -> Result<Vec<Group<'_>>, ReportError> {
    let mut by_protocol: BTreeMap<Protocol<'_>, Vec<Row<'_>>> = BTreeMap::new();
    let mut sorted: Vec<&Evaluation> = evaluations.iter().collect();
    sorted.sort_by(|a, b| a.file.cmp(&b.file));
    for evaluation in sorted {
        check(evaluation)?;
        add(
            by_protocol
                .entry(Protocol::of(&evaluation.result))
                .or_default(),
            evaluation,
        )?;
    }
    let mut groups = by_protocol
        .into_values()
        .map(compare)
        .collect::<Result<Vec<_>, _>>()?;
    // The group with most to say leads the report.
    groups.sort_by_key(|group| (Reverse(group.rows.len()), name_and_window(group)));
    Ok(groups)
}

fn name_and_window<'a>(group: &Group<'a>) -> Option<(&'a str, u64)> {
    group
        .protocol()
        .map(|result| (result.corpus.name.as_str(), result.perplexity.window))
}

/// Adds a measurement, or only its file when the same measurement is there already.
fn add<'a>(rows: &mut Vec<Row<'a>>, evaluation: &'a Evaluation) -> Result<(), ReportError> {
    let result = &evaluation.result;
    for row in rows.iter_mut().filter(|row| {
        // What a cache rounds changes the model.
        row.result.model.sha256 == result.model.sha256 && kept(row.result) == kept(result)
    }) {
        let (ours, theirs) = (&result.perplexity, &row.result.perplexity);
        let same_place = row.result.device == result.device && row.result.dtype == result.dtype;
        if same_place && ours.window_nll == theirs.window_nll {
            row.also.push(&evaluation.file);
            return Ok(());
        }
        if row.result.dtype == result.dtype
            && (ours.perplexity / theirs.perplexity).ln().abs() > REPEATABILITY
        {
            let message = format!(
                "the same model on the same windows gave perplexity {} and {}",
                theirs.perplexity, ours.perplexity
            );
            return Err(conflict(row.file, &evaluation.file, message));
        }
    }
    rows.push(Row {
        file: &evaluation.file,
        also: Vec::new(),
        result,
        series: String::new(),
        reference: false,
        relative: None,
        by_position: &evaluation.by_position,
        decode: None,
    });
    Ok(())
}

/// Orders the rows and sets each against the dense one.
fn compare(mut rows: Vec<Row<'_>>) -> Result<Group<'_>, ReportError> {
    rows.sort_by(|a, b| {
        let (left, right) = (&a.result.model, &b.result.model);
        left.recipe
            .cmp(&right.recipe)
            .then(cache(b.result).bits().cmp(&cache(a.result).bits()))
            .then(b.result.residual_window.cmp(&a.result.residual_window))
            .then(right.keep_ratio.total_cmp(&left.keep_ratio))
            .then_with(|| left.name.cmp(&right.name))
            .then_with(|| a.file.cmp(b.file))
    });
    let dense = rows
        .first()
        .filter(|row| row.is_dense())
        .map(|row| (row.file.to_path_buf(), row.result));
    if let Some((file, reference)) = dense {
        rows[0].reference = true;
        for row in &mut rows {
            related(&file, reference, row)?;
            row.relative = Some(relative(reference, row.result));
        }
    }
    let several = rows
        .windows(2)
        .any(|pair| kept(pair[0].result) != kept(pair[1].result));
    for row in &mut rows {
        row.series = match several {
            true => {
                let window = match row.result.residual_window {
                    0 => String::new(),
                    tokens => format!(", residual window {tokens}"),
                };
                format!("{}, {} cache{window}", row.recipe(), cache(row.result))
            }
            false => row.recipe().to_owned(),
        };
    }
    Ok(Group {
        axis: Axis::KeepRatio,
        rows,
    })
}

/// What a cache rounds: its format, and the tokens that it leaves as they are.
fn kept(result: &EvalResult) -> (CacheFormat, usize) {
    (cache(result), result.residual_window)
}

/// The format of the cache; results that do not say were made with f32.
fn cache(result: &EvalResult) -> CacheFormat {
    result.cache.unwrap_or_default()
}

/// Rejects a row that cannot have been made from the reference.
fn related(file: &Path, reference: &EvalResult, row: &Row<'_>) -> Result<(), ReportError> {
    let (dense, model) = (&reference.model, &row.result.model);
    if row.is_dense() && model.sha256 != dense.sha256 {
        let message = format!(
            "two different dense models, {} and {}: one report compares one model with its own compressed versions",
            dense.name, model.name
        );
        return Err(conflict(file, row.file, message));
    }
    let before = model.decoder_projection_scalars as f64 / model.keep_ratio;
    if (before / dense.decoder_projection_scalars as f64 - 1.0).abs() > LINEAGE {
        let message = format!(
            "{} decoder-projection scalars at keep ratio {} do not come from a dense model with {}",
            model.decoder_projection_scalars, model.keep_ratio, dense.decoder_projection_scalars
        );
        return Err(conflict(file, row.file, message));
    }
    Ok(())
}

/// Both models read the same windows, so the spread that counts is that of the differences, window by window: most of
/// either perplexity's own standard error is shared text difficulty and cancels.
fn relative(dense: &EvalResult, compressed: &EvalResult) -> Relative {
    let times = compressed.perplexity.perplexity / dense.perplexity.perplexity;
    let pairs = compressed
        .perplexity
        .window_nll
        .iter()
        .zip(&dense.perplexity.window_nll);
    let differences: Vec<f64> = pairs.map(|(a, b)| a - b).collect();
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let stderr = (differences.len() > 1).then(|| times * (variance / n).sqrt());
    Relative { times, stderr }
}

fn conflict(first: &Path, second: &Path, message: String) -> ReportError {
    ReportError::Conflict {
        first: PathBuf::from(first),
        second: PathBuf::from(second),
        message,
    }
}
