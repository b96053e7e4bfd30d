//! Compresses one `nn::Linear` of your own model from activations it saw: no checkpoint, no recipe.
//!
//! `cargo run --release -p cinder-compress --example compress_linear`

use burn::nn::LinearConfig;
use burn::tensor::{Device, Distribution, Tensor};
use cinder_compress::linear::{LinearSettings, compress_linear};

fn main() -> cinder_compress::Result<()> {
    let device = Device::flex();
    let linear = LinearConfig::new(256, 512).init(&device);
    // Activations as they reach the layer, `[tokens, in]`: here most of their energy is in a few directions.
    let few = Tensor::<2>::random([4096, 64], Distribution::Normal(0.0, 1.0), &device);
    let mix = Tensor::<2>::random([64, 256], Distribution::Normal(0.0, 1.0), &device);
    let noise = Tensor::<2>::random([4096, 256], Distribution::Normal(0.0, 0.3), &device);
    let inputs = few.matmul(mix) + noise;

    for keep in [0.8, 0.5, 0.3] {
        let settings = LinearSettings {
            keep,
            ..LinearSettings::default()
        };
        let made = compress_linear(&linear, &inputs, &settings)?;
        println!(
            "keep {keep}: {} of rank {:?}, {} scalars of {}, relative output error {:.4}",
            made.projection.kind(),
            made.projection.rank(),
            made.projection.scalars(),
            256 * 512,
            made.error,
        );
        // A `Projection` is a Burn module with the shapes of the `Linear` it stands for.
        let output = made.projection.forward(inputs.clone());
        assert_eq!(output.dims(), [4096, 512]);
    }
    Ok(())
}
