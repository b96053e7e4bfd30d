//! A `Projection` in a model of one's own: dense at first, factored later, with the same `forward`.
//!
//! `cargo run --release -p cinder-compress --example own_model`

use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Distribution, Tensor};
use cinder_compress::linear::{LinearSettings, compress_linear};
use cinder_models::projection::Projection;

#[derive(Module, Debug)]
struct Classifier {
    widen: Projection,
    head: Projection,
}

impl Classifier {
    fn new(device: &Device) -> Self {
        Classifier {
            widen: LinearConfig::new(64, 256).init(device).into(),
            head: LinearConfig::new(256, 10).init(device).into(),
        }
    }

    /// `[rows, 64]` to `[rows, 10]`.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.head.forward(gelu(self.widen.forward(x)))
    }
}

fn main() -> cinder_compress::Result<()> {
    let device = Device::flex();
    let mut model = Classifier::new(&device);
    let x = Tensor::random([2048, 64], Distribution::Normal(0.0, 1.0), &device);
    let before = model.forward(x.clone());

    let settings = LinearSettings {
        keep: 0.6,
        ..LinearSettings::default()
    };
    let made = compress_linear(&model.widen.to_dense(), &x, &settings)?;
    println!(
        "{} scalars became {}; the layer's output moved by {:.3} of its size",
        model.widen.scalars(),
        made.projection.scalars(),
        made.error
    );
    model.widen = made.projection;
    let change = (model.forward(x) - before).abs().mean();
    println!("mean change at the model's output: {change}");
    Ok(())
}
