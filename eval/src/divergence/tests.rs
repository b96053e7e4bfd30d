use cinder_models::cache::CacheFormat;

use super::*;
use crate::result::{CorpusIdentity, ModelIdentity};

fn identity(windows: usize, window: u64, top_k: u64) -> ReferenceIdentity {
    ReferenceIdentity {
        schema: REFERENCE_SCHEMA,
        tool_version: "0".into(),
        model: ModelIdentity {
            name: "dense".into(),
            path: "dense".into(),
            sha256: String::new(),
            stored_as: "f32".into(),
            parameters: 0,
            decoder_projection_scalars: 0,
            keep_ratio: 1.0,
            bytes: 0,
            recipe: None,
        },
        corpus: CorpusIdentity {
            name: "text".into(),
            sha256: String::new(),
            documents: 1,
            tokens: 0,
        },
        ids_sha256: String::new(),
        window,
        window_indices: (0..windows as u64).collect(),
        top_k,
        dtype: "f32".into(),
        cache: CacheFormat::F32,
    }
}

/// Logits that have nothing to do with each other.
fn logits(seed: u32, vocab: u32) -> Vec<f32> {
    let mixed = |i: u32| {
        (i + seed)
            .wrapping_mul(2_654_435_761)
            .wrapping_mul(0x9e37_79b9 ^ seed)
            >> 8
    };
    (0..vocab)
        .map(|i| 6.0 * mixed(i) as f32 / (1 << 24) as f32)
        .collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let sum = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    logits.iter().map(|x| f64::from(*x) - sum).collect()
}

fn reference(all: &[Vec<f32>], targets: &[u32], top_k: usize) -> Reference {
    let mut reference = Reference {
        identity: identity(1, all.len() as u64 + 1, top_k as u64),
        ids: Vec::new(),
        log_probabilities: Vec::new(),
        target: Vec::new(),
    };
    for (logits, target) in all.iter().zip(targets) {
        let (ids, log_probabilities, target) = reference::row(logits, *target, top_k);
        reference.ids.extend(ids);
        reference.log_probabilities.extend(log_probabilities);
        reference.target.push(target);
    }
    reference
}

#[test]
fn with_the_whole_vocabulary_kept_it_is_the_sum_over_all_tokens() {
    let (p, q) = (logits(1, 50), logits(7, 50));
    let reference = reference(std::slice::from_ref(&p), &[3], 50);
    let row = reference.row(0, &q, 3);
    let (log_p, log_q) = (log_softmax(&p), log_softmax(&q));
    let exact: f64 = log_p
        .iter()
        .zip(&log_q)
        .map(|(p, q)| p.exp() * (p - q))
        .sum();
    assert!(
        (row.kl - exact).abs() < 1e-5 * exact,
        "{} for {exact}",
        row.kl
    );
    assert!((row.delta_p - (log_q[3].exp() - log_p[3].exp())).abs() < 1e-6);
    assert!((row.nll + log_q[3]).abs() < 1e-6 && (row.reference_nll + log_p[3]).abs() < 1e-6);
    assert!((row.covered - 1.0).abs() < 1e-6);
}

#[test]
fn it_grows_towards_that_with_the_tokens_kept_and_is_nothing_for_the_same_model() {
    let (p, q) = (logits(1, 50), logits(7, 50));
    let kl: Vec<f64> = (1..=50)
        .map(|k| {
            let reference = reference(std::slice::from_ref(&p), &[3], k);
            assert!(reference.row(0, &p, 3).kl < 1e-6);
            reference.row(0, &q, 3).kl
        })
        .collect();
    assert!(kl.windows(2).all(|k| k[1] > k[0] - 1e-6), "{kl:?}");
    assert!(kl[0] < 0.9 * kl[49], "{kl:?}");
}

#[test]
fn the_most_likely_are_kept_the_first_of_equals_first() {
    let (ids, log_probabilities, target) = reference::row(&[1.0, 3.0, 2.0, 3.0, 0.0], 4, 3);
    assert_eq!(ids, [1, 3, 2]);
    let expected = log_softmax(&[1.0, 3.0, 2.0, 3.0, 0.0]);
    for (id, found) in ids.iter().zip(&log_probabilities) {
        assert!((expected[*id as usize] - f64::from(*found)).abs() < 1e-6);
    }
    assert!((expected[4] - f64::from(target)).abs() < 1e-6);
}

#[test]
fn a_file_gives_back_what_was_written_and_damage_is_named() {
    let folder = tempfile::tempdir().expect("temp");
    let path = folder.path().join("new/dense.reference");
    let written = reference(
        &[logits(1, 20), logits(2, 20), logits(3, 20)],
        &[3, 4, 5],
        4,
    );
    written.write(&path).expect("writes");
    assert_eq!(Reference::read(&path).expect("reads"), written);
    let bytes = std::fs::read(&path).expect("reads");
    for (damaged, why) in [
        (bytes[..bytes.len() - 4].to_vec(), "no reference file"),
        (b"no tensors".to_vec(), "no reference file"),
    ] {
        std::fs::write(&path, damaged).expect("writes");
        let error = Reference::read(&path).expect_err("damaged").to_string();
        assert!(error.contains(why), "{error}");
    }
    let missing = folder.path().join("none");
    assert!(matches!(
        Reference::read(&missing),
        Err(Error::MissingFile { .. })
    ));
    // Another layout: fewer windows than tensors have.
    let mut other = written;
    other.identity.window_indices.clear();
    other.write(&path).expect("writes");
    assert!(Reference::read(&path).is_err());
}

#[test]
fn means_are_of_windows_and_positions() {
    let row = |kl: f64, nll: f64| Row {
        kl,
        same_top: kl < 1.0,
        delta_p: -kl / 10.0,
        nll,
        reference_nll: 1.0,
        covered: 1.0,
    };
    // Two windows of 100 positions; the second is worse by one nat, and both from position 64 on.
    let rows: Vec<Row> = (0..200)
        .map(|i| {
            let kl = f64::from(i / 100) + if i % 100 < 64 { 0.0 } else { 0.5 };
            row(kl, 2.0)
        })
        .collect();
    let found = Divergence::of(&rows, 100);
    assert_eq!((found.windows, found.tokens_scored), (2, 200));
    assert!((found.kl.mean - 0.68).abs() < 1e-12 && (found.kl.stderr - 0.5).abs() < 1e-12);
    assert_eq!((found.kl_median, found.kl_max), (0.5, 1.5));
    assert_eq!(found.top1_agreement.mean, 0.5);
    assert!((found.perplexity_ratio.mean - 1f64.exp()).abs() < 1e-12);
    assert_eq!(found.perplexity_ratio.stderr, 0.0);
    let positions: Vec<_> = found
        .by_position
        .iter()
        .map(|p| (p.first, p.last, p.kl))
        .collect();
    assert_eq!(positions, [(1, 64, 0.5), (65, 100, 1.0)]);
}
