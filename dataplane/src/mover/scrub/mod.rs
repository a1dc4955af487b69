//! Scrub: reads all that is on the tier, at the lowest priority and at a bounded rate, and repairs
//! what does not hold.

mod pass;
mod twice;

use std::sync::Arc;
use std::time::Duration;

use extent::{Kind, Result};
use tokio::time::{Instant, sleep_until};

use super::Mover;
use crate::clock::unix_ms;
use crate::handle::Progress;
use crate::scrub::{ScrubOptions, ScrubReport};

use pass::Pass;

impl Mover {
    /// Reads everything on the tier and repairs what does not hold. If it is cancelled, the report
    /// says how far it came.
    pub(crate) async fn scrub(
        self: &Arc<Self>,
        options: ScrubOptions,
        progress: &Progress,
    ) -> Result<ScrubReport> {
        let Ok(_turn) = Arc::clone(&self.scrub.turn).try_acquire_owned() else {
            return Err(Kind::Busy.error("a scrub is running already: wait for it, or stop it"));
        };
        let rate = options.rate_bytes_per_s.unwrap_or(self.scrub.rate_bytes_per_s).max(1);
        progress.expect(self.tier.usage().resident_bytes);
        let report = ScrubReport {
            started_unix_ms: unix_ms(),
            rate_bytes_per_s: rate,
            ..Default::default()
        };
        *self.scrub.running.lock() = Some(report);
        let begun = Instant::now();
        let pace = Pace { rate_bytes_per_s: rate, next: begun };
        let mut pass = Pass { mover: self, progress, report, pace };
        let ended = pass.run().await;
        let mut report = pass.report;
        report.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.complete = ended.is_ok();
        *self.scrub.running.lock() = None;
        match ended {
            Err(error) if error.kind() != Kind::Fenced => Err(error),
            _ => {
                *self.scrub.last.lock() = Some(report);
                Ok(report)
            }
        }
    }

    /// Whether nothing more urgent than a scrub is under way.
    fn is_at_leisure(&self) -> bool {
        self.demand_lane.available_permits() == self.lanes.0
            && self.bulk_lane.available_permits() == self.lanes.1
            && self.busy.lock().is_empty()
    }
}

/// Keeps to a rate.
struct Pace {
    rate_bytes_per_s: u64,
    /// Nothing is read before.
    next: Instant,
}

impl Pace {
    /// Returns once the bytes that were read are paid for.
    async fn spend(&mut self, bytes: u64) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate_bytes_per_s);
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.next = self.next.max(Instant::now()) + pause;
        sleep_until(self.next).await;
    }
}

/// What scrubs share with those who ask about them.
pub(crate) struct ScrubState {
    turn: Arc<tokio::sync::Semaphore>,
    rate_bytes_per_s: u64,
    pub(crate) running: parking_lot::Mutex<Option<ScrubReport>>,
    pub(crate) last: parking_lot::Mutex<Option<ScrubReport>>,
}

impl ScrubState {
    pub(super) fn new(rate_bytes_per_s: u64) -> Self {
        Self {
            turn: Arc::new(tokio::sync::Semaphore::new(1)),
            rate_bytes_per_s,
            running: parking_lot::Mutex::default(),
            last: parking_lot::Mutex::default(),
        }
    }
}
