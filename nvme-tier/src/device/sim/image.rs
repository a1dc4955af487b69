//! The contents of one simulated device.

use std::collections::BTreeMap;
use std::sync::Arc;

const CHUNK_BYTES: u64 = 64 << 10;

/// A device's bytes. What was never written is zero and takes no memory; a clone shares what
/// neither side has changed since.
#[derive(Clone, Debug)]
pub struct Image {
    length: u64,
    chunks: BTreeMap<u64, Arc<Vec<u8>>>,
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
                Some(bytes) => piece.copy_from_slice(&bytes[within..within + piece.len()]),
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
            let empty = || Arc::new(vec![0; to_usize(CHUNK_BYTES)]);
            let chunk = Arc::make_mut(self.chunks.entry(chunk).or_insert_with(empty));
            chunk[within..within + part.len()].copy_from_slice(&bytes[part]);
        }
    }

    fn assert_inside(&self, offset: u64, length: usize) {
        let end = offset.checked_add(length as u64);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{length} bytes at {offset} are outside"
        );
    }
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
        let bytes: Vec<u8> = (0..=250).cycle().take(2 * 65536 + 17).collect();
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
    #[should_panic(expected = "outside")]
    fn the_end_is_the_end() {
        Image::new(100).write(99, &[0; 2]);
    }
}
