//! Which jobs there are, and whose turn it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use extent::{Kind, Result};

use super::entry::{Entry, Rank};
use super::view::{Detail, cut};
use crate::proto;

/// A job as it is found by its number.
#[derive(Clone)]
pub(crate) enum Found {
    Active(Arc<Entry>),
    Finished(Arc<proto::Job>),
}

impl Found {
    /// The job as it stands.
    pub(crate) fn snapshot(&self, detail: Detail) -> proto::Job {
        match self {
            Self::Active(entry) => entry.snapshot(detail),
            Self::Finished(job) => cut(job, detail),
        }
    }
}

/// Every job.
#[derive(Default)]
pub(super) struct Book {
    all: BTreeMap<u64, Found>,
    queue: BTreeMap<Rank, Arc<Entry>>,
    /// The one that ended first is in front.
    finished: VecDeque<u64>,
    /// Places in the queue promised to jobs that are being made durable.
    promised: usize,
    /// The number that no job has had yet.
    next: u64,
}

impl Book {
    /// The lowest number that a new job may have.
    pub(super) fn number_from(&mut self, next: u64) {
        self.next = next.max(1);
    }

    /// Promises a place among `most` in the queue, and a number.
    ///
    /// # Errors
    /// [`Kind::Busy`] if the queue is full.
    pub(super) fn promise(&mut self, most: usize) -> Result<u64> {
        if self.queue.len() + self.promised >= most {
            return Err(Kind::Busy.error(format!(
                "{most} jobs are waiting or running, and that is the most: try again later, or cancel some"
            )));
        }
        self.promised += 1;
        let number = self.next;
        self.next += 1;
        Ok(number)
    }

    /// A promised place is taken, or not needed.
    pub(super) fn redeem(&mut self) {
        self.promised -= 1;
    }

    /// Queues a job.
    pub(super) fn queue(&mut self, entry: &Arc<Entry>) {
        self.queue.insert(entry.rank(), Arc::clone(entry));
        self.all.insert(entry.number, Found::Active(Arc::clone(entry)));
    }

    /// A finished job from the database.
    pub(super) fn remember(&mut self, number: u64, job: proto::Job) {
        self.all.insert(number, Found::Finished(Arc::new(job)));
        self.finished.push_back(number);
    }

    /// A job is about to end. Answers those that are forgotten so that at most `keep` are kept.
    pub(super) fn forget_for(&mut self, number: u64, keep: usize) -> Vec<u64> {
        self.finished.push_back(number);
        let surplus = self.finished.len().saturating_sub(keep.max(1));
        let forgotten: Vec<_> = self.finished.drain(..surplus).collect();
        for number in &forgotten {
            self.all.remove(number);
        }
        forgotten
    }

    /// A job has ended.
    pub(super) fn end(&mut self, entry: &Entry, job: &Arc<proto::Job>) {
        self.queue.remove(&entry.rank());
        // It may have been forgotten for others while its end was being stored.
        if let Some(found) = self.all.get_mut(&entry.number) {
            *found = Found::Finished(Arc::clone(job));
        }
    }

    /// The job of a number.
    pub(super) fn find(&self, number: u64) -> Option<Found> {
        self.all.get(&number).cloned()
    }

    /// Jobs below a number, newest first.
    pub(super) fn below(&self, number: u64, most: usize) -> Vec<(u64, Found)> {
        let newest = self.all.range(..number).rev().take(most);
        newest.map(|(number, found)| (*number, found.clone())).collect()
    }

    /// Jobs that are not over, the most urgent first.
    pub(super) fn active(&self) -> impl ExactSizeIterator<Item = &Arc<Entry>> {
        self.queue.values()
    }
}
