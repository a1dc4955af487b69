//! The command line.

mod files;
mod local;
mod session;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
pub(crate) use files::{
    DemoteArgs, FileArgs, JobsCommand, KeepChoice, ListArgs, PinArgs, PromoteArgs, RegisterArgs,
    ReleaseArgs, ResolveArgs, ScrubArgs, Selection, SiloCommand, UnpinArgs, WritebackArgs,
};
pub(crate) use local::{
    BenchArgs, DemoArgs, DeviceBindArgs, DeviceCommand, DoctorArgs, FabricChoice, Pattern,
    ServeArgs, TierArgs, TierCommand, TierFormatArgs,
};
pub(crate) use session::{GrantArgs, SessionCommand};

use crate::output::{Colour, Output};

const EXAMPLES: &str = "\
Examples:
  forebay doctor                               what this machine offers
  forebay demo                                 the whole thing, on one machine, in a minute
  forebay serve                                a node with a file-backed tier, on loopback
  forebay serve --config forebay.toml --check  is this configuration sound?
  forebay promote data/model.safetensors       bring a file onto the node
  forebay promote --prefix data/train/ --pin job-17 --ttl 12h
  forebay demote out/checkpoint.bin            write it back, verify it, let it go";

/// A storage node for GPU racks: keeps file extents on local NVMe and serves them over shared
/// memory, TCP and RDMA, while slower silos hold the originals.
#[derive(Parser, Debug)]
#[command(
    name = "forebay",
    version,
    arg_required_else_help = true,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP),
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Global {
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,

    /// The control address of the node to talk to [env: FOREBAY_CONTROL] [default: 127.0.0.1:7441]
    #[arg(long, global = true, value_name = "ADDR", help_heading = "Global options")]
    pub(crate) control: Option<String>,

    /// Say more; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,

    /// When to use colour
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Global options"
    )]
    pub(crate) color: Colour,
}

/// `FOREBAY_CONTROL`, if it says anything.
pub(crate) fn control_of_environment() -> Option<String> {
    std::env::var("FOREBAY_CONTROL").ok().filter(|address| !address.is_empty())
}

impl Global {
    pub(crate) const fn output(&self) -> Output {
        Output::new(self.json, self.color)
    }

    /// Where the node is that is to be asked.
    pub(crate) fn control(&self) -> String {
        let told = self.control.clone().or_else(control_of_environment);
        told.unwrap_or_else(|| crate::config::DEFAULT_CONTROL.to_owned())
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a node
    Serve(ServeArgs),
    /// Format, inspect or check a tier's devices, while no node runs on them
    #[command(subcommand)]
    Tier(TierCommand),
    /// NVMe controllers: list them, give them to this node's own driver and back
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Bring files from their silos onto the node
    Promote(PromoteArgs),
    /// Write files back, verify the copies, and let the extents go
    Demote(DemoteArgs),
    /// Copy files that were written here to their silos, and verify the copies
    Writeback(WritebackArgs),
    /// Let clean extents go; the silo has them
    Release(ReleaseArgs),
    /// Settle files that were changed here and in their silos: keep one of the two
    Resolve(ResolveArgs),
    /// Protect files from eviction and release for a while
    Pin(PinArgs),
    /// End a pin
    Unpin(UnpinArgs),
    /// Make files known without reading their bytes, or refresh what is known
    Register(RegisterArgs),
    /// List files that the node knows
    Ls(ListArgs),
    /// Show what the node knows of files
    Stat(FileArgs),
    /// Long operations: list, show, watch, cancel
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// The node at a glance
    Status,
    /// Read everything on the tier, and repair what does not hold
    Scrub(ScrubArgs),
    /// Silos that the node reaches
    #[command(subcommand)]
    Silo(SiloCommand),
    /// Data sessions: proofs for programs that open them
    #[command(subcommand)]
    Session(SessionCommand),
    /// Put load on a running node and measure it
    Bench(BenchArgs),
    /// What this machine offers, and what to do about what is missing
    Doctor(DoctorArgs),
    /// Show the whole life of files on this machine: promote, read, write, demote, restart
    Demo(DemoArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_and_prefix_exclude_each_other() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["forebay"], args].concat());
        parse(&["promote", "data/a", "data/b"]).expect("names");
        parse(&["promote", "--prefix", "data/x"]).expect("a prefix");
        parse(&["promote", "data/a", "--range", "0..4MiB"]).expect("a range");
        parse(&["promote"]).expect_err("neither");
        parse(&["promote", "data/a", "--prefix", "data/x"]).expect_err("both");
        parse(&["promote", "no-slash"]).expect_err("not a name");
        parse(&["promote", "data/a", "--ttl", "1h"]).expect_err("a time to live of no pin");
        parse(&["pin", "data/a"]).expect_err("no owner");
    }
}
