//! The one place of this crate that reads clocks.
#![expect(clippy::disallowed_methods, reason = "everything else is given the time from here")]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 by the system's clock.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Now, to measure by how long something takes; for reports only.
pub(crate) fn now() -> Instant {
    Instant::now()
}
