//! Puts a node's parts together.

use std::sync::Arc;

use dataplane::{NodeOptions, Parts, ShardParts};
use extent::{Kind, Result};
use rdma::{Fabrics, Inbox, VerbsOptions};

use super::media::{self, Opened};
use super::shm_options;
use crate::config::Settings;

/// Commands that one shard may have in flight on the tier's devices.
const SHARD_QUEUE_DEPTH: usize = 256;
const LEDGER_QUEUE_DEPTH: usize = 64;
const NANOS_PER_MICRO: u64 = 1000;

/// The parts, and where the shards take connections.
///
/// # Errors
/// What a device, a fabric or a silo says.
pub(super) fn assemble(
    settings: &Settings,
    opened: Opened,
    silos: Vec<silo::Mount>,
) -> Result<(Parts, Vec<Inbox>)> {
    let Opened { media, tier, ledger, .. } = opened;
    let mut shards = Vec::with_capacity(settings.shards);
    let mut inboxes = Vec::with_capacity(settings.shards);
    for shard in 0..settings.shards {
        let number = u16::try_from(shard).expect("settings bound the shards");
        let fabrics = Fabrics::new(number, shm_options(settings), rdma_options(settings))?;
        inboxes.push(fabrics.inbox());
        shards.push(ShardParts {
            device: media.queue(SHARD_QUEUE_DEPTH)?,
            transport: Box::new(fabrics),
        });
    }
    let parts = Parts {
        tier: Arc::clone(&tier),
        ledger,
        ledger_device: media.queue(LEDGER_QUEUE_DEPTH)?,
        shards,
        silos,
        devices: media::describe(&media),
        health: media.health(),
        options: options(settings)?,
    };
    Ok((parts, inboxes))
}

fn rdma_options(settings: &Settings) -> Option<VerbsOptions> {
    settings.rdma.as_ref().map(|rdma| rdma.options)
}

/// Opens the silos.
///
/// # Errors
/// As [`silo::open`], with the silo's name.
pub(super) fn silos(settings: &Settings) -> Result<Vec<silo::Mount>> {
    settings
        .silos
        .iter()
        .map(|(name, config)| {
            silo::open(name, config).map_err(|error| error.while_doing(format!("[silo.{name}]")))
        })
        .collect()
}

fn options(settings: &Settings) -> Result<NodeOptions> {
    let mut options = NodeOptions::default();
    let shards = u64::try_from(settings.shards).expect("settings bound the shards");
    let share = settings.buffers_bytes / shards;
    options.shard_buffer_bytes = usize::try_from(share)
        .map_err(|e| Kind::Invalid.error("[node] buffers_bytes is too large").caused_by(e))?;
    if let Some(micros) = settings.spin_us {
        options.spin_ns = Some(micros.saturating_mul(NANOS_PER_MICRO));
    }
    options.scrub_bytes_per_s = settings.tier.scrub_bytes_per_s;
    if let Some(credits) = settings.credits {
        options.credits = credits;
    }
    Ok(options)
}
