//! The one place that asks for the time of day. Everything else counts time with tokio, which
//! tests can stop.

use std::time::SystemTime;

/// The time of day.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}
