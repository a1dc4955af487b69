use std::time::{Duration, SystemTime};

use prost_types::Timestamp;

/// Milliseconds since 1970. Kept in the database, so it must mean the same after a restart.
pub(crate) type UnixMs = u64;

/// The wall clock.
pub(crate) fn now_ms() -> UnixMs {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO);
    millis(since)
}

/// A duration in whole milliseconds, at most the largest number.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A moment as the protocol carries it.
pub(crate) fn timestamp(at: UnixMs) -> Timestamp {
    let seconds = i64::try_from(at / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(at % 1000 * 1_000_000).expect("below a second");
    Timestamp { seconds, nanos }
}

/// A moment from the protocol; `None` if it is malformed or before 1970.
pub(crate) fn from_timestamp(at: &Timestamp) -> Option<UnixMs> {
    let seconds = u64::try_from(at.seconds).ok()?;
    let nanos = u64::try_from(at.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    seconds.checked_mul(1000)?.checked_add(nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_the_protocol() {
        for at in [0, 1, 999, 1000, 1_700_000_000_123] {
            assert_eq!(from_timestamp(&timestamp(at)), Some(at));
        }
        assert_eq!(from_timestamp(&Timestamp { seconds: -1, nanos: 0 }), None);
        assert_eq!(from_timestamp(&Timestamp { seconds: 1, nanos: 1_000_000_000 }), None);
        assert_eq!(from_timestamp(&Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    }
}
