//! Jobs: promotes, demotes and writebacks of many files, in order of urgency.
//!
//! A fixed number of files is worked on at a time, whichever jobs they belong to. Whenever a place is
//! free, the most urgent job that has a file ready gets it, so an urgent job overtakes a long one
//! between two files.

mod entry;
mod expand;
mod spec;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dataplane::Handle;
use extent::{Kind, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::options::Limits;
use crate::pins::Pins;
use crate::proto;
use crate::store::{Change, Store};

pub(crate) use entry::{Detail, Entry};
pub(crate) use spec::{Selection, Task, check_id, pin_until};
pub(crate) use work::check_generation;

use entry::{Cursor, Next, Rank, Work, cut, finished_ms};
use work::Worker;

/// Every job of the node.
pub(crate) struct Jobs {
    handle: Arc<dyn Handle>,
    store: Arc<Store>,
    limits: Arc<Limits>,
    worker: Worker,
    book: Mutex<Book>,
    places: Arc<Semaphore>,
    /// A file, a page or a job is ready.
    wake: Notify,
    stopping: watch::Sender<bool>,
    /// Begins the ids of this node's jobs.
    prefix: String,
}

/// A job as it is found by its number.
#[derive(Clone)]
pub(crate) enum Found {
    Active(Arc<Entry>),
    Finished(Arc<proto::Job>),
}

impl Found {
    pub(crate) fn snapshot(&self, detail: Detail) -> proto::Job {
        match self {
            Self::Active(entry) => entry.snapshot(detail),
            Self::Finished(job) => cut(job, detail),
        }
    }
}

#[derive(Default)]
struct Book {
    all: BTreeMap<u64, Found>,
    queue: BTreeMap<Rank, Arc<Entry>>,
    /// The one that ended first is in front.
    finished: VecDeque<u64>,
    /// Places in the queue promised to jobs that are being made durable.
    promised: usize,
    next: u64,
}

impl Jobs {
    pub(crate) fn new(
        handle: Arc<dyn Handle>,
        store: Arc<Store>,
        pins: Arc<Pins>,
        limits: Arc<Limits>,
    ) -> Self {
        let worker =
            Worker { handle: Arc::clone(&handle), pins, limits: Arc::clone(&limits) };
        let prefix = format!("{:08x}", store.identity() >> 96);
        Self {
            handle,
            store,
            worker,
            book: Mutex::new(Book { next: 1, ..Book::default() }),
            places: Arc::new(Semaphore::new(limits.parallel_files.max(1))),
            limits,
            wake: Notify::new(),
            stopping: watch::Sender::new(false),
            prefix,
        }
    }

    /// Takes up the jobs of the database: those that are not over are queued again.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub(crate) async fn restore(
        self: &Arc<Self>,
        mut rows: Vec<(u64, proto::Job)>,
        next: u64,
    ) -> Result<()> {
        rows.sort_by_key(|(number, job)| (finished_ms(job), *number));
        let (finished, active): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|(_, job)| finished_ms(job).is_some());
        let mut entries = Vec::with_capacity(active.len());
        let mut changes = Vec::with_capacity(active.len());
        for (number, mut job) in active {
            job.restarts = job.restarts.saturating_add(1);
            changes.push(Change::PutJob(number, Box::new(job.clone())));
            entries.push(Arc::new(Entry::new(number, job)?));
        }
        if !changes.is_empty() {
            self.store.commit(None, changes).await?;
        }
        {
            let mut book = self.book.lock();
            book.next = next.max(1);
            for (number, job) in finished {
                book.all.insert(number, Found::Finished(Arc::new(job)));
                book.finished.push_back(number);
            }
            for entry in &entries {
                book.queue.insert(entry.rank(), Arc::clone(entry));
                book.all.insert(entry.number, Found::Active(Arc::clone(entry)));
            }
        }
        for entry in entries {
            self.finish_if_idle(&entry);
        }
        Ok(())
    }

    /// Promises a place in the queue.
    ///
    /// # Errors
    /// [`Kind::Busy`] if the queue is full.
    pub(crate) fn promise(self: &Arc<Self>) -> Result<Promise> {
        let mut book = self.book.lock();
        if book.queue.len() + book.promised >= self.limits.active_jobs {
            return Err(Kind::Busy.error(format!(
                "{} jobs are waiting or running, and that is the most: try again later, or cancel some",
                self.limits.active_jobs
            )));
        }
        book.promised += 1;
        let number = book.next;
        book.next += 1;
        Ok(Promise { jobs: Arc::clone(self), number })
    }

    /// A job's id.
    pub(crate) fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// The job of an id.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub(crate) fn find(&self, id: &str) -> Result<(u64, Found)> {
        let number = id.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('-'));
        let number = number.and_then(|number| number.parse().ok());
        let found = number.and_then(|number| Some((number, self.book.lock().all.get(&number)?.clone())));
        found.ok_or_else(|| {
            Kind::NotFound.error(format!(
                "this node has no job {id:?}: it never had, or it was over long ago"
            ))
        })
    }

    /// The job of a number.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub(crate) fn by_number(&self, number: u64) -> Result<Found> {
        self.find(&self.id(number)).map(|(_, found)| found)
    }

    /// Jobs below a number, newest first.
    pub(crate) fn below(&self, number: u64, most: usize) -> Vec<(u64, Found)> {
        let book = self.book.lock();
        let newest = book.all.range(..number).rev().take(most);
        newest.map(|(number, found)| (*number, found.clone())).collect()
    }

    /// How many wait and how many run.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let book = self.book.lock();
        let running = book.queue.values().filter(|entry| entry.is_running()).count() as u64;
        (book.queue.len() as u64 - running, running)
    }

    /// Stops a job that the database already knows is to stop.
    pub(crate) fn cancel(self: &Arc<Self>, found: &Found) {
        if let Found::Active(entry) = found {
            entry.cancel();
            self.finish_if_idle(entry);
        }
    }

    /// Gives files to work on to free places, until [`Jobs::stop`].
    pub(crate) async fn dispatch(self: Arc<Self>) {
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = self.dispatch_for_ever() => {}
        }
    }

    async fn dispatch_for_ever(self: &Arc<Self>) {
        loop {
            let places = Arc::clone(&self.places);
            let place = places.acquire_owned().await.expect("it is never closed");
            let (entry, work) = loop {
                // A wake-up between the look and the wait is kept by `Notify`.
                match self.most_urgent() {
                    Some(next) => break next,
                    None => self.wake.notified().await,
                }
            };
            tokio::spawn(Arc::clone(self).run(entry, work, place));
        }
    }

    /// The file whose turn it is. Starts to look for more where few are left.
    fn most_urgent(self: &Arc<Self>) -> Option<(Arc<Entry>, Work)> {
        let book = self.book.lock();
        // Twice as many jobs as places keep every place busy, and bound the pages held.
        for entry in book.queue.values().take(self.limits.parallel_files.max(1) * 2) {
            loop {
                match entry.next(self.limits.expand_page / 4) {
                    Next::File(work) => return Some((Arc::clone(entry), work)),
                    Next::Nothing => break,
                    Next::Expand(cursor) => {
                        tokio::spawn(Arc::clone(self).expand(Arc::clone(entry), cursor));
                    }
                }
            }
        }
        None
    }

    async fn expand(self: Arc<Self>, entry: Arc<Entry>, cursor: Cursor) {
        let page = self.limits.expand_page.max(1);
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            found = expand::expand(&*self.handle, &entry.spec, cursor, page) => {
                entry.expanded(found);
            }
            () = entry.progress.cancelled() => entry.abandoned(),
            _ = stopping.wait_for(|stopping| *stopping) => entry.abandoned(),
        }
        self.wake.notify_one();
        self.finish_if_idle(&entry);
    }

    async fn run(self: Arc<Self>, entry: Arc<Entry>, work: Work, place: OwnedSemaphorePermit) {
        let name = work.name.clone();
        // A task of its own, so that a panic costs one file and not a place for ever.
        let task = {
            let (jobs, entry) = (Arc::clone(&self), Arc::clone(&entry));
            tokio::spawn(async move { jobs.worker.work(&entry, &work).await })
        };
        let outcome = task.await.unwrap_or_else(|panic| {
            Err(Kind::Io.error("the work on this file panicked: see the log").caused_by(panic))
        });
        if let Err(error) = &outcome {
            tracing::debug!(%error, file = %name, job = entry.number, "a file of a job failed");
        }
        entry.settled(&name, &outcome);
        drop(place);
        self.wake.notify_one();
        self.finish_if_idle(&entry);
    }

    fn finish_if_idle(self: &Arc<Self>, entry: &Arc<Entry>) {
        // A job that is torn down with the node is not over: it starts again with the node.
        if !*self.stopping.borrow() && entry.take_finish() {
            tokio::spawn(Arc::clone(self).finish(Arc::clone(entry)));
        }
    }

    async fn finish(self: Arc<Self>, entry: Arc<Entry>) {
        let job = Arc::new(entry.end());
        let mut changes = vec![Change::PutJob(entry.number, Box::new((*job).clone()))];
        {
            let mut book = self.book.lock();
            book.finished.push_back(entry.number);
            while book.finished.len() > self.limits.finished_jobs.max(1) {
                let oldest = book.finished.pop_front().expect("it is not empty");
                book.all.remove(&oldest);
                changes.push(Change::DropJob(oldest));
            }
        }
        if let Err(error) = self.store.commit(None, changes).await {
            tracing::error!(%error, job = job.id, "a job's end was not stored: it runs again after a restart");
        }
        tracing::info!(job = job.id, state = job.state().as_str_name(), "a job is over");
        {
            let mut book = self.book.lock();
            book.queue.remove(&entry.rank());
            // It may have been pushed out by others while it was being stored.
            if let Some(found) = book.all.get_mut(&entry.number) {
                *found = Found::Finished(Arc::clone(&job));
            }
        }
        entry.ended(job);
        self.wake.notify_one();
    }

    /// Begins nothing new, tells what runs to stop, and waits until it has. What is not over
    /// starts again with the node.
    pub(crate) async fn stop(&self) {
        self.stopping.send_replace(true);
        let entries: Vec<_> = self.book.lock().queue.values().cloned().collect();
        for entry in entries {
            entry.progress.cancel();
        }
        let places = u32::try_from(self.limits.parallel_files.max(1)).unwrap_or(u32::MAX);
        let _all = self.places.acquire_many(places).await;
    }

    /// Stops without waiting, when the control plane is dropped.
    pub(crate) fn abandon(&self) {
        self.stopping.send_replace(true);
        for entry in self.book.lock().queue.values() {
            entry.progress.cancel();
        }
    }
}

/// A place in the queue, given back if it is not taken.
pub(crate) struct Promise {
    jobs: Arc<Jobs>,
    pub(crate) number: u64,
}

impl Promise {
    /// Queues a job that is now durable.
    pub(crate) fn take(self, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        {
            let mut book = self.jobs.book.lock();
            book.queue.insert(entry.rank(), Arc::clone(&entry));
            book.all.insert(entry.number, Found::Active(Arc::clone(&entry)));
        }
        self.jobs.wake.notify_one();
        entry
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.jobs.book.lock().promised -= 1;
    }
}
