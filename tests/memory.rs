//! What memory is promised is what is taken, measured by counting every allocation.

mod common;

use burn::tensor::Device;
use cinder::eval::{WindowChoice, perplexity};
use cinder::models::progress::Silent;
use cinder::models::{Checkpoint, Precision};
use common::{arg, cinder, smollm2};
use peak_alloc::PeakAlloc;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Scalars of the largest tensor of the default model, its embedding.
const LARGEST: usize = 49_152 * 576;

/// Bytes allocated at the peak of loading `path`, beyond what was there before; those still held by the model then; and
/// those that are promised.
fn peak_of_loading(path: &str, precision: Precision) -> [usize; 3] {
    let before = PEAK.current_usage();
    PEAK.reset_peak_usage();
    let checkpoint = Checkpoint::open(path.as_ref()).expect("opens");
    let opened = PEAK.current_usage();
    let promised = checkpoint.memory_bytes(precision) as usize;
    let decoder = checkpoint
        .load(precision, &Device::flex(), &Silent)
        .expect("loads");
    let (peak, held) = (PEAK.peak_usage() - before, PEAK.current_usage() - opened);
    drop(decoder);
    [peak, held, promised]
}

/// What modules, names and shapes may take beside the weights.
const BESIDE: usize = 2_000_000;

#[test]
fn memory_is_what_is_promised() {
    smollm2();
    let folder = tempfile::tempdir().expect("temp");
    let dense = folder.path().join("dense");
    let export = [
        "export",
        "smollm2",
        "--dense",
        "--out",
        arg(&dense),
        "--dtype",
        "f16",
        "--quiet",
    ];
    assert_eq!(cinder(&export).code, 0);
    let gguf = cinder::fetch::resolve_model("smollm2").expect("fetched");
    let cases = [
        (arg(&gguf), Precision::F32),
        (arg(&dense), Precision::F32),
        (arg(&gguf), Precision::Bf16),
        (arg(&gguf), Precision::Q8),
        (arg(&gguf), Precision::Q4),
        (arg(&gguf), Precision::Q4Min),
    ];
    for (path, precision) in cases {
        let [peak, held, promised] = peak_of_loading(path, precision);
        println!(
            "{path} as {precision}: peak {} MB, holds {} MB, promised {} MB",
            peak / 1_000_000,
            held / 1_000_000,
            promised / 1_000_000
        );
        // A tensor that is made narrower is there as stored, as f32 and in its new form for a moment.
        let allowed = promised + 4 * LARGEST + 4 * LARGEST / 2;
        assert!(peak <= allowed, "{peak} bytes, {allowed} allowed");
        assert!(
            held >= promised && held <= promised + BESIDE,
            "{held} held, {promised} promised"
        );
    }

    // What the file stores as it is wanted is mapped: the process allocates next to nothing for it.
    let [_, held, promised] = peak_of_loading(arg(&dense), Precision::F16);
    assert!(held < BESIDE, "{held} bytes of {promised} allocated");

    // Evaluating long windows: no full matrix of logits (400 MB here), no full matrix of scores.
    let checkpoint = Checkpoint::open(&gguf).expect("opens");
    let decoder = checkpoint
        .load(Precision::Q4, &Device::flex(), &Silent)
        .expect("loads");
    let tokens: Vec<u32> = (0..2048).map(|i| 100 + i % 40_000).collect();
    let before = PEAK.current_usage();
    PEAK.reset_peak_usage();
    perplexity(&decoder, &tokens, 2048, &WindowChoice::All, &[], &Silent).expect("runs");
    let peak = PEAK.peak_usage() - before;
    println!("a window of 2048: {} MB", peak / 1_000_000);
    assert!(peak <= 300_000_000, "{peak} bytes for a window");
}
