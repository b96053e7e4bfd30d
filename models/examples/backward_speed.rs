//! Tokens a second forward and back through a whole model, layer by layer.
//!
//! `backward_speed MODEL [WINDOWS] [TOKENS]`: for windows of made-up tokens, the forward pass with each
//! layer's input kept, the loss, and the way back through every layer. The same work in PyTorch is `backward_speed.py`
//! beside this file; compare runs made in turn on the same machine.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use cinder_models::decoder::Rotary;
use cinder_models::decoder::backward::{BackwardHead, BackwardLayer, Labels};
use cinder_models::{Checkpoint, Precision, ops};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().ok_or("a model is needed")?;
    let number = |at: usize, default: usize| match arguments.get(at) {
        Some(text) => text.parse(),
        None => Ok(default),
    };
    let (windows, tokens) = (number(1, 8)?, number(2, 512)?);
    let device = Device::flex();
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let config = checkpoint.config();
    let frame = checkpoint.load_frame(Precision::F32, &device)?;
    let table = Rotary::new(config).table(0, tokens, &device);
    let layers: Vec<_> = (0..config.layers)
        .map(|i| checkpoint.load_layer(i, Precision::F32, &device))
        .collect::<Result<_, _>>()?;

    let text: Vec<Vec<u32>> = (0..windows)
        .map(|w| {
            (0..tokens)
                .map(|i| ((w * 7919 + i * 104_729 + i * i * 31) % config.vocab_size) as u32)
                .collect()
        })
        .collect();

    let work = || -> Result<_, Box<dyn Error>> {
        let start = Instant::now();
        let mut inputs = Vec::new();
        let mut hidden = text
            .iter()
            .map(|ids| frame.embedding.embed(std::slice::from_ref(ids)))
            .collect::<Result<Vec<_>, _>>()?;
        for layer in &layers {
            inputs.push(hidden.clone());
            for hidden in &mut hidden {
                *hidden = layer.forward(hidden.clone(), &table, None, &mut |_, _| {});
            }
        }
        let forward = start.elapsed().as_secs_f64();

        let head = BackwardHead::new(&frame.norm, &frame.embedding, frame.lm_head.as_ref())?;
        let prepared = start.elapsed().as_secs_f64();
        let mut gradients = Vec::new();
        let mut loss = 0.0;
        for (ids, hidden) in text.iter().zip(hidden) {
            let (of_window, gradient) = head.loss_and_gradient(hidden, ids, Labels::Text)?;
            loss += of_window;
            gradients.push(gradient);
        }
        let at_end = start.elapsed().as_secs_f64();
        let mut preparing = 0.0;
        for (layer, inputs) in layers.iter().zip(inputs).rev() {
            let before = Instant::now();
            let layer = BackwardLayer::new(layer)?;
            preparing += before.elapsed().as_secs_f64();
            for (gradient, input) in gradients.iter_mut().zip(inputs) {
                *gradient = layer.backward(input, gradient.clone(), &table, &mut |_, _, _, _| {});
            }
        }
        let all = start.elapsed().as_secs_f64();
        let norm = gradients[0].clone().square().sum().sqrt();
        Ok([
            all,
            forward,
            at_end - prepared,
            all - at_end - preparing,
            preparing + prepared - forward,
            loss / (windows * (tokens - 1)) as f64,
            f64::from(norm.into_scalar::<f32>()),
        ])
    };
    let (outcome, profile) = ops::profile(work);
    let [all, forward, end, back, preparing, loss, norm] = outcome?;
    println!(
        "cinder {:.1} tokens/s: {all:.2} s = forward {forward:.2} + loss {end:.2} + back {back:.2} + layouts {preparing:.2}; loss {loss:.6}, gradient of the first window {norm:.6e}",
        (windows * tokens) as f64 / all
    );
    let parts: Vec<String> = profile
        .into_iter()
        .filter(|(_, seconds)| *seconds > 0.0)
        .map(|(op, seconds)| format!("{} {seconds:.2}", op.name()))
        .collect();
    println!("  {}", parts.join(", "));
    Ok(())
}
