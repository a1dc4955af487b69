use extent::{Kind, Result};

use super::Pattern;

/// A file that is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenFile {
    pub(super) handle: u64,
    pub(super) length: u64,
}

/// Where an operation goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The blocks of a working set, and the order in which one thread visits them.
pub(super) struct Plan {
    files: Vec<OpenFile>,
    /// Blocks before each file.
    first_blocks: Vec<u64>,
    blocks: u64,
    block_bytes: u64,
    pattern: Pattern,
    state: u64,
    cursor: u64,
}

impl Plan {
    /// Cuts the front of the files, `working_set_bytes` in all, into blocks. A sequential thread
    /// begins at its share: `share.0` of `share.1`.
    pub(super) fn new(
        mut files: Vec<OpenFile>,
        block_bytes: u64,
        working_set_bytes: Option<u64>,
        pattern: Pattern,
        seed: u64,
        share: (u64, u64),
    ) -> Result<Self> {
        let mut left = working_set_bytes.unwrap_or(u64::MAX);
        let mut first_blocks = Vec::with_capacity(files.len());
        let mut blocks = 0;
        for file in &mut files {
            file.length = file.length.min(left);
            left -= file.length;
            first_blocks.push(blocks);
            blocks += file.length.div_ceil(block_bytes);
        }
        if blocks == 0 {
            return Err(Kind::Invalid.error("the files hold no byte to read"));
        }
        let cursor = blocks / share.1 * share.0;
        let state = mix(seed.wrapping_add(share.0));
        Ok(Self { files, first_blocks, blocks, block_bytes, pattern, state, cursor })
    }

    pub(super) fn next(&mut self) -> Place {
        let block = match self.pattern {
            Pattern::Sequential => {
                let block = self.cursor;
                self.cursor = (block + 1) % self.blocks;
                block
            }
            Pattern::Random => {
                self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                scale(mix(self.state), self.blocks)
            }
        };
        // The last file that begins at or before it; empty files begin where the next one does.
        let index = self.first_blocks.partition_point(|first| *first <= block) - 1;
        let file = self.files[index];
        let offset = (block - self.first_blocks[index]) * self.block_bytes;
        let length = self.block_bytes.min(file.length - offset);
        Place { handle: file.handle, offset, length }
    }
}

/// The blocks of one new generation, each once.
pub(super) struct Visit {
    blocks: u64,
    step: u64,
    next: u64,
    spoilt: bool,
}

impl Visit {
    pub(super) fn new(blocks: u64, pattern: Pattern, seed: u64) -> Self {
        let step = match pattern {
            Pattern::Sequential => 1,
            // A step without a common divisor comes to every block before it repeats.
            Pattern::Random => (0..)
                .map(|i| scale(mix(seed.wrapping_add(i)), blocks).max(1))
                .find(|step| greatest_common_divisor(*step, blocks) == 1)
                .expect("one is without a common divisor, and comes up"),
        };
        Self { blocks, step, next: 0, spoilt: false }
    }

    pub(super) fn next(&mut self) -> Option<u64> {
        (self.next < self.blocks && !self.spoilt).then(|| {
            let block = u128::from(self.next) * u128::from(self.step) % u128::from(self.blocks);
            self.next += 1;
            u64::try_from(block).expect("less than the number of blocks")
        })
    }

    /// A block could not be written: the rest is not worth it.
    pub(super) fn spoil(&mut self) {
        self.spoilt = true;
    }

    /// Whether all blocks were visited, and none in vain.
    pub(super) fn is_over(&self) -> bool {
        self.next == self.blocks && !self.spoilt
    }
}

/// The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
pub(super) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number below `bound`, as evenly spread as `random` is.
fn scale(random: u64, bound: u64) -> u64 {
    let scaled = (u128::from(random) * u128::from(bound)) >> 64;
    u64::try_from(scaled).expect("less than the bound")
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn files() -> Vec<OpenFile> {
        [(1, 2500), (2, 0), (3, 1000)].map(|(handle, length)| OpenFile { handle, length }).to_vec()
    }

    #[test]
    fn every_block_of_the_working_set_is_visited_and_no_other() {
        let whole = [(1, 0, 1000), (1, 1000, 1000), (1, 2000, 500), (3, 0, 1000)]
            .map(|(handle, offset, length)| Place { handle, offset, length });
        for (pattern, rounds) in [(Pattern::Sequential, 4), (Pattern::Random, 200)] {
            let mut plan = Plan::new(files(), 1000, None, pattern, 7, (0, 1)).expect("a plan");
            let seen: Vec<_> = (0..rounds).map(|_| plan.next()).collect();
            assert!(whole.iter().all(|place| seen.contains(place)), "{pattern:?}");
            assert!(seen.iter().all(|place| whole.contains(place)), "{pattern:?}");
        }
        let mut front =
            Plan::new(files(), 1000, Some(1500), Pattern::Random, 7, (0, 1)).expect("a plan");
        assert!((0..100).all(|_| {
            let place = front.next();
            place.handle == 1 && place.offset + place.length <= 1500
        }));
        assert!(Plan::new(Vec::new(), 1000, None, Pattern::Random, 7, (0, 1)).is_err());
    }

    #[test]
    fn a_generation_is_written_once() {
        for blocks in [1, 2, 6, 97, 1000] {
            let mut visit = Visit::new(blocks, Pattern::Random, 3);
            let mut seen = HashSet::new();
            while let Some(block) = visit.next() {
                assert!(block < blocks && seen.insert(block));
            }
            assert_eq!(seen.len() as u64, blocks);
            assert!(visit.is_over());
        }
    }
}
