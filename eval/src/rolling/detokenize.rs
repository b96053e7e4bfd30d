//! What lm-evaluation-harness does to a text before a model reads it.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a document becomes the text that a model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Detokenizer {
    /// As it is.
    None,
    /// WikiText's separated punctuation joined again (`tasks/wikitext/preprocess_wikitext.py` of lm-evaluation-harness, with its
    /// quirks: ` N ` becomes ` 1 `).
    Wikitext,
}

/// One step; the order matters.
enum Step {
    Text(&'static str, &'static str),
    Pattern(&'static str, &'static str),
}

const WIKITEXT: &[Step] = &[
    Step::Text("s '", "s'"),
    // The replacement is what the harness has, a pattern taken for a text.
    Step::Pattern(r"/' [0-9]/", "/'[0-9]/"),
    Step::Text(" @-@ ", "-"),
    Step::Text(" @,@ ", ","),
    Step::Text(" @.@ ", "."),
    Step::Text(" : ", ": "),
    Step::Text(" ; ", "; "),
    Step::Text(" . ", ". "),
    Step::Text(" ! ", "! "),
    Step::Text(" ? ", "? "),
    Step::Text(" , ", ", "),
    Step::Pattern(r"\([\s\x1c-\x1f]*([^)]*?)[\s\x1c-\x1f]*\)", "($1)"),
    Step::Pattern(r"\[[\s\x1c-\x1f]*([^\]]*?)[\s\x1c-\x1f]*\]", "[$1]"),
    Step::Pattern(r"\{[\s\x1c-\x1f]*([^}]*?)[\s\x1c-\x1f]*\}", "{$1}"),
    Step::Pattern("\"[\\s\\x1c-\\x1f]*([^\"]*?)[\\s\\x1c-\\x1f]*\"", "\"$1\""),
    Step::Pattern(r"'[\s\x1c-\x1f]*([^']*?)[\s\x1c-\x1f]*'", "'$1'"),
    Step::Text("= = = =", "===="),
    Step::Text("= = =", "==="),
    Step::Text("= =", "=="),
    Step::Text(" \u{b0} ", "\u{b0}"),
    Step::Text(" \n", "\n"),
    Step::Text("\n ", "\n"),
    Step::Text(" N ", " 1 "),
    Step::Text(" 's", "'s"),
];

/// The patterns of [`WIKITEXT`], in its order.
static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = WIKITEXT.iter().filter_map(|step| match step {
        Step::Pattern(pattern, _) => Some(Regex::new(pattern).expect("a constant pattern")),
        Step::Text(..) => None,
    });
    patterns.collect()
});

/// White space as Python's `\s` has it.
static BLANK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\s\x1c-\x1f]+").expect("a constant pattern"));

impl Detokenizer {
    /// The text that the model reads.
    pub fn apply(self, text: &str) -> Cow<'_, str> {
        if self == Detokenizer::None {
            return Cow::Borrowed(text);
        }
        let mut patterns = PATTERNS.iter();
        let mut text = text.to_owned();
        for step in WIKITEXT {
            text = match step {
                Step::Text(from, to) => text.replace(from, to),
                Step::Pattern(_, to) => match patterns.next() {
                    Some(pattern) => pattern.replace_all(&text, *to).into_owned(),
                    None => text,
                },
            };
        }
        Cow::Owned(text)
    }
}

/// Words as the harness counts them: pieces between white space, of which those at the ends may be empty.
pub fn words(text: &str) -> usize {
    BLANK.split(text).count()
}

/// The pages of a raw WikiText file: lines from each level-one heading to the next (EleutherAI's `wikitext_document_level`).
pub fn wikitext_pages(text: &str) -> Vec<String> {
    let mut pages = Vec::new();
    let mut page: Vec<&str> = Vec::new();
    for line in text.split('\n') {
        let heading = line.replace("= = =", "===").replace("= =", "==");
        let heading = heading.trim();
        if heading.starts_with("= ") && heading.ends_with(" =") {
            push(&mut pages, &page);
            page.clear();
        }
        page.push(line);
    }
    push(&mut pages, &page);
    pages
}

fn push(pages: &mut Vec<String>, lines: &[&str]) {
    let page = lines.join("\n");
    if !page.trim().is_empty() {
        pages.push(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wikitext_is_joined_as_the_harness_joins_it() {
        // Made with lm_eval 0.4.13's `wikitext_detokenizer`.
        for (raw, expected) in [
            (
                " = Robert Boulter = \n \n Robert Boulter is an actor . \n",
                " = Robert Boulter =\n\nRobert Boulter is an actor.\n",
            ),
            (
                "the dogs ' 3 @,@ 500 @-@ odd , 2 @.@ 5 ; a : b",
                "the dogs' 3,500-odd, 2.5; a: b",
            ),
            (
                " = = Career = = \n ( born 1975 ) \" The Bill \" [ 1 ]",
                " == Career ==\n(born 1975) \"The Bill\" [1]",
            ),
            (
                "John 's N boats at 12 \u{b0} W",
                "John's 1 boats at 12\u{b0}W",
            ),
        ] {
            assert_eq!(Detokenizer::Wikitext.apply(raw), expected);
            assert_eq!(Detokenizer::None.apply(raw), raw);
        }
    }

    #[test]
    fn words_are_what_python_splits() {
        assert_eq!((words(""), words("a"), words(" a  b\n")), (1, 1, 4));
    }

    #[test]
    fn pages_begin_at_headings_of_the_first_level() {
        let text = " \n = One = \n \n a \n = = Deeper = = \n b \n = Two = \n c \n";
        let pages = wikitext_pages(text);
        assert_eq!(
            pages,
            [
                " = One = \n \n a \n = = Deeper = = \n b ",
                " = Two = \n c \n"
            ]
        );
    }
}
