//! The latents of keys and values.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::CacheFormat;
use super::panels::{PANEL, PanelLayout};

/// The cache of one layer whose keys and values are rebuilt from latents.
///
/// The numbers are kept on the host, in panels of 16 tokens, whatever the device of the tensors is; each token takes
/// [`CacheFormat::latent_bytes`]. A slice of a token that holds a number which is not finite, or too large for f16 where the
/// format has f16, is NaN from then on.
#[derive(Debug, Clone)]
pub struct LatentCache {
    layout: PanelLayout,
    capacity: usize,
    length: usize,
    /// Sequences side by side, and where their tensors come from; none until the first tokens.
    place: Option<(usize, Device)>,
    /// `[panels, batch]` of `layout.bytes`.
    panels: Vec<u8>,
}

/// A cache's memory as the kernel reads it: `[panels, batch]` of `layout.bytes` each.
#[derive(Clone, Copy)]
pub(crate) struct Latents<'a> {
    pub layout: &'a PanelLayout,
    pub panels: &'a [u8],
    pub batch: usize,
    /// Tokens held.
    pub length: usize,
}

impl LatentCache {
    /// An empty cache for latents in slices of the given ranks, with room for `capacity` tokens.
    pub fn new(ranks: &[usize], format: CacheFormat, capacity: usize) -> Self {
        LatentCache {
            layout: PanelLayout::new(format, ranks),
            capacity,
            length: 0,
            place: None,
            panels: Vec::new(),
        }
    }

    /// How the numbers are stored.
    pub fn format(&self) -> CacheFormat {
        self.layout.format
    }

    /// Tokens held.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Sequences held side by side; none while it is empty.
    pub fn batch(&self) -> Option<usize> {
        self.place.as_ref().map(|(batch, _)| *batch)
    }

    /// Bytes that are allocated.
    pub fn bytes(&self) -> u64 {
        self.panels.capacity() as u64
    }

    /// Forgets all tokens after the first `length`; memory is kept.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Adds the latents `[batch, tokens, rank]` of new tokens. Memory for the asked capacity is taken first; when it is full,
    /// it is doubled.
    ///
    /// # Panics
    /// When batch or rank differ from those already held.
    pub fn append(&mut self, latents: Tensor<3>) {
        let [batch, tokens, rank] = latents.dims();
        let device = latents.device();
        let (held, _) = self.place.get_or_insert((batch, device));
        assert_eq!((batch, rank), (*held, self.layout.rank), "batch and rank");
        let values: Vec<f32> = latents
            .cast(DType::F32)
            .into_data()
            .try_into_vec()
            .expect("f32");
        let end = self.length + tokens;
        let record = self.layout.bytes;
        if end.div_ceil(PANEL) * batch * record > self.panels.len() {
            let before = self.panels.len() / (batch * record).max(1) * PANEL;
            let capacity = self.capacity.max(2 * before).max(end);
            self.resize(capacity.div_ceil(PANEL) * batch * record);
        }
        for (row, values) in values.chunks_exact(rank.max(1)).enumerate() {
            let (sequence, token) = (row / tokens, self.length + row % tokens);
            let at = (token / PANEL * batch + sequence) * record;
            let panel = &mut self.panels[at..at + record];
            self.layout.write(panel, token % PANEL, values);
        }
        self.length = end;
    }

    /// Zeroed memory behind what there is. New memory is taken as zeros rather than filled with them, so that the system gives
    /// pages only as tokens come.
    fn resize(&mut self, bytes: usize) {
        let mut panels = vec![0; bytes];
        panels[..self.panels.len()].copy_from_slice(&self.panels);
        self.panels = panels;
    }

    /// What the numbers stand for: `[batch, tokens, rank]` in f32, on the device of the first tokens.
    pub fn values(&self) -> Option<Tensor<3>> {
        let (batch, device) = self.place.as_ref()?;
        let (rank, record) = (self.layout.rank, self.layout.bytes);
        let mut values = vec![0.0; batch * self.length * rank];
        for (row, values) in values.chunks_exact_mut(rank.max(1)).enumerate() {
            let (sequence, token) = (row / self.length, row % self.length);
            let at = (token / PANEL * batch + sequence) * record;
            let panel = &self.panels[at..at + record];
            self.layout.read(panel, token % PANEL, values);
        }
        let data = TensorData::new(values, [*batch, self.length, rank]);
        Some(Tensor::from_data(data, (device, DType::F32)))
    }

    /// The memory, for the kernel.
    pub(crate) fn latents(&self) -> Latents<'_> {
        Latents {
            layout: &self.layout,
            panels: &self.panels,
            batch: self.batch().unwrap_or(0),
            length: self.length,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    fn values(x: Tensor<3>) -> Vec<f32> {
        x.into_data().try_into_vec().expect("f32")
    }

    #[test]
    fn tokens_are_what_they_would_be_alone_however_the_cache_grows_and_forgets() {
        let device = Device::flex();
        let ranks = [5, 12, 3];
        let all = Tensor::<3>::random([2, 150, 20], Distribution::Default, &device);
        for format in CacheFormat::ALL {
            let mut at_once = LatentCache::new(&ranks, format, 150);
            at_once.append(all.clone());
            let expected = at_once.values().expect("tokens");
            assert_eq!(at_once.bytes(), 2 * 160 * format.latent_bytes(&ranks));
            for capacity in [0, 17, 150] {
                let mut cache = LatentCache::new(&ranks, format, capacity);
                for (from, to) in [(0, 1), (1, 16), (16, 49), (30, 31), (31, 110), (110, 150)] {
                    cache.truncate(from);
                    assert_eq!(cache.length(), from);
                    cache.append(all.clone().narrow(1, from, to - from));
                    let seen = expected.clone().narrow(1, 0, to);
                    assert_eq!(values(cache.values().expect("tokens")), values(seen));
                }
                assert!(
                    cache
                        .bytes()
                        .is_multiple_of(32 * format.latent_bytes(&ranks))
                );
            }
        }
    }

    #[test]
    fn full_numbers_come_back_as_they_were() {
        let all = Tensor::<3>::random([1, 40, 9], Distribution::Default, &Device::flex());
        let mut cache = LatentCache::new(&[9], CacheFormat::F32, 0);
        assert!(cache.values().is_none() && cache.bytes() == 0);
        cache.append(all.clone());
        assert_eq!(values(cache.values().expect("tokens")), values(all));
    }
}
