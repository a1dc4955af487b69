use extent::Result;

use super::super::adapter::Limits;

/// What a simulated network and its devices are like. Chances are from 0 to 1, of each that there is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SimVerbsOptions {
    /// The most looks at completion queues that anything takes.
    pub delay: u64,
    /// Devices of each node, over which its clients come.
    pub devices: u8,
    /// Tenants, as one of whom each client comes.
    pub tenants: u8,
    /// The most looks that it takes to register a node's memory for one of them.
    pub registering: u64,
    /// Entries that a device's completion queues have at most.
    pub completions: u32,
    /// Receives that a device's shared receive queues have at most.
    pub shared_receives: u32,
    /// Whether a device leaves the completions of a queue pair that is destroyed; else it drops them,
    /// and with them the receives that they used.
    pub keeps_completions: bool,
    /// Whether devices register memory of other devices.
    pub takes_dma_buf: bool,
    /// Messages that never arrive, or are never acknowledged.
    pub lost: f64,
    /// Work requests and receives that fail in any other way.
    pub failed: f64,
    /// Completions of work requests that come twice.
    pub told_twice: f64,
    /// Calls that refuse work requests.
    pub refused: f64,
    /// Clients that are turned away.
    pub rejected: f64,
    /// Connections of which the node is never told that they stand.
    pub unestablished: f64,
    /// Ends of connections that are told of long after.
    pub late: f64,
}

impl Default for SimVerbsOptions {
    /// Nothing goes wrong.
    fn default() -> Self {
        Self {
            delay: 8,
            devices: 1,
            tenants: 1,
            registering: 64,
            completions: 1 << 16,
            shared_receives: 1 << 12,
            keeps_completions: true,
            takes_dma_buf: true,
            lost: 0.0,
            failed: 0.0,
            told_twice: 0.0,
            refused: 0.0,
            rejected: 0.0,
            unestablished: 0.0,
            late: 0.0,
        }
    }
}

impl SimVerbsOptions {
    pub(super) fn limits(&self) -> Result<Limits> {
        Ok(Limits {
            queue_depth: 1 << 10,
            completions: self.completions,
            shared_receives: self.shared_receives,
            reads_out: 16,
            reads_in: 16,
        })
    }

    /// Everything goes wrong now and then, on devices with short queues.
    #[must_use]
    pub fn rough(keeps_completions: bool) -> Self {
        Self {
            devices: 2,
            tenants: 3,
            completions: 1 << 10,
            shared_receives: 1 << 7,
            keeps_completions,
            lost: 0.004,
            failed: 0.004,
            told_twice: 0.05,
            refused: 0.0005,
            rejected: 0.1,
            unestablished: 0.1,
            late: 0.3,
            ..Self::default()
        }
    }
}
