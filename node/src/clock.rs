//! The one place that asks what time it is.
#![expect(clippy::disallowed_methods, reason = "the one place that asks what time it is")]

use std::time::{Instant, SystemTime};

/// Now, on a clock that never goes back.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Now, as people say it.
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}
