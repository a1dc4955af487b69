//! Keeping reads in flight on one queue, whatever they are for.

use std::time::Duration;

use dma::Target;
use extent::{Kind, Result};
use nvme_tier::device::{Command, Completion, Device, Token};

use crate::{clock, marks, sys};

const RAMP: Duration = Duration::from_secs(1);
/// Rounds between looks at the clock.
const ROUNDS: u32 = 64;
/// What is tried for the size of a batch.
const BATCHES: [usize; 4] = [1, 4, 8, 16];
const PROBE_SECONDS: u64 = 2;

/// What a load did.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// Reads a second.
    pub reads_per_second: f64,
    /// Submission doorbells a read, of a device that is driven from here.
    pub doorbells_per_read: f64,
}

/// What a load reads.
pub(crate) trait Stream {
    /// The first read into some memory; `number` tells it from the others.
    ///
    /// # Errors
    /// If there is nothing to read.
    fn first(&mut self, number: usize, into: Target) -> Result<(Token, Command)>;

    /// The read that follows one that has ended, in its memory.
    ///
    /// # Errors
    /// What was wrong with that one.
    fn after(&mut self, completion: Completion) -> Result<(Token, Command)>;
}

/// Keeps a read in flight in each of some targets: a second to get going, then as long as is said.
///
/// # Errors
/// What the device says, or the stream.
pub(crate) fn run<S: Stream>(
    queue: &mut dyn Device,
    reads: &mut S,
    targets: Vec<Target>,
    batch: usize,
    seconds: u64,
) -> Result<Loaded> {
    let mut completions = Vec::with_capacity(targets.len());
    for (number, target) in targets.into_iter().enumerate() {
        submit(queue, reads.first(number, target)?)?;
    }
    keep_up(queue, reads, &mut completions, batch, RAMP)?;
    let before = queue.handed_over();
    let limit = Duration::from_secs(seconds);
    let (done, elapsed) = keep_up(queue, reads, &mut completions, batch, limit)?;
    let after = queue.handed_over();
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds' reads")]
    Ok(Loaded {
        reads_per_second: done as f64 / elapsed.as_secs_f64(),
        doorbells_per_read: (after.doorbells - before.doorbells) as f64 / done.max(1) as f64,
    })
}

/// Keeps the queue as full as it is: every read that ends is followed by another in its memory.
/// Allocates nothing. What the queue does is marked for whoever counts instructions.
fn keep_up<S: Stream>(
    queue: &mut dyn Device,
    reads: &mut S,
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

/// Queues a command.
///
/// # Errors
/// If the queue is full.
#[inline(always)]
pub(crate) fn submit(queue: &mut dyn Device, (token, command): (Token, Command)) -> Result<()> {
    let refused = queue.submit(token, command);
    refused.map_err(|_| Kind::Busy.error("the queue is full before it is as deep as it was made"))
}

/// Measures on a thread of its own, so that only it stays on that processor.
///
/// # Errors
/// The measurement's.
pub(crate) fn on_core<T: Send>(
    core: Option<usize>,
    measure: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            if let Some(core) = core {
                sys::pin_to(core)?;
            }
            measure()
        });
        measured.join().unwrap_or_else(|_| Err(Kind::Io.error("the load's thread panicked")))
    })
}

/// Tries sizes of a batch, each for some seconds, and returns that of the highest rate.
///
/// # Errors
/// The first measurement's that fails.
pub(crate) fn best_batch(
    depth: usize,
    mut rate: impl FnMut(usize, u64) -> Result<f64>,
) -> Result<usize> {
    let mut best = (1, 0.0);
    for batch in BATCHES.into_iter().filter(|batch| *batch <= depth) {
        let reads = rate(batch, PROBE_SECONDS)?;
        if reads > best.1 {
            best = (batch, reads);
        }
    }
    Ok(best.0)
}
