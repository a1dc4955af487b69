//! What every real silo keeps to: caps on concurrency and bandwidth, a deadline for each request,
//! and retries.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use extent::{Error, Kind, Result};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// The caps of one silo.
#[derive(Clone, PartialEq, Debug)]
pub struct LimitOptions {
    /// Requests at the same time.
    pub concurrency: usize,
    /// Bytes read a second; `None` for no cap.
    pub read_bytes_per_s: Option<u64>,
    /// Bytes written a second; `None` for no cap.
    pub write_bytes_per_s: Option<u64>,
    /// How long a request may take with all its retries. Waiting for the caps does not count.
    pub deadline: Duration,
    /// How long a read may go without a byte before it is tried again.
    pub stall: Duration,
    /// How often a request is tried again.
    pub retries: u32,
}

impl Default for LimitOptions {
    fn default() -> Self {
        Self {
            concurrency: 64,
            read_bytes_per_s: None,
            write_bytes_per_s: None,
            deadline: Duration::from_secs(120),
            stall: Duration::from_secs(15),
            retries: 6,
        }
    }
}

/// What a silo did since it was opened.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    retries: AtomicU64,
    errors: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Attempts at requests, first ones and repeated ones.
    pub requests: u64,
    /// Attempts that repeat a failed one.
    pub retries: u64,
    /// Requests that failed in the end. An object that is not there, or is at another version, is
    /// an answer and no error.
    pub errors: u64,
    /// Bytes of objects received.
    pub read_bytes: u64,
    /// Bytes of objects sent, repeated ones included.
    pub written_bytes: u64,
}

impl Counters {
    /// Their values now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            requests: self.requests.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn count_read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_written(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What a request moves, for the bandwidth caps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Traffic {
    Metadata,
    Read(u64),
    Write(u64),
}

/// The caps of one silo, shared by all its requests.
#[derive(Debug)]
pub struct Limits {
    permits: Arc<Semaphore>,
    read: Rate,
    write: Rate,
    deadline: Duration,
    stall: Duration,
    retries: u32,
    counters: Arc<Counters>,
}

impl Limits {
    /// Limits of which nothing is used yet.
    #[must_use]
    pub fn new(options: &LimitOptions) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(options.concurrency.max(1))),
            read: Rate::new(options.read_bytes_per_s),
            write: Rate::new(options.write_bytes_per_s),
            deadline: options.deadline,
            stall: options.stall,
            retries: options.retries,
            counters: Arc::default(),
        })
    }

    /// Changes the bandwidth caps, in bytes a second, for requests from now on.
    pub fn set_bandwidth(&self, read: Option<u64>, write: Option<u64>) {
        self.read.set(read);
        self.write.set(write);
    }

    /// What was done under these limits.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(crate) fn stall(&self) -> Duration {
        self.stall
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn retries(&self) -> u32 {
        self.retries
    }

    /// Waits until the caps leave room. The request holds the permit as long as it runs.
    pub(crate) async fn admit(&self, traffic: Traffic) -> OwnedSemaphorePermit {
        match traffic {
            Traffic::Metadata => {}
            Traffic::Read(bytes) => self.read.take(bytes).await,
            Traffic::Write(bytes) => self.write.take(bytes).await,
        }
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        permit.expect("the semaphore is never closed")
    }

    pub(crate) fn attempts(&self) -> Attempts<'_> {
        Attempts { limits: self, deadline: None, failed: 0 }
    }

    /// [`Limits::run`] for requests that end when they are dropped.
    pub(crate) async fn call<T, F>(
        &self,
        traffic: Traffic,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let attempt = |permit| {
            let attempt = attempt();
            async move {
                let result = attempt.await;
                drop(permit);
                result
            }
        };
        self.run(traffic, attempt).await
    }

    /// Makes a request under the caps, again and again if it is worth it. `attempt` gets the
    /// permit: work that outlives the request keeps it.
    pub(crate) async fn run<T, F, A>(&self, traffic: Traffic, mut attempt: A) -> Result<T>
    where
        F: Future<Output = Result<T>>,
        A: FnMut(OwnedSemaphorePermit) -> F,
    {
        let mut attempts = self.attempts();
        loop {
            let permit = self.admit(traffic).await;
            match attempts.one(attempt(permit)).await {
                Ok(done) => return Ok(done),
                Err(error) => attempts.again(error).await?,
            }
        }
    }
}

/// The attempts at one request.
pub(crate) struct Attempts<'a> {
    limits: &'a Limits,
    deadline: Option<Instant>,
    failed: u32,
}

impl Attempts<'_> {
    /// One attempt, given up at the deadline of them all. The first one starts the clock.
    pub(crate) async fn one<T>(&mut self, attempt: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.limits.deadline;
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + limit);
        timeout_at(deadline, attempt).await.unwrap_or_else(|_| {
            Err(Kind::Io.error(format!(
                "no answer within {} s: look at the silo and the way there, or raise deadline_s",
                limit.as_secs_f64()
            )))
        })
    }

    /// Waits until the time for another attempt.
    ///
    /// # Errors
    /// The error itself if another attempt is of no use, or there is no time for one.
    pub(crate) async fn again(&mut self, error: Error) -> Result<()> {
        if !error.kind().is_transient() {
            return Err(self.give_up(error));
        }
        self.failed += 1;
        let pause = backoff(self.failed);
        let in_time = self.deadline.is_none_or(|deadline| Instant::now() + pause < deadline);
        if self.failed > self.limits.retries || !in_time {
            let lasting =
                Kind::Io.error(format!("gave up after {} attempts: {error}", self.failed));
            return Err(self.give_up(lasting));
        }
        tracing::debug!(%error, attempt = self.failed, "a silo's request is tried again");
        self.limits.counters.retries.fetch_add(1, Ordering::Relaxed);
        sleep(pause).await;
        Ok(())
    }

    fn give_up(&self, error: Error) -> Error {
        if !matches!(error.kind(), Kind::NotFound | Kind::Stale) {
            self.limits.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        error
    }
}

/// Doubles with each failure, with jitter between a half and the whole, so that clients that
/// failed together do not come back together.
fn backoff(failed: u32) -> Duration {
    let whole = FIRST_BACKOFF * 2u32.saturating_pow(failed.saturating_sub(1).min(16));
    let half = whole.min(LONGEST_BACKOFF) / 2;
    half + half.mul_f64(f64::from(u16::try_from(random() % 1000).unwrap_or(0)) / 1000.0)
}

/// Unpredictable enough for jitter and for names of temporary files.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A token bucket that may go into debt: a request larger than the bucket waits for its share
/// instead of for ever. Holds up to a quarter of a second's worth.
#[derive(Debug)]
struct Rate {
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    bytes_per_s: Option<f64>,
    /// Bytes that may be moved at once; below zero while requests wait.
    level: f64,
    at: Instant,
}

impl Rate {
    fn new(bytes_per_s: Option<u64>) -> Self {
        let rate = Self {
            bucket: Mutex::new(Bucket { bytes_per_s: None, level: 0.0, at: Instant::now() }),
        };
        rate.set(bytes_per_s);
        rate
    }

    fn set(&self, bytes_per_s: Option<u64>) {
        let mut bucket = self.bucket.lock();
        bucket.bytes_per_s = bytes_per_s.map(|rate| rate.max(1) as f64);
        bucket.level = 0.0;
        bucket.at = Instant::now();
    }

    async fn take(&self, bytes: u64) {
        let wait = self.bucket.lock().take(bytes);
        if let Some(wait) = wait {
            sleep(wait).await;
        }
    }
}

impl Bucket {
    fn take(&mut self, bytes: u64) -> Option<Duration> {
        let rate = self.bytes_per_s?;
        let now = Instant::now();
        let earned = now.duration_since(self.at).as_secs_f64() * rate;
        self.at = now;
        self.level = (self.level + earned).min(rate / 4.0) - bytes as f64;
        (self.level < 0.0).then(|| Duration::from_secs_f64((-self.level / rate).min(1e9)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(change: impl FnOnce(&mut LimitOptions)) -> Arc<Limits> {
        let mut options = LimitOptions::default();
        change(&mut options);
        Limits::new(&options)
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_is_kept_to_and_can_be_changed() {
        let limits = limits(|options| options.read_bytes_per_s = Some(1_000_000));
        let start = Instant::now();
        for _ in 0..10 {
            drop(limits.admit(Traffic::Read(500_000)).await);
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((4.9..5.1).contains(&seconds), "5 MB at 1 MB/s took {seconds} s");
        limits.set_bandwidth(None, None);
        let start = Instant::now();
        drop(limits.admit(Traffic::Read(u64::MAX)).await);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn writes_do_not_wait_for_reads() {
        let limits = limits(|options| options.read_bytes_per_s = Some(1));
        let start = Instant::now();
        drop(limits.admit(Traffic::Write(1 << 30)).await);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_requests_than_allowed_run_at_once() {
        let limits = limits(|options| options.concurrency = 3);
        let running = Arc::new(AtomicU64::new(0));
        let most = Arc::new(AtomicU64::new(0));
        let requests = (0..20).map(|_| {
            let (limits, running, most) = (limits.clone(), running.clone(), most.clone());
            tokio::spawn(async move {
                let request = |permit| {
                    let (running, most) = (running.clone(), most.clone());
                    async move {
                        let now = running.fetch_add(1, Ordering::Relaxed) + 1;
                        most.fetch_max(now, Ordering::Relaxed);
                        sleep(Duration::from_secs(1)).await;
                        running.fetch_sub(1, Ordering::Relaxed);
                        drop(permit);
                        Ok(())
                    }
                };
                limits.run(Traffic::Metadata, request).await
            })
        });
        for request in requests.collect::<Vec<_>>() {
            request.await.expect("no panic").expect("a good request");
        }
        assert_eq!(most.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn transient_failures_are_tried_again_and_lasting_ones_are_not() {
        for (kind, tries) in [(Kind::Busy, 4u32), (Kind::Io, 4), (Kind::Denied, 1)] {
            let limits = limits(|options| options.retries = 3);
            let mut made = 0u32;
            let failing = |_permit| {
                made += 1;
                async move { Err::<(), _>(kind.error("no")) }
            };
            let error = limits.run(Traffic::Metadata, failing).await.expect_err("never works");
            let expected = if kind == Kind::Denied { Kind::Denied } else { Kind::Io };
            assert_eq!((error.kind(), made), (expected, tries), "{error}");
            let counts = limits.counters().counts();
            assert_eq!((counts.retries, counts.errors), (u64::from(tries) - 1, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_recovers_is_no_error() {
        let limits = limits(|_| {});
        let mut left = 2;
        let flaky = |_permit| {
            let fails = left > 0;
            left -= 1;
            async move { if fails { Err(Kind::Busy.error("later")) } else { Ok(7) } }
        };
        assert_eq!(limits.run(Traffic::Metadata, flaky).await.expect("recovers"), 7);
        let counts = limits.counters().counts();
        assert_eq!((counts.requests, counts.retries, counts.errors), (3, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_hangs_ends_at_its_deadline() {
        let limits = limits(|options| options.deadline = Duration::from_secs(30));
        let start = Instant::now();
        let hanging = |permit| async move {
            futures::future::pending::<()>().await;
            drop(permit);
            Ok(())
        };
        let error = limits.run(Traffic::Metadata, hanging).await.expect_err("hangs");
        assert_eq!((error.kind(), start.elapsed()), (Kind::Io, Duration::from_secs(30)));
    }

    #[test]
    fn backoff_doubles_up_to_a_bound() {
        for failed in 1..40 {
            let whole = (FIRST_BACKOFF * 2u32.pow((failed - 1).min(16))).min(LONGEST_BACKOFF);
            let pause = backoff(failed);
            assert!(pause >= whole / 2 && pause <= whole, "{failed}: {pause:?}");
        }
    }
}
