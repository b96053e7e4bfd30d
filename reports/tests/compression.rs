//! How models were compressed: which records are read, joined and drawn, and what is said of them.

use std::fs;
use std::path::Path;

use cinder_reports::{Compression, Options, Report, Results, read, write};
use resvg::tiny_skia::{Pixmap, PremultipliedColorU8};
use serde_json::{Value, json};

mod common;

use common::{compression, evaluation, sweep, varied, with_compressions};

fn written(results: &Results, out: &Path) -> Report {
    write(results, out, &Options::default()).expect("the sample is sound")
}

fn markdown(results: &Results) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::read_to_string(written(results, folder.path()).markdown).expect("written")
}

fn only(compressions: Vec<Compression>) -> Results {
    Results {
        compressions,
        ..Results::default()
    }
}

/// A manifest of `compression`, as `cinder compress` writes it.
fn manifest(compression: &Compression) -> Value {
    let sites: Vec<_> = compression.sites.iter().map(|site| &site.record).collect();
    json!({
        "schema": 2, "tool_version": "0.1.0", "recipe": {"name": compression.recipe}, "threads": 2, "dtype": "F32",
        "source": {"name": "smollm2", "sha256": "", "stored_as": "F32", "bytes_on_disk": 1},
        "calibration": {"corpus": "c", "corpus_sha256": "", "tokens_sha256": "", "windows": 1, "window": 1, "seed": 0,
            "bos_ids": [], "window_indices": [0]},
        "projection_scalars_before": 10, "projection_scalars_after": 7, "keep_ratio": compression.keep_ratio,
        "bytes_before": 1, "bytes_after": 1, "fallbacks": 0, "sites": sites, "files": [], "tensors": [],
    })
}

/// What `cinder compress --json` prints, with seconds for each projection.
fn printed(compression: &Compression, path: &str) -> Value {
    let sites = compression.sites.iter().map(|site| {
        let mut value = serde_json::to_value(&site.record).expect("serializable");
        value["seconds"] = json!(site.seconds);
        value
    });
    json!({"path": path, "keep_ratio": compression.keep_ratio, "seconds": 12.5, "fallbacks": 1,
        "sites": sites.collect::<Vec<_>>()})
}

fn save(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
    fs::write(path, value.to_string()).expect("writable");
}

#[test]
fn heat_maps_stand_beside_the_chart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&with_compressions(), folder.path());
    let names = report.figures.iter().chain(&report.data);
    let names: Vec<_> = names
        .filter_map(|path| path.file_name()?.to_str())
        .collect();
    assert_eq!(
        names,
        [
            "perplexity-vs-keep-ratio.svg",
            "perplexity-vs-keep-ratio.png",
            "perplexity-vs-weight-bytes.svg",
            "perplexity-vs-weight-bytes.png",
            "perplexity-vs-scoring-speed.svg",
            "perplexity-vs-scoring-speed.png",
            "kept-share-by-layer.svg",
            "kept-share-by-layer.png",
            "output-error-by-layer.svg",
            "output-error-by-layer.png",
            "perplexity-vs-keep-ratio.csv",
            "perplexity-vs-weight-bytes.csv",
            "perplexity-vs-scoring-speed.csv",
            "compression-by-layer.csv",
        ]
    );
    let table = fs::read_to_string(&report.data[3]).expect("written");
    assert_eq!(table.lines().count(), 1 + 3 * 210);
    let page = fs::read_to_string(&report.html).expect("written");
    assert_eq!(
        page.matches("<table class=\"sites\" data-sortable").count(),
        3
    );
    assert!(!page.contains("fill=\"#") && !page.contains("stroke=\"#"));
}

#[test]
fn the_markdown_section_stays_as_it_is() {
    let text = markdown(&with_compressions());
    let section = text
        .split_once("\n## How each model was compressed")
        .map(|(_, section)| section.to_owned());
    insta::assert_snapshot!("compressions", section.expect("a section"));
}

#[test]
fn a_manifest_and_a_printed_result_of_one_compression_are_one_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |path: &str| folder.path().join(path);
    let model = varied("skipcat", 0.8, 2);
    save(&at("models/skipcat-0.8/cinder.json"), &manifest(&model));
    save(
        &at("compress/skipcat-0.8.json"),
        &printed(&model, "models/skipcat-0.8"),
    );
    save(
        &at("models/skipcat-0.8/tokenizer.json"),
        &json!({"model": [1]}),
    );
    save(&at("models/skipcat-0.8/shapes.json"), &json!([1, 2, 3, 4]));
    // The folder twice: what is given twice counts once.
    let results = read(&[folder.path().to_owned(), at("models")]).expect("sound");
    assert_eq!(results.compressions.len(), 3);
    let text = markdown(&results);
    assert_eq!(text.matches("\n### skipcat 0.80\n").count(), 1, "{text}");
    assert!(text.contains("Compressed in 12.5 s."), "{text}");
    assert!(text.contains("compress/skipcat-0.8.json`, `"), "{text}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&results, folder.path());
    let page = fs::read_to_string(report.html).expect("written");
    assert!(page.contains("<span class=\"unit\">s</span>"), "no seconds");
}

#[test]
fn manifests_of_schema_1_are_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut old = manifest(&compression("low-rank", 0.8, 3));
    old["schema"] = json!(1);
    for site in old["sites"].as_array_mut().expect("sites") {
        let site = site.as_object_mut().expect("a site");
        for newer in ["neurons", "scalars", "growth", "predicted_loss"] {
            site.remove(newer);
        }
    }
    let file = folder.path().join("cinder.json");
    save(&file, &old);
    let results = read(std::slice::from_ref(&file)).expect("sound");
    let out = folder.path().join("report");
    let page = fs::read_to_string(written(&results, &out).html).expect("written");
    let table = page.split_once("<table class=\"sites\"");
    let (_, page) = table.expect("a table of every projection");
    for absent in ["neurons", "predicted loss", "of pivots", ">scalars<"] {
        assert!(!page.contains(absent), "{absent}");
    }
    old["schema"] = json!(99);
    save(&file, &old);
    let error = read(&[file]).expect_err("too new").to_string();
    assert!(error.contains("manifest schema 99"), "{error}");
}

#[test]
fn evaluations_find_their_compression() {
    let text = markdown(&sweep());
    assert_eq!(text.matches(" on wiki.test.raw.\n").count(), 12);
    assert!(text.contains("### skipcat 0.6\n\nKeeps 0.600."), "{text}");

    // The same recipe and keep ratio twice: the path decides; without one that fits, nothing is claimed.
    let mut results = Results::from(vec![
        evaluation("smollm2", None, 1.0, 20.0),
        evaluation("low-rank 0.8", Some("low-rank"), 0.8, 60.0),
    ]);
    let one = compression("low-rank", 0.8, 2);
    let mut other = varied("low-rank", 0.8, 2);
    other.path = "elsewhere/second".into();
    other.file = "elsewhere/second/cinder.json".into();
    results.compressions = vec![one, other];
    let text = markdown(&results);
    assert!(text.contains("### low-rank 0.8\n"), "{text}");
    assert!(text.contains("### low-rank 0.80\n"), "{text}");
    assert_eq!(text.matches("Perplexity 60.00 on").count(), 1);
    results.evaluations[1].result.model.path = "third".to_owned();
    let text = markdown(&results);
    assert_eq!(text.matches("Perplexity 60.00 on").count(), 0);
    assert!(
        text.contains("### low-rank 0.80 (elsewhere/second)"),
        "{text}"
    );
}

#[test]
fn a_printed_result_without_a_recipe_learns_it_from_its_evaluation() {
    let mut unnamed = compression("low-rank", 0.8, 2);
    unnamed.recipe = None;
    assert!(markdown(&only(vec![unnamed.clone()])).contains("### low-rank-0.8\n"));
    let mut results = Results::from(vec![evaluation("nice name", Some("mine"), 0.8, 60.0)]);
    results.evaluations[0].result.model.path = "/moved/low-rank-0.8".to_owned();
    results.compressions = vec![unnamed];
    assert!(markdown(&results).contains("### nice name\n"));
}

#[test]
fn order_and_repetition_do_not_matter() {
    let mut mixed = sweep();
    mixed.compressions.reverse();
    mixed.compressions.push(mixed.compressions[3].clone());
    mixed.evaluations.reverse();
    assert_eq!(markdown(&mixed), markdown(&sweep()));
}

#[test]
fn at_most_twelve_models_are_shown_and_the_rest_is_counted() {
    let keep = (0..15).map(|index| 0.3 + 0.04 * f64::from(index));
    let many = only(keep.map(|keep| compression("low-rank", keep, 2)).collect());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&many, folder.path());
    let text = fs::read_to_string(report.markdown).expect("written");
    assert_eq!(text.matches("\n### ").count(), 12);
    assert!(text.contains("Of 15 models the 12 most different are shown here"));
    let table = fs::read_to_string(&report.data[0]).expect("written");
    assert_eq!(table.lines().count(), 1 + 15 * 14);
}

#[test]
fn the_page_of_a_sweep_stays_light() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let page = fs::read(written(&sweep(), folder.path()).html).expect("written");
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
}

#[test]
fn any_number_of_layers_is_drawn_and_nothing_reaches_the_edge() {
    const BORDER: u32 = 4;
    let mut dense = compression("nothing", 1.0, 3);
    let mut gone = compression("everything", 0.5, 3);
    for site in &mut dense.sites {
        (site.record.error, site.record.keep_ratio) = (0.0, 1.0);
    }
    for site in &mut gone.sites {
        (
            site.record.error,
            site.record.keep_ratio,
            site.record.scalars,
        ) = (1.0, 0.0, 0);
        site.record.kind = "something new".to_owned();
    }
    let mut empty = compression("empty", 0.5, 1);
    empty.sites.clear();
    let mut long = compression(&"an endless recipe ".repeat(20), 0.8, 300);
    long.sites[0].record.projection = "an unknown projection ".repeat(20);
    for model in [
        compression("low-rank", 0.8, 1),
        varied("low-rank", 0.8, 80),
        dense,
        gone,
        empty,
        long,
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = written(&only(vec![model]), folder.path());
        for figure in [&report.figures[1], &report.figures[3]] {
            let image = Pixmap::decode_png(&fs::read(figure).expect("written")).expect("a PNG");
            let white = PremultipliedColorU8::from_rgba(255, 255, 255, 255).expect("opaque");
            let (width, height) = (image.width(), image.height());
            for (index, pixel) in (0..).zip(image.pixels()) {
                let (x, y) = (index % width, index / width);
                let inner = x >= BORDER && y >= BORDER && x < width - BORDER && y < height - BORDER;
                assert!(inner || *pixel == white, "ink at {x}, {y} of {figure:?}");
            }
        }
    }
}

#[test]
fn records_that_cannot_be_right_are_refused() {
    let refused = |change: fn(&mut Compression)| {
        let mut model = compression("low-rank", 0.8, 2);
        change(&mut model);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = write(&only(vec![model]), folder.path(), &Options::default());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
        error.expect_err("must be refused").to_string()
    };
    let nan = refused(|model| model.sites[3].record.error = f64::NAN);
    assert_eq!(
        nan,
        "runs/low-rank-0.8/cinder.json: sites[3].error is NaN, which is not a finite number"
    );
    assert!(refused(|model| model.keep_ratio = 0.0).contains("not positive"));
    assert!(refused(|model| model.sites[0].record.keep_ratio = -1.0).contains("negative"));
    assert!(refused(|model| model.sites[0].record.layer = usize::MAX - 1).contains("of a decoder"));
    assert!(refused(|model| model.sites[7].record.layer = 0).contains("recorded twice"));
}

#[test]
fn markup_in_a_record_stays_text() {
    const ATTACK: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>`|\u{0}";
    let mut model = varied(ATTACK, 0.8, 2);
    model.path = ATTACK.into();
    for site in &mut model.sites {
        site.record.kind = ATTACK.to_owned();
        site.record.site = ATTACK.to_owned();
        site.record.fallback = Some(ATTACK.to_owned());
    }
    model.sites[0].record.projection = ATTACK.to_owned();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = written(&only(vec![model]), folder.path());
    let page = fs::read_to_string(report.html).expect("written");
    assert_eq!(page.matches("<script").count(), 1, "only our own");
    assert!(!page.contains("<img"));
    let svg = fs::read_to_string(&report.figures[0]).expect("written");
    assert!(!svg.contains("<script") && !svg.contains("<img"));
    let text = fs::read_to_string(report.markdown).expect("written");
    let outside: String = text.lines().filter(|l| !l.starts_with("From ")).collect();
    assert!(!outside.contains("<script") && !outside.contains("<img"));
}

#[test]
fn a_broken_record_is_named_with_its_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("broken.json");
    let mut value = printed(&compression("low-rank", 0.8, 1), "models/x");
    value["sites"][2]["error"] = Value::Null;
    save(&file, &value);
    let error = read(&[folder.path().to_owned()]).expect_err("must be refused");
    assert!(error.to_string().contains("broken.json:"), "{error}");
}
