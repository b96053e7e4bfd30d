//! Memory that blocks are read into, and its way back once their weights are used.

use std::sync::mpsc::Sender;

use burn::tensor::{AllocationProperty, Bytes};

use super::layout::{ALIGN, StoredTensor};

/// Bytes that start at a multiple of [`ALIGN`] in memory, which direct reads ask for.
#[derive(Debug)]
pub(super) struct AlignedBuffer {
    /// [`ALIGN`] bytes longer than what is used; never grown, so that it does not move.
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// Zeros.
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        AlignedBuffer {
            memory,
            start,
            length,
        }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..][..self.length]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.length]
    }
}

/// A block's bytes, shared by the tensors that are made of them.
#[derive(Debug, Clone)]
pub(super) struct BlockBytes(bytes::Bytes);

impl BlockBytes {
    /// Bytes that stay.
    pub fn resident(buffer: AlignedBuffer) -> Self {
        Self::owned(Lease {
            buffer: Some(buffer),
            home: None,
        })
    }

    /// Bytes whose buffer goes `home` when the last tensor made of them is gone.
    pub fn staged(buffer: AlignedBuffer, home: Sender<AlignedBuffer>) -> Self {
        Self::owned(Lease {
            buffer: Some(buffer),
            home: Some(home),
        })
    }

    fn owned(lease: Lease) -> Self {
        BlockBytes(bytes::Bytes::from_owner(lease))
    }

    /// What one tensor is made of, where it lies.
    pub fn tensor(&self, tensor: &StoredTensor) -> Bytes {
        let start = tensor.offset as usize;
        let part = self.0.slice(start..start + tensor.bytes() as usize);
        Bytes::from_shared(part, AllocationProperty::Other)
    }
}

/// A buffer that is lent.
struct Lease {
    /// There until the lease ends.
    buffer: Option<AlignedBuffer>,
    home: Option<Sender<AlignedBuffer>>,
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], AlignedBuffer::as_slice)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(buffer), Some(home)) = (self.buffer.take(), &self.home) {
            // Nobody is at home when the decoder is gone.
            let _ = home.send(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use burn::tensor::{DType, Device, Tensor, TensorData};

    use super::*;
    use crate::checkpoint::StoredDtype;

    #[test]
    fn a_buffer_goes_home_with_its_last_tensor_and_nothing_is_copied() {
        let mut buffer = AlignedBuffer::new(ALIGN);
        assert!((buffer.as_slice().as_ptr() as usize).is_multiple_of(ALIGN));
        let values: Vec<f32> = (0..6).map(|i| i as f32).collect();
        buffer.as_mut_slice()[64..88].copy_from_slice(bytemuck::cast_slice(&values));
        let place = buffer.as_slice().as_ptr();
        let (home, returned) = mpsc::channel();
        let block = BlockBytes::staged(buffer, home);
        let stored = StoredTensor {
            name: "w".into(),
            shape: [2, 3],
            dtype: StoredDtype::F32,
            offset: 64,
        };
        let bytes = block.tensor(&stored);
        drop(block);
        assert_eq!(bytes.as_ptr(), place.wrapping_add(64));
        let data = TensorData::from_bytes(bytes, [2, 3], DType::F32);
        let tensor = Tensor::<2>::from_data(data, &Device::flex());
        assert!(returned.try_recv().is_err());
        let sum = tensor.clone().transpose().sum().into_scalar::<f32>();
        assert_eq!(sum, 15.0);
        // Changing goes to a copy.
        let changed = tensor + 1.0;
        assert_eq!(changed.sum().into_scalar::<f32>(), 21.0);
        let back = returned.try_recv().expect("the buffer is back");
        assert_eq!(back.as_slice().as_ptr(), place);
        let kept: &[f32] = bytemuck::cast_slice(&back.as_slice()[64..88]);
        assert_eq!(kept, values);
    }
}
