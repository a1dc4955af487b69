//! A shard's thread: spin while there is work, sleep when there has been none for a while.

use rustix::event::{PollFd, PollFlags, poll};

use super::Shard;
use crate::clock::monotonic_ns;

/// Runs a shard until it is told to stop and has finished.
pub(crate) fn run(mut shard: Shard, spin_ns: u64) {
    let mut busy_at = monotonic_ns();
    while !shard.has_stopped() {
        let now = monotonic_ns();
        if shard.step(now) {
            busy_at = now;
        } else if now - busy_at > spin_ns {
            shard.sleep();
            busy_at = monotonic_ns();
        } else {
            std::hint::spin_loop();
        }
    }
}

impl Shard {
    /// Sleeps until the device, the fabric or the inbox has something.
    fn sleep(&mut self) {
        if !self.stalled.is_empty() || !self.deferred.is_empty() || !self.inbox.fall_asleep() {
            return;
        }
        if self.transport.arm() {
            let bell = self.inbox.bell().descriptor();
            let mut sources = vec![PollFd::from_borrowed_fd(bell, PollFlags::IN)];
            for source in [self.transport.readiness(), self.device.readiness()] {
                sources.extend(source.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            }
            // An interrupted sleep is only a short one.
            let _ = poll(&mut sources, None);
        }
        self.transport.disarm();
        self.inbox.bell().wake_up();
    }
}
