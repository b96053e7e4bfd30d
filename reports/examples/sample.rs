//! Writes sample reports, to look at: `cargo run --release -p cinder-reports --example sample -- FOLDER`.

use std::env;
use std::error::Error;
use std::path::PathBuf;

use cinder_reports::{Options, Results, write};

#[path = "../tests/common/mod.rs"]
mod common;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::args_os().nth(1).ok_or("give the folder to write to")?);
    let layers = |count| Results {
        compressions: vec![common::varied("low-rank", 0.7, count)],
        ..Results::default()
    };
    let samples: [(&str, Results); 10] = [
        ("simple", common::sample().into()),
        ("crowded", common::crowded().into()),
        ("caches", common::cached().into()),
        ("without-dense", common::sample().split_off(1).into()),
        (
            "dense-only",
            common::sample().drain(..1).collect::<Vec<_>>().into(),
        ),
        ("layers", common::with_compressions()),
        ("sweep", common::sweep()),
        ("everything", common::everything()),
        ("one-layer", layers(1)),
        ("eighty-layers", layers(80)),
    ];
    let mut options = Options::default();
    options.command = Some("cinder report results --out report".to_owned());
    for (name, results) in samples {
        let report = write(&results, &folder.join(name), &options)?;
        println!("{}", report.html.display());
    }
    Ok(())
}
