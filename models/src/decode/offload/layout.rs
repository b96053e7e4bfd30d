//! What a block file looks like.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | `CINDERBK` |
//! | 8..12 | version, 1 |
//! | 12..16 | n, the length of the description |
//! | 16..24 | XXH64 of the description |
//! | 24..24+n | the description: JSON, a [`Layout`] |
//! | | zeros to a multiple of 4096 |
//! | block offset | the tensors of one block, each at a multiple of 64, `[out, in]` row by row |
//! | | zeros to a multiple of 4096 |
//!
//! All numbers are little-endian. The description gives each block's place, length (zeros included) and XXH64, and each
//! tensor's name, shape, type and place in its block. The file ends with its last block.

use std::io::Read;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::checksum::checksum;
use crate::checkpoint::StoredDtype;
use crate::precision::Precision;

/// Blocks start at, and are as long as, multiples of this: what direct reads ask for on any common disk.
pub(super) const ALIGN: usize = 4096;
/// Tensors start at multiples of this: a cache line, and more than any element asks for.
const TENSOR_ALIGN: u64 = 64;
/// The file starts with this.
const MAGIC: [u8; 8] = *b"CINDERBK";
const VERSION: u32 = 1;
/// Bytes before the description.
const FIXED: usize = 24;
/// No description is longer: 100 blocks take about 100 kB.
const LONGEST: u32 = 1 << 26;

/// The description of a block file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layout {
    /// Of the model's files, as [`Checkpoint::sha256`](crate::Checkpoint::sha256) says it.
    pub model_sha256: String,
    pub precision: Precision,
    pub blocks: Vec<Block>,
}

/// One block: the matrices of a decoder layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Block {
    /// From the start of the file.
    pub offset: u64,
    pub length: u64,
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub checksum: u64,
    pub tensors: Vec<StoredTensor>,
}

/// One matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredTensor {
    /// Its path in the layer's module.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    pub dtype: StoredDtype,
    /// From the start of the block.
    pub offset: u64,
}

impl StoredTensor {
    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product::<u64>() * self.dtype.bytes()
    }
}

impl Block {
    /// Bytes of the tensors alone.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(StoredTensor::bytes).sum()
    }
}

impl Layout {
    /// Places blocks of tensors, whose offsets are still to be set, one behind the other. Checksums are 0 until
    /// the blocks are written.
    pub fn place(
        model_sha256: String,
        precision: Precision,
        blocks: Vec<Vec<StoredTensor>>,
    ) -> Self {
        let blocks = blocks.into_iter().map(|mut tensors| {
            let mut length = 0u64;
            for tensor in &mut tensors {
                tensor.offset = length.next_multiple_of(TENSOR_ALIGN);
                length = tensor.offset + tensor.bytes();
            }
            Block {
                offset: 0,
                length: length.next_multiple_of(ALIGN as u64),
                checksum: 0,
                tensors,
            }
        });
        let mut layout = Layout {
            model_sha256,
            precision,
            blocks: blocks.collect(),
        };
        // Offsets are part of the description, whose length they follow from: it settles after a round or two, since
        // more digits only ever move blocks back.
        loop {
            let mut next = layout.encode().len() as u64;
            let mut settled = true;
            for block in &mut layout.blocks {
                settled &= block.offset == next;
                block.offset = next;
                next += block.length;
            }
            if settled {
                return layout;
            }
        }
    }

    /// Bytes of the whole file.
    pub fn file_length(&self) -> u64 {
        match self.blocks.last() {
            Some(last) => last.offset + last.length,
            None => self.encode().len() as u64,
        }
    }

    /// Whether the two describe the same tensors of the same model at the same places.
    pub fn same_but_checksums(&self, other: &Layout) -> bool {
        let without = |layout: &Layout| {
            let mut layout = layout.clone();
            layout.blocks.iter_mut().for_each(|b| b.checksum = 0);
            layout
        };
        without(self) == without(other)
    }

    /// All that stands before the first block.
    pub fn encode(&self) -> Vec<u8> {
        // A struct of strings and numbers is always JSON.
        let description = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = Vec::with_capacity(FIXED + description.len() + ALIGN);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(description.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&checksum(&description).to_le_bytes());
        bytes.extend_from_slice(&description);
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    /// Reads a description from the start of a file.
    ///
    /// # Errors
    /// A sentence's end: what the file is, or has, instead.
    pub fn decode(file: &mut impl Read) -> Result<Self, String> {
        let mut fixed = [0; FIXED];
        let short = |_| "is no block file: it is too short".to_owned();
        file.read_exact(&mut fixed).map_err(short)?;
        let (magic, fixed) = fixed.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err("is no block file".into());
        }
        let number = |at: usize| fixed[at..].iter().take(4).rev();
        let number = |at| number(at).fold(0u32, |v, b| v << 8 | u32::from(*b));
        let version = number(0);
        if version != VERSION {
            return Err(format!(
                "is a block file of version {version}, and this program reads version {VERSION}"
            ));
        }
        let length = number(4);
        let damaged = || "is damaged: its description is not what was written".to_owned();
        if length > LONGEST {
            return Err(damaged());
        }
        let mut description = vec![0; length as usize];
        file.read_exact(&mut description).map_err(|_| damaged())?;
        if checksum(&description).to_le_bytes() != fixed[8..] {
            return Err(damaged());
        }
        serde_json::from_slice(&description).map_err(|_| damaged())
    }
}

/// Sixteen digits, whatever the value: the description's length must not depend on it.
fn to_hex<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{value:016x}"))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(blocks: usize) -> Layout {
        let tensor = |name: &str, shape| StoredTensor {
            name: name.into(),
            shape,
            dtype: StoredDtype::Bf16,
            offset: 0,
        };
        let block = || vec![tensor("q", [3, 5]), tensor("down", [100, 70])];
        let blocks = (0..blocks).map(|_| block()).collect();
        Layout::place("ab".repeat(32), Precision::Bf16, blocks)
    }

    #[test]
    fn everything_lies_at_its_multiple_and_nothing_overlaps() {
        for blocks in [0, 1, 2, 40, 700] {
            let layout = layout(blocks);
            let mut end = layout.encode().len() as u64;
            for block in &layout.blocks {
                assert_eq!(block.offset, end);
                assert!(block.offset.is_multiple_of(ALIGN as u64));
                assert!(block.length.is_multiple_of(ALIGN as u64));
                assert_eq!(block.tensors[1].offset, 64);
                assert_eq!(block.length, 16384);
                assert_eq!(block.tensor_bytes(), 2 * (15 + 7000));
                end += block.length;
            }
            assert_eq!(layout.file_length(), end);
        }
    }

    #[test]
    fn what_is_written_is_read_and_what_is_changed_is_refused() {
        let mut written = layout(3);
        let mut bytes = written.encode();
        written.blocks[1].checksum = u64::MAX - 5;
        assert_eq!(bytes.len(), written.encode().len());
        bytes = written.encode();
        let read = |bytes: &[u8]| Layout::decode(&mut &*bytes);
        assert_eq!(read(&bytes).as_ref(), Ok(&written));
        assert!(layout(3).same_but_checksums(&written) && layout(3) != written);
        assert!(!layout(2).same_but_checksums(&written));
        for (at, why) in [
            (0, "is no block file"),
            (8, "version 0"),
            (13, "damaged"),
            (20, "damaged"),
            (40, "damaged"),
        ] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let error = read(&changed).expect_err("refused");
            assert!(error.contains(why), "{at}: {error}");
        }
        assert!(read(&bytes[..10]).is_err() && read(&bytes[..100]).is_err());
    }
}
