//! Loading a model peaks at the model's own size plus one tensor, measured by counting every allocation.

mod common;

use burn::tensor::Device;
use cinder::models::Checkpoint;
use cinder::models::Precision;
use cinder::models::progress::Silent;
use common::{arg, cinder, smollm2};
use peak_alloc::PeakAlloc;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Scalars of the largest tensor of the default model, its embedding.
const LARGEST: usize = 49_152 * 576;

/// Bytes allocated at the peak of loading `path`, beyond what was there before.
fn peak_of_loading(path: &str) -> (usize, usize) {
    let before = PEAK.current_usage();
    PEAK.reset_peak_usage();
    let checkpoint = Checkpoint::open(path.as_ref()).expect("opens");
    let model = 4 * checkpoint.parameters() as usize;
    let decoder = checkpoint
        .load(Precision::F32, &Device::flex(), &Silent)
        .expect("loads");
    let peak = PEAK.peak_usage() - before;
    drop(decoder);
    (peak, model)
}

#[test]
fn loading_peaks_at_the_model_and_one_tensor() {
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
    for path in [arg(&gguf), arg(&dense)] {
        let (peak, model) = peak_of_loading(path);
        let allowed = model + 4 * LARGEST;
        println!(
            "{path}: peak {} MB for a model of {} MB",
            peak / 1_000_000,
            model / 1_000_000
        );
        assert!(peak <= allowed, "{peak} bytes, {allowed} allowed");
    }
}
