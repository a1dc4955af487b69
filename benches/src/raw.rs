//! Random reads straight on a device, through the same queues that a node has, without node or tier.

use std::path::PathBuf;

use dma::{HugePages, Pool, SizeClass, Source, Target};
use extent::{Kind, Result};
use nvme_tier::device::{
    Command, Completion, Device, DeviceIndex, Driver, Location, Media, MediaOptions, Token,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::stream::{Loaded, Stream, best_batch, on_core, run, submit};

/// Bytes that are filled where what comes back is compared.
const MOST_FILLED: u64 = 256 << 20;

/// A load on one device.
#[derive(Clone, Debug)]
pub struct Load {
    /// The device, by any name that a tier takes.
    pub path: PathBuf,
    /// Who moves its blocks.
    pub driver: Driver,
    /// Bytes of a read.
    pub block_bytes: usize,
    /// Reads in flight.
    pub depth: usize,
    /// How many must have ended before others are handed over, in one system call or doorbell.
    pub batch: usize,
    /// Seconds to measure, after one more.
    pub seconds: u64,
    /// The processor to run on.
    pub core: Option<usize>,
    /// Whether the device is filled first, and every block that comes back is compared.
    pub verified: bool,
}

impl Load {
    /// Reads for a while.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self) -> Result<Loaded> {
        on_core(self.core, || self.measure())
    }

    /// Tries sizes of a batch, and keeps what was fastest.
    ///
    /// # Errors
    /// What the device says.
    pub fn tune(&mut self) -> Result<()> {
        self.batch = best_batch(self.depth, |batch, seconds| {
            Ok(Self { batch, seconds, ..self.clone() }.run()?.reads_per_second)
        })?;
        Ok(())
    }

    fn measure(&self) -> Result<Loaded> {
        let options = MediaOptions { read_only: !self.verified, ..MediaOptions::default() };
        let media = Media::open_by(&[(self.path.clone(), self.driver)], options)?;
        let class = SizeClass { bytes: self.block_bytes, count: self.depth };
        let pool = Pool::new(&[class], HugePages::Try)?;
        let mut queue = media.queue(self.depth)?;
        queue.register(pool.region())?;
        let capacity_bytes = queue.geometry(DeviceIndex(0)).capacity_bytes;
        let bytes = if self.verified {
            fill(&mut *queue, &pool, self.block_bytes, capacity_bytes.min(MOST_FILLED))?
        } else {
            capacity_bytes
        };
        let mut reads = Reads::new(bytes, self.block_bytes, self.verified);
        let targets: Vec<_> = (0..self.depth)
            .map(|_| pool.take(self.block_bytes).expect("as many buffers as reads"))
            .map(|buffer| Target::Buffer(buffer, 0..self.block_bytes))
            .collect();
        run(&mut *queue, &mut reads, targets, self.batch, self.seconds)
    }
}

/// Writes its stamp to every block of the first so many bytes, and flushes.
fn fill(queue: &mut dyn Device, pool: &Pool, block_bytes: usize, bytes: u64) -> Result<u64> {
    let blocks = bytes / block_bytes as u64;
    let mut completions = Vec::new();
    let (mut begun, mut done) = (0, 0);
    while done < blocks {
        while begun < blocks
            && let Some(mut buffer) = pool.take(block_bytes)
        {
            let offset = begun * block_bytes as u64;
            stamp(&mut buffer.as_mut_slice()[..block_bytes], offset);
            let at = Location { device: DeviceIndex(0), offset };
            let from = Source::Buffer(buffer, 0..block_bytes);
            submit(queue, (Token(0), Command::Write { at, from }))?;
            begun += 1;
        }
        queue.gather(1)?;
        queue.poll(&mut completions);
        done += completions.len() as u64;
        for completion in completions.drain(..) {
            completion.result?;
        }
    }
    submit(queue, (Token(0), Command::Flush(DeviceIndex(0))))?;
    while completions.is_empty() {
        queue.gather(1)?;
        queue.poll(&mut completions);
    }
    completions.remove(0).result?;
    Ok(blocks * block_bytes as u64)
}

/// What a block at an offset holds: numbers, from the offset on.
fn stamp(block: &mut [u8], offset: u64) {
    for (word, number) in block.chunks_exact_mut(8).zip(offset..) {
        word.copy_from_slice(&number.to_le_bytes());
    }
}

/// Whether a block is the one that was written at an offset, every byte of it.
fn is_stamped(block: &[u8], offset: u64) -> bool {
    let wrong = |(word, number): (&[u8], u64)| {
        u64::from_le_bytes(word.try_into().expect("eight bytes")) ^ number
    };
    block.chunks_exact(8).zip(offset..).map(wrong).fold(0, |all, bits| all | bits) == 0
}

/// Where reads go.
struct Reads {
    rng: SmallRng,
    blocks: u64,
    block_bytes: u64,
    verified: bool,
}

impl Reads {
    fn new(bytes: u64, block_bytes: usize, verified: bool) -> Self {
        let block_bytes = block_bytes as u64;
        let rng = SmallRng::seed_from_u64(1);
        Self { rng, blocks: bytes / block_bytes, block_bytes, verified }
    }

    fn next(&mut self, into: Target) -> (Token, Command) {
        let offset = self.rng.random_range(0..self.blocks) * self.block_bytes;
        (Token(0), Command::Read { at: Location { device: DeviceIndex(0), offset }, into })
    }
}

impl Stream for Reads {
    fn first(&mut self, _: usize, into: Target) -> Result<(Token, Command)> {
        Ok(self.next(into))
    }

    fn after(&mut self, completion: Completion) -> Result<(Token, Command)> {
        completion.result?;
        let Command::Read { at, into } = completion.command else {
            return Err(Kind::Io.error("a read came back as another command"));
        };
        if self.verified
            && let Target::Buffer(buffer, range) = &into
            && !is_stamped(&buffer.as_slice()[range.clone()], at.offset)
        {
            return Err(Kind::Corrupt.error(format!("the block at {} is another", at.offset)));
        }
        Ok(self.next(into))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("file");
        nvme_tier::device::allocate_file(&path, 16 << 20, Driver::Auto, &mut |_, _| {})
            .expect("room");
        let load = Load {
            path,
            driver: Driver::Auto,
            block_bytes: 4096,
            depth: 8,
            batch: 4,
            seconds: 1,
            core: None,
            verified: true,
        };
        match load.run() {
            Ok(loaded) => assert!(loaded.reads_per_second > 0.0),
            // This kernel has no io_uring, or forbids it.
            Err(error) => assert_eq!(error.kind(), Kind::Unsupported, "{error}"),
        }
    }
}
