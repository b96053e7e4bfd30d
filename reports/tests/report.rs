//! What a written report holds, looked at as its readers and its callers see it.

use std::fs;
use std::path::Path;

use cinder_reports::{Evaluation, Options, Report, write};
use resvg::tiny_skia::{Pixmap, PremultipliedColorU8};

mod common;

use common::{cached, crowded, evaluation, sample};

fn written(evaluations: &[Evaluation], out: &Path) -> Report {
    write(&evaluations.to_vec().into(), out, &Options::default()).expect("the sample is sound")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder was made");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// The parts of `page` from each `open` to the next `close`.
fn parts<'a>(page: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    let starts = page.match_indices(open).map(|(start, _)| start);
    let part = |start: usize| {
        page[start..]
            .find(close)
            .map(|end| &page[start..start + end + close.len()])
    };
    starts.filter_map(part).collect()
}

#[test]
fn writes_the_named_files_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&sample(), folder.path());
    assert_eq!(
        names(folder.path()),
        [
            "perplexity-vs-keep-ratio.csv",
            "perplexity-vs-keep-ratio.png",
            "perplexity-vs-keep-ratio.svg",
            "perplexity-vs-scoring-speed.csv",
            "perplexity-vs-scoring-speed.png",
            "perplexity-vs-scoring-speed.svg",
            "perplexity-vs-weight-bytes.csv",
            "perplexity-vs-weight-bytes.png",
            "perplexity-vs-weight-bytes.svg",
            "report.html",
            "report.md",
        ]
    );
    let json = serde_json::to_value(&report).expect("serializable");
    assert_eq!(
        json["html"],
        folder.path().join("report.html").to_string_lossy().as_ref()
    );
    assert_eq!(json["figures"].as_array().map(Vec::len), Some(6));
}

#[test]
fn caches_of_different_sizes_get_a_chart_of_their_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&cached(), folder.path());
    assert_eq!((report.figures.len(), report.data.len()), (8, 4));
    let stem = "kv-cache-bytes-vs-perplexity";
    let drawing = folder.path().join(format!("{stem}.svg"));
    let drawing = fs::read_to_string(drawing).expect("written");
    for text in [
        "palu, q8 cache",
        "palu, q4 cache",
        "dense\n",
        "KV cache bytes per token",
    ] {
        assert!(drawing.contains(text), "{text}");
    }
    let numbers = fs::read_to_string(folder.path().join(format!("{stem}.csv"))).expect("written");
    assert_eq!(numbers.lines().count(), 7);
    assert!(numbers.contains(",f16,23040,"), "{numbers}");
    let page = fs::read_to_string(report.html).expect("written");
    assert_eq!(page.matches("<figure>").count(), 4);
    let text = fs::read_to_string(report.markdown).expect("written");
    assert!(text.contains(&format!("({stem}.png)")) && text.contains(&format!("({stem}.csv)")));
    // Caches of one size have nothing to show.
    let mut same = cached();
    for evaluation in &mut same {
        evaluation.result.kv_bytes_per_token = Some(46_080);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(written(&same, folder.path()).figures.len(), 6);
}

#[test]
fn markdown_and_table_stay_as_they_are() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&sample(), folder.path());
    insta::assert_snapshot!(
        "markdown",
        fs::read_to_string(report.markdown).expect("written")
    );
    let page = fs::read_to_string(report.html).expect("written");
    let table = parts(&page, "<table class=\"results\"", "</table>").concat();
    insta::assert_snapshot!(
        "results-table",
        table.replace("<tr", "\n<tr").replace("<t", "\n<t")
    );
    insta::assert_snapshot!("csv", fs::read_to_string(&report.data[0]).expect("written"));
}

#[test]
fn same_results_give_the_same_bytes_in_any_order() {
    let (one, two) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    written(&crowded(), one.path());
    let mut reversed = crowded();
    reversed.reverse();
    written(&reversed, two.path());
    assert_eq!(names(one.path()), names(two.path()));
    for name in names(one.path()) {
        let read = |folder: &Path| fs::read(folder.join(&name)).expect("written");
        assert!(read(one.path()) == read(two.path()), "{name} differs");
    }
}

#[test]
fn the_image_is_drawn_and_nothing_reaches_its_edge() {
    const BORDER: u32 = 4;
    let mut long = sample();
    for each in &mut long {
        each.result.corpus.name =
            "a corpus whose name is much too long for any one line ".repeat(4);
        each.result.model.name = "model-with-an-endless-name-".repeat(9);
        each.result.model.recipe = each
            .result
            .model
            .recipe
            .take()
            .map(|recipe| recipe.repeat(40));
    }
    let dense_only = sample().drain(..1).collect();
    let without_dense = sample().split_off(1);
    let mut collapsed = sample();
    collapsed.push(evaluation("low-rank 0.1", Some("low-rank"), 0.1, 3.4e11));
    for evaluations in [
        sample(),
        crowded(),
        long,
        dense_only,
        without_dense,
        collapsed,
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = written(&evaluations, folder.path());
        for figure in report
            .figures
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e == "png"))
        {
            let image = Pixmap::decode_png(&fs::read(figure).expect("written")).expect("a PNG");
            let white = PremultipliedColorU8::from_rgba(255, 255, 255, 255).expect("opaque");
            let (width, height) = (image.width(), image.height());
            assert_eq!(width, 1760);
            let drawn = image
                .pixels()
                .iter()
                .filter(|pixel| **pixel != white)
                .count();
            assert!(
                drawn > 5_000 && drawn < image.pixels().len() / 2,
                "{drawn} pixels drawn"
            );
            for y in 0..height {
                for x in 0..width {
                    let inner =
                        x >= BORDER && y >= BORDER && x < width - BORDER && y < height - BORDER;
                    assert!(
                        inner || image.pixel(x, y) == Some(white),
                        "ink at {x}, {y} of {figure:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_number_can_be_traced() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&sample(), folder.path());
    for text in
        [report.html, report.markdown].map(|path| fs::read_to_string(path).expect("written"))
    {
        for Evaluation { file, result, .. } in sample() {
            for needed in [
                &result.model.sha256,
                &result.corpus.sha256,
                &result.command,
                &result.model.path,
                &result.tool_version,
            ] {
                assert!(text.contains(needed.as_str()), "{needed} is missing");
            }
            assert!(text.contains(&*file.to_string_lossy()));
        }
    }
}

#[test]
fn the_page_needs_nothing_from_outside() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let page = fs::read_to_string(written(&crowded(), folder.path()).html).expect("written");
    for reference in [
        "src=\"",
        "@import",
        "url(",
        "<link",
        "<iframe",
        "href=\"http",
    ] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert!(page.contains("href=\"data:text/csv"));
    assert!(
        !page.contains("fill=\"#") && !page.contains("stroke=\"#"),
        "a colour no theme can change"
    );
}

#[test]
fn markup_in_a_result_stays_text() {
    const ATTACK: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>`|\u{0}";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut evaluations = sample();
    for each in &mut evaluations {
        each.result.model.name = ATTACK.to_owned();
        each.result.model.path = ATTACK.to_owned();
        each.result.model.stored_as = ATTACK.to_owned();
        each.result.model.recipe = each.result.model.recipe.take().map(|_| ATTACK.to_owned());
        each.result.corpus.name = ATTACK.to_owned();
        each.result.command = ATTACK.to_owned();
        each.result.device = ATTACK.to_owned();
        each.result.dtype = ATTACK.to_owned();
        each.result.tool_version = ATTACK.to_owned();
        each.result.model.sha256 = format!("{}{ATTACK}", each.result.model.sha256);
        each.result.corpus.sha256 = ATTACK.to_owned();
    }
    let report = write(&evaluations.into(), folder.path(), &Options::titled(ATTACK))
        .expect("odd, but sound");
    let page = fs::read_to_string(&report.html).expect("written");
    assert_eq!(page.matches("<script").count(), 1, "only our own");
    assert!(!page.contains("<img"));
    let svg = fs::read_to_string(&report.figures[0]).expect("written");
    assert!(!svg.contains("<script") && !svg.contains("<img"));
    let markdown = fs::read_to_string(&report.markdown).expect("written");
    let outside_code: String = markdown
        .lines()
        .filter(|line| !line.starts_with("- "))
        .collect();
    assert!(!outside_code.contains("<script") && !outside_code.contains("<img"));
}
