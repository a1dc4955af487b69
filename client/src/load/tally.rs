use std::time::Duration;

use extent::wire::{Landing, Served};
use extent::{Error, Kind};
use hdrhistogram::Histogram;

use crate::device::{DeviceRead, Path};
use crate::session::Completed;

const LONGEST_LATENCY_NS: u64 = 3_600_000_000_000;

/// What one thread counted.
pub(super) struct Tally {
    pub(super) nanoseconds: Histogram<u64>,
    pub(super) bytes: u64,
    pub(super) served: [u64; Self::SERVED],
    pub(super) landing: [u64; Self::LANDING],
    /// By the way into a device's memory.
    pub(super) ways: [u64; Path::ALL.len()],
    pub(super) commits: u64,
    pub(super) reconnections: u64,
    pub(super) repeated: u64,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    pub(super) failure: Option<Kind>,
    pub(super) elapsed: Duration,
}

impl Tally {
    pub(super) const SERVED: usize = 5;
    pub(super) const LANDING: usize = 5;

    pub(super) fn new() -> Self {
        Self {
            nanoseconds: Histogram::new_with_bounds(1, LONGEST_LATENCY_NS, 3)
                .expect("fixed, sound bounds"),
            bytes: 0,
            served: [0; Self::SERVED],
            landing: [0; Self::LANDING],
            ways: [0; Path::ALL.len()],
            commits: 0,
            reconnections: 0,
            repeated: 0,
            errors: 0,
            first_error: None,
            failure: None,
            elapsed: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.nanoseconds.add(&other.nanoseconds).expect("the same bounds");
        self.bytes += other.bytes;
        self.served.iter_mut().zip(other.served).for_each(|(sum, count)| *sum += count);
        self.landing.iter_mut().zip(other.landing).for_each(|(sum, count)| *sum += count);
        self.ways.iter_mut().zip(other.ways).for_each(|(sum, count)| *sum += count);
        self.commits += other.commits;
        self.reconnections += other.reconnections;
        self.repeated += other.repeated;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.failure = self.failure.or(other.failure);
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    pub(super) fn count(&mut self, completed: &Completed, took: Duration) {
        match &completed.result {
            Ok(()) => self.succeed(completed.bytes, completed.served, completed.landing, took),
            Err(error) => self.fail(error),
        }
    }

    pub(super) fn count_onto_device(&mut self, read: &DeviceRead) {
        self.succeed(read.bytes, read.served, read.landing, read.total);
        self.ways[read.path as usize] += 1;
    }

    fn succeed(&mut self, bytes: u64, served: Served, landing: Landing, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.saturating_record(ns.max(1));
        self.bytes += bytes;
        self.served[served as usize] += 1;
        self.landing[landing as usize] += 1;
    }

    pub(super) fn fail(&mut self, error: &Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{error:?}"));
        self.failure.get_or_insert(error.kind());
    }
}
