//! Tasks as data: one TOML file each in `eval/tasks`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::expression::{Expression, Template};
use super::filter::Filter;
use crate::error::{Error, Result};

/// Every task there is, by the content of its file.
const TASKS: &[&str] = &[
    include_str!("../../tasks/arc_challenge.toml"),
    include_str!("../../tasks/arc_easy.toml"),
    include_str!("../../tasks/boolq.toml"),
    include_str!("../../tasks/hellaswag.toml"),
    include_str!("../../tasks/lambada_openai.toml"),
    include_str!("../../tasks/mathqa.toml"),
    include_str!("../../tasks/openbookqa.toml"),
    include_str!("../../tasks/piqa.toml"),
    include_str!("../../tasks/sciq.toml"),
    include_str!("../../tasks/winogrande.toml"),
];

/// A zero-shot task: where its documents are, what is asked of a model for each, and what is counted.
#[derive(Debug, Clone)]
pub struct Task {
    /// As in lm-evaluation-harness, such as `arc_easy`.
    pub name: String,
    /// Raised whenever numbers are no longer comparable with those of before.
    pub version: u32,
    /// One line on what is asked.
    pub about: String,
    /// Paper, split, and what the requests are equal to.
    pub reference: String,
    pub metrics: Vec<Metric>,
    /// Places to look for the documents, relative to the data folder, best first.
    pub files: Vec<FileEntry>,
    /// Documents that the published file has more than once.
    pub repeats: usize,
    pub(super) form: Form,
    /// Ways to find the fields in a record; a file keeps to one of them.
    pub(super) layouts: Vec<Layout>,
    pub(super) filters: Vec<Filter>,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The choice of highest log-likelihood is right; without choices: every token of the continuation is the model's
    /// most likely one.
    Acc,
    /// The choice of highest log-likelihood per character (Unicode code point) is right.
    AccNorm,
    /// exp of the mean negative log-likelihood of a continuation, in nats.
    Perplexity,
}

/// A file that may hold the documents.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub path: String,
    /// A file with one line for each document, which becomes its field `label`.
    pub labels: Option<String>,
}

/// How a record becomes requests.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// One context, a continuation for each choice.
    Choices {
        context: Template,
        choices: Choices,
        gold: Gold,
    },
    /// A context for each choice, one continuation: "partial scoring".
    Contexts {
        contexts: Vec<Template>,
        continuation: Template,
        gold: Gold,
    },
    /// One context, one continuation, nothing to choose from.
    Continuation {
        context: Template,
        continuation: Template,
    },
}

#[derive(Debug, Clone)]
pub(super) enum Choices {
    Templates(Vec<Template>),
    /// A field that is a list of texts.
    List(Expression),
}

/// Which choice is right. Where a layout has a field `gold`, that is its index, whatever the rule says.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Gold {
    /// The field is its index, as a number or a text, or true for 1.
    Index(String),
    /// The field is its index, counted from 1.
    IndexFromOne(String),
    /// The field is its label.
    Label { of: String, among: Labels },
    /// It is the same in each document.
    Always(usize),
}

/// The labels of the choices.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Labels {
    Fixed(Vec<String>),
    Field(String),
}

/// Where the fields are.
pub(super) type Layout = BTreeMap<String, Expression>;

/// A task file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    name: String,
    version: u32,
    about: String,
    reference: String,
    metrics: Vec<Metric>,
    #[serde(default)]
    repeats: usize,
    request: Request,
    fields: Vec<BTreeMap<String, String>>,
    files: Vec<FileEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    context: Option<String>,
    contexts: Option<Vec<String>>,
    choices: Option<ListOrField>,
    continuation: Option<String>,
    gold: Option<Gold>,
    /// What is done to every context and choice.
    #[serde(default)]
    filters: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ListOrField {
    List(Vec<String>),
    Field(String),
}

impl Task {
    /// The names of all tasks, in the order of the alphabet.
    pub fn names() -> Vec<String> {
        let tasks = TASKS.iter().filter_map(|text| Self::parse(text).ok());
        tasks.map(|task| task.name).collect()
    }

    /// The task called `name`.
    pub fn find(name: &str) -> Option<Task> {
        let mut tasks = TASKS.iter().filter_map(|text| Self::parse(text).ok());
        tasks.find(|task| task.name == name)
    }

    /// Reads a task file.
    ///
    /// # Errors
    /// [`Error::Task`] saying what is wrong with it.
    pub fn parse(text: &str) -> Result<Task> {
        let source: Source = toml::from_str(text).map_err(|e| Error::Task {
            name: "?".into(),
            why: e.message().into(),
        })?;
        let name = source.name.clone();
        let task = Self::new(source).map_err(|why| Error::Task { name, why })?;
        task.check().map_err(|why| Error::Task {
            name: task.name.clone(),
            why,
        })?;
        Ok(task)
    }

    fn new(source: Source) -> Result<Task, String> {
        let layout = |fields: BTreeMap<String, String>| {
            let fields = fields.into_iter();
            let fields = fields.map(|(name, value)| Ok((name, Expression::parse(&value)?)));
            fields.collect::<Result<Layout, String>>()
        };
        let filters = source.request.filters.iter();
        Ok(Task {
            filters: filters.map(|f| Filter::find(f)).collect::<Result<_, _>>()?,
            form: source.request.form()?,
            layouts: source
                .fields
                .into_iter()
                .map(layout)
                .collect::<Result<_, _>>()?,
            name: source.name,
            version: source.version,
            about: source.about,
            reference: source.reference,
            metrics: source.metrics,
            files: source.files,
            repeats: source.repeats,
        })
    }

    /// Whether the parts of the task fit each other.
    fn check(&self) -> Result<(), String> {
        let open = matches!(self.form, Form::Continuation { .. });
        for metric in &self.metrics {
            let fits = match metric {
                Metric::Acc => true,
                Metric::AccNorm => matches!(self.form, Form::Choices { .. }),
                Metric::Perplexity => open,
            };
            if !fits {
                return Err(format!(
                    "{metric:?} can not be counted in requests like these"
                ));
            }
        }
        if !self.metrics.contains(&Metric::Acc) {
            return Err("every task counts `acc`".into());
        }
        if self.layouts.is_empty() || self.files.is_empty() {
            return Err("a task has at least one `[[fields]]` and one `[[files]]`".into());
        }
        let (templates, mut gold) = self.form.roots();
        for layout in &self.layouts {
            if layout.contains_key("gold") {
                gold.clear();
            }
            let missing = templates
                .iter()
                .chain(&gold)
                .find(|f| !layout.contains_key(**f));
            if let Some(missing) = missing {
                return Err(format!("a `[[fields]]` lacks `{missing}`"));
            }
        }
        Ok(())
    }
}

impl Request {
    fn form(&self) -> Result<Form, String> {
        let templates = |texts: &[String]| -> Result<Vec<Template>, String> {
            texts.iter().map(|text| Template::parse(text)).collect()
        };
        let gold = || self.gold.clone().ok_or("`gold` is missing");
        match (
            &self.context,
            &self.contexts,
            &self.choices,
            &self.continuation,
        ) {
            (Some(context), None, Some(choices), None) => Ok(Form::Choices {
                context: Template::parse(context)?,
                choices: match choices {
                    ListOrField::List(list) => Choices::Templates(templates(list)?),
                    ListOrField::Field(field) => Choices::List(Expression::parse(field)?),
                },
                gold: gold()?,
            }),
            (None, Some(contexts), None, Some(continuation)) => Ok(Form::Contexts {
                contexts: templates(contexts)?,
                continuation: Template::parse(continuation)?,
                gold: gold()?,
            }),
            (Some(context), None, None, Some(continuation)) if self.gold.is_none() => {
                Ok(Form::Continuation {
                    context: Template::parse(context)?,
                    continuation: Template::parse(continuation)?,
                })
            }
            _ => Err(
                "a request has `context` and `choices`, `contexts` and `continuation`, or \
                      `context` and `continuation`"
                    .into(),
            ),
        }
    }
}

impl Form {
    /// The fields that templates use, and those that say which choice is right.
    fn roots(&self) -> (Vec<&str>, Vec<&str>) {
        let mut fields = Vec::new();
        let gold = match self {
            Form::Choices {
                context,
                choices,
                gold,
            } => {
                fields.extend(context.roots());
                match choices {
                    Choices::Templates(list) => {
                        fields.extend(list.iter().flat_map(Template::roots))
                    }
                    Choices::List(field) => fields.push(field.root()),
                }
                Some(gold)
            }
            Form::Contexts {
                contexts,
                continuation,
                gold,
            } => {
                fields.extend(contexts.iter().flat_map(Template::roots));
                fields.extend(continuation.roots());
                Some(gold)
            }
            Form::Continuation {
                context,
                continuation,
            } => {
                fields.extend(context.roots());
                fields.extend(continuation.roots());
                None
            }
        };
        (fields, gold.map_or_else(Vec::new, Gold::fields))
    }
}

impl Gold {
    fn fields(&self) -> Vec<&str> {
        match self {
            Gold::Index(field) | Gold::IndexFromOne(field) => vec![field],
            Gold::Label { of, among } => match among {
                Labels::Fixed(_) => vec![of],
                Labels::Field(labels) => vec![of, labels],
            },
            Gold::Always(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_the_folder_is_known_and_sound() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tasks");
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let task = Task::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(path.file_stem().unwrap().to_str(), Some(task.name.as_str()));
            found.push(task.name);
        }
        found.sort();
        assert_eq!(Task::names(), found);
    }

    #[test]
    fn what_is_wrong_with_a_task_is_said() {
        let piqa = TASKS[7];
        for (from, to, expected) in [
            (
                "goal = \"goal\"",
                "goals = \"goal\"",
                "a `[[fields]]` lacks `goal`",
            ),
            (
                "label = \"label\"\n\n",
                "\n",
                "a `[[fields]]` lacks `label`",
            ),
            (
                "metrics = [\"acc\"",
                "metrics = [\"f1\"",
                "unknown variant `f1`, expected one of `acc`, `acc_norm`, `perplexity`",
            ),
            (
                "\"acc_norm\"",
                "\"perplexity\"",
                "Perplexity can not be counted in requests like these",
            ),
            ("{goal}", "{goal | shout}", "there is no filter `shout`"),
            ("gold = { index = \"label\" }", "", "`gold` is missing"),
            (
                "version = 1",
                "version = 1\nspeed = 2",
                "unknown field `speed`",
            ),
            (
                "choices = ",
                "continuation = \"\"\nchoices = ",
                "a request has `context` and `choices`",
            ),
        ] {
            assert!(piqa.contains(from), "{from}");
            let error = Task::parse(&piqa.replacen(from, to, 1))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
