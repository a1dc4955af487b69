//! Random reads straight on a device, through the same queues that a node has, without node or tier.

use std::path::PathBuf;
use std::time::Duration;

use dma::{HugePages, Pool, SizeClass, Target};
use extent::{Kind, Result};
use nvme_tier::device::{
    Command, Completion, Device, DeviceIndex, Driver, Location, Media, MediaOptions, Token,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::{clock, sys};

const RAMP: Duration = Duration::from_secs(1);
/// Rounds between looks at the clock.
const ROUNDS: u32 = 64;
/// What is tried for the size of a batch.
const BATCHES: [usize; 4] = [1, 4, 8, 16];
const PROBE_SECONDS: u64 = 2;

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
}

impl Load {
    /// Reads for a while, and returns reads a second.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self) -> Result<f64> {
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
            let reads = Self { batch, seconds: PROBE_SECONDS, ..self.clone() }.run()?;
            if reads > best {
                (best, self.batch) = (reads, batch);
            }
        }
        Ok(())
    }

    fn measure(&self) -> Result<f64> {
        let options = MediaOptions { read_only: true, ..MediaOptions::default() };
        let media = Media::open_by(&[(self.path.clone(), self.driver)], options)?;
        let class = SizeClass { bytes: self.block_bytes, count: self.depth };
        let pool = Pool::new(&[class], HugePages::Try)?;
        let mut queue = media.queue(self.depth)?;
        queue.register(pool.region())?;
        let mut reads = Reads::new(queue.geometry(DeviceIndex(0)).capacity_bytes, self.block_bytes);
        for _ in 0..self.depth {
            let buffer = pool.take(self.block_bytes).expect("as many buffers as reads");
            submit(&mut *queue, reads.next(Target::Buffer(buffer, 0..self.block_bytes)))?;
        }
        let mut completions = Vec::with_capacity(self.depth);
        let batch = self.batch;
        let mut keep_up = |limit| keep_up(&mut *queue, &mut reads, &mut completions, batch, limit);
        keep_up(RAMP)?;
        let (done, elapsed) = keep_up(Duration::from_secs(self.seconds))?;
        #[expect(clippy::cast_precision_loss, reason = "a count of seconds' reads")]
        Ok(done as f64 / elapsed.as_secs_f64())
    }
}

/// Keeps the queue as full as it is: every read that ends is followed by another in its memory.
/// Allocates nothing.
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
                // In one system call: hands over what is queued, waits, and takes what has ended.
                queue.gather(batch - completions.len())?;
                queue.poll(completions);
            }
            done += completions.len() as u64;
            for completion in completions.drain(..) {
                completion.result?;
                let Command::Read { into, .. } = completion.command else {
                    return Err(Kind::Io.error("a read came back as another command"));
                };
                submit(queue, reads.next(into))?;
            }
        }
        let elapsed = start.elapsed();
        if elapsed >= limit {
            return Ok((done, elapsed));
        }
    }
}

fn submit(queue: &mut dyn Device, command: Command) -> Result<()> {
    let refused = queue.submit(Token(0), command);
    refused.map_err(|_| Kind::Busy.error("the queue is full before it is as deep as it was made"))
}

/// Where reads go.
struct Reads {
    rng: SmallRng,
    blocks: u64,
    block_bytes: u64,
}

impl Reads {
    fn new(capacity_bytes: u64, block_bytes: usize) -> Self {
        let block_bytes = block_bytes as u64;
        Self { rng: SmallRng::seed_from_u64(1), blocks: capacity_bytes / block_bytes, block_bytes }
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
        };
        match load.run() {
            Ok(reads) => assert!(reads > 0.0),
            // This kernel has no io_uring, or forbids it.
            Err(error) => assert_eq!(error.kind(), Kind::Unsupported, "{error}"),
        }
    }
}
