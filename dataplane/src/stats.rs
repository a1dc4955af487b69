//! Counters, one set a shard, each written by one thread and read by any.

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// A number that one thread raises.
#[derive(Default, Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one shard has done since start.
pub(crate) struct ShardStats {
    pub(crate) reads: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) writes: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) commits: Counter,
    pub(crate) checksum_errors: Counter,
    /// Pieces read whose checksums were in memory, and whose were not.
    pub(crate) checksum_hits: Counter,
    pub(crate) checksum_misses: Counter,
    pub(crate) repairs: Counter,
    /// Reads of devices that took a second copy.
    pub(crate) second_copy_reads: Counter,
    pub(crate) errors: Counter,
    /// Sessions by fabric: shared memory, TCP, verbs, simulated. Gauges.
    pub(crate) sessions: [AtomicU64; 4],
    /// Nanoseconds from a READ's arrival to its reply.
    pub(crate) read_ns: Mutex<Histogram<u64>>,
}

impl Default for ShardStats {
    fn default() -> Self {
        let read_ns = Histogram::new_with_bounds(100, 60_000_000_000, 2).expect("sound bounds");
        Self {
            reads: Counter::default(),
            read_bytes: Counter::default(),
            hits: Counter::default(),
            misses: Counter::default(),
            writes: Counter::default(),
            written_bytes: Counter::default(),
            commits: Counter::default(),
            checksum_errors: Counter::default(),
            checksum_hits: Counter::default(),
            checksum_misses: Counter::default(),
            repairs: Counter::default(),
            second_copy_reads: Counter::default(),
            errors: Counter::default(),
            sessions: Default::default(),
            read_ns: Mutex::new(read_ns),
        }
    }
}

/// What the mover has done since start.
#[derive(Default)]
pub(crate) struct MoverStats {
    pub(crate) fetched_extents: Counter,
    pub(crate) scrubbed_extents: Counter,
    pub(crate) scrubbed_bytes: Counter,
    pub(crate) scrub_damaged: Counter,
    pub(crate) scrub_unreadable: Counter,
    pub(crate) scrub_repaired: Counter,
    pub(crate) scrub_quarantined: Counter,
    pub(crate) scrub_metadata_damaged: Counter,
}
