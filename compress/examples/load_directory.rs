//! Loads a model that `cinder compress` made as a Burn module, and runs it.
//!
//! `cargo run --release -p cinder-compress --example load_directory -- DIRECTORY "Once upon a time"`

use burn::tensor::Device;
use cinder_models::progress::Silent;
use cinder_models::{Checkpoint, Precision};

fn main() -> cinder_models::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, prompt] = &arguments[..] else {
        eprintln!("usage: load_directory DIRECTORY PROMPT");
        return Ok(());
    };
    let checkpoint = Checkpoint::open(directory.as_ref())?;
    let decoder = checkpoint.load(Precision::F32, &Device::flex(), &Silent)?;
    let tokenizer = checkpoint.tokenizer()?;
    let ids = tokenizer.encode(prompt)?;
    let hidden = decoder.hidden(&[ids], None)?;
    let next = decoder.logits(hidden).argmax(2).into_data();
    println!("{:?}", next.iter::<i64>().last());
    Ok(())
}
