//! A shard's thread: it works while there is work, and then spins for as long as that pays.

use std::time::Duration;

use super::Shard;
use crate::clock::monotonic_ns;

/// Falling asleep and waking up costs about as much as spinning for so long.
const LONGEST_SPIN_NS: u64 = 20_000;
/// A longer pause says no more than this one does.
const LONGEST_PAUSE_NS: u64 = 1_000_000;
/// How long a shard sleeps at most while requests wait for buffers or queue places.
const STALLED_SLEEP: Duration = Duration::from_millis(1);

/// Runs a shard until it is told to stop and has finished. It spins `spin_ns` before it sleeps, or
/// for as long as its own recent pauses suggest.
pub(crate) fn run(mut shard: Shard, spin_ns: Option<u64>) {
    let mut patience = Patience { fixed_ns: spin_ns, expected_ns: 0 };
    let mut idle_since = None;
    while !shard.has_stopped() {
        let now = monotonic_ns();
        if shard.step(now) {
            if let Some(since) = idle_since.take() {
                patience.learn(now - since);
            }
            continue;
        }
        if now - *idle_since.get_or_insert(now) < patience.spin_ns() {
            std::hint::spin_loop();
        } else {
            shard.sleep();
        }
    }
}

/// How long to spin: not at all where the next work is not expected soon enough, else until it is
/// well overdue. Pauses include the time that waking up took, so where that is slow, sleeping
/// is not given up for a spin that would have been short.
struct Patience {
    fixed_ns: Option<u64>,
    /// The length of recent pauses, decaying by an eighth with each.
    expected_ns: u64,
}

impl Patience {
    fn spin_ns(&self) -> u64 {
        match self.fixed_ns {
            Some(fixed_ns) => fixed_ns,
            None if self.expected_ns > LONGEST_SPIN_NS => 0,
            None => (self.expected_ns * 2).clamp(1_000, LONGEST_SPIN_NS),
        }
    }

    fn learn(&mut self, pause_ns: u64) {
        self.expected_ns = (self.expected_ns * 7 + pause_ns.min(LONGEST_PAUSE_NS)) / 8;
    }
}

impl Shard {
    /// Sleeps until the device, the fabric or the inbox has something.
    fn sleep(&mut self) {
        if !self.inbox.fall_asleep() {
            return;
        }
        let mut rung = false;
        if self.transport.arm() {
            let waits = !self.stalled.is_empty() || !self.deferred.is_empty();
            let limit = waits.then_some(STALLED_SLEEP);
            let bell = self.inbox.bell().descriptor();
            let slept = match self.transport.readiness() {
                Some(fabric) => self.device.sleep(&[bell, fabric], limit),
                None => self.device.sleep(&[bell], limit),
            };
            rung = slept.unwrap_or_else(|error| {
                tracing::error!(%error, "a device queue is broken");
                true
            });
        }
        self.transport.disarm(rung);
        self.inbox.bell().wake_up(rung);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spins_only_where_work_comes_soon() {
        let mut patience = Patience { fixed_ns: None, expected_ns: 0 };
        assert_eq!(patience.spin_ns(), 1_000);
        for _ in 0..50 {
            patience.learn(5_000);
        }
        assert!((9_000..=10_000).contains(&patience.spin_ns()));
        patience.learn(u64::MAX);
        assert_eq!(patience.spin_ns(), 0, "one long pause ends it");
        for _ in 0..50 {
            patience.learn(5_000);
        }
        assert!(patience.spin_ns() > 0, "short ones bring it back");
        patience.fixed_ns = Some(7);
        assert_eq!(patience.spin_ns(), 7);
    }
}
