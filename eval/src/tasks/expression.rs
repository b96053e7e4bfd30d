//! The small language of task files: paths into a record, filters behind them, and templates of both.
//!
//! A *path* is `name`, `question.stem` (a field of an object), `choices[].text` (the field of each item of a list) or
//! `answers[0]` (an item). An *expression* is a path and any number of filters: `key | trim_start`. A *template* is text
//! with expressions in braces: `Question: {goal}`. There are no escapes, because no task needs one.

use serde_json::{Map, Value};

use super::filter::Filter;

/// The fields of a record, or those that a task makes of one.
pub(super) type Fields = Map<String, Value>;

/// A value: where it is, and what is done to it.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    path: String,
    steps: Vec<Step>,
    filters: Vec<Filter>,
}

#[derive(Debug, Clone)]
enum Step {
    Field(String),
    Each,
    Item(usize),
}

/// Text with values in it.
#[derive(Debug, Clone)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Value(Expression),
}

impl Expression {
    /// Reads `path | filter | ...`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split('|').map(str::trim);
        let path = parts.next().unwrap_or_default().to_owned();
        let steps = steps(&path).ok_or_else(|| format!("`{path}` is not a path"))?;
        let filters = parts.map(Filter::find).collect::<Result<_, _>>()?;
        Ok(Expression {
            path,
            steps,
            filters,
        })
    }

    /// Name of the first field on the way.
    pub fn root(&self) -> &str {
        match self.steps.first() {
            Some(Step::Field(name)) => name,
            _ => "",
        }
    }

    /// The value in `fields`.
    ///
    /// # Errors
    /// What is missing or of the wrong type.
    pub fn value(&self, fields: &Fields) -> Result<Value, String> {
        let Some((Step::Field(first), rest)) = self.steps.split_first() else {
            return Err(format!("`{}` is not a path", self.path));
        };
        let found = fields.get(first).and_then(|value| follow(value, rest));
        let value = found.ok_or_else(|| {
            let names: Vec<String> = fields.keys().map(|name| format!("`{name}`")).collect();
            match names.is_empty() {
                true => format!("no field `{}`; it has none", self.path),
                false => format!("no field `{}`; it has {}", self.path, names.join(", ")),
            }
        })?;
        self.filters.iter().try_fold(value, |value, filter| {
            let text = self.as_text(&value)?;
            filter
                .apply(text)
                .map_err(|why| format!("field `{}` {why}", self.path))
        })
    }

    /// The value in `fields`, which has to be a text.
    pub fn text(&self, fields: &Fields) -> Result<String, String> {
        let value = self.value(fields)?;
        self.as_text(&value).map(str::to_owned)
    }

    fn as_text<'a>(&self, value: &'a Value) -> Result<&'a str, String> {
        value
            .as_str()
            .ok_or_else(|| format!("field `{}` is {}, not a text", self.path, kind(value)))
    }
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (name, brackets) = part.split_at(part.find('[').unwrap_or(part.len()));
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(word) {
            return None;
        }
        steps.push(Step::Field(name.to_owned()));
        match brackets {
            "" => {}
            "[]" => steps.push(Step::Each),
            item => {
                let index = item.strip_prefix('[')?.strip_suffix(']')?;
                steps.push(Step::Item(index.parse().ok()?));
            }
        }
    }
    Some(steps)
}

fn follow(value: &Value, steps: &[Step]) -> Option<Value> {
    let Some((step, rest)) = steps.split_first() else {
        return Some(value.clone());
    };
    match step {
        Step::Field(name) => follow(value.get(name)?, rest),
        Step::Item(index) => follow(value.get(index)?, rest),
        Step::Each => {
            let items = value.as_array()?.iter().map(|item| follow(item, rest));
            items.collect::<Option<Vec<Value>>>().map(Value::Array)
        }
    }
}

impl Template {
    /// Reads text with expressions in braces.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let (before, behind) = (&rest[..open], &rest[open + 1..]);
            let close = behind
                .find('}')
                .ok_or_else(|| format!("`{text}` has a `{{` without a `}}`"))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Value(Expression::parse(&behind[..close])?));
            rest = &behind[close + 1..];
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Template { parts })
    }

    /// Names of the fields it uses.
    pub fn roots(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Value(expression) => Some(expression.root()),
        })
    }

    /// The text for these fields.
    ///
    /// # Errors
    /// What is missing or not a text.
    pub fn render(&self, fields: &Fields) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                Part::Value(expression) => text.push_str(&expression.text(fields)?),
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields() -> Fields {
        let value = json!({
            "stem": " Why?",
            "question": {"choices": [{"text": "a", "label": "A"}, {"text": "b"}]},
            "number": 3,
        });
        value.as_object().expect("object").clone()
    }

    fn value(text: &str) -> Result<Value, String> {
        Expression::parse(text)?.value(&fields())
    }

    #[test]
    fn paths_lead_into_objects_and_lists() {
        assert_eq!(value("stem | trim"), Ok(json!("Why?")));
        assert_eq!(value("question.choices[].text"), Ok(json!(["a", "b"])));
        assert_eq!(value("question.choices[1].text"), Ok(json!("b")));
        assert_eq!(value("number"), Ok(json!(3)));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, expected) in [
            (
                "goal",
                "no field `goal`; it has `stem`, `question`, `number`",
            ),
            (
                "question.choices[].label",
                "no field `question.choices[].label`; it has `stem`, `question`, `number`",
            ),
            (
                "question.choices[2].text",
                "no field `question.choices[2].text`; it has `stem`, `question`, `number`",
            ),
            ("number | trim", "field `number` is a number, not a text"),
            ("stem | before_blank", "field `stem` has no blank (`_`)"),
            ("stem | shout", "there is no filter `shout`"),
            ("question.choices[x]", "`question.choices[x]` is not a path"),
            ("", "`` is not a path"),
        ] {
            assert_eq!(value(text), Err(expected.into()), "{text}");
        }
    }

    #[test]
    fn templates_keep_what_is_not_in_braces() {
        let template = Template::parse("Q:{stem|trim}\n} {question.choices[0].label}");
        let text = template.expect("parses").render(&fields());
        assert_eq!(text, Ok("Q:Why?\n} A".into()));
        assert!(Template::parse("{stem").is_err());
        assert!(
            Template::parse("{number}")
                .expect("parses")
                .render(&fields())
                .is_err()
        );
    }
}
