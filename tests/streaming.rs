//! Streamed models give the bits of models in memory, and nothing once their file is not what it was.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use cinder::models::cache::{CacheFormat, KvCache};
use cinder::models::decode::offload::{OffloadSettings, OffloadSource, StreamedDecoder};
use cinder::models::decode::{LanguageModel, TreeSlice};
use cinder::models::progress::Silent;
use cinder::models::{Checkpoint, Decoder, Error, Hint, Precision, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

const IDS: [u32; 11] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5];

fn golden(family: &str) -> PathBuf {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    match family.ends_with(".gguf") {
        true => goldens.join("gguf").join(family),
        false => goldens.join("families").join(family),
    }
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"))
}

/// A golden model of two layers with more of them: the two again and again, each time a little different.
fn deep(family: &str, layers: usize) -> TempDir {
    deepened(family, layers, false)
}

/// [`deep`], with factors of rank 4 in place of some projections: an identity block in `o`, none in `down`.
fn deepened(family: &str, layers: usize, factored: bool) -> TempDir {
    let (shallow, folder) = (open(&golden(family)), tempfile::tempdir().expect("temp"));
    let config = std::fs::read_to_string(golden(family).join("config.json")).expect("config");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("config");
    config["num_hidden_layers"] = layers.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("writes");
    let mut tensors: Vec<Stored> = Vec::new();
    for name in shallow.source().names() {
        let shape = shallow.source().info(&name).expect("there").shape;
        let values = shallow.source().read_f32(&name).expect("reads");
        let copies = match name.strip_prefix("model.layers.") {
            None => vec![(name.clone(), 0)],
            Some(rest) => {
                let (layer, rest) = rest.split_once('.').expect("a layer's");
                let first: usize = layer.parse().expect("a number");
                let copies = (first..layers).step_by(2);
                copies
                    .map(|layer| (format!("model.layers.{layer}.{rest}"), layer))
                    .collect()
            }
        };
        for (name, layer) in copies {
            let scale = 1.0 + 0.01 * layer as f32;
            let values: Vec<f32> = values.iter().map(|v| v * scale).collect();
            let identity = name.ends_with("o_proj.weight");
            let mut add = |name, dtype, shape: &[usize], bytes: &[u8]| {
                tensors.push((name, dtype, shape.to_vec(), bytes.to_vec()));
            };
            if !(factored && (identity || name.ends_with("down_proj.weight"))) {
                add(name, Dtype::F32, &shape, &f32s(&values));
                continue;
            }
            let (prefix, rank) = (name.trim_end_matches(".weight"), 4);
            let (out, input) = (shape[0], shape[1]);
            let columns = if identity { input - rank } else { input };
            let part = |n: usize| f32s(&values[..n]);
            let named = |part: &str| format!("{prefix}.{part}");
            add(
                named("basis.weight"),
                Dtype::F32,
                &[rank, columns],
                &part(rank * columns),
            );
            add(
                named("expansion.weight"),
                Dtype::F32,
                &[out, rank],
                &part(out * rank),
            );
            if identity {
                let pivots = (0..rank as i32).flat_map(|i| (2 * i).to_le_bytes());
                let pivots: Vec<u8> = pivots.collect();
                add(named("basis.pivots"), Dtype::I32, &[rank], &pivots);
            }
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes): &Stored| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("fits");
        (name.clone(), view)
    });
    let file = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).expect("writes");
    folder
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn settings(source: OffloadSource, weights: Precision) -> OffloadSettings {
    OffloadSettings {
        source,
        weights,
        budget: None,
        available: None,
        cache_and_activations: 1000,
        link_bytes_per_second: None,
    }
}

fn new(checkpoint: &Checkpoint, settings: &OffloadSettings) -> Result<StreamedDecoder> {
    StreamedDecoder::new(checkpoint, settings, &Device::flex(), &Silent)
}

fn streamed(checkpoint: &Checkpoint, settings: &OffloadSettings) -> StreamedDecoder {
    new(checkpoint, settings).unwrap_or_else(|e| panic!("{e}"))
}

/// With a budget for so many blocks and not one more. The buffers of two blocks go when the last block comes, so that all
/// may fit where all but one do not.
fn keeping(checkpoint: &Checkpoint, settings: &OffloadSettings, kept: usize) -> StreamedDecoder {
    let least = streamed(checkpoint, settings);
    let (layers, statistics) = (checkpoint.config().layers, least.statistics());
    let block = statistics.bytes_per_pass / layers as u64;
    let budget = match kept {
        0 => None,
        _ if kept == layers => Some(u64::MAX),
        _ => Some(least.plan().total() + kept as u64 * block),
    };
    let settings = OffloadSettings {
        budget,
        ..settings.clone()
    };
    let model = streamed(checkpoint, &settings);
    assert_eq!(model.plan().resident_blocks, kept);
    model
}

/// The numbers of blocks that a budget can keep.
fn possible(layers: usize) -> Vec<usize> {
    (0..layers.saturating_sub(2)).chain([0, layers]).collect()
}

fn resident(checkpoint: &Checkpoint, weights: Precision) -> Decoder {
    let decoder = checkpoint.load(weights, &Device::flex(), &Silent);
    decoder.unwrap_or_else(|e| panic!("{e}"))
}

/// The bits of the logits of all tokens, in parts as they come.
fn bits(model: &mut dyn LanguageModel, parts: &[&[u32]]) -> Vec<u32> {
    let mut cache = model.new_cache(4);
    let mut all = Vec::new();
    for ids in parts {
        let hidden = model.hidden(ids, None, &mut cache).expect("runs");
        all.extend(numbers(model.logits(hidden)));
    }
    all
}

fn numbers(logits: Tensor<2>) -> Vec<u32> {
    let values = logits.into_data().try_into_vec::<f32>().expect("f32");
    values.into_iter().map(f32::to_bits).collect()
}

/// All at once; a prompt in chunks; a prompt and then one token after another.
fn ways() -> [Vec<&'static [u32]>; 3] {
    let one_by_one = IDS[4..].chunks(1);
    [
        vec![&IDS],
        IDS.chunks(3).collect(),
        std::iter::once(&IDS[..4]).chain(one_by_one).collect(),
    ]
}

#[test]
fn logits_are_those_of_the_model_in_memory_however_many_blocks_stay() {
    let folder = tempfile::tempdir().expect("temp");
    let deep = deep("llama2", 5);
    // Deeper than there are buffers; tied and in shards; biases; norms per head; other names and orders.
    let models = [
        deep.path().to_owned(),
        golden("smollm2"),
        golden("qwen2"),
        golden("qwen3"),
        golden("tiny-llama.gguf"),
    ];
    for (index, model) in models.iter().enumerate() {
        let checkpoint = open(model);
        let layers = checkpoint.config().layers;
        let precisions = StreamedDecoder::PRECISIONS;
        for weights in precisions.into_iter().take(if index == 0 { 3 } else { 1 }) {
            let mut whole = resident(&checkpoint, weights);
            let path = folder.path().join(format!("{index}-{weights}.blocks"));
            for kept in possible(layers) {
                for source in [OffloadSource::File(path.clone()), OffloadSource::Memory] {
                    let settings = settings(source, weights);
                    let mut part = keeping(&checkpoint, &settings, kept);
                    for format in [CacheFormat::F32, CacheFormat::F16] {
                        whole.set_cache_format(format).expect("dense");
                        part.set_cache_format(format).expect("dense");
                        for parts in ways() {
                            let same = bits(&mut whole, &parts) == bits(&mut part, &parts);
                            assert!(same, "{} {weights} {kept} {format}", model.display());
                        }
                    }
                    let statistics = part.statistics();
                    let passes = 2 * ways().map(|parts| parts.len() as u64).iter().sum::<u64>();
                    assert_eq!((statistics.passes, statistics.tokens), (passes, 66));
                    let (read, each) = (statistics.bytes_read, statistics.bytes_per_pass);
                    assert_eq!(each == 0, kept == layers);
                    // No more is read ahead than there are buffers for.
                    let ahead = 2 * each / (layers - kept).max(1) as u64;
                    assert!(read >= passes * each && read <= passes * each + ahead);
                }
            }
        }
    }
}

#[test]
fn a_tree_of_tokens_has_the_bits_of_the_model_in_memory() {
    let checkpoint = open(&golden("qwen2"));
    let mut whole = resident(&checkpoint, Precision::F32);
    let settings = settings(OffloadSource::Memory, Precision::F32);
    let mut part = streamed(&checkpoint, &settings);
    let logits = |model: &mut dyn LanguageModel| {
        let mut cache = model.new_cache(16);
        model.hidden(&IDS[..5], None, &mut cache).expect("runs");
        // Two children of one node, and a child of the second.
        let tree = TreeSlice {
            positions: &[5, 6, 6, 7],
            mask: &[
                true, false, false, false, true, true, false, false, true, false, true, false,
                true, false, true, true,
            ],
            span: 4,
        };
        let hidden = model.hidden(&IDS[5..9], Some(tree), &mut cache);
        numbers(model.logits(hidden.expect("runs")))
    };
    assert!(logits(&mut whole) == logits(&mut part));
}

#[test]
fn factors_are_streamed_too_and_codes_are_not() {
    let folder = deepened("llama2", 3, true);
    let checkpoint = open(folder.path());
    let kinds: Vec<_> = checkpoint.projections().iter().map(|p| p.kind).collect();
    assert!(kinds.contains(&"low-rank") && kinds.contains(&"identity-block"));
    let mut settings = settings(OffloadSource::Memory, Precision::F32);
    let mut whole = resident(&checkpoint, Precision::F32);
    for kept in [0, 3] {
        let mut part = keeping(&checkpoint, &settings, kept);
        for parts in ways() {
            assert!(
                bits(&mut whole, &parts) == bits(&mut part, &parts),
                "{kept}"
            );
        }
    }
    settings.weights = Precision::Q4;
    let error = new(&checkpoint, &settings).err().expect("refused");
    assert!(
        error.to_string().contains("streaming blocks in q4"),
        "{error}"
    );
    assert!(error.hint().expect("a hint").contains("f32, f16 or bf16"));
}

/// A model that has generated a little from a file, and what it would say next.
struct Running {
    _folder: TempDir,
    path: PathBuf,
    model: StreamedDecoder,
    cache: KvCache,
    next: Vec<u32>,
}

impl Running {
    fn start(rate: Option<f64>) -> Self {
        let folder = deep("llama2", 5);
        let checkpoint = open(folder.path());
        let path = folder.path().join("model.blocks");
        let mut settings = settings(OffloadSource::File(path.clone()), Precision::F32);
        settings.link_bytes_per_second = rate;
        let mut model = streamed(&checkpoint, &settings);
        let mut cache = LanguageModel::new_cache(&model, 16);
        for ids in IDS[..6].chunks(2) {
            model.hidden(ids, None, &mut cache).expect("runs");
        }
        let next = {
            let mut whole = resident(&checkpoint, Precision::F32);
            let all = bits(&mut whole, &[&IDS[..7]]);
            all[6 * checkpoint.config().vocab_size..].to_vec()
        };
        Running {
            _folder: folder,
            path,
            model,
            cache,
            next,
        }
    }

    /// What the next token ends in: the right logits, or an error that leaves the cache as it was.
    fn step(&mut self) -> Result<()> {
        let hidden = self.model.hidden(&IDS[6..7], None, &mut self.cache);
        match hidden {
            Ok(hidden) => {
                assert!(
                    numbers(self.model.logits(hidden)) == self.next,
                    "wrong text"
                );
                self.cache.truncate(6);
                Ok(())
            }
            Err(error) => {
                assert_eq!(self.cache.length(), 6);
                Err(error)
            }
        }
    }

    /// The one error that comes of a change, and another at every later try.
    fn ends(&mut self) -> String {
        let error = self.step().expect_err("the file has changed");
        assert!(error.hint().is_some());
        self.step().expect_err("it still has");
        error
            .to_string()
            .replace(self.path.to_str().expect("UTF-8"), "FILE")
    }
}

#[test]
fn a_file_that_changes_under_a_generation_ends_it_with_one_error() {
    type Change = fn(&Path);
    let changes: [(Change, &str); 5] = [
        (
            |path| std::fs::remove_file(path).expect("removes"),
            "was removed",
        ),
        (
            |path| {
                let file = std::fs::OpenOptions::new().write(true).open(path);
                file.and_then(|f| f.set_len(5000)).expect("cuts");
            },
            "was cut from",
        ),
        (
            |path| {
                let copy = path.with_extension("copy");
                std::fs::copy(path, &copy).expect("copies");
                std::fs::rename(copy, path).expect("renames");
            },
            "was replaced by another file",
        ),
        (|path| flip(path, false), "was written to"),
        // Somebody who puts the time of change back too is found by the checksum.
        (|path| flip(path, true), "its checksum differs"),
    ];
    for (change, words) in changes {
        let mut running = Running::start(None);
        running.step().expect("all is well");
        change(&running.path);
        let text = match words.contains("checksum") {
            // Blocks that were read ahead are right, and may do for a pass.
            true => (0..3)
                .find_map(|_| running.step().err())
                .map(|e| e.to_string()),
            false => Some(running.ends()),
        };
        let text = text.expect("an error");
        assert!(text.contains(words), "{text}");
        assert!(running.step().is_err());
    }
}

/// Changes one bit of every block.
fn flip(path: &Path, hide: bool) {
    use std::io::{Seek, SeekFrom, Write};
    let bytes = std::fs::read(path).expect("reads");
    let before = std::fs::metadata(path)
        .and_then(|m| m.modified())
        .expect("a time");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("opens");
    for at in (0..bytes.len()).step_by(4096).skip(1) {
        file.seek(SeekFrom::Start(at as u64)).expect("seeks");
        file.write_all(&[bytes[at] ^ 1]).expect("writes");
    }
    let time = match hide {
        true => before,
        // A file system may count time in steps longer than this test.
        false => before + Duration::from_secs(1),
    };
    file.set_modified(time).expect("sets the time");
}

#[test]
fn a_change_in_the_middle_of_a_pass_is_found_too() {
    // Slow enough for the change to fall into a pass, whose blocks take a third of a second.
    let mut running = Running::start(Some(300_000.0));
    let path = running.path.clone();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let file = std::fs::OpenOptions::new().write(true).open(path);
        file.and_then(|f| f.set_len(4096)).expect("cuts");
    });
    // On a busy machine the pass may be over first.
    let error = (0..3).find_map(|_| running.step().err());
    late.join().expect("cuts");
    let text = error.expect("the file has changed").to_string();
    assert!(text.contains("was cut from"), "{text}");
}

#[test]
fn a_file_is_made_once_and_another_models_is_refused() {
    let folder = tempfile::tempdir().expect("temp");
    let path = folder.path().join("model.blocks");
    let checkpoint = open(&golden("llama2"));
    let of_file = |weights| settings(OffloadSource::File(path.clone()), weights);
    streamed(&checkpoint, &of_file(Precision::F16));
    let bytes = std::fs::read(&path).expect("made");
    assert!(bytes.starts_with(b"CINDERBK"));
    streamed(&checkpoint, &of_file(Precision::F16));
    assert!(std::fs::read(&path).expect("there") == bytes);
    let refused = |checkpoint: &Checkpoint, weights| {
        let error = new(checkpoint, &of_file(weights)).err().expect("refused");
        assert!(error.hint().expect("a hint").contains("remove `"));
        error.to_string()
    };
    assert!(refused(&checkpoint, Precision::F32).contains("in f16, not in f32"));
    let other = open(&golden("qwen2"));
    assert!(refused(&other, Precision::F16).contains("another model"));
    // Cut, and no block file at all.
    std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("writes");
    assert!(refused(&checkpoint, Precision::F16).contains("its blocks take"));
    std::fs::write(&path, "text").expect("writes");
    assert!(refused(&checkpoint, Precision::F16).contains("is no block file"));
    // Nothing else is in the folder, and nowhere to write is said.
    assert_eq!(std::fs::read_dir(folder.path()).expect("reads").count(), 1);
    let nowhere = settings(
        OffloadSource::File(folder.path().join("no/such/folder")),
        Precision::F16,
    );
    let error = new(&checkpoint, &nowhere).err().expect("refused");
    assert!(
        error.to_string().contains("could not be written"),
        "{error}"
    );
}

#[test]
fn a_weight_that_is_not_a_number_leaves_no_file() {
    let model = deep("llama2", 2);
    let file = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("reads");
    let end = bytes.len();
    // Tensors lie in the order of their names: among these are matrices of the last layer.
    let values = bytes[end - 40_000..].chunks_exact_mut(4);
    values.for_each(|v| v.copy_from_slice(&f32::NAN.to_le_bytes()));
    std::fs::write(&file, bytes).expect("writes");
    let blocks = model.path().join("model.blocks");
    let settings = settings(OffloadSource::File(blocks.clone()), Precision::F32);
    let error = new(&open(model.path()), &settings).err().expect("refused");
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
    assert!(!blocks.exists());
}

#[test]
fn the_link_sets_the_pace_and_the_budget_the_blocks() {
    let folder = deep("llama2", 5);
    let checkpoint = open(folder.path());
    let mut settings = settings(OffloadSource::Memory, Precision::F32);
    let mut model = streamed(&checkpoint, &settings);
    let each = model.statistics().bytes_per_pass;
    assert_eq!(model.statistics().source_bytes, each);
    drop(model);
    // Five passes of a tenth of a second.
    settings.link_bytes_per_second = Some(each as f64 * 10.0);
    model = streamed(&checkpoint, &settings);
    let mut cache = LanguageModel::new_cache(&model, 16);
    model.hidden(&IDS[..1], None, &mut cache).expect("runs");
    model.reset_statistics();
    let start = Instant::now();
    for id in &IDS[1..6] {
        model.hidden(&[*id], None, &mut cache).expect("runs");
    }
    let (seconds, statistics) = (start.elapsed().as_secs_f64(), model.statistics());
    // Two of five blocks were read ahead.
    assert!(seconds > 0.4, "{seconds}");
    assert_eq!((statistics.passes, statistics.tokens), (5, 5));
    assert!(statistics.wait_seconds > 0.1 && statistics.wait_seconds <= seconds);
    assert!(statistics.wait_seconds + statistics.compute_seconds <= seconds);
    assert!(statistics.link.starts_with("simulated link of "));
    // A stop does not wait for the link.
    settings.link_bytes_per_second = Some(1e5);
    drop(streamed(&checkpoint, &settings));

    let least = streamed(&checkpoint, &settings).plan().total();
    settings.budget = Some(least + each / 5);
    let plan = *streamed(&checkpoint, &settings).plan();
    assert_eq!(plan.resident_blocks, 1);
    settings.budget = Some(least - 1);
    let error = new(&checkpoint, &settings).err().expect("refused");
    assert!(matches!(error, Error::Budget { .. }) && error.hint().is_some());
    settings.budget = None;
    settings.link_bytes_per_second = Some(0.0);
    assert!(new(&checkpoint, &settings).is_err());
}
