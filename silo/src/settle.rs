//! Times of change are too coarse to be trusted at once: a second change within the same tick
//! leaves no trace. Bytes are therefore read only once a file has been quiet for a while; any
//! later change then shows in its time of change.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use extent::SourceVersion;
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::clock;

const REMEMBERED: usize = 1024;

/// Which versions have been quiet long enough.
#[derive(Debug)]
pub(crate) struct Settled {
    quiet: Duration,
    /// Versions that were waited for. Only of use where the silo's clock is ahead of ours, and
    /// would make every read wait.
    waited: Mutex<VecDeque<SourceVersion>>,
}

impl Settled {
    /// Trusts what has not changed for `quiet`.
    pub(crate) fn new(quiet: Duration) -> Self {
        Self { quiet, waited: Mutex::default() }
    }

    /// How long to wait until the version, last changed at `changed`, may be trusted: at most the
    /// quiet time, whatever the clocks say, because that much passes on the silo's clock as well.
    pub(crate) fn left(&self, version: &SourceVersion, changed: SystemTime) -> Duration {
        let age = clock::now().duration_since(changed).unwrap_or_default();
        let left = self.quiet.saturating_sub(age);
        if left.is_zero() || self.waited.lock().contains(version) { Duration::ZERO } else { left }
    }

    /// Waits, after which the version is trusted. The caller then checks that it is still the
    /// same.
    pub(crate) async fn wait(&self, version: &SourceVersion, left: Duration) {
        sleep(left).await;
        let mut waited = self.waited.lock();
        if waited.len() == REMEMBERED {
            waited.pop_front();
        }
        waited.push_back(version.clone());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_young_versions_wait_and_only_once() {
        let settled = Settled::new(Duration::from_secs(2));
        let version = |text: &str| SourceVersion::new(text).expect("short");
        let old = clock::now() - Duration::from_secs(3);
        assert_eq!(settled.left(&version("old"), old), Duration::ZERO);
        let ahead = clock::now() + Duration::from_secs(3600);
        assert_eq!(settled.left(&version("skewed"), ahead), Duration::from_secs(2));
        let start = Instant::now();
        settled.wait(&version("skewed"), Duration::from_secs(2)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        assert_eq!(settled.left(&version("skewed"), ahead), Duration::ZERO);
        for n in 0..2 * REMEMBERED {
            settled.wait(&version(&n.to_string()), Duration::ZERO).await;
        }
        assert_eq!(settled.waited.lock().len(), REMEMBERED);
    }
}
