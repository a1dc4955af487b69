//! Jobs: promotes, demotes and writebacks of many files, and scrubs, in order of urgency.
//!
//! A fixed number of files is worked on at a time, whichever jobs they belong to. Whenever a place is
//! free, the most urgent job that has a file ready gets it, so an urgent job overtakes a long one
//! between two files.

mod book;
mod entry;
mod list;
mod scrub;
mod spec;
mod tally;
mod view;
mod work;

use std::sync::Arc;

use dataplane::{Handle, ScrubOptions};
use extent::{Kind, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::clock::UnixMs;
use crate::options::Limits;
use crate::pins::Pins;
use crate::proto;
use crate::store::{Change, Store};

pub(crate) use book::Found;
pub(crate) use entry::Entry;
pub(crate) use spec::{Selection, Task, check_id, pin_until};
pub(crate) use view::Detail;
pub(crate) use work::{check_generation, same_generation};

use book::Book;
use entry::{Cursor, Next, Work};
use view::finished_ms;
use work::Worker;

/// Every job of the node.
pub(crate) struct Jobs {
    handle: Arc<dyn Handle>,
    store: Arc<Store>,
    limits: Arc<Limits>,
    worker: Worker,
    book: Mutex<Book>,
    places: Arc<Semaphore>,
    /// Listings at the same time.
    listings: Arc<Semaphore>,
    /// A file, a page or a job is ready.
    wake: Notify,
    stopping: watch::Sender<bool>,
    /// Begins the ids of this node's jobs.
    prefix: String,
    last_scrub: Mutex<Option<(UnixMs, proto::ScrubReport)>>,
}

impl Jobs {
    pub(crate) fn new(
        handle: Arc<dyn Handle>,
        store: Arc<Store>,
        pins: Arc<Pins>,
        limits: Arc<Limits>,
    ) -> Self {
        let worker = Worker { handle: Arc::clone(&handle), pins, limits: Arc::clone(&limits) };
        let prefix = format!("{:08x}", store.identity() >> 96);
        Self {
            handle,
            store,
            worker,
            book: Mutex::default(),
            places: Arc::new(Semaphore::new(limits.parallel_files.max(1))),
            listings: Arc::new(Semaphore::new(limits.parallel_files.max(1))),
            limits,
            wake: Notify::new(),
            stopping: watch::Sender::new(false),
            prefix,
            last_scrub: Mutex::default(),
        }
    }

    /// Takes up what the database knows of the last scrub.
    pub(crate) fn restore_scrub(&self, last: Option<(UnixMs, proto::ScrubReport)>) {
        *self.last_scrub.lock() = last;
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
            match Entry::new(number, job.clone()) {
                Ok(entry) => entries.push(Arc::new(entry)),
                // Another version's, perhaps: no reason not to start.
                Err(error) => {
                    tracing::error!(%error, job = job.id, "a stored job is left out");
                    continue;
                }
            }
            changes.push(Change::PutJob(number, Box::new(job)));
        }
        if !changes.is_empty() {
            self.store.commit(None, changes).await?;
        }
        {
            let mut book = self.book.lock();
            book.number_from(next);
            for (number, job) in finished {
                book.remember(number, job);
            }
            entries.iter().for_each(|entry| book.queue(entry));
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
        let number = self.book.lock().promise(self.limits.active_jobs)?;
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
        let found = number.and_then(|number| Some((number, self.book.lock().find(number)?)));
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
        self.book.lock().below(number, most)
    }

    /// How many wait and how many run.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let book = self.book.lock();
        let running = book.active().filter(|entry| entry.is_running()).count();
        ((book.active().len() - running) as u64, running as u64)
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
        for entry in book.active() {
            loop {
                let permit = Arc::clone(&self.listings).try_acquire_owned().ok();
                match entry.next(self.limits.expand_page / 4, permit.is_some()) {
                    Next::File(work) => return Some((Arc::clone(entry), work)),
                    Next::Nothing => break,
                    Next::Scrub => {
                        tokio::spawn(Arc::clone(self).scrub(Arc::clone(entry)));
                    }
                    Next::List(cursor) => {
                        let jobs = Arc::clone(self);
                        tokio::spawn(jobs.list(Arc::clone(entry), cursor, permit));
                    }
                }
            }
        }
        None
    }

    async fn list(
        self: Arc<Self>,
        entry: Arc<Entry>,
        cursor: Cursor,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let page = self.limits.expand_page.max(1);
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            found = list::list(&*self.handle, &entry.spec, &cursor, page) => entry.listed(found),
            () = entry.progress.cancelled() => entry.abandoned(),
            _ = stopping.wait_for(|stopping| *stopping) => entry.abandoned(),
        }
        drop(permit);
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

    /// Takes no place from files: a scrub runs for hours, and keeps itself to the end of the queue.
    async fn scrub(self: Arc<Self>, entry: Arc<Entry>) {
        let task = {
            let (handle, entry) = (Arc::clone(&self.handle), Arc::clone(&entry));
            let options = ScrubOptions { rate_bytes_per_s: entry.spec.rate_bytes_per_s };
            tokio::spawn(async move { handle.scrub(options, &entry.progress).await })
        };
        let outcome = task.await.unwrap_or_else(|panic| {
            Err(Kind::Io.error("the scrub panicked: see the log").caused_by(panic))
        });
        entry.scrubbed(outcome);
        self.finish_if_idle(&entry);
    }

    /// The scrub that is waiting or running.
    pub(crate) fn active_scrub(&self) -> Option<Arc<Entry>> {
        let book = self.book.lock();
        book.active().find(|entry| entry.spec.task == Task::Scrub).cloned()
    }

    /// What the last scrub that came to its end found, and when it ended.
    pub(crate) fn last_scrub(&self) -> Option<(UnixMs, proto::ScrubReport)> {
        *self.last_scrub.lock()
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
        if let (Some(report), Some(at)) =
            (job.scrub.filter(|scrub| scrub.complete), finished_ms(&job))
        {
            *self.last_scrub.lock() = Some((at, report));
            changes.push(Change::Scrubbed(at, report));
        }
        let forgotten = self.book.lock().forget_for(entry.number, self.limits.finished_jobs);
        changes.extend(forgotten.into_iter().map(Change::DropJob));
        if let Err(error) = self.store.commit(None, changes).await {
            tracing::error!(%error, job = job.id, "a job's end was not stored: it runs again after a restart");
        }
        tracing::info!(job = job.id, state = job.state().as_str_name(), "a job is over");
        self.book.lock().end(&entry, &job);
        entry.ended(job);
        self.wake.notify_one();
    }

    /// Begins nothing new, tells what runs to stop, and waits until it has. What is not over
    /// starts again with the node.
    pub(crate) async fn stop(&self) {
        self.abandon();
        let places = u32::try_from(self.limits.parallel_files.max(1)).unwrap_or(u32::MAX);
        let _all = self.places.acquire_many(places).await;
    }

    /// Stops without waiting, when the control plane is dropped.
    pub(crate) fn abandon(&self) {
        self.stopping.send_replace(true);
        for entry in self.book.lock().active() {
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
        self.jobs.book.lock().queue(&entry);
        self.jobs.wake.notify_one();
        entry
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.jobs.book.lock().redeem();
    }
}
