//! Random 4 KiB reads straight on a tier's file or block device, without the tier: what one queue
//! gives on this machine. It shows the whole life of a queue, and compares with
//! `fio --ioengine=io_uring --direct=1 --registerfiles --fixedbufs --rw=randread --bs=4k`.
//!
//! ```text
//! cargo run --release -p forebay-nvme-tier --example rawdev -- FILE [DEPTH [SECONDS [BATCH]]]
//! ```
//! A file that does not exist is created with 1 GiB, and kept. Nothing is ever written to one
//! that does.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a tool that prints times")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dma::{HugePages, Pool, SizeClass, Target};
use extent::{Kind, Result};
use forebay_nvme_tier::device::{
    self, Command, DeviceIndex, Driver, Location, Media, MediaOptions, Token,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const BLOCK_BYTES: usize = 4096;
const NEW_FILE_BYTES: u64 = 1 << 30;

struct Arguments {
    path: PathBuf,
    /// Reads in flight.
    depth: usize,
    seconds: u64,
    /// Completions to gather before new reads are handed over, in one system call.
    batch: usize,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    if !arguments.path.exists() {
        let mut shown = 0;
        device::allocate_file(&arguments.path, NEW_FILE_BYTES, Driver::Auto, &mut |done, all| {
            if done * 10 / all > shown {
                shown = done * 10 / all;
                println!("allocating: {shown}0 %");
            }
        })?;
    }
    let options = MediaOptions { read_only: true, ..MediaOptions::default() };
    let media = Media::open(std::slice::from_ref(&arguments.path), options)?;
    println!("{:?}, direct: {}", media.geometry(DeviceIndex(0)), media.is_direct(DeviceIndex(0)));
    measure(&media, &arguments)
}

fn arguments() -> Result<Arguments> {
    let mut words = std::env::args().skip(1);
    let usage = || Kind::Invalid.error("usage: rawdev FILE [DEPTH [SECONDS [BATCH]]]");
    let path = words.next().ok_or_else(usage)?.into();
    let mut number = |default| match words.next() {
        None => Ok(default),
        Some(word) => word.parse().map_err(|_| usage()),
    };
    let (depth, seconds, batch) = (number(32)?, number(5)?, number(8)?);
    if depth == 0 || seconds == 0 || batch == 0 || batch > depth {
        return Err(Kind::Invalid.error("from one second, and 1 <= BATCH <= DEPTH, please"));
    }
    let too_large = |_| Kind::Invalid.error("that is too large");
    Ok(Arguments {
        path,
        depth: usize::try_from(depth).map_err(too_large)?,
        seconds,
        batch: usize::try_from(batch).map_err(too_large)?,
    })
}

fn measure(media: &Media, arguments: &Arguments) -> Result<()> {
    let class = SizeClass { bytes: BLOCK_BYTES, count: arguments.depth };
    let pool = Pool::new(&[class], HugePages::Try)?;
    let mut queue = media.queue(arguments.depth)?;
    queue.register(pool.region())?;
    let blocks = media.geometry(DeviceIndex(0)).capacity_bytes / BLOCK_BYTES as u64;
    let mut rng = SmallRng::seed_from_u64(1);
    let mut read = |buffer| {
        let offset = rng.random_range(0..blocks) * BLOCK_BYTES as u64;
        let at = Location { device: DeviceIndex(0), offset };
        Command::Read { at, into: Target::Buffer(buffer, 0..BLOCK_BYTES) }
    };
    for _ in 0..arguments.depth {
        let buffer = pool.take(BLOCK_BYTES).expect("as many buffers as reads");
        let refused = queue.submit(Token(0), read(buffer));
        refused.expect("a new queue takes as many as it is deep");
    }
    let mut completions = Vec::with_capacity(arguments.depth);
    let limit = Duration::from_secs(arguments.seconds);
    let (start, mut reads, mut sleeps) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < limit {
        queue.kick()?;
        while completions.len() < arguments.batch {
            let before = completions.len();
            queue.poll(&mut completions);
            if completions.len() == before {
                sleeps += 1;
                queue.sleep(&[], Some(limit))?;
            }
        }
        for completion in completions.drain(..) {
            completion.result?;
            reads += 1;
            let Command::Read { into, .. } = completion.command else { continue };
            let buffer = into.into_buffer().expect("it was a buffer");
            let refused = queue.submit(Token(reads), read(buffer));
            refused.expect("one has just completed");
        }
    }
    let elapsed = start.elapsed().as_micros();
    let per_second = u128::from(reads) * 1_000_000 / elapsed;
    println!("{per_second} reads/s at depth {}, {sleeps} sleeps", arguments.depth);
    Ok(())
}
