//! Commands about files, jobs and silos: what the control plane does.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use extent::{ByteRange, FileName};

use crate::units::{self, Bytes};

/// Which files.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Selection {
    /// Files, as silo/key
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<FileName>,

    /// All files whose silo/key begins with this
    #[arg(long, value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
}

/// Whether to wait for the work to be done.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// Print the job's id and return at once
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Args, Debug)]
pub(crate) struct FileArgs {
    #[command(flatten)]
    pub(crate) files: Selection,
}

#[derive(Args, Debug)]
pub(crate) struct RegisterArgs {
    /// Files, as silo/key
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<FileName>,
}

#[derive(Args, Debug)]
pub(crate) struct WritebackArgs {
    #[command(flatten)]
    pub(crate) files: Selection,

    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

const PROMOTE_EXAMPLES: &str = "\
Examples:
  forebay promote data/model.safetensors
  forebay promote --prefix data/train/ --pin job-17 --ttl 12h
  forebay promote data/big.bin --range 0..1GiB --detach";

#[derive(Args, Debug)]
#[command(after_help = PROMOTE_EXAMPLES)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    pub(crate) files: Selection,

    /// Only the extents that these bytes touch, such as 0..64MiB
    #[arg(long, value_name = "A..B", value_parser = units::range)]
    pub(crate) range: Option<ByteRange>,

    /// Pin the files for this owner
    #[arg(long, value_name = "OWNER", requires = "ttl")]
    pub(crate) pin: Option<String>,

    /// How long the pin lasts
    #[arg(long, value_name = "TIME", value_parser = units::duration, requires = "pin")]
    pub(crate) ttl: Option<Duration>,

    /// Done only when the extents would survive a power cut
    #[arg(long)]
    pub(crate) durable: bool,

    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Args, Debug)]
pub(crate) struct DemoteArgs {
    #[command(flatten)]
    pub(crate) files: Selection,

    /// Let go only of the extents that these bytes touch; all of a dirty file is written back
    #[arg(long, value_name = "A..B", value_parser = units::range)]
    pub(crate) range: Option<ByteRange>,

    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Args, Debug)]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    pub(crate) files: Selection,

    /// Only the extents that these bytes touch
    #[arg(long, value_name = "A..B", value_parser = units::range)]
    pub(crate) range: Option<ByteRange>,
}

const RESOLVE_EXAMPLES: &str = "\
Examples:
  forebay stat data/model.safetensors                    # residency: conflict
  forebay resolve data/model.safetensors --keep node     # what was written here; then write it back
  forebay resolve data/model.safetensors --keep silo     # what the silo holds; what was written here is gone";

#[derive(Args, Debug)]
#[command(after_help = RESOLVE_EXAMPLES)]
pub(crate) struct ResolveArgs {
    /// Files, as silo/key
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<FileName>,

    /// Which of the two goes on; the other one is gone, at once or when the node's is written back
    #[arg(long, value_name = "WHICH")]
    pub(crate) keep: KeepChoice,
}

/// See [`ResolveArgs`].
#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum KeepChoice {
    /// What was written here: it replaces what the silo holds when it is written back
    Node,
    /// What the silo holds: what was written here is given up
    Silo,
}

#[derive(Args, Debug)]
pub(crate) struct PinArgs {
    #[command(flatten)]
    pub(crate) files: Selection,

    /// Who pins: a job, a user; a second pin of the same owner replaces the first
    #[arg(long)]
    pub(crate) owner: String,

    /// How long the pin lasts
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "12h")]
    pub(crate) ttl: Duration,
}

#[derive(Args, Debug)]
pub(crate) struct UnpinArgs {
    #[command(flatten)]
    pub(crate) files: Selection,

    /// Whose pin
    #[arg(long)]
    pub(crate) owner: String,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Only files whose silo/key begins with this
    pub(crate) prefix: Option<String>,

    /// The most to show
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) limit: usize,
}

#[derive(Args, Debug)]
pub(crate) struct ScrubArgs {
    /// The most to read in a second, such as 200MiB; else what the node is set to
    #[arg(long, value_name = "BYTES", conflicts_with = "stop")]
    pub(crate) rate: Option<Bytes>,

    /// Stop the scrub that is waiting or running
    #[arg(long)]
    pub(crate) stop: bool,

    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Subcommand, Debug)]
pub(crate) enum JobsCommand {
    /// List jobs, newest first
    List,
    /// Show one job
    Show {
        /// Its id
        job: String,
    },
    /// Follow one job until it ends
    Watch {
        /// Its id
        job: String,
    },
    /// Stop a job; what it has brought stays
    Cancel {
        /// Its id
        job: String,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum SiloCommand {
    /// List silos and what they can do
    List,
    /// Ask a silo for one name, to see whether it answers
    Probe {
        /// The silo's name
        silo: String,
    },
}
