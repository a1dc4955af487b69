//! The health of NVMe devices that the kernel drives.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use extent::{Error, Result};
use parking_lot::Mutex;

use super::Health;
use super::passthrough::{self, Nodes};

/// From one reading to the next.
const PAUSE: Duration = Duration::from_secs(60);

/// Reads a health log now and then, on a thread of its own: a controller that does not answer holds
/// up nobody else.
#[derive(Debug)]
pub(super) struct HealthReader {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    /// What was read last, or why nothing could be; `None` before the first reading.
    last: Mutex<Option<Result<Health, String>>>,
    is_over: AtomicBool,
}

impl HealthReader {
    /// Reads the health of the NVMe namespace that a path names, if it names one.
    ///
    /// # Errors
    /// [`extent::Kind::Io`] if there can be no thread.
    pub(super) fn of(path: &Path) -> Option<Result<Self>> {
        let nodes = Nodes::find(path)?;
        Some(Self::start(PAUSE, move || {
            let node = File::open(nodes.character()).map_err(|error| {
                Error::io(format!("opening {}", nodes.character().display()), error)
            })?;
            passthrough::health(&node, nodes.character())
        }))
    }

    fn start(
        pause: Duration,
        mut read: impl FnMut() -> Result<Health> + Send + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let body = move || {
            while !own.is_over.load(Ordering::Acquire) {
                let read = read().map_err(|error| error.to_string());
                *own.last.lock() = Some(read);
                thread::park_timeout(pause);
            }
        };
        let thread = thread::Builder::new()
            .name("nvme-health".to_owned())
            .spawn(body)
            .map_err(|e| Error::io("starting a thread to read an NVMe device's health", e))?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    /// What was read last.
    pub(super) fn now(&self) -> Option<Health> {
        self.shared.last.lock().as_ref()?.as_ref().ok().copied()
    }

    /// Why nothing could be read.
    pub(super) fn why_not(&self) -> Option<String> {
        self.shared.last.lock().as_ref()?.as_ref().err().cloned()
    }
}

impl Drop for HealthReader {
    fn drop(&mut self) {
        // Not waited for: it may hang in a command, and has nothing of anybody else's.
        self.shared.is_over.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, sync_channel};

    use extent::Kind;

    use super::*;
    use crate::device::nvme::HEALTH_BYTES;

    /// No test needs this long; one that hangs ends with it.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn what_was_read_last_counts_and_the_thread_ends_with_its_owner() {
        let (answer, answers) = sync_channel::<Result<Health>>(0);
        let (ended, end) = sync_channel::<()>(0);
        let reader = HealthReader::start(Duration::from_millis(1), move || {
            let _told_by_its_end = &ended;
            answers.recv().unwrap_or_else(|_| Err(Kind::Io.error("the test is over")))
        });
        let reader = reader.expect("a thread");
        assert_eq!((reader.now(), reader.why_not()), (None, None));
        // A second answer is taken only after the first was noted.
        let tell = |result: &dyn Fn() -> Result<Health>| {
            answer.send(result()).expect("heard");
            answer.send(result()).expect("heard");
        };
        tell(&|| Err(Kind::Denied.error("no right")));
        assert!(reader.why_not().is_some_and(|why| why.contains("no right")));
        let mut page = [0; HEALTH_BYTES];
        page[5] = 42;
        tell(&|| Ok(Health::parse(&page)));
        assert_eq!(reader.now().map(|health| health.used_percent), Some(42));
        assert_eq!(reader.why_not(), None);
        drop((reader, answer));
        assert_eq!(end.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn what_is_no_namespace_has_no_health() {
        assert!(HealthReader::of(Path::new("/dev/null")).is_none());
        assert!(HealthReader::of(Path::new("/no/such/file")).is_none());
    }
}
