//! The latents of keys and values.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::CacheFormat;
use super::panels::PANEL;
use super::store::{Latents, Store};
use super::window::{RECENT, ResidualWindow};

/// The cache of one layer whose keys and values are rebuilt from latents.
///
/// The numbers are kept on the host, in panels of 16 tokens, whatever the device of the tensors is; each token takes
/// [`CacheFormat::latent_bytes`]. A slice of a token that holds a number which is not finite, or too large for f16 where the
/// format has f16, is NaN from then on.
///
/// With a [residual window](LatentCache::with_residual_window), recent tokens are kept in f16 beside their codes.
#[derive(Debug, Clone)]
pub struct LatentCache {
    capacity: usize,
    length: usize,
    /// Sequences side by side, and where their tensors come from; none until the first tokens.
    place: Option<(usize, Device)>,
    /// All tokens.
    all: Store,
    /// Those that queries since the last [`LatentCache::append`] read in f16.
    recent: Option<(ResidualWindow, Store)>,
}

impl LatentCache {
    /// An empty cache for latents in slices of the given ranks, with room for `capacity` tokens.
    pub fn new(ranks: &[usize], format: CacheFormat, capacity: usize) -> Self {
        LatentCache {
            capacity,
            length: 0,
            place: None,
            all: Store::new(format, ranks),
            recent: None,
        }
    }

    /// Keeps the latents of recent tokens in f16 too, where queries read them: at least the last `tokens` before and with the
    /// query's own, and up to 255 more, since tokens are read packed 256 at a time. That takes
    /// [`CacheFormat::residual_bytes`]: f16 latents of `tokens + 255` tokens, in whole panels of 16. Until the next tokens come,
    /// all that were added last are kept so, however many. 0 is no window.
    ///
    /// # Panics
    /// Where the format is not packed, or there are tokens already.
    pub fn with_residual_window(mut self, tokens: usize) -> Self {
        self.recent = None;
        if tokens > 0 {
            assert!(self.format().is_packed(), "a window is for packed latents");
            assert_eq!(self.length, 0, "a window is for all tokens");
            let ranks: Vec<usize> = self.all.layout.slices.iter().map(|s| s.rank).collect();
            self.recent = Some((ResidualWindow(tokens), Store::new(RECENT, &ranks)));
        }
        self
    }

    /// How the numbers are stored.
    pub fn format(&self) -> CacheFormat {
        self.all.layout.format
    }

    /// The residual window, in tokens; 0 where there is none.
    pub fn residual_window(&self) -> usize {
        self.window().map_or(0, |window| window.0)
    }

    pub(crate) fn window(&self) -> Option<ResidualWindow> {
        self.recent.as_ref().map(|(window, _)| *window)
    }

    /// Tokens held.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Sequences held side by side; none while it is empty.
    pub fn batch(&self) -> Option<usize> {
        self.place.as_ref().map(|(batch, _)| *batch)
    }

    /// Bytes that are allocated, the residual window's included.
    pub fn bytes(&self) -> u64 {
        let recent = self.recent.as_ref();
        self.all.bytes() + recent.map_or(0, |(_, recent)| recent.bytes())
    }

    /// Forgets all tokens after the first `length`; memory is kept.
    ///
    /// Nothing is lost of a residual window down to the length before the last [`LatentCache::append`]. Below it, tokens that
    /// are in the window again are those that the codes stand for, from the next `append` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Adds the latents `[batch, tokens, rank]` of new tokens. Memory for the asked capacity is taken first; when it is full,
    /// it is doubled. Of the residual window goes what none of the new tokens reads.
    ///
    /// # Panics
    /// When batch or rank differ from those already held.
    pub fn append(&mut self, latents: Tensor<3>) {
        let [batch, tokens, rank] = latents.dims();
        let device = latents.device();
        let (held, _) = self.place.get_or_insert((batch, device));
        assert_eq!(
            (batch, rank),
            (*held, self.all.layout.rank),
            "batch and rank"
        );
        let values: Vec<f32> = latents
            .cast(DType::F32)
            .into_data()
            .try_into_vec()
            .expect("f32");
        let end = self.length + tokens;
        let before = self.all.room(batch);
        if end > before {
            let capacity = self.capacity.max(2 * before).max(end);
            self.all.resize(capacity, batch);
        }
        if let Some((window, recent)) = &mut self.recent {
            let first = window.packed(self.length);
            let (needed, held) = (end - first, recent.room(batch));
            let room = match needed > held || held > window.room() {
                // Behind a prompt, its tokens' memory is given back.
                true => window.room().min(self.capacity.max(2 * held)).max(needed),
                false => held,
            };
            let room = room.next_multiple_of(PANEL);
            recent.restart(first, self.length, room, batch, &self.all);
        }
        for (row, values) in values.chunks_exact(rank.max(1)).enumerate() {
            let (sequence, token) = (row / tokens, self.length + row % tokens);
            self.all.write(token, sequence, batch, values);
            if let Some((_, recent)) = &mut self.recent {
                recent.write(token, sequence, batch, values);
            }
        }
        self.length = end;
    }

    /// What the numbers stand for: `[batch, tokens, rank]` in f32, on the device of the first tokens. Where there are codes, it
    /// is they that count.
    pub fn values(&self) -> Option<Tensor<3>> {
        self.read(self.length)
    }

    /// What the query at `position` reads: [`LatentCache::values`], but those of the residual window.
    pub(crate) fn values_at(&self, position: usize) -> Option<Tensor<3>> {
        let packed = self.window().map(|window| window.packed(position));
        self.read(packed.unwrap_or(self.length))
    }

    /// The first `packed` tokens from the codes, the others from the window.
    fn read(&self, packed: usize) -> Option<Tensor<3>> {
        let (batch, device) = self.place.as_ref()?;
        let rank = self.all.layout.rank;
        let mut values = vec![0.0; batch * self.length * rank];
        for (row, values) in values.chunks_exact_mut(rank.max(1)).enumerate() {
            let (sequence, token) = (row / self.length, row % self.length);
            let store = match &self.recent {
                Some((_, recent)) if token >= packed => recent,
                _ => &self.all,
            };
            store.read(token, sequence, *batch, values);
        }
        let data = TensorData::new(values, [*batch, self.length, rank]);
        Some(Tensor::from_data(data, (device, DType::F32)))
    }

    /// The memory, for the kernel.
    pub(crate) fn latents(&self) -> Latents<'_> {
        self.all.latents(self.batch().unwrap_or(0), self.length)
    }

    /// The residual window and its memory.
    pub(crate) fn recent(&self) -> Option<(ResidualWindow, Latents<'_>)> {
        let (window, recent) = self.recent.as_ref()?;
        let latents = recent.latents(self.batch().unwrap_or(0), self.length);
        Some((*window, latents))
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
