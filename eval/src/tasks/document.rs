//! A record of a data file, made into what is asked of a model.

use serde_json::Value;

use super::expression::{Expression, Fields, kind};
use super::task::{Choices, Form, Gold, Labels, Layout, Task};

/// What is put before every continuation (lm-evaluation-harness's `target_delimiter`).
const DELIMITER: &str = " ";

/// One document of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// As the data names it.
    pub id: Option<String>,
    /// One for each choice.
    pub requests: Vec<Request>,
    /// The texts chosen from; empty where there is nothing to choose.
    pub choices: Vec<String>,
    /// Index of the right choice.
    pub gold: Option<usize>,
}

/// A text and how it goes on: the log-likelihood of the second behind the first is a score.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    pub context: String,
    /// With the space it begins with.
    pub continuation: String,
}

impl Document {
    /// What the model reads when this document is shown as an example: its context and the right continuation.
    pub fn example(&self) -> String {
        let shown = self.requests.get(self.gold.unwrap_or(0));
        shown.map_or_else(String::new, |r| format!("{}{}", r.context, r.continuation))
    }
}

impl Task {
    /// The fields of a record, by one of the task's layouts.
    pub(super) fn fields(&self, layout: &Layout, record: &Fields) -> Result<Fields, String> {
        let mut fields = Fields::new();
        for (name, expression) in layout {
            match expression.value(record) {
                Ok(value) => fields.insert(name.clone(), value),
                // Only for whoever reads the scores.
                Err(_) if name == "id" => None,
                Err(why) => return Err(why),
            };
        }
        Ok(fields)
    }

    /// The document of these fields.
    ///
    /// # Errors
    /// What is missing, of the wrong type, or out of range.
    pub(super) fn document(&self, fields: &Fields) -> Result<Document, String> {
        let filtered = |text: String| {
            self.filters.iter().try_fold(text, |text, filter| {
                let value = filter.apply(&text)?;
                let kind = || format!("filter `{}` makes {}", filter.name, kind(&value));
                value.as_str().map(str::to_owned).ok_or_else(kind)
            })
        };
        let request = |context: &str, continuation: &str| Request {
            context: context.to_owned(),
            continuation: format!("{DELIMITER}{continuation}"),
        };
        let (requests, choices, gold) = match &self.form {
            Form::Choices {
                context,
                choices,
                gold,
            } => {
                let context = filtered(context.render(fields)?)?;
                let texts = texts(choices, fields)?;
                let texts = texts.into_iter().map(filtered);
                let texts = texts.collect::<Result<Vec<String>, String>>()?;
                let requests: Vec<_> = texts.iter().map(|text| request(&context, text)).collect();
                (requests, texts, Some(gold))
            }
            Form::Contexts {
                contexts,
                continuation,
                gold,
            } => {
                let contexts = contexts.iter().map(|c| filtered(c.render(fields)?));
                let contexts = contexts.collect::<Result<Vec<String>, String>>()?;
                let continuation = filtered(continuation.render(fields)?)?;
                let requests = contexts.iter().map(|c| request(c, &continuation)).collect();
                (requests, contexts, Some(gold))
            }
            Form::Continuation {
                context,
                continuation,
            } => {
                let context = filtered(context.render(fields)?)?;
                let continuation = filtered(continuation.render(fields)?)?;
                if continuation.is_empty() {
                    return Err("the continuation is empty".into());
                }
                (vec![request(&context, &continuation)], Vec::new(), None)
            }
        };
        if gold.is_some() && choices.len() < 2 {
            return Err(format!("{} choices: at least 2 are needed", choices.len()));
        }
        if let Some(empty) = choices.iter().position(String::is_empty) {
            return Err(format!("choice {empty} is empty"));
        }
        let gold = gold.map(|rule| right(rule, fields, choices.len()));
        Ok(Document {
            id: fields.get("id").map(|id| match id {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }),
            requests,
            choices,
            gold: gold.transpose()?,
        })
    }
}

fn texts(choices: &Choices, fields: &Fields) -> Result<Vec<String>, String> {
    match choices {
        Choices::Templates(templates) => templates.iter().map(|t| t.render(fields)).collect(),
        Choices::List(field) => list(field, fields),
    }
}

/// A field that is a list of texts.
fn list(field: &Expression, fields: &Fields) -> Result<Vec<String>, String> {
    let name = field.root();
    let value = field.value(fields)?;
    let items = value
        .as_array()
        .ok_or_else(|| format!("field `{name}` is {}, not a list", kind(&value)))?;
    let item = |item: &Value| {
        let wrong = || format!("field `{name}` has {} in it, not only texts", kind(item));
        item.as_str().map(str::to_owned).ok_or_else(wrong)
    };
    items.iter().map(item).collect()
}

/// The index of the right one of `count` choices.
fn right(rule: &Gold, fields: &Fields, count: usize) -> Result<usize, String> {
    let (name, first) = match rule {
        _ if fields.contains_key("gold") => ("gold", 0),
        Gold::Always(index) => return Ok(*index),
        Gold::Label { of, among } => return labelled(of, among, fields, count),
        Gold::Index(name) => (name.as_str(), 0),
        Gold::IndexFromOne(name) => (name.as_str(), 1),
    };
    let value = fields.get(name).unwrap_or(&Value::Null);
    let index = match value {
        Value::Bool(right) => Some(u64::from(*right)),
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_u64(),
    };
    let index = index.and_then(|index| usize::try_from(index).ok()?.checked_sub(first));
    index.filter(|index| *index < count).ok_or_else(|| {
        format!(
            "`{name}` is {value}, not one of {first} to {}",
            first + count - 1
        )
    })
}

fn labelled(of: &str, among: &Labels, fields: &Fields, count: usize) -> Result<usize, String> {
    let value = Expression::parse(of)?.text(fields)?;
    let labels = match among {
        Labels::Fixed(labels) => labels.clone(),
        Labels::Field(name) => list(&Expression::parse(name)?, fields)?,
    };
    if labels.len() != count {
        return Err(format!("{count} choices, but {} labels", labels.len()));
    }
    let index = labels.iter().position(|label| *label == value);
    index.ok_or_else(|| format!("`{of}` is {value:?}, not one of {}", labels.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(task: &str, record: Value) -> Result<Document, String> {
        let task = Task::find(task).expect("known");
        let record = record.as_object().expect("object").clone();
        let made = task
            .layouts
            .iter()
            .map(|layout| task.fields(layout, &record));
        let mut last = None;
        for fields in made {
            match fields {
                Ok(fields) => return task.document(&fields),
                Err(why) => last = Some(why),
            }
        }
        Err(last.expect("a task has a layout"))
    }

    fn rendered(document: &Document) -> Vec<(&str, &str)> {
        let requests = document.requests.iter();
        requests
            .map(|r| (r.context.as_str(), r.continuation.as_str()))
            .collect()
    }

    #[test]
    fn a_choice_keeps_its_spaces_and_a_label_may_be_a_digit() {
        let piqa = json!({"goal": "dresser", "sol1": "a ", "sol2": "b", "label": "1"});
        let piqa = document("piqa", piqa).unwrap();
        let context = "Question: dresser\nAnswer:";
        assert_eq!(rendered(&piqa), [(context, " a "), (context, " b")]);
        assert_eq!(
            (piqa.gold, piqa.example()),
            (Some(1), format!("{context} b"))
        );
        let arc = |key: &str| json!({"id": "x", "question": "Q", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": key});
        assert_eq!(document("arc_easy", arc("3")).unwrap().gold, Some(2));
        assert_eq!(
            document("arc_easy", arc("C")),
            Err("`answerKey` is \"C\", not one of 1, 2, 3".into())
        );
    }

    #[test]
    fn two_contexts_share_a_continuation() {
        let record = json!({"sentence": "Ann met Bo so _ left. ", "option1": "Ann", "option2": "Bo", "answer": "2"});
        let document = document("winogrande", record).unwrap();
        let expected = [
            ("Ann met Bo so Ann", " left."),
            ("Ann met Bo so Bo", " left."),
        ];
        assert_eq!(rendered(&document), expected);
        assert_eq!(
            (document.gold, document.example()),
            (Some(1), "Ann met Bo so Bo left.".into())
        );
    }

    #[test]
    fn the_other_rules_for_what_is_right() {
        let boolq = |answer: Value| json!({"passage": "P", "question": "is it", "answer": answer});
        let yes = document("boolq", boolq(json!(true))).unwrap();
        assert_eq!(rendered(&yes)[1], ("P\nQuestion: is it?\nAnswer:", " yes"));
        assert_eq!(yes.gold, Some(1));
        let wrong = document("boolq", boolq(json!(2)));
        assert_eq!(wrong, Err("`answer` is 2, not one of 0 to 1".into()));
        let sciq = json!({"support": " S", "question": "Q", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d"});
        let sciq = document("sciq", sciq).unwrap();
        assert_eq!(rendered(&sciq)[3], ("S\nQuestion: Q\nAnswer:", " d"));
        assert_eq!(sciq.gold, Some(3));
        let mathqa = json!({"Problem": "p", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "d"});
        let mathqa = document("mathqa", mathqa).unwrap();
        assert_eq!((mathqa.choices[4].as_str(), mathqa.gold), ("5", Some(3)));
        let openbookqa = json!({"question_stem": "The sun", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": " B"});
        assert_eq!(document("openbookqa", openbookqa).unwrap().gold, Some(1));
        let olmes = json!({"id": "x", "query": "Question: The sun\nAnswer:", "choices": ["a", "b"], "gold": 1});
        let olmes = document("openbookqa", olmes).unwrap();
        assert_eq!(
            (rendered(&olmes)[0], olmes.gold),
            (("The sun", " a"), Some(1))
        );
    }

    #[test]
    fn nothing_to_choose_and_nothing_to_score() {
        let lambada = document("lambada_openai", json!({"text": "one two  three"})).unwrap();
        assert_eq!(rendered(&lambada), [("one two ", " three")]);
        assert_eq!((lambada.gold, lambada.choices.len()), (None, 0));
        let empty = document("lambada_openai", json!({"text": "one "}));
        assert_eq!(empty, Err("the continuation is empty".into()));
        let piqa = json!({"goal": "g", "sol1": "", "sol2": "b", "label": 0});
        assert_eq!(document("piqa", piqa), Err("choice 0 is empty".into()));
        let piqa = json!({"goal": 3, "sol1": "a", "sol2": "b", "label": 0});
        assert_eq!(
            document("piqa", piqa),
            Err("field `goal` is a number, not a text".into())
        );
    }
}
