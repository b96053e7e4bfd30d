//! XXH64 without a seed (Collet, xxHash specification, "XXH64 Algorithm Description"): the checksum of blocks.
//!
//! It finds damage and replacement, not forgery. Its cost is about a memory read of the block.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// Bytes that the four lanes take at a time.
const STRIPE: usize = 32;

/// A checksum over pieces as they come.
pub(super) struct Checksum {
    lanes: [u64; 4],
    bytes: u64,
}

impl Checksum {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Checksum {
            lanes: [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)],
            bytes: 0,
        }
    }

    /// Takes a piece.
    ///
    /// # Panics
    /// When it is not a multiple of 32 bytes: what does not fill a stripe is the end, and goes to
    /// [`Checksum::finish`].
    pub fn update(&mut self, piece: &[u8]) {
        assert!(piece.len().is_multiple_of(STRIPE), "whole stripes");
        let mut lanes = self.lanes;
        for stripe in piece.chunks_exact(STRIPE) {
            for (lane, word) in lanes.iter_mut().zip(stripe.chunks_exact(8)) {
                *lane = round(*lane, word64(word));
            }
        }
        self.lanes = lanes;
        self.bytes += piece.len() as u64;
    }

    /// Takes the last bytes, fewer than 32, and gives the checksum of all.
    pub fn finish(self, rest: &[u8]) -> u64 {
        let [a, b, c, d] = self.lanes;
        let mut sum = match self.bytes {
            0 => P5,
            _ => {
                let rotated = [(a, 1), (b, 7), (c, 12), (d, 18)];
                let sum = rotated.iter().fold(0u64, |sum, (lane, by)| {
                    sum.wrapping_add(lane.rotate_left(*by))
                });
                self.lanes.iter().fold(sum, |sum, lane| {
                    (sum ^ round(0, *lane)).wrapping_mul(P1).wrapping_add(P4)
                })
            }
        };
        sum = sum.wrapping_add(self.bytes + rest.len() as u64);
        let mut words = rest.chunks_exact(8);
        for word in &mut words {
            sum ^= round(0, word64(word));
            sum = sum.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        }
        let mut halves = words.remainder().chunks_exact(4);
        for half in &mut halves {
            let value = half.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
            sum ^= value.wrapping_mul(P1);
            sum = sum.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        }
        for byte in halves.remainder() {
            sum ^= u64::from(*byte).wrapping_mul(P5);
            sum = sum.rotate_left(11).wrapping_mul(P1);
        }
        sum = (sum ^ (sum >> 33)).wrapping_mul(P2);
        sum = (sum ^ (sum >> 29)).wrapping_mul(P3);
        sum ^ (sum >> 32)
    }
}

/// The checksum of bytes that are all there.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (whole, rest) = bytes.split_at(bytes.len() / STRIPE * STRIPE);
    let mut sum = Checksum::new();
    sum.update(whole);
    sum.finish(rest)
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2))
        .rotate_left(31)
        .wrapping_mul(P1)
}

fn word64(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the reference implementation (xxHash 0.8, `xxhsum -H64`).
    #[test]
    fn it_is_xxh64() {
        assert_eq!(checksum(b""), 0xEF46_DB37_51D8_E999);
        assert_eq!(checksum(b"a"), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(checksum(b"abc"), 0x44BC_2CF5_AD77_0999);
        let text = b"Nobody inspects the spammish repetition";
        assert_eq!(checksum(text), 0xFBCE_A83C_8A37_8BF1);
    }

    #[test]
    fn pieces_and_the_whole_agree_and_every_bit_counts() {
        let mut bytes: Vec<u8> = (0..4096u32).map(|i| (i * 7 % 251) as u8).collect();
        let whole = checksum(&bytes);
        let mut pieces = Checksum::new();
        pieces.update(&bytes[..1024]);
        pieces.update(&bytes[1024..]);
        assert_eq!(pieces.finish(&[]), whole);
        for at in [0, 31, 2000, 4095] {
            bytes[at] ^= 1;
            assert_ne!(checksum(&bytes), whole);
            bytes[at] ^= 1;
        }
    }
}
