//! The one place where time is asked for.

use std::time::Instant;

/// Now, on a clock that never goes back.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the crate's clock")]
pub fn now() -> Instant {
    Instant::now()
}
