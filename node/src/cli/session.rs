//! Commands about data sessions.

use std::time::Duration;

use clap::{Args, Subcommand};
use control::Grants;
use extent::TenantName;

use crate::units;

const SESSION_EXAMPLES: &str = "\
Examples:
  FOREBAY_PROOF=$(forebay session grant) my-loader              one connection, within 30 s
  forebay session grant --tenant team-7 --connections 8 --ttl 5m
  forebay session grant --json

A proof is a secret: whoever has it may connect in its place. A restart of the node voids it.";

#[derive(Subcommand, Debug)]
#[command(after_help = SESSION_EXAMPLES)]
pub(crate) enum SessionCommand {
    /// Print a proof, which a program shows to the node when it connects over TCP or RDMA
    Grant(GrantArgs),
}

#[derive(Args, Debug)]
pub(crate) struct GrantArgs {
    /// On whose behalf: what belongs to one tenant is of no use to another's connections
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) tenant: TenantName,

    /// For how many connections, 1 to 64
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Grants::MAX_CONNECTIONS))
    )]
    pub(crate) connections: u32,

    /// How long it is good for, at most 10m; sessions that it opened outlive it
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "30s")]
    pub(crate) ttl: Duration,
}
