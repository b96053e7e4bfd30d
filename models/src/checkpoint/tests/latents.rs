//! Keys and values as latents: written, read back, counted, exported, and damaged.

use super::malformed::{Stored, Values, edited};
use super::*;
use crate::cache::CacheFormat;
use crate::error::{Error, Hint};
use crate::projection::GroupHeads;

/// Heads for keys and values, in groups of 2 and 1.
const KV_HEADS: usize = 3;
const GROUPS: [usize; 2] = [2, 1];

/// The qwen2 of this folder with 6 heads of 8, 3 for keys and values; only its configuration and frame are of use.
fn source(folder: &Path) -> Checkpoint {
    let original = qwen2();
    let mut config = original.config().source.clone();
    for (key, value) in [
        ("num_attention_heads", 6),
        ("num_key_value_heads", KV_HEADS),
        ("head_dim", 8),
    ] {
        config.insert(key.into(), value.into());
    }
    let path = folder.join("source");
    fs_err::create_dir(&path).expect("creates");
    let config = serde_json::to_vec(&config).expect("json");
    fs_err::write(path.join("config.json"), config).expect("writes");
    fs_err::copy(original.path().join(SINGLE_FILE), path.join(SINGLE_FILE)).expect("copies");
    open(&path)
}

/// Latents of ranks `keys` and `values`, joint or not, and expansions with biases.
fn heads(keys: [usize; 2], values: [usize; 2], joint: bool) -> GroupHeads {
    let expansions = |ranks: [usize; 2]| {
        let groups = ranks.iter().zip(GROUPS);
        let groups =
            groups.map(|(rank, heads)| dense(*rank, heads * 8, Some(random([heads * 8]))).into());
        groups.collect::<Vec<Matrix>>()
    };
    let of_values: usize = if joint { 0 } else { values.iter().sum() };
    let rank = keys.iter().sum::<usize>() + of_values;
    GroupHeads::new(
        dense(32, rank, None).into(),
        expansions(keys),
        expansions(values),
        joint,
    )
}

/// A model whose first layer has separate latents and whose second has joint ones, cached as `format`.
fn model(format: Option<CacheFormat>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temp");
    let (source, device) = (source(folder.path()), Device::flex());
    let path = folder.path().join("model");
    let mut writer = CompressedWriter::create(&path, 2, StoredDtype::F32, false).expect("creates");
    writer.write_frame(&source, None).expect("writes");
    let mut total = 0;
    for (index, latent) in [heads([5, 3], [7, 4], false), heads([6, 3], [6, 3], true)]
        .into_iter()
        .enumerate()
    {
        let loaded = qwen2().load_layer(index, Precision::F32, &device);
        let mut layer = loaded.expect("loads");
        let q = dense(32, 48, Some(random([48])));
        layer.attention.qkv = ProjectionGroup::new(vec![q.into()]);
        layer.attention.output = dense(48, 32, None).into();
        total += scalars(&layer) + latent.scalars();
        layer.attention.latent = Some(latent);
        writer.write_layer(index, &layer).expect("writes");
    }
    let mut manifest = manifest(StoredDtype::F32, total, writer.tensor_bytes());
    manifest.cache_format = format;
    let finished = writer.finish(&source, manifest);
    finished.expect("finishes");
    (folder, path)
}

#[test]
fn latents_are_read_back_counted_and_verified() {
    let (_folder, path) = model(Some(CacheFormat::F16));
    let checkpoint = open(&path);
    let kinds: Vec<_> = checkpoint.projections().iter().map(|p| p.kind).collect();
    assert_eq!(kinds[..3], ["dense", "group-head", "group-head"]);
    assert_eq!(
        kinds[7..10],
        ["dense", "joint-group-head", "joint-group-head"]
    );
    assert_eq!(checkpoint.kv_numbers_per_token(), [19, 9]);
    assert_eq!(checkpoint.cache_format(), CacheFormat::F16);
    assert_eq!(checkpoint.kv_bytes_per_token(CacheFormat::F16), 2 * 28);
    // Each slice is filled up to eights of codes, and has a scale and a minimum.
    assert_eq!(checkpoint.kv_bytes_per_token(CacheFormat::Q4), 6 * (4 + 4));
    let outcome = verify(&checkpoint, &Device::flex(), &Silent).expect("reads");
    assert!(outcome.ok, "{:?}", outcome.problems);
    for precision in Precision::ALL {
        let projections = checkpoint.projections();
        let inside: u64 = projections.iter().map(|p| p.bytes(precision)).sum();
        let total = inside + around(checkpoint.config(), precision);
        assert_eq!(checkpoint.memory_bytes(precision), total, "{precision}");
    }
    let f32: u64 = checkpoint.memory_bytes(Precision::F32);
    assert_eq!(f32, 4 * checkpoint.parameters());
}

#[test]
fn the_dense_export_of_latents_computes_the_same() {
    let (folder, path) = model(None);
    let out = folder.path().join("dense");
    let device = Device::flex();
    let written = export_dense(
        &open(&path),
        &out,
        StoredDtype::F32,
        false,
        &device,
        &Silent,
    );
    written.expect("exports");
    let exported = open(&out);
    assert!(exported.projections().iter().all(|p| p.kind == "dense"));
    assert!(!exported.has_latents());
    let expected = logits(&load(&out, Precision::F32), 21);
    let decoder = load(&path, Precision::F32);
    for size in [21, 4, 1] {
        let off = distance(&logits(&decoder, size), &expected);
        assert!(off < 1e-4, "{size} tokens at a time are off by {off}");
    }
}

#[test]
fn a_packed_cache_is_for_latents_alone() {
    let (_folder, path) = model(Some(CacheFormat::Q4));
    let checkpoint = open(&path);
    assert!(checkpoint.check_cache_format(CacheFormat::Q2).is_ok());
    assert!(
        load(&path, Precision::F32)
            .set_cache_format(CacheFormat::Q3)
            .is_ok()
    );
    let dense = qwen2();
    let error = dense
        .check_cache_format(CacheFormat::Q4)
        .expect_err("dense");
    let text = "a q4 cache packs latents, and layer 0 keeps keys and values in full";
    assert_eq!(error.to_string(), text);
    assert!(error.hint().is_some_and(|hint| hint.contains("f16")));
    let mut decoder = dense
        .load(Precision::F32, &Device::flex(), &Silent)
        .expect("loads");
    assert!(decoder.set_cache_format(CacheFormat::Q4).is_err());
    assert!(decoder.set_cache_format(CacheFormat::F16).is_ok());
    // A manifest that declares what its model can not do.
    let (_folder, path, _) = mixed([0, 1], StoredDtype::F32);
    let file = path.join(MANIFEST_FILE);
    let manifest = fs_err::read_to_string(&file).expect("reads");
    let declared = manifest.replacen(
        "\"fallbacks\"",
        "\"cache_format\": \"q4\", \"fallbacks\"",
        1,
    );
    fs_err::write(&file, declared).expect("writes");
    assert_eq!(
        Checkpoint::open(&path).err().expect("refused").to_string(),
        text
    );
}

#[test]
fn a_declared_window_is_kept_beside_codes() {
    let (_folder, path) = model(Some(CacheFormat::Q4));
    let file = path.join(MANIFEST_FILE);
    let declare = |format: &str| {
        let manifest = fs_err::read_to_string(&file).expect("reads");
        assert!(!manifest.contains("residual_window"));
        let with = format!("\"cache_format\": \"{format}\", \"residual_window\": 20");
        let manifest = manifest.replacen("\"cache_format\": \"q4\"", &with, 1);
        fs_err::write(&file, &manifest).expect("writes");
    };
    let undeclared = fs_err::read_to_string(&file).expect("reads");
    declare("q4");
    let checkpoint = open(&path);
    assert_eq!(checkpoint.residual_window(), 20);
    // 20 + 255 tokens in panels of 16, of 19 and 9 halves.
    let bytes = checkpoint.residual_window_bytes(20);
    assert_eq!(bytes, 288 * 2 * (19 + 9));
    assert_eq!(checkpoint.residual_window_bytes(0), 0);
    let mut decoder = load(&path, Precision::F32);
    let ids = [vec![1, 2, 3]];
    let taken = |decoder: &Decoder| {
        let mut cache = decoder.new_cache(256);
        decoder.hidden(&ids, Some(&mut cache)).expect("fits");
        cache.bytes()
    };
    let windowed = taken(&decoder);
    decoder.set_cache_format(CacheFormat::Q8).expect("latents");
    assert_eq!(decoder.layers[0].attention.residual_window, 20);
    decoder.set_cache_format(CacheFormat::F16).expect("latents");
    let error = decoder.set_residual_window(20).expect_err("no codes");
    let text = "a residual window of 20 tokens is for packed latents, and the cache is f16";
    assert_eq!(error.to_string(), text);
    assert!(error.hint().is_some_and(|hint| hint.contains("q4")));
    decoder.set_residual_window(0).expect("none");
    decoder.set_cache_format(CacheFormat::Q4).expect("latents");
    // Room for the 256 tokens that were asked for.
    assert_eq!(windowed - taken(&decoder), 256 * 2 * (19 + 9));
    fs_err::write(&file, undeclared).expect("writes");
    declare("f16");
    let refused = Checkpoint::open(&path).err().expect("refused");
    assert_eq!(refused.to_string(), text);
}

/// Logits of a prompt are those of its tokens one by one, through a window that they leave.
#[test]
fn a_window_gives_the_same_logits_however_tokens_come() {
    // Where codes are coarser, one that tips over in the second layer is more than rounding.
    let (_folder, path) = model(Some(CacheFormat::Q8));
    let mut decoder = load(&path, Precision::F32);
    decoder.allow_context(400);
    let mut previous: Option<Vec<f32>> = None;
    for window in [0, 16] {
        decoder.set_residual_window(window).expect("codes");
        let expected = long_logits(&decoder, 300);
        for size in [1, 7, 200] {
            let off = distance(&long_logits(&decoder, size), &expected);
            assert!(off < 1e-4, "{size} tokens at a time are off by {off}");
        }
        if let Some(previous) = previous {
            assert!(distance(&previous, &expected) > 1e-5, "it is in use");
        }
        previous = Some(expected);
    }
}

/// Prompts and their tokens one by one give the same logits through every kind of cache, without one too.
#[test]
fn logits_do_not_depend_on_how_tokens_come() {
    let (_folder, path) = model(Some(CacheFormat::F32));
    let latents = load(&path, Precision::F32);
    let dense = qwen2()
        .load(Precision::F32, &Device::flex(), &Silent)
        .expect("loads");
    for format in CacheFormat::ALL {
        for (window, decoder) in [(0, &latents), (6, &latents), (0, &dense)] {
            let mut decoder = decoder.clone();
            if decoder.set_cache_format(format).is_err()
                || decoder.set_residual_window(window).is_err()
            {
                // Codes are of latents, and windows are beside codes.
                assert!(format.is_packed() != (window > 0));
                continue;
            }
            let expected = logits(&decoder, 21);
            let ids: Vec<u32> = (0..21).map(|i| i * 13 % 300).collect();
            let alone = decoder.logits(decoder.hidden(&[ids], None).expect("runs"));
            let mut all = vec![alone.into_data().try_into_vec::<f32>().expect("f32")];
            all.extend([1, 4, 20].map(|size| logits(&decoder, size)));
            for other in all {
                let apart = expected.iter().zip(&other).map(|(a, b)| (a - b).abs());
                let most = apart.fold(0f32, f32::max);
                assert!(most < 1e-4, "{format}, window {window}: {most}");
            }
        }
    }
    // Long enough for prompts to rebuild values where single tokens sum latents; coarser codes can tip over by rounding.
    for format in [CacheFormat::F32, CacheFormat::F16] {
        let mut decoder = latents.clone();
        decoder.allow_context(400);
        decoder.set_cache_format(format).expect("latents");
        let expected = long_logits(&decoder, 300);
        for form in crate::ops::ValueForm::ALL
            .map(Some)
            .into_iter()
            .chain([None])
        {
            decoder.set_value_form(form);
            for size in [1, 300] {
                let off = distance(&long_logits(&decoder, size), &expected);
                assert!(off < 1e-4, "{format}, {form:?}, {size} at a time: {off}");
            }
        }
    }
}

/// Values folded into the output projection give the logits of values that are not, whatever is cached and however tokens come.
#[test]
fn folded_values_give_the_same_logits() {
    let (_folder, path) = model(Some(CacheFormat::F32));
    let plain = load(&path, Precision::F32);
    let inputs = |decoder: &Decoder| {
        let layers = decoder.layers.iter();
        layers
            .map(|l| l.attention.output.shape().1)
            .collect::<Vec<_>>()
    };
    for [basis, form] in [[false, false], [true, false], [false, true], [true, true]] {
        let mut plain = plain.clone();
        for layer in &mut plain.layers {
            let attention = &mut layer.attention;
            attention.output = match basis {
                // Biases reach the output through the factors.
                true => {
                    let (basis, expansion) = (random([48, 20]), random([20, 32]));
                    Projection::LowRank(LowRank::new(basis, expansion, Some(random([32]))))
                }
                false => dense(48, 32, form.then(|| random([32]))).into(),
            };
        }
        let mut folded = plain.clone();
        folded.fold_values().expect("ranks of at most 8");
        // Two query heads for each key head, in groups of two and one.
        assert_eq!(inputs(&folded), [2 * (2 * 7 + 4), 2 * (2 * 6 + 3)]);
        folded.fold_values().expect("changes nothing");
        folded.set_value_form(form.then_some(crate::ops::ValueForm::Rebuilt));
        for format in [CacheFormat::F32, CacheFormat::F16, CacheFormat::Q8] {
            plain.set_cache_format(format).expect("latents");
            folded.set_cache_format(format).expect("latents");
            for size in [1, 21] {
                let off = distance(&logits(&folded, size), &logits(&plain, size));
                // Whole weights of eight bits' codes round what the folded ones do not.
                let most = if format == CacheFormat::Q8 {
                    3e-4
                } else {
                    1e-4
                };
                assert!(off < most, "{format}, {size} at a time: {off}");
            }
        }
    }
}

#[test]
fn values_are_folded_unasked_where_it_pays() {
    let (_folder, path) = model(None);
    let mut decoder = load(&path, Precision::F32);
    // The second layer's ranks are 6 and 3, of heads of 8.
    assert_eq!(decoder.fold_values_where_it_pays().expect("sound"), 0);
    let narrow = heads([5, 3], [4, 2], false);
    decoder.layers[0].attention.latent = Some(narrow);
    assert_eq!(decoder.fold_values_where_it_pays().expect("sound"), 1);
    assert_eq!(decoder.fold_values_where_it_pays().expect("sound"), 0);
    let mut wide = load(&path, Precision::F32);
    wide.layers[1].attention.latent = Some(heads([9, 3], [9, 3], true));
    let error = wide.fold_values().expect_err("wide").to_string();
    assert_eq!(
        error,
        "values of layer 1 can not be folded: its values have a latent of 9, more than the 8 of a head"
    );
    let mut codes = load(&path, Precision::Q8);
    let error = codes.fold_values().expect_err("codes").to_string();
    assert_eq!(
        error,
        "values of layer 0 can not be folded: its output projection is stored as quantized, which values can not be folded into"
    );
}

/// Logits behind 300 tokens, `size` at a time.
fn long_logits(decoder: &Decoder, size: usize) -> Vec<f32> {
    let ids: Vec<u32> = (0..300).map(|i| (i * 7 + i / 5) % 60 + 1).collect();
    let (mut cache, mut all) = (decoder.new_cache(0), Vec::new());
    for part in ids.chunks(size) {
        let hidden = decoder.hidden(&[part.to_vec()], Some(&mut cache));
        let logits = decoder.logits(hidden.expect("fits")).into_data();
        all.extend(logits.try_into_vec::<f32>().expect("f32"));
    }
    all
}

/// What opening and loading the model says after an edit.
fn failure(edit: impl FnOnce(&mut Vec<Stored>)) -> String {
    let (_folder, path) = model(None);
    let error: Error = edited(&path, true, edit).expect_err("refused");
    let text = error.to_string();
    // The folder's name differs from run to run.
    let (tensor, rest) = text.split_once(" of `").expect("names its file");
    let (_, why) = rest.split_once("` ").expect("ends the name");
    format!("{tensor} {why}")
}

#[test]
fn what_does_not_fit_is_named() {
    let drop =
        |name: &'static str| move |all: &mut Vec<Stored>| all.retain(|t| !t.name.ends_with(name));
    let shape = |name: &'static str, shape: [usize; 2]| {
        move |all: &mut Vec<Stored>| {
            let tensor = all
                .iter_mut()
                .find(|t| t.name.ends_with(name))
                .expect("there");
            tensor.values = Values::Floats(vec![0.1; shape[0] * shape[1]]);
            tensor.shape = shape.to_vec();
        }
    };
    let messages = [
        failure(drop("0.self_attn.k_proj.groups.0.weight")),
        failure(drop("0.self_attn.v_proj.groups.1.weight")),
        failure(drop("0.self_attn.k_proj.groups.1.bias")),
        failure(drop("1.self_attn.kv_latent.weight")),
        failure(shape("0.self_attn.kv_latent.weight", [18, 32])),
        failure(shape("0.self_attn.kv_latent.weight", [19, 30])),
        failure(shape("0.self_attn.k_proj.groups.0.weight", [12, 5])),
        failure(shape("0.self_attn.k_proj.groups.1.weight", [16, 3])),
        failure(shape("0.self_attn.v_proj.groups.1.weight", [8, 5])),
        failure(shape("1.self_attn.v_proj.groups.1.weight", [8, 2])),
    ];
    let of = |name: &str, why: &str| format!("tensor `model.layers.{name}` {why}");
    let basis = "0.self_attn.kv_latent.weight";
    let missing = "is missing, or those before it lack heads: they give";
    let expected = [
        of(
            "0.self_attn.k_proj.groups.0.weight",
            &format!("{missing} 0 of 24 values"),
        ),
        of(
            "0.self_attn.v_proj.groups.1.weight",
            &format!("{missing} 16 of 24 values"),
        ),
        of("0.self_attn.k_proj.groups.1.bias", "is missing"),
        of(
            "1.self_attn.kv_latent.weight",
            "is missing, or has no latents",
        ),
        of(basis, "has 18 latents; the groups of heads read 19"),
        of(
            basis,
            "has shape [19, 30], but the configuration asks for [19, 32]",
        ),
        of(
            "0.self_attn.k_proj.groups.0.weight",
            "has shape [12, 5]: a group has whole heads of 8 and a rank of at least 1",
        ),
        of(
            "0.self_attn.k_proj.groups.1.weight",
            "is too much: 32 values for heads of 24",
        ),
        of(basis, "has 19 latents; the groups of heads read 20"),
        of(
            "1.self_attn.kv_latent.weight",
            "has 9 latents; the groups of heads read 17",
        ),
    ];
    assert_eq!(messages, expected);
}
