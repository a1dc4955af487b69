//! Random reads straight on a device, through the same queues that a node has, without node or tier.

use std::path::PathBuf;
use std::time::Duration;

use dma::{HugePages, Pool, SizeClass, Source, Target};
use extent::{Kind, Result};
use nvme_tier::device::{
    Command, Completion, Device, DeviceIndex, Driver, Location, Media, MediaOptions, Token,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::{clock, marks, sys};

const RAMP: Duration = Duration::from_secs(1);
/// Rounds between looks at the clock.
const ROUNDS: u32 = 64;
/// What is tried for the size of a batch.
const BATCHES: [usize; 4] = [1, 4, 8, 16];
const PROBE_SECONDS: u64 = 2;
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

/// What a load did.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// Reads a second.
    pub reads_per_second: f64,
    /// Submission doorbells a read, of a device that is driven from here.
    pub doorbells_per_read: f64,
}

impl Load {
    /// Reads for a while.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self) -> Result<Loaded> {
        // A thread of its own, so that only it stays on that processor.
        std::thread::scope(|scope| {
            let measured = scope.spawn(|| {
                if let Some(core) = self.core {
                    sys::pin_to(core)?;
                }
                self.measure()
            });
            measured.join().unwrap_or_else(|_| Err(Kind::Io.error("the load's thread panicked")))
        })
    }

    /// Tries sizes of a batch, and keeps what was fastest.
    ///
    /// # Errors
    /// What the device says.
    pub fn tune(&mut self) -> Result<()> {
        let mut best = 0.0;
        for batch in BATCHES.into_iter().filter(|batch| *batch <= self.depth) {
            let probe = Self { batch, seconds: PROBE_SECONDS, ..self.clone() };
            let reads = probe.run()?.reads_per_second;
            if reads > best {
                (best, self.batch) = (reads, batch);
            }
        }
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
        for _ in 0..self.depth {
            let buffer = pool.take(self.block_bytes).expect("as many buffers as reads");
            submit(&mut *queue, reads.next(Target::Buffer(buffer, 0..self.block_bytes)))?;
        }
        let mut completions = Vec::with_capacity(self.depth);
        let batch = self.batch;
        keep_up(&mut *queue, &mut reads, &mut completions, batch, RAMP)?;
        let before = queue.handed_over();
        let limit = Duration::from_secs(self.seconds);
        let (done, elapsed) = keep_up(&mut *queue, &mut reads, &mut completions, batch, limit)?;
        let after = queue.handed_over();
        #[expect(clippy::cast_precision_loss, reason = "counts of seconds' reads")]
        Ok(Loaded {
            reads_per_second: done as f64 / elapsed.as_secs_f64(),
            doorbells_per_read: (after.doorbells - before.doorbells) as f64 / done.max(1) as f64,
        })
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
            submit(queue, Command::Write { at, from })?;
            begun += 1;
        }
        queue.gather(1)?;
        queue.poll(&mut completions);
        done += completions.len() as u64;
        for completion in completions.drain(..) {
            completion.result?;
        }
    }
    submit(queue, Command::Flush(DeviceIndex(0)))?;
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

/// Keeps the queue as full as it is: every read that ends is followed by another in its memory.
/// Allocates nothing. What the queue does is marked for whoever counts instructions.
fn keep_up(
    queue: &mut dyn Device,
    reads: &mut Reads,
    completions: &mut Vec<Completion>,
    batch: usize,
    limit: Duration,
) -> Result<(u64, Duration)> {
    let start = clock::now();
    let mut done = 0;
    loop {
        for _ in 0..ROUNDS {
            while completions.len() < batch {
                let before = completions.len();
                marks::begin();
                // In one system call: hands over what is queued, waits, and takes what has ended.
                let gathered = queue.gather(batch - before);
                queue.poll(completions);
                marks::end(completions.len() > before);
                gathered?;
            }
            done += completions.len() as u64;
            for completion in completions.drain(..) {
                let command = reads.after(completion)?;
                marks::begin();
                let submitted = submit(queue, command);
                marks::end_of_submission();
                submitted?;
            }
        }
        let elapsed = start.elapsed();
        if elapsed >= limit {
            return Ok((done, elapsed));
        }
    }
}

#[inline(always)]
fn submit(queue: &mut dyn Device, command: Command) -> Result<()> {
    let refused = queue.submit(Token(0), command);
    refused.map_err(|_| Kind::Busy.error("the queue is full before it is as deep as it was made"))
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

    /// The read that follows one that has ended, in its memory.
    fn after(&mut self, completion: Completion) -> Result<Command> {
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

    fn next(&mut self, into: Target) -> Command {
        let offset = self.rng.random_range(0..self.blocks) * self.block_bytes;
        Command::Read { at: Location { device: DeviceIndex(0), offset }, into }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("file");
        nvme_tier::device::allocate_file(&path, 16 << 20, &mut |_, _| {}).expect("room");
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
