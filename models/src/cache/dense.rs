//! Keys (after the rotary embedding) and values in full.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::CacheFormat;

/// Capacities are multiples of this many tokens.
const STEP: usize = 64;

/// The cache of one layer.
#[derive(Debug, Clone)]
pub struct DenseCache {
    /// Keys and values `[batch, kv_heads, capacity, head_dim]`, of which the first `length` tokens count.
    kept: Option<(Tensor<4>, Tensor<4>)>,
    length: usize,
    capacity: usize,
    dtype: DType,
}

impl DenseCache {
    /// An empty cache that will hold `capacity` tokens without growing, in f32 or f16.
    ///
    /// # Panics
    /// For a packed format: codes are of latents.
    pub fn new(capacity: usize, format: CacheFormat) -> Self {
        let dtype = format.dtype();
        DenseCache {
            kept: None,
            length: 0,
            capacity,
            dtype: dtype.expect("keys and values in full are kept in f32 or f16"),
        }
    }

    /// Tokens held.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Sequences held side by side; none while it is empty.
    pub fn batch(&self) -> Option<usize> {
        self.kept.as_ref().map(|(keys, _)| keys.dims()[0])
    }

    /// Forgets all tokens after the first `length`; memory is kept.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Of the tokens from `start` on, keeps those at the given offsets, which rise and are held.
    pub(super) fn compact(&mut self, start: usize, keep: &[usize]) {
        let Some((keys, values)) = self.kept.take() else {
            return;
        };
        let [batch, heads, _, d] = keys.dims();
        let place = [0..batch, 0..heads, start..start + keep.len(), 0..d];
        let from: Vec<i32> = keep.iter().map(|offset| (start + offset) as i32).collect();
        let from = Tensor::<1, Int>::from_data(TensorData::new(from, [keep.len()]), &keys.device());
        let moved = |kept: Tensor<4>| {
            let moved = kept.clone().select(2, from.clone());
            kept.slice_assign(place.clone(), moved)
        };
        self.kept = Some((moved(keys), moved(values)));
        self.length = start + keep.len();
    }

    /// Bytes taken, the room for tokens to come included.
    pub fn bytes(&self) -> u64 {
        let held = self.kept.as_ref();
        let numbers = held.map_or(0, |(keys, _)| 2 * keys.shape().num_elements());
        (numbers * self.dtype.size()) as u64
    }

    /// Adds keys and values `[batch, kv_heads, tokens, head_dim]` of new tokens. Returns keys and values
    /// `[batch, kv_heads, capacity, head_dim]` as the cache stores them, and how many tokens they hold.
    ///
    /// # Panics
    /// When batch, heads or head width differ from those already held.
    pub fn append(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>, usize) {
        let [batch, heads, tokens, d] = k.dims();
        let (k, v) = (k.cast(self.dtype), v.cast(self.dtype));
        let end = self.length + tokens;
        let (keys, values) = match self.kept.take() {
            Some((keys, values)) if end <= keys.dims()[2] => (keys, values),
            kept => {
                let before = kept.as_ref().map_or(0, |(keys, _)| keys.dims()[2]);
                let capacity = self
                    .capacity
                    .max(2 * before)
                    .max(end)
                    .next_multiple_of(STEP);
                let grown = |old: Option<Tensor<4>>| {
                    let shape = [batch, heads, capacity, d];
                    grow(old, self.length, shape, self.dtype, &k.device())
                };
                let (keys, values) = kept.unzip();
                (grown(keys), grown(values))
            }
        };
        let place = [0..batch, 0..heads, self.length..end, 0..d];
        // Nobody else holds the tensors here, so they are written in place.
        let keys = keys.slice_assign(place.clone(), k);
        let values = values.slice_assign(place, v);
        self.length = end;
        self.kept = Some((keys.clone(), values.clone()));
        (keys, values, end)
    }
}

/// A tensor of the new shape that starts with the first `length` tokens of the old one.
fn grow(
    old: Option<Tensor<4>>,
    length: usize,
    shape: [usize; 4],
    dtype: DType,
    device: &Device,
) -> Tensor<4> {
    let new = Tensor::zeros(shape, (device, dtype));
    match old {
        Some(old) if length > 0 => {
            let [batch, heads, _, d] = shape;
            let place = [0..batch, 0..heads, 0..length, 0..d];
            new.slice_assign(place, old.narrow(2, 0, length))
        }
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    #[test]
    fn what_goes_in_comes_out_however_often_it_grows() {
        let device = Device::flex();
        for format in [CacheFormat::F32, CacheFormat::F16] {
            let dtype = format.dtype().unwrap();
            let all = Tensor::<4>::random([2, 3, 200, 4], Distribution::Default, &device);
            for capacity in [0, 65, 200] {
                let mut cache = DenseCache::new(capacity, format);
                let mut at = 0;
                for tokens in [1, 63, 1, 90, 45] {
                    let part = all.clone().narrow(2, at, tokens);
                    let (k, v, held) = cache.append(part.clone(), part * 2.0);
                    at += tokens;
                    assert_eq!(held, at);
                    let seen = all.clone().narrow(2, 0, at).cast(dtype);
                    assert_eq!(k.narrow(2, 0, at).into_data(), seen.clone().into_data());
                    assert_eq!(v.narrow(2, 0, at).into_data(), (seen * 2.0).into_data());
                }
                assert!(cache.bytes() >= (2 * 2 * 3 * 200 * 4 * dtype.size()) as u64);
                cache.truncate(70);
                assert_eq!(cache.length(), 70);
            }
        }
    }

    #[test]
    fn room_that_was_asked_for_is_all_there_is() {
        let device = Device::flex();
        let token = Tensor::<4>::ones([1, 1, 1, 16], &device);
        let mut layer = DenseCache::new(100, CacheFormat::F32);
        layer.append(token.clone(), token.clone());
        for _ in 0..99 {
            let (k, _, _) = layer.append(token.clone(), token.clone());
            assert_eq!(k.dims()[2], 128);
        }
        assert_eq!(layer.bytes(), 2 * 128 * 16 * 4);
    }
}
