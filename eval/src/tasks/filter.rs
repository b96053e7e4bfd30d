//! What a task may do to a text, by name. Each filter does what lm-evaluation-harness 0.4.13 does in Python for the task
//! it was made for.

use serde_json::Value;

/// A named change of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filter {
    pub name: &'static str,
    apply: fn(&str) -> Result<Value, String>,
}

/// Every filter there is.
const FILTERS: &[Filter] = &[
    Filter {
        name: "trim",
        apply: |text| Ok(trim(text).into()),
    },
    Filter {
        name: "trim_start",
        apply: |text| Ok(text.trim_start_matches(is_space).into()),
    },
    Filter {
        name: "capitalize",
        apply: |text| Ok(capitalize(text).into()),
    },
    Filter {
        name: "wikihow",
        apply: |text| Ok(wikihow(text).into()),
    },
    Filter {
        name: "before_blank",
        apply: |text| Ok(blank(text)?.0.into()),
    },
    Filter {
        name: "after_blank",
        apply: |text| Ok(blank(text)?.1.into()),
    },
    Filter {
        name: "but_last_word",
        apply: |text| Ok(last_word(text).0.into()),
    },
    Filter {
        name: "last_word",
        apply: |text| Ok(last_word(text).1.into()),
    },
    Filter {
        name: "question_of_prompt",
        apply: |text| Ok(question_of_prompt(text)?.into()),
    },
    Filter {
        name: "lettered_options",
        apply: |text| Ok(lettered_options(text).into()),
    },
];

impl Filter {
    /// The filter called `name`.
    pub fn find(name: &str) -> Result<Filter, String> {
        let found = FILTERS.iter().find(|filter| filter.name == name);
        found
            .copied()
            .ok_or_else(|| format!("there is no filter `{name}`"))
    }

    /// Changes a text; some filters make a list of it.
    ///
    /// # Errors
    /// What the text lacks.
    pub fn apply(&self, text: &str) -> Result<Value, String> {
        (self.apply)(text)
    }
}

/// What Python's `str.strip` strips: Unicode's white space and four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// As Python's `str.capitalize`: the first character in title case, **the others in lower case**.
fn capitalize(text: &str) -> String {
    let mut rest = text.chars();
    let Some(first) = rest.next() else {
        return String::new();
    };
    // A character that becomes several in upper case has only the first of them so in title case (`ß`, `Ss`).
    let mut upper = first.to_uppercase();
    let title: String = upper.next().into_iter().collect();
    let tail: String = upper.collect();
    title + &tail.to_lowercase() + &rest.as_str().to_lowercase()
}

/// HellaSwag's `preprocess`: marks that WikiHow's articles leave in its texts.
fn wikihow(text: &str) -> String {
    let text = trim(text).replace(" [title]", ". ");
    without_brackets(&text).replace("  ", " ")
}

/// The text without what the regular expression `\[.*?\]` finds, whose dot is no line break.
fn without_brackets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let inside = &rest[open + 1..];
        match inside.find([']', '\n']) {
            Some(close) if inside[close..].starts_with(']') => {
                kept.push_str(&rest[..open]);
                rest = &inside[close + 1..];
            }
            _ => {
                kept.push_str(&rest[..=open]);
                rest = inside;
            }
        }
    }
    kept + rest
}

/// What stands before and after the first `_`.
fn blank(text: &str) -> Result<(&str, &str), String> {
    text.split_once('_')
        .ok_or_else(|| "has no blank (`_`)".into())
}

/// What comes before the last space, and what after it: the whole when there is none.
fn last_word(text: &str) -> (&str, &str) {
    text.rsplit_once(' ').unwrap_or(("", text))
}

/// The question of a prompt as OLMES writes it.
fn question_of_prompt(text: &str) -> Result<&str, String> {
    let question = text.strip_prefix("Question: ");
    question
        .and_then(|q| q.strip_suffix("\nAnswer:"))
        .ok_or_else(|| "is not `Question: ...`, a line break, `Answer:`".into())
}

/// MathQA's options: what the regular expression `[abcd] \) .*?, |e \) .*?$` finds, each without its letter and without
/// commas and spaces at its end.
fn lettered_options(text: &str) -> Vec<String> {
    let mut options = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let body = rest[letter.len_utf8()..].strip_prefix(" ) ");
        let end = match (letter, body) {
            ('a'..='d', Some(body)) => body.find(", ").map(|at| at + 2),
            ('e', Some(body)) => Some(body.trim_end_matches('\n').len()),
            _ => None,
        };
        let found = body.zip(end).map(|(body, end)| body.split_at(end));
        match found.filter(|(option, _)| !option.contains('\n')) {
            Some((option, after)) => {
                options.push(option.trim_end_matches([' ', ',']).to_owned());
                rest = after;
            }
            None => rest = &rest[letter.len_utf8()..],
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(name: &str, text: &str) -> Value {
        Filter::find(name).expect("known").apply(text).expect(name)
    }

    #[test]
    fn filters_do_what_python_does() {
        for (name, text, expected) in [
            ("trim", "\u{a0}\u{1c} a b\n", "a b"),
            ("trim_start", " \n a ", "a "),
            ("capitalize", "the DOG Ran", "The dog ran"),
            ("capitalize", "ßa", "Ssa"),
            ("capitalize", "", ""),
            ("before_blank", "he _ and _", "he "),
            ("after_blank", "he _ and _", " and _"),
            ("but_last_word", "a  b c", "a  b"),
            ("last_word", "a  b c", "c"),
            ("last_word", "a ", ""),
            ("but_last_word", "word", ""),
            ("last_word", "word", "word"),
            ("question_of_prompt", "Question: Why? \nAnswer:", "Why? "),
            (
                "wikihow",
                " How to [title] Boil [step] it   now ",
                "How to. Boil it  now",
            ),
            ("wikihow", "a [b\nc] d [e [f] g] h", "a [b\nc] d g] h"),
        ] {
            assert_eq!(filtered(name, text), expected, "{name} {text:?}");
        }
    }

    #[test]
    fn mathqas_options_are_found_as_by_its_regular_expression() {
        let text = "a ) rs . 400 , b ) 3 , 000 , c ) 1 / 2 , d ) none of , these , e ) 5 ,";
        assert_eq!(
            filtered("lettered_options", text),
            serde_json::json!(["rs . 400", "3", "1 / 2", "none of", "5"])
        );
        assert_eq!(
            filtered("lettered_options", "x a ) 1"),
            serde_json::json!([])
        );
        assert!(Filter::find("upper").is_err());
        assert!(
            Filter::find("before_blank")
                .expect("known")
                .apply("no")
                .is_err()
        );
    }
}
