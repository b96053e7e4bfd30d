//! Files that say of their factors what can not be.

use burn::store::bridge::deferred;
use burn::tensor::{DType, Shape, TensorData};

use super::*;
use crate::error::Error;

pub(super) enum Values {
    Floats(Vec<f32>),
    Integers(Vec<i32>),
}

pub(super) struct Stored {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Values,
}

/// The model of the first mixture after an edit of its tensors, and what opening and loading it says.
fn failure(edit: impl FnOnce(&mut Vec<Stored>)) -> String {
    attempt(true, edit).expect_err("refused").to_string()
}

fn attempt(with_manifest: bool, edit: impl FnOnce(&mut Vec<Stored>)) -> Result<(), Error> {
    let (_folder, path, _) = mixed([0, 1], StoredDtype::F32);
    edited(&path, with_manifest, edit)
}

/// The model at `path` after an edit of its tensors, opened and loaded.
pub(super) fn edited(
    path: &Path,
    with_manifest: bool,
    edit: impl FnOnce(&mut Vec<Stored>),
) -> Result<(), Error> {
    let folder = tempfile::tempdir().expect("temp");
    let checkpoint = open(path);
    let source = checkpoint.source();
    let tensors = checkpoint.tensors().into_iter();
    let mut tensors: Vec<Stored> = tensors
        .map(|(name, info)| Stored {
            values: match info.dtype.as_str() {
                "I32" => Values::Integers(source.read_i32(&name).expect("reads")),
                _ => Values::Floats(source.read_f32(&name).expect("reads")),
            },
            name,
            shape: info.shape,
        })
        .collect();
    edit(&mut tensors);
    let damaged = folder.path().join("damaged");
    fs_err::create_dir(&damaged).expect("creates");
    let copied: &[&str] = match with_manifest {
        true => &["config.json", MANIFEST_FILE],
        false => &["config.json"],
    };
    for file in copied {
        fs_err::copy(path.join(file), damaged.join(file)).expect("copies");
    }
    let tensors = tensors.into_iter().map(
        |Stored {
             name,
             shape,
             values,
         }| {
            let (dtype, data) = match values {
                Values::Floats(values) => (DType::F32, TensorData::new(values, shape.clone())),
                Values::Integers(values) => (DType::I32, TensorData::new(values, shape.clone())),
            };
            deferred(name, dtype, Shape::from(shape), None, move || {
                Ok(data.clone())
            })
        },
    );
    let (tensors, dtype) = (tensors.collect(), StoredDtype::F32);
    write_safetensors(&damaged, SINGLE_FILE, tensors, dtype, &mut || {}).expect("writes");
    let device = Device::flex();
    Checkpoint::open(&damaged)?.load(Precision::F32, &device, &Silent)?;
    Ok(())
}

fn find<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    let found = tensors.iter_mut().find(|t| t.name == name);
    found.unwrap_or_else(|| panic!("{name}"))
}

/// The first rows of a matrix, or as many rows of zeros more.
fn resize(tensor: &mut Stored, rows: usize) {
    tensor.shape[0] = rows;
    let length = tensor.shape.iter().product();
    match &mut tensor.values {
        Values::Floats(values) => values.resize(length, 0.0),
        Values::Integers(values) => values.resize(length, 0),
    }
}

const PIVOTS: &str = "model.layers.0.self_attn.o_proj.basis.pivots";
const WEIGHT: &str = "model.layers.0.self_attn.o_proj.basis.weight";
const SHARED: &str = "model.layers.0.self_attn.qkv_basis.pivots";

/// The error after some pivots are written over.
fn with_pivots(name: &str, edit: impl FnOnce(&mut [i32])) -> String {
    failure(|tensors| match &mut find(tensors, name).values {
        Values::Integers(values) => edit(values),
        Values::Floats(_) => panic!("pivots are whole numbers"),
    })
}

fn says(error: &str, name: &str, what: &str) {
    assert!(error.contains(&format!("`{name}`")), "{error}");
    assert!(error.contains(what), "{error}");
}

#[test]
fn nothing_changed_is_no_failure() {
    attempt(true, |_| {}).expect("loads");
}

#[test]
fn pivots_must_be_inputs_in_order() {
    for name in [PIVOTS, SHARED] {
        let past = with_pivots(name, |p| *p.last_mut().expect("some") = 32);
        says(&past, name, "names input 32 of 32");
        let negative = with_pivots(name, |p| p[0] = -1);
        says(&negative, name, "names input -1 of 32");
        let turned = with_pivots(name, |p| p.swap(0, 1));
        says(&turned, name, "pivots ascend");
        let twice = with_pivots(name, |p| p[1] = p[0]);
        says(&twice, name, "none comes twice");
    }
    let floats = failure(|tensors| {
        find(tensors, PIVOTS).values = Values::Floats((0..10).map(|i| i as f32).collect());
    });
    says(&floats, PIVOTS, "is of type F32, where I32 is wanted");
}

#[test]
fn both_parts_of_a_basis_must_be_there_and_fit() {
    let missing = failure(|tensors| tensors.retain(|t| t.name != WEIGHT));
    says(&missing, WEIGHT, "is missing");
    let missing = failure(|tensors| tensors.retain(|t| t.name != PIVOTS));
    says(&missing, WEIGHT, "has shape [10, 22]");
    let wrong = failure(|tensors| resize(find(tensors, WEIGHT), 9));
    says(&wrong, WEIGHT, "has shape [9, 22]");
    let many = failure(|tensors| resize(find(tensors, PIVOTS), 33));
    says(&many, PIVOTS, "has rank 33; it must be in 1..=32");
    let none = failure(|tensors| resize(find(tensors, PIVOTS), 0));
    says(&none, PIVOTS, "has rank 0");
    // A basis of its own beside the shared one would be left out silently.
    let name = "model.layers.0.self_attn.q_proj.basis.weight";
    let second = failure(|tensors| {
        let values = Values::Floats(vec![0.0; 12 * 32]);
        tensors.push(Stored {
            name: name.into(),
            shape: vec![12, 32],
            values,
        });
    });
    says(&second, name, "has no place");
}

#[test]
fn a_layers_projections_must_agree_on_their_neurons() {
    let up = "model.layers.0.mlp.up_proj.weight";
    let fewer = failure(|tensors| resize(find(tensors, up), 19));
    says(&fewer, up, "puts out 19 neurons");
    let gate = "model.layers.1.mlp.gate_proj.expansion.weight";
    let more = failure(|tensors| resize(find(tensors, gate), 18));
    says(&more, gate, "reads 17");
    let down = "model.layers.0.mlp.down_proj.weight";
    for (neurons, what) in [(0, "reads 0 neurons"), (33, "must be in 1..=32")] {
        let error = failure(|tensors| {
            let down = find(tensors, down);
            down.shape[1] = neurons;
            down.values = Values::Floats(vec![0.0; 32 * neurons]);
        });
        says(&error, down, what);
    }
    // Where Cinder did not write the model, tensors that are too small do not belong to the configuration.
    let foreign = attempt(false, |_| {}).expect_err("refused").to_string();
    says(
        &foreign,
        "model.layers.0.mlp.gate_proj.weight",
        "asks for [32, 32]",
    );
}
