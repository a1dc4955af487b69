//! A checkpoint: pseudo-random bytes from a seed, so that they need not be kept to be compared.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::time::Duration;

use client::Client;
use extent::{Error, FileName, Result};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::clock;

const SEED: u64 = 0x00f0_4eba_7c8e_c700;
const CHUNK_BYTES: usize = 4 << 20;

/// The checkpoint's bytes, chunk by chunk.
struct Chunks {
    random: SmallRng,
    left: u64,
    bytes: Vec<u8>,
}

impl Chunks {
    fn new(length: u64) -> Self {
        Self { random: SmallRng::seed_from_u64(SEED), left: length, bytes: vec![0; CHUNK_BYTES] }
    }

    fn next(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        let length = usize::try_from(self.left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        self.random.fill_bytes(&mut self.bytes);
        self.left -= length as u64;
        Some(&self.bytes[..length])
    }
}

/// Writes a checkpoint of `length` bytes and commits it. The time is that of writing and
/// committing, without making the bytes up.
///
/// # Errors
/// What the node answers.
pub(super) fn write(
    client: &Client,
    name: &FileName,
    length: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Duration> {
    let begin = clock::now();
    let writer = client.create(name, length)?;
    let mut busy = begin.elapsed();
    let mut chunks = Chunks::new(length);
    let mut offset = 0;
    while let Some(chunk) = chunks.next() {
        let begin = clock::now();
        writer.write_at(offset, chunk)?;
        busy += begin.elapsed();
        offset += chunk.len() as u64;
        progress(offset);
    }
    let begin = clock::now();
    writer.commit(length)?;
    Ok(busy + begin.elapsed())
}

/// Compares a file with the checkpoint, byte for byte. The number of chunks that differ, missing
/// and excess bytes included.
///
/// # Errors
/// If it cannot be read.
pub(super) fn compare(path: &Path, length: u64) -> Result<u64> {
    let failed = |e| Error::io(format!("reading the silo's copy at {}", path.display()), e);
    let file = File::open(path).map_err(failed)?;
    let mut file = BufReader::with_capacity(CHUNK_BYTES, file);
    let mut chunks = Chunks::new(length);
    let mut copy = Vec::with_capacity(CHUNK_BYTES);
    let mut different = 0;
    while let Some(chunk) = chunks.next() {
        copy.clear();
        file.by_ref().take(chunk.len() as u64).read_to_end(&mut copy).map_err(failed)?;
        different += u64::from(copy != chunk);
    }
    let excess = file.read(&mut [0]).map_err(failed)?;
    Ok(different + u64::from(excess != 0))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_bit_or_one_byte_is_seen() {
        let length = 5 << 20;
        let mut bytes = Vec::new();
        let mut chunks = Chunks::new(length);
        while let Some(chunk) = chunks.next() {
            bytes.extend_from_slice(chunk);
        }
        assert_eq!(bytes.len() as u64, length);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("copy");
        let differs = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            compare(&path, length).expect("readable")
        };
        assert_eq!(differs(&bytes), 0);
        assert_eq!(differs(&bytes[..bytes.len() - 1]), 1, "short");
        assert_eq!(differs(&[&bytes[..], &[0]].concat()), 1, "long");
        bytes[4_500_000] ^= 1;
        assert_eq!(differs(&bytes), 1, "one bit");
    }
}
