//! Random lookups of extents, as the data path makes them.

use std::hint::black_box;
use std::time::Duration;

use extent::{Error, ExtentIndex, FileId, Kind, Result};
use nvme_tier::Tier;

use super::content::Content;
use crate::files::Random;
use crate::sys;

/// Requests that a shard takes in at a time.
pub const BATCH: usize = 32;
/// Batches between two looks at the clock, which counts the time of this thread only.
const BATCHES_A_LOOK: usize = 1024;

/// Random lookups in a tier.
pub struct Lookups {
    /// Each file with how many extents there are up to its end.
    files: Vec<(FileId, u64)>,
    random: Random,
}

impl Lookups {
    /// In a tier of this content.
    ///
    /// # Errors
    /// None for content that there can be.
    pub fn new(content: Content) -> Result<Self> {
        let (mut files, mut end) = (Vec::new(), 0);
        for (number, extents) in (0u64..).zip(content.files()) {
            end += u64::from(extents);
            files.push((Content::name(number)?.id(), end));
        }
        Ok(Self { files, random: Random::new(5) })
    }

    /// Looks up one extent after the other for a while. How many a second.
    ///
    /// # Errors
    /// [`Kind::NotResident`] if one is missing.
    pub fn one_by_one(&mut self, tier: &Tier, time: Duration) -> Result<f64> {
        self.measure(time, |batch| {
            for (id, index) in batch {
                let extent = tier.file(*id).and_then(|file| file.newest().extent(*index));
                let extent = extent.ok_or_else(missing)?;
                black_box((extent.at(), extent.checksums().and_then(|mut sums| sums.next())));
            }
            Ok(())
        })
    }

    /// The same a batch at a time.
    ///
    /// # Errors
    /// As [`Lookups::one_by_one`].
    pub fn batched(&mut self, tier: &Tier, time: Duration) -> Result<f64> {
        let mut found = Vec::with_capacity(BATCH);
        self.measure(time, |batch| {
            tier.find_all(batch, &mut found);
            for extent in found.drain(..) {
                let extent = extent.ok_or_else(missing)?;
                black_box((extent.at(), extent.checksums().and_then(|mut sums| sums.next())));
            }
            Ok(())
        })
    }

    fn measure(
        &mut self,
        time: Duration,
        mut look_up: impl FnMut(&[(FileId, ExtentIndex)]) -> Result<()>,
    ) -> Result<f64> {
        let mut wanted = vec![(FileId(0), ExtentIndex(0)); BATCH * BATCHES_A_LOOK];
        let (mut count, mut spent) = (0u64, Duration::ZERO);
        while spent < time {
            // Drawn beforehand: only lookups are timed, and what is drawn is in the cache.
            for one in &mut wanted {
                *one = self.draw();
            }
            let begin = now()?;
            wanted.chunks(BATCH).try_for_each(&mut look_up)?;
            spent += now()? - begin;
            count += wanted.len() as u64;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
        Ok(count as f64 / spent.as_secs_f64())
    }

    /// Any extent, each as likely as the others.
    fn draw(&mut self) -> (FileId, ExtentIndex) {
        let all = self.files.last().map_or(1, |(_, end)| *end);
        let drawn = self.random.below(all);
        let at = self.files.partition_point(|(_, end)| *end <= drawn);
        let begin = if at == 0 { 0 } else { self.files[at - 1].1 };
        (self.files[at].0, ExtentIndex(u32::try_from(drawn - begin).unwrap_or(u32::MAX)))
    }
}

fn now() -> Result<Duration> {
    sys::thread_time().map_err(|e| Error::io("asking for this thread's time", e))
}

fn missing() -> extent::Error {
    Kind::NotResident.error("an extent that was recovered is not in the index")
}
