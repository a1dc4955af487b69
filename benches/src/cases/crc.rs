//! A checksum against the least that reading memory can cost.

use std::hint::black_box;

use dma::{HugePages, Pool, SizeClass, Target};
use extent::checksum::crc32c_blocks;
use extent::{Error, Kind, Result};

use super::{Case, Contest};
use crate::files::Random;
use crate::pairs::{Duel, Terms};
use crate::setup::Setup;
use crate::sys;
use crate::verdict::Setback;

pub(super) const CASE: Case = Case {
    terms: Terms { case: "crc", unit: "MB/s", target: 0.8 },
    needs_node: false,
    has_rival: true,
    about: "verifying 1 GiB of memory that is in no cache against summing it (stretch 0.95)",
    set_up,
};

const BYTES: usize = 1 << 30;
const BLOCK_BYTES: usize = 4096;

struct Crc {
    memory: Target,
    expected: Vec<u32>,
}

fn set_up(_: &Setup) -> Result<Contest, Setback> {
    let pool = Pool::new(&[SizeClass { bytes: BYTES, count: 1 }], HugePages::Merged)?;
    let mut buffer = pool.take(BYTES).expect("a fresh pool has its one buffer");
    let mut random = Random::new(3);
    for word in buffer.as_mut_slice().chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    let expected = crc32c_blocks(buffer.as_slice(), BLOCK_BYTES).collect();
    Ok(Contest::Duel(Box::new(Crc { memory: Target::Buffer(buffer, 0..BYTES), expected })))
}

impl Duel for Crc {
    fn ours(&mut self) -> Result<f64> {
        rate(|| match self.memory.first_mismatch(BLOCK_BYTES, self.expected.iter().copied()) {
            None => Ok(()),
            Some(block) => Err(Kind::Corrupt.error(format!("block {block} of memory changed"))),
        })
    }

    fn rival(&mut self) -> Result<f64> {
        let Target::Buffer(buffer, range) = &self.memory else {
            unreachable!("it was made of a buffer")
        };
        let bytes = &buffer.as_slice()[range.clone()];
        rate(|| {
            black_box(sum(black_box(bytes)));
            Ok(())
        })
    }

    fn rival_name(&self) -> String {
        "a sum of 64-bit words".to_owned()
    }
}

fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8);
    words.fold(0u64, |sum, word| {
        sum.wrapping_add(u64::from_le_bytes(word.try_into().expect("eight bytes")))
    })
}

/// Megabytes of all the memory per second of processor time.
#[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
fn rate(pass: impl FnOnce() -> Result<()>) -> Result<f64> {
    let doing = |e| Error::io("asking for this thread's time", e);
    let begin = sys::thread_time().map_err(doing)?;
    pass()?;
    let spent = sys::thread_time().map_err(doing)? - begin;
    Ok(BYTES as f64 / spent.as_secs_f64() / 1e6)
}
