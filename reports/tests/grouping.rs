//! Which results may share a chart, and which cannot be reported at all.

use std::fs;
use std::path::Path;

use cinder_reports::{Evaluation, Options, ReportError, read, write};

mod common;

use common::{crowded, evaluation, sample};

/// The error of a report from `evaluations`; also that it left nothing behind.
fn refused(evaluations: &[Evaluation]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = write(
        &evaluations.to_vec().into(),
        folder.path(),
        &Options::default(),
    )
    .expect_err("must be refused");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    error.to_string()
}

fn markdown(evaluations: &[Evaluation]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = write(
        &evaluations.to_vec().into(),
        folder.path(),
        &Options::default(),
    )
    .expect("sound");
    fs::read_to_string(report.markdown).expect("written")
}

fn changed(change: impl Fn(&mut Evaluation)) -> Vec<Evaluation> {
    let mut evaluations = sample();
    if let Some(last) = evaluations.last_mut() {
        change(last);
    }
    evaluations
}

fn save(folder: &Path, evaluations: &[Evaluation]) {
    for (index, each) in evaluations.iter().enumerate() {
        let text = serde_json::to_string_pretty(&each.result).expect("serializable");
        fs::write(folder.join(format!("{index}.json")), text).expect("writable");
    }
}

#[test]
fn each_way_of_measuring_has_its_own_chart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = write(&crowded().into(), folder.path(), &Options::default()).expect("sound");
    // Two groups, each against keep ratio, bytes and scoring speed; a chart is an SVG and a PNG.
    assert_eq!((report.figures.len(), report.data.len()), (12, 6));
    for change in [
        |e: &mut Evaluation| e.result.corpus.sha256 = "other".to_owned(),
        |e: &mut Evaluation| e.result.perplexity.window = 1024,
        |e: &mut Evaluation| e.result.perplexity.window_indices[3] = 99,
        |e: &mut Evaluation| e.result.corpus.tokens += 1,
        |e: &mut Evaluation| e.result.perplexity.bos_ids = vec![1],
    ] {
        assert_eq!(markdown(&changed(change)).matches("\n## ").count(), 2);
    }
    assert_eq!(markdown(&sample()).matches("\n## ").count(), 1);
}

#[test]
fn a_report_without_a_dense_reference_says_so() {
    let text = markdown(&sample().split_off(1));
    assert!(text.contains("No dense reference was given"), "{text}");
    assert!(!text.contains('×') || !text.contains("(×"));
}

#[test]
fn the_same_measurement_given_twice_counts_once() {
    let mut twice = sample();
    let mut copy = twice[1].clone();
    copy.file = "results/z-copy.json".into();
    copy.result.seconds = 1.0;
    twice.push(copy);
    assert_eq!(markdown(&twice).matches("\n| low-rank 0.9 ").count(), 1);
}

#[test]
fn an_improvement_is_not_called_a_rise() {
    let better = [
        sample().remove(0),
        evaluation("better", Some("low-rank"), 0.9, 20.0),
    ];
    assert!(markdown(&better).contains("lowers perplexity from 20.97 to 20.00 (×0.9537)"));
}

#[test]
fn several_recipes_are_compared_where_they_meet() {
    let text = markdown(&crowded());
    assert!(
        text.contains(
            "Keeping 70 % of the decoder-projection weights, shared basis with identity blocks has the lowest \
             perplexity, 61.30 (×2.923), against 66.00 (×3.147) with group-head low rank and 182.1 (×8.681) with low-rank."
        ),
        "{text}"
    );
}

#[test]
fn a_single_window_has_no_standard_error() {
    let mut single = sample();
    for each in &mut single {
        let measured = &mut each.result.perplexity;
        measured.window_indices.truncate(1);
        measured.window_nll = vec![measured.perplexity.ln()];
        measured.stderr = 0.0;
    }
    let text = markdown(&single);
    assert!(
        !text.contains("20.97 ±") && text.contains("no standard error is given"),
        "{text}"
    );
}

#[test]
fn numbers_that_cannot_be_right_are_refused() {
    let nan = changed(|e| e.result.perplexity.perplexity = f64::NAN);
    assert_eq!(
        refused(&nan),
        "results/low-rank-0.7.json: perplexity is NaN, which is not a finite number"
    );
    let window = changed(|e| e.result.perplexity.window_nll[2] = f64::INFINITY);
    assert!(refused(&window).contains("window_nll[2] is inf"));
    assert!(
        refused(&changed(|e| e.result.perplexity.perplexity *= 2.0))
            .contains("not the exponential")
    );
    assert!(
        refused(&changed(|e| {
            e.result.perplexity.window_nll.pop();
        }))
        .contains("16 windows but 15")
    );
    assert!(refused(&changed(|e| e.result.model.keep_ratio = 0.0)).contains("not positive"));
    assert!(refused(&changed(|e| e.result.model.recipe = None)).contains("without a recipe"));
    assert!(refused(&[]).starts_with("no evaluation results"));
}

#[test]
fn results_that_contradict_each_other_name_both_files() {
    let mut other = sample();
    other.push(evaluation("another dense", None, 1.0, 15.0));
    let message = refused(&other);
    assert!(message.contains("two different dense models"), "{message}");
    assert!(
        message.contains("results/smollm2.json and results/another-dense.json")
            || message.contains("results/another-dense.json and results/smollm2.json"),
        "{message}"
    );

    let mut same = sample();
    let mut moved = evaluation("low-rank 0.9", Some("low-rank"), 0.9, 31.0);
    moved.file = "results/z.json".into();
    same.push(moved);
    assert!(
        refused(&same)
            .contains("the same model on the same windows gave perplexity 28.1034 and 31")
    );

    let foreign = changed(|e| e.result.model.decoder_projection_scalars *= 3);
    assert!(refused(&foreign).contains("do not come from a dense model"));
}

#[test]
fn results_are_read_from_files_and_folders() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let point = folder.path().join("point");
    fs::create_dir(&point).expect("writable");
    save(&point, &sample());
    fs::write(point.join("config.json"), "{\"model_type\": \"llama\"}").expect("writable");
    let found = read(&[folder.path().to_path_buf()]).expect("sound");
    assert_eq!((found.evaluations.len(), found.compressions.len()), (4, 0));
    assert_eq!(
        read(&[point.join("1.json")]).expect("sound").evaluations[0]
            .result
            .model
            .keep_ratio,
        0.9
    );
}

#[test]
fn a_broken_file_is_named_with_its_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("broken.json");
    let refused = |text: &str| {
        fs::write(&file, text).expect("writable");
        read(std::slice::from_ref(&file))
            .expect_err("must be refused")
            .to_string()
    };
    assert!(refused("{\n  \"schema\": 1,\n  oops\n}").contains("broken.json:3:"));
    let sound = serde_json::to_string_pretty(&sample()[0].result).expect("serializable");
    let null = refused(&sound.replace("\"seconds\": 79.4", "\"seconds\": null"));
    assert!(
        null.contains("broken.json:") && null.contains("not finite is stored as null"),
        "{null}"
    );
    assert!(refused(&sound.replace("\"schema\": 1", "\"schema\": 7")).contains("schema 7"));
    let nothing = folder.path().join("nothing");
    fs::create_dir(&nothing).expect("writable");
    assert!(matches!(
        read(&[nothing]),
        Err(ReportError::EmptyDirectory(_))
    ));
    assert!(matches!(
        read(&[folder.path().join("absent.json")]),
        Err(ReportError::Io(_))
    ));
}
