//! `tier-scale`: what a tier of many extents costs in memory, in time to recover and in time to
//! look something up.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use extent::{Error, Result};
use forebay_benches::tier::content::{Content, EXTENT_BYTES, Sizes};
use forebay_benches::tier::image::Image;
use forebay_benches::tier::lookups::{BATCH, Lookups};
use forebay_benches::tier::start::Start;
use nvme_tier::TierOptions;

/// Measure a tier of many extents, without a node.
#[derive(Parser)]
#[command(name = "tier-scale", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make a tier on a sparse file; its metadata takes 540 bytes of disk an extent
    Make(Of),
    /// Recover it, and say how long that took and what it costs in memory
    Recover {
        #[command(flatten)]
        of: Of,
        /// Bytes that checksums may take in memory; all unless told
        #[arg(long, value_name = "BYTES", default_value_t = u64::MAX)]
        checksum_memory: u64,
        /// Print one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Look extents up at random, on one core
    Lookups {
        #[command(flatten)]
        of: Of,
        /// Seconds of each kind of lookup
        #[arg(long, value_name = "S", default_value_t = 5)]
        seconds: u64,
    },
}

#[derive(Args)]
struct Of {
    /// The tier's file
    file: PathBuf,
    /// Extents in all files together
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    extents: u64,
    /// The same number of extents in each file, instead of powers of two from 1 to 512
    #[arg(long, value_name = "N")]
    per_file: Option<u32>,
    /// Bytes of an extent: a power of two from 16384 to 262144
    #[arg(long, value_name = "BYTES", default_value_t = EXTENT_BYTES)]
    extent_bytes: u64,
}

impl Of {
    fn content(&self) -> Content {
        let sizes = self.per_file.map_or(Sizes::Mixed, Sizes::Equal);
        Content { extents: self.extents, sizes, extent_bytes: self.extent_bytes }
    }

    fn image(&self) -> Image {
        Image::known(&self.file, self.content())
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().what) {
        Ok(line) => {
            let written = writeln!(io::stdout(), "{line}");
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            // Nothing is left to do if this cannot be printed.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> Result<String> {
    match what {
        What::Make(of) => {
            let image = Image::make(&of.file, of.content())?;
            Ok(format!("{} extents in {}", image.content.extents, image.path().display()))
        }
        What::Recover { of, checksum_memory, json } => {
            let checksum_memory_bytes = checksum_memory;
            let options = TierOptions { checksum_memory_bytes, ..TierOptions::default() };
            let start = Start::measure(&of.image(), options)?;
            if json {
                return serde_json::to_string(&start)
                    .map_err(|e| Error::io("writing JSON", io::Error::other(e)));
            }
            Ok(start.to_string())
        }
        What::Lookups { of, seconds } => {
            let recovered = of.image().recover()?;
            let mut lookups = Lookups::new(of.content())?;
            let time = Duration::from_secs(seconds);
            let one = lookups.one_by_one(&recovered.tier, time)?;
            let batched = lookups.batched(&recovered.tier, time)?;
            Ok(format!("{one:.0} lookups a second one by one, {batched:.0} in batches of {BATCH}"))
        }
    }
}
