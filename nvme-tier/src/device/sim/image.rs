//! The contents of one simulated device.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

const CHUNK_BYTES: u64 = 16 << 10;
/// What no block is smaller than.
const SECTOR_BYTES: usize = 512;

/// A device's bytes. What was never written is zero and takes no memory; a clone shares what
/// neither side has changed since.
#[derive(Clone, Debug)]
pub struct Image {
    length: u64,
    chunks: BTreeMap<u64, Arc<Chunk>>,
}

#[derive(Clone, Debug)]
struct Chunk {
    bytes: Vec<u8>,
    /// Computed when it is first asked for, and shared by all images that share the chunk.
    fingerprint: OnceLock<u128>,
}

impl Image {
    /// `length` bytes of zeroes.
    #[must_use]
    pub fn new(length: u64) -> Self {
        Self { length, chunks: BTreeMap::new() }
    }

    /// Bytes in it.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Copies all of `into` from `offset` on.
    ///
    /// # Panics
    /// If that reaches past the end.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        self.assert_inside(offset, into.len());
        for (chunk, within, part) in parts(offset, into.len()) {
            let piece = &mut into[part];
            match self.chunks.get(&chunk) {
                Some(chunk) => piece.copy_from_slice(&chunk.bytes[within..within + piece.len()]),
                None => piece.fill(0),
            }
        }
    }

    /// Overwrites the bytes from `offset` on.
    ///
    /// # Panics
    /// If that reaches past the end.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.assert_inside(offset, bytes.len());
        for (chunk, within, part) in parts(offset, bytes.len()) {
            let chunk = Arc::make_mut(self.chunks.entry(chunk).or_insert_with(Chunk::empty));
            chunk.fingerprint.take();
            chunk.bytes[within..within + part.len()].copy_from_slice(&bytes[part]);
        }
    }

    /// A number that equal images share, and others for all practical purposes do not: an image that
    /// a crash can leave in many ways need be looked at only once.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        let each = self.chunks.iter().map(|(at, chunk)| chunk.fingerprint(at * CHUNK_BYTES));
        each.fold(0, |sum, one| sum ^ one)
    }

    fn assert_inside(&self, offset: u64, length: usize) {
        let end = offset.checked_add(length as u64);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{length} bytes at {offset} are outside"
        );
    }
}

impl Chunk {
    fn empty() -> Arc<Self> {
        let bytes = vec![0; to_usize(CHUNK_BYTES)];
        Arc::new(Self { bytes, fingerprint: OnceLock::new() })
    }

    fn fingerprint(&self, at: u64) -> u128 {
        *self.fingerprint.get_or_init(|| fingerprint(at, &self.bytes))
    }
}

/// The part that bytes at a place have in the fingerprint of an image: the sum, without carry, over
/// its sectors. So whoever knows what a sector was and becomes knows the fingerprint of the whole.
/// Zeroes count for nothing.
pub(super) fn fingerprint(at: u64, bytes: &[u8]) -> u128 {
    let sectors = (at..).step_by(SECTOR_BYTES).zip(bytes.chunks(SECTOR_BYTES));
    sectors.fold(0, |sum, (at, sector)| sum ^ sector_fingerprint(at, sector))
}

fn sector_fingerprint(at: u64, sector: &[u8]) -> u128 {
    const SPREAD: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
    let mut sum = 0u128;
    let mut any = 0u64;
    for word in sector.chunks_exact(8) {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        any |= word;
        sum = (sum ^ u128::from(word)).wrapping_mul(SPREAD);
        sum ^= sum >> 67;
    }
    if any == 0 {
        return 0;
    }
    let sum = (sum ^ u128::from(at) << 64).wrapping_mul(SPREAD);
    (sum ^ (sum >> 67)).wrapping_mul(SPREAD)
}

/// The chunks under a range: number, offset within, and which part of the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = to_usize(at % CHUNK_BYTES);
        let piece = (to_usize(CHUNK_BYTES) - within).min(length - done);
        let part = done..done + piece;
        done += piece;
        (piece > 0).then_some((at / CHUNK_BYTES, within, part))
    })
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a chunk is small")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_across_chunks_are_read_back_and_clones_are_apart() {
        let mut image = Image::new(4 * CHUNK_BYTES);
        let bytes: Vec<u8> = (0..=250).cycle().take(2 * to_usize(CHUNK_BYTES) + 17).collect();
        image.write(CHUNK_BYTES - 5, &bytes);
        let before = image.clone();
        image.write(CHUNK_BYTES, &[0xee]);
        let mut back = vec![1; bytes.len() + 2];
        before.read(CHUNK_BYTES - 6, &mut back);
        assert_eq!((back[0], back[bytes.len() + 1]), (0, 0));
        assert_eq!(&back[1..=bytes.len()], bytes);
        image.read(CHUNK_BYTES, &mut back[..1]);
        assert_eq!(back[0], 0xee);
    }

    #[test]
    fn equal_images_have_one_fingerprint_and_others_another() {
        let (mut a, mut b) = (Image::new(4 * CHUNK_BYTES), Image::new(4 * CHUNK_BYTES));
        a.write(CHUNK_BYTES - 1, &[1, 2]);
        assert_ne!(a.fingerprint(), b.fingerprint());
        b.write(CHUNK_BYTES, &[2, 3]);
        b.write(CHUNK_BYTES - 1, &[1, 2, 0]);
        b.write(3 * CHUNK_BYTES, &[0; 8]);
        assert_eq!(a.fingerprint(), b.fingerprint(), "zeroes are zeroes, written or not");
        let before = a.clone();
        a.write(CHUNK_BYTES + 8, &[1]);
        assert_ne!(a.fingerprint(), before.fingerprint());
        assert_eq!(before.fingerprint(), b.fingerprint(), "a clone is apart");
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn the_end_is_the_end() {
        Image::new(100).write(99, &[0; 2]);
    }
}
