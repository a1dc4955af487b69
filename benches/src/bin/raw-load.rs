//! Random reads on one device, through the queues that a node has, without node or tier: what the
//! device and its driver give. `ci/lab/instructions` counts what this executes.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use forebay_benches::raw::Load;
use nvme_tier::device::Driver;

/// Random reads on one device, through the queues that a node has, without node or tier.
#[derive(Parser, Debug)]
#[command(name = "raw-load", version)]
struct Arguments {
    /// The device: a file, /dev/nvmeXnY, /dev/ngXnY or a PCI address
    device: PathBuf,
    /// Who moves its blocks
    #[arg(long, value_enum, default_value = "auto")]
    driver: Choice,
    /// Bytes of a read
    #[arg(long, default_value_t = 4096)]
    block_bytes: usize,
    /// Reads in flight
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// How many must have ended before others are handed over
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// How long to measure, after one second more
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// The processor to run on
    #[arg(long)]
    core: Option<usize>,
    /// Fill the first 256 MiB of the device first, which destroys what is there, and compare every
    /// block that is read
    #[arg(long)]
    overwrite_and_verify: bool,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Choice {
    Auto,
    Vfio,
    Passthrough,
    #[value(name = "io_uring")]
    IoUring,
    /// A file of a tmpfs, read where it lies.
    Memory,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let load = Load {
        path: arguments.device,
        driver: match arguments.driver {
            Choice::Auto => Driver::Auto,
            Choice::Vfio => Driver::Vfio,
            Choice::Passthrough => Driver::Passthrough,
            Choice::IoUring => Driver::IoUring,
            Choice::Memory => Driver::Memory,
        },
        block_bytes: arguments.block_bytes,
        depth: arguments.depth,
        batch: arguments.batch.clamp(1, arguments.depth.max(1)),
        seconds: arguments.seconds,
        core: arguments.core,
        verified: arguments.overwrite_and_verify,
    };
    match load.run() {
        Ok(loaded) => {
            println!(
                "{:.0} reads/s, {:.3} doorbells a read",
                loaded.reads_per_second, loaded.doorbells_per_read
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}
