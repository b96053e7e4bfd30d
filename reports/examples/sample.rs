//! Writes sample reports, to look at: `cargo run --release -p cinder-reports --example sample -- FOLDER`.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use cinder_reports::{Options, write};

#[path = "../tests/common/mod.rs"]
mod common;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::args_os().nth(1).ok_or("give the folder to write to")?);
    let samples = [
        ("simple", common::sample()),
        ("crowded", common::crowded()),
        ("without-dense", common::sample().split_off(1)),
        ("dense-only", common::sample().drain(..1).collect()),
    ];
    for (name, evaluations) in samples {
        let report = write(&evaluations, &folder.join(name), &Options::default())?;
        println!("{}", report.html.display());
    }
    Ok(())
}
