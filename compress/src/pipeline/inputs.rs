//! What each site of a layer reads while the layers before it, and the sites before it, are compressed already.

use burn::tensor::Tensor;
use cinder_models::decoder::RotaryTable;
use cinder_models::{DecoderLayer, Site};

use crate::calibration::{SiteInputs, finite_values};
use crate::error::Result;
use crate::linalg::{Cross, Gram};
use crate::recipe::Propagate;

/// The calibration windows on their way through one layer that is being compressed.
pub(super) struct Stream<'a> {
    pub rotary: &'a RotaryTable,
    pub propagate: Propagate,
    pub layer: usize,
    /// The residual stream `[1, tokens, hidden]` of each window, as far as it has come.
    pub hidden: Vec<Tensor<3>>,
    /// What the site reads now, of each window.
    reading: Vec<Tensor<2>>,
}

impl<'a> Stream<'a> {
    pub fn new(
        rotary: &'a RotaryTable,
        propagate: Propagate,
        layer: usize,
        hidden: Vec<Tensor<3>>,
    ) -> Self {
        Stream {
            rotary,
            propagate,
            layer,
            hidden,
            reading: Vec::new(),
        }
    }

    /// Goes on to what `site` reads, with the sites before it as they are in `block`. `changed` says that the site before
    /// this one was changed, and `neurons` which are left.
    pub fn inputs(
        &mut self,
        site: Site,
        dense: &DecoderLayer,
        block: &DecoderLayer,
        changed: bool,
        neurons: Option<&[usize]>,
    ) -> Result<SiteInputs> {
        let mut gram: Option<Gram> = None;
        let mut targets: Option<(Gram, Cross)> = None;
        let aim = changed && (self.propagate == Propagate::Block || neurons.is_some());
        let what = || format!("an input of `{}` in layer {}", site.name(), self.layer);
        self.reading.clear();
        for hidden in &self.hidden {
            let (now, dense_too) = read(site, hidden, block, dense, self.rotary, aim);
            let values = finite_values(&now, what)?;
            let width = now.dims()[1];
            gram.get_or_insert_with(|| Gram::new(width)).add(&values);
            if let Some(dense_too) = dense_too {
                let mut wanted = finite_values(&dense_too, what)?;
                let full = dense_too.dims()[1];
                if self.propagate == Propagate::Inputs {
                    overwrite(&mut wanted, full, &values, neurons);
                }
                let (all, cross) =
                    targets.get_or_insert_with(|| (Gram::new(full), Cross::new(full, width)));
                all.add(&wanted);
                cross.add(&wanted, &values);
            }
            if matches!(site, Site::O | Site::Down) {
                self.reading.push(now);
            }
        }
        Ok(SiteInputs {
            gram: gram.unwrap_or_else(|| Gram::new(0)),
            targets,
        })
    }

    /// Adds what `site`, as it is in `block` now, puts out to the residual stream.
    pub fn pass(&mut self, site: Site, block: &DecoderLayer) {
        let projection = match site {
            Site::O => &block.attention.output,
            Site::Down => &block.feed_forward.down,
            Site::Qkv | Site::GateUp => return,
        };
        for (hidden, reading) in self.hidden.iter_mut().zip(self.reading.drain(..)) {
            let out = projection.forward(reading).reshape(hidden.dims());
            *hidden = hidden.clone() + out;
        }
    }
}

/// What a site reads of one window, in the block as it is and, if asked, with the sites before it dense.
fn read(
    site: Site,
    hidden: &Tensor<3>,
    block: &DecoderLayer,
    dense: &DecoderLayer,
    rotary: &RotaryTable,
    dense_too: bool,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let [_, tokens, width] = hidden.dims();
    let flat = |x: Tensor<3>| x.reshape([tokens, width]);
    match site {
        Site::Qkv => (flat(block.attention_input(hidden.clone())), None),
        Site::O => {
            let normed = block.attention_input(hidden.clone());
            let mix = |layer: &DecoderLayer| layer.attention.mix(normed.clone(), rotary, None);
            (mix(block), dense_too.then(|| mix(dense)))
        }
        Site::GateUp => (flat(block.feed_forward_input(hidden.clone())), None),
        Site::Down => {
            let normed = flat(block.feed_forward_input(hidden.clone()));
            let neurons = |layer: &DecoderLayer| layer.feed_forward.neurons(normed.clone());
            (neurons(block), dense_too.then(|| neurons(dense)))
        }
    }
}

/// Puts the values of the neurons that are left in the place of the dense block's own.
fn overwrite(wanted: &mut [f32], full: usize, values: &[f32], neurons: Option<&[usize]>) {
    let Some(kept) = neurons else { return };
    let rows = wanted.chunks_mut(full).zip(values.chunks(kept.len()));
    for (wanted, values) in rows {
        for (neuron, value) in kept.iter().zip(values) {
            wanted[*neuron] = *value;
        }
    }
}
