//! From scores to numbers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::Document;
use super::score::Score;
use super::task::{Metric, Task};
use crate::statistics::mean_and_stderr;

/// What the model said of one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DocumentScores {
    pub task: String,
    /// Its place in the file, from 0.
    pub document: u64,
    /// As the data names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In nats, one for each choice.
    pub log_likelihoods: Vec<f64>,
    /// Whether each token of the continuation was the model's most likely one, one for each choice.
    pub greedy: Vec<bool>,
    /// Index of the right choice; none where there is nothing to choose, as of the two below.
    pub gold: Option<u64>,
    /// The choice of highest log-likelihood, the first of equals.
    pub pick: Option<u64>,
    /// The choice of highest log-likelihood per character; where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pick_norm: Option<u64>,
}

/// The metrics of a task, each with its standard error: the sample standard deviation over √n, 0 for a single document.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metrics {
    /// Share of documents that are right.
    pub acc: f64,
    pub acc_stderr: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc_norm_stderr: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// That of the mean log-likelihood, times the perplexity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity_stderr: Option<f64>,
}

impl DocumentScores {
    pub(super) fn new(task: &Task, index: usize, document: &Document, scores: &[Score]) -> Self {
        let log_likelihoods: Vec<f64> = scores.iter().map(|s| s.log_likelihood).collect();
        let choices = document.gold.is_some();
        let norm = task.metrics.contains(&Metric::AccNorm).then(|| {
            let lengths = document.choices.iter().map(|choice| choice.chars().count());
            let pairs = log_likelihoods.iter().zip(lengths);
            let per_character: Vec<f64> = pairs.map(|(sum, length)| sum / length as f64).collect();
            highest(&per_character)
        });
        DocumentScores {
            task: task.name.clone(),
            document: index as u64,
            id: document.id.clone(),
            gold: document.gold.map(|gold| gold as u64),
            pick: choices.then(|| highest(&log_likelihoods)),
            pick_norm: norm,
            greedy: scores.iter().map(|score| score.greedy).collect(),
            log_likelihoods,
        }
    }

    /// Whether the model does the document: it picks the right choice, or would have said the continuation.
    pub fn is_right(&self) -> bool {
        match self.gold {
            Some(_) => self.pick == self.gold,
            None => self.greedy.first() == Some(&true),
        }
    }
}

impl DocumentScores {
    /// As [`DocumentScores::is_right`], by log-likelihood per character; none where that is not counted.
    pub fn is_right_norm(&self) -> Option<bool> {
        self.pick_norm.map(|pick| Some(pick) == self.gold)
    }

    /// The log-likelihood of the right choice, or of the continuation, in nats.
    pub fn gold_log_likelihood(&self) -> Option<f64> {
        let index = self.gold.unwrap_or(0) as usize;
        self.log_likelihoods.get(index).copied()
    }
}

/// The index of the highest; the first of equals.
fn highest(values: &[f64]) -> u64 {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best as u64
}

impl Metrics {
    pub(super) fn of(task: &Task, documents: &[DocumentScores]) -> Self {
        let share = |right: &dyn Fn(&DocumentScores) -> bool| {
            let hits: Vec<f64> = documents
                .iter()
                .map(|d| f64::from(u8::from(right(d))))
                .collect();
            mean_and_stderr(&hits)
        };
        let counts = |metric| task.metrics.contains(&metric);
        let (acc, acc_stderr) = share(&DocumentScores::is_right);
        let norm = counts(Metric::AccNorm).then(|| share(&|d| d.pick_norm == d.gold));
        let perplexity = counts(Metric::Perplexity).then(|| {
            let nll: Vec<f64> = documents
                .iter()
                .map(|d| -d.log_likelihoods.iter().sum::<f64>())
                .collect();
            let (mean, stderr) = mean_and_stderr(&nll);
            (mean.exp(), mean.exp() * stderr)
        });
        Metrics {
            acc,
            acc_stderr,
            acc_norm: norm.map(|(share, _)| share),
            acc_norm_stderr: norm.map(|(_, stderr)| stderr),
            perplexity: perplexity.map(|(value, _)| value),
            perplexity_stderr: perplexity.map(|(_, stderr)| stderr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::document::Request;

    fn document(choices: &[&str], gold: Option<usize>) -> Document {
        Document {
            id: None,
            requests: vec![
                Request {
                    context: "c".into(),
                    continuation: " x".into()
                };
                choices.len().max(1)
            ],
            choices: choices.iter().map(|choice| (*choice).to_owned()).collect(),
            gold,
        }
    }

    fn scored(task: &str, document: &Document, sums: &[f64], greedy: bool) -> DocumentScores {
        let scores = sums.iter().map(|sum| Score {
            log_likelihood: *sum,
            greedy,
        });
        let scores: Vec<Score> = scores.collect();
        DocumentScores::new(&Task::find(task).unwrap(), 0, document, &scores)
    }

    #[test]
    fn ties_go_to_the_first_and_lengths_are_counted_in_characters() {
        let tie = scored(
            "piqa",
            &document(&["a", "b"], Some(1)),
            &[-2.0, -2.0],
            false,
        );
        assert_eq!((tie.pick, tie.pick_norm), (Some(0), Some(0)));
        // Four characters of two bytes each: -1 a character, where bytes would give -0.5.
        let text = scored(
            "piqa",
            &document(&["éééé", "abcde"], Some(1)),
            &[-4.0, -4.5],
            false,
        );
        assert_eq!((text.pick, text.pick_norm), (Some(0), Some(1)));
        // The space at a choice's end counts.
        let space = scored(
            "piqa",
            &document(&["abc", "abc "], Some(1)),
            &[-3.0, -3.0],
            false,
        );
        assert_eq!(space.pick_norm, Some(1));
        let winogrande = scored(
            "winogrande",
            &document(&["long one", "b"], Some(1)),
            &[-3.0, -2.0],
            false,
        );
        assert_eq!((winogrande.pick, winogrande.pick_norm), (Some(1), None));
    }

    #[test]
    fn metrics_are_means_with_the_standard_error_of_a_sample() {
        let two = document(&["a", "b"], Some(1));
        let documents: Vec<DocumentScores> =
            [[-1.0, -2.0], [-2.0, -1.0], [-3.0, -1.0], [-9.0, -1.0]]
                .iter()
                .map(|sums| scored("piqa", &two, sums, false))
                .collect();
        let metrics = Metrics::of(&Task::find("piqa").unwrap(), &documents);
        assert_eq!(
            (metrics.acc, metrics.acc_norm, metrics.perplexity),
            (0.75, Some(0.75), None)
        );
        assert!((metrics.acc_stderr - (0.25f64 / 4.0).sqrt()).abs() < 1e-12);
        let open = document(&[], None);
        let documents = [
            scored("lambada_openai", &open, &[-1.0], true),
            scored("lambada_openai", &open, &[-3.0], false),
        ];
        let metrics = Metrics::of(&Task::find("lambada_openai").unwrap(), &documents);
        assert_eq!((metrics.acc, metrics.acc_norm), (0.5, None));
        assert!((metrics.perplexity.unwrap() - 2f64.exp()).abs() < 1e-12);
        assert!((metrics.perplexity_stderr.unwrap() - 2f64.exp()).abs() < 1e-12);
    }
}
