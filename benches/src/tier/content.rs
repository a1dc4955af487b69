//! Which files and extents a measured tier holds.

use extent::{FileName, Result};

use crate::files::Random;

/// Files that are filled at the same time, so that their extents lie between each other's.
const TOGETHER: u64 = 16;

/// What a tier holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Content {
    /// Extents in all files together.
    pub extents: u64,
    /// How they are spread over files.
    pub sizes: Sizes,
    /// Bytes of each: a power of two from 16 KiB to 256 KiB.
    pub extent_bytes: u64,
}

/// The smallest extents there are, so that ten million of them do not need a large disk.
pub const EXTENT_BYTES: u64 = 16 << 10;

/// How many extents a file has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sizes {
    /// Every power of two from 1 to 512, each as likely: 102 on average.
    Mixed,
    /// The same for all.
    Equal(u32),
}

impl Content {
    /// How many extents each file has, in the order of their numbers.
    #[must_use]
    pub fn files(&self) -> Vec<u32> {
        let mut random = Random::new(11);
        let mut files = Vec::new();
        let mut left = self.extents;
        while left != 0 {
            let wanted = match self.sizes {
                Sizes::Mixed => 1 << random.below(10),
                Sizes::Equal(count) => count.max(1),
            };
            let count = wanted.min(u32::try_from(left).unwrap_or(u32::MAX));
            files.push(count);
            left -= u64::from(count);
        }
        files
    }

    /// The name of a file.
    ///
    /// # Errors
    /// None for a number that there can be.
    pub fn name(number: u64) -> Result<FileName> {
        FileName::new("bench", format!("train/part-{:04}/{number:08}.tar", number / 1000))
    }

    /// The extents in the order in which they came to the tier: (file, index).
    pub fn arrivals(files: &[u32]) -> impl Iterator<Item = (u64, u32)> + '_ {
        let width = usize::try_from(TOGETHER).unwrap_or(1);
        (0u64..).step_by(width).zip(files.chunks(width)).flat_map(|(first, group)| {
            let longest = group.iter().copied().max().unwrap_or(0);
            (0..longest).flat_map(move |index| {
                (first..).zip(group).filter(move |(_, n)| index < **n).map(move |(f, _)| (f, index))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_extent_arrives_once() {
        for sizes in [Sizes::Mixed, Sizes::Equal(1), Sizes::Equal(7)] {
            let files = Content { extents: 5000, sizes, extent_bytes: EXTENT_BYTES }.files();
            assert_eq!(files.iter().sum::<u32>(), 5000);
            let all: HashSet<_> = Content::arrivals(&files).collect();
            assert_eq!(all.len(), 5000);
            assert!(
                all.iter()
                    .all(|(file, index)| *index < files[usize::try_from(*file).expect("small")])
            );
        }
    }
}
