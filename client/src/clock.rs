//! The one place where time is asked for.

use std::time::{Duration, Instant};

/// Now, on a clock that never goes back.
#[expect(clippy::disallowed_methods, reason = "this is the crate's clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// As good as never, and no longer than a clock goes.
const CENTURY: Duration = Duration::from_hours(100 * 365 * 24);

/// So long from now.
pub(crate) fn after(time: Duration) -> Instant {
    now() + time.min(CENTURY)
}
