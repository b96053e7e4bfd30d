//! Files whose bytes are used where they lie.

use std::fs::File;

use burn::tensor::{AllocationProperty, Bytes};
use memmap2::Mmap;

/// A read-only memory map of a file.
///
/// The pages are read when they are first used and shared with the system's cache: no copy of the file is made. The file
/// must not change while the map is in use; if it is cut short, touching the lost part ends the program (SIGBUS).
#[derive(Debug, Clone)]
pub struct MappedFile(bytes::Bytes);

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// When the system can not map it.
    pub fn open(file: &File) -> std::io::Result<Self> {
        // SAFETY: the map is never written to. That nobody else changes the file is asked of the user, as all programs
        // that map model files ask it; what they would see is other numbers, or a signal, not broken memory of ours.
        let map = unsafe { Mmap::map(file)? };
        Ok(MappedFile(bytes::Bytes::from_owner(map)))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Bytes `start..start + length` as what a tensor can be made of, without copying them; none outside the file or
    /// when the start is not a multiple of `align`.
    pub fn bytes(&self, start: usize, length: usize, align: usize) -> Option<Bytes> {
        let end = start
            .checked_add(length)
            .filter(|end| *end <= self.0.len())?;
        let part = self.0.slice(start..end);
        let aligned = (part.as_ptr() as usize).is_multiple_of(align);
        aligned.then(|| Bytes::from_shared(part, AllocationProperty::File))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use burn::tensor::{DType, Device, Tensor, TensorData};

    use super::*;

    #[test]
    fn a_tensor_reads_the_file_where_it_lies() {
        let mut file = tempfile::tempfile().expect("temp");
        let values: Vec<f32> = (0..100).map(|i| i as f32).collect();
        file.write_all(bytemuck::cast_slice(&values))
            .expect("writes");
        let map = MappedFile::open(&file).expect("maps");
        let bytes = map.bytes(40, 80, 4).expect("inside");
        assert_eq!(bytes.as_ptr(), map.as_slice()[40..].as_ptr());
        let data = TensorData::from_bytes(bytes, [4, 5], DType::F32);
        let tensor = Tensor::<2>::from_data(data, &Device::flex());
        let sum: f32 = values[10..30].iter().sum();
        assert_eq!(tensor.clone().sum().into_scalar::<f32>(), sum);
        // A change goes to a copy: the file's pages are read-only.
        let changed = tensor + 1.0;
        assert_eq!(changed.sum().into_scalar::<f32>(), sum + 20.0);
        assert!(map.bytes(390, 11, 1).is_none());
        assert!(map.bytes(usize::MAX, 2, 1).is_none());
        assert!(map.bytes(1, 4, 4).is_none());
    }
}
