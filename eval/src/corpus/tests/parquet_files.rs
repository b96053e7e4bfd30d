use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::GzipLevel;
use ::parquet::file::properties::WriterProperties;
use arrow_array::StringViewArray;

pub use ::parquet::basic::Compression as Codec;

use super::*;

/// A Parquet file of one row group for each array.
pub fn table(column: &str, codec: Codec, groups: &[ArrayRef]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let properties = WriterProperties::builder().set_compression(codec).build();
    let schema = batch(column, &groups[0]).schema();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties)).unwrap();
    for array in groups {
        writer.write(&batch(column, array)).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    bytes
}

#[test]
fn parquet_takes_text_or_passage_however_it_is_stored() {
    let views: ArrayRef = Arc::new(StringViewArray::from(vec!["One", "Two"]));
    let large: ArrayRef = Arc::new(LargeStringArray::from(vec!["One", "Two"]));
    for array in [views, large, strings(&["One", "Two"])] {
        for codec in [
            Codec::UNCOMPRESSED,
            Codec::SNAPPY,
            Codec::GZIP(GzipLevel::default()),
            Codec::LZ4_RAW,
        ] {
            let corpus = read(
                "a.parquet",
                table("text", codec, std::slice::from_ref(&array)),
            )
            .unwrap();
            assert_eq!(corpus.documents, ["One", "Two"], "{codec}");
        }
    }
    let groups = table(
        "passage",
        Codec::SNAPPY,
        &[strings(&["One"]), strings(&["Two", "Three"])],
    );
    assert_eq!(
        read("a.parquet", &groups).unwrap().documents,
        ["One", "Two", "Three"]
    );
    let column = CorpusFormat::Parquet {
        column: "passage".into(),
    };
    assert_eq!(
        read_as("a.bin", &groups, column).unwrap().documents.len(),
        3
    );
}

#[test]
fn parquet_errors_say_what_is_there() {
    let plain = |column: &str, array: ArrayRef| table(column, Codec::UNCOMPRESSED, &[array]);
    let error = read("a.parquet", plain("question", strings(&["One"]))).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("no column `text` or `passage`; it has `label`, `question`"),
        "{error}"
    );

    let label = CorpusFormat::Parquet {
        column: "label".into(),
    };
    let error = read_as("a.parquet", plain("text", strings(&["One"])), label).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("column `label` holds Int64, not text"),
        "{error}"
    );

    let null: ArrayRef = Arc::new(StringArray::from(vec![Some("One"), None]));
    let error = read("a.parquet", plain("text", null)).unwrap_err();
    assert!(
        error.to_string().contains("row 1 of column `text` is null"),
        "{error}"
    );

    let absent = Path::new("nowhere.parquet");
    let error = Corpus::read(absent, &CorpusFormat::Auto).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error}");
}

/// This build can not write such files either: the codec's number is changed where the footer has it.
#[test]
fn parquet_codecs_that_are_not_built_in_are_named() {
    let whole = table("text", Codec::UNCOMPRESSED, &[strings(&["One"])]);
    let place = whole.windows(6).rposition(|w| w == b"text\x15\0").unwrap();
    for (number, name) in [(6, "zstd"), (4, "brotli")] {
        let mut other = whole.clone();
        // Thrift's zigzag doubles it.
        other[place + 5] = 2 * number;
        let error = read("a.parquet", other).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("is compressed by {name}")),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("snappy"));
    }
}

#[test]
fn damaged_parquet_is_an_error() {
    let whole = table(
        "text",
        Codec::SNAPPY,
        &[strings(&["One", "Two"].repeat(50))],
    );
    for damaged in [&b"PAR1PAR1"[..], b"", &whole[..whole.len() / 2]] {
        let error = read("a.parquet", damaged).unwrap_err();
        assert!(matches!(error, Error::Parquet { .. }), "{error}");
        assert!(error.hint().is_some());
    }
    // Wherever one byte is wrong: another text or an error, never a panic.
    let (_dir, path) = file("a.parquet", "");
    for place in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        fs_err::write(&path, damaged).unwrap();
        let _ = Corpus::read(&path, &CorpusFormat::Auto);
    }
}
