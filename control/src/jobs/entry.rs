//! One job that is not over.

use std::collections::VecDeque;
use std::sync::Arc;

use dataplane::{FileStatus, Progress, ScrubReport};
use extent::{ByteRange, Error, FileName, Kind, Result};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::spec::{Selection, Spec, Task};
use super::tally::Tally;
use super::view::{BRIEF_TARGETS, Detail, cut};
use crate::clock::{UnixMs, now_ms, timestamp};
use crate::proto;

/// A file whose turn is to come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Work {
    pub(super) name: FileName,
    pub(super) range: Option<ByteRange>,
}

/// Where the targets have been turned into files up to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Cursor {
    /// The target that is next.
    pub(super) target: usize,
    /// Within a prefix: the last name found.
    pub(super) after: Option<FileName>,
}

/// What a job has to do next.
#[derive(Debug)]
pub(super) enum Next {
    /// This file.
    File(Work),
    /// List the prefix at this place, and call [`Entry::listed`] or [`Entry::abandoned`].
    List(Cursor),
    /// The one thing that a scrub does; [`Entry::scrubbed`] ends it.
    Scrub,
    /// Nothing at the moment.
    Nothing,
}

/// A job's place in the queue: the smallest goes first.
pub(super) type Rank = (u8, UnixMs, u64);

/// A job that is not over.
pub(crate) struct Entry {
    pub(super) number: u64,
    pub(super) spec: Spec,
    pub(super) progress: Arc<Progress>,
    /// The job as it is stored.
    base: proto::Job,
    live: Mutex<Live>,
    version: watch::Sender<u64>,
}

/// The part that changes.
#[derive(Default)]
struct Live {
    started_ms: Option<UnixMs>,
    cancelled: bool,
    cursor: Cursor,
    ready: VecDeque<Work>,
    listing: bool,
    running: usize,
    /// A scrub's turn has come.
    scrubbing: bool,
    /// What a scrub found.
    scrub: Option<proto::ScrubReport>,
    /// Taken by whoever finishes the job.
    finishing: bool,
    tally: Tally,
    /// The job as it ended.
    end: Option<Arc<proto::Job>>,
}

impl Entry {
    /// A job from how it is stored, to be started from its beginning.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it makes no sense.
    pub(crate) fn new(number: u64, mut job: proto::Job) -> Result<Self> {
        let spec = Spec::parse(&job)?;
        job.set_state(proto::JobState::Queued);
        job.progress = None;
        let entry = Self {
            number,
            spec,
            progress: Progress::new(),
            base: job,
            live: Mutex::default(),
            version: watch::Sender::new(0),
        };
        if entry.base.cancel_requested {
            entry.cancel();
        }
        Ok(entry)
    }

    /// Its number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Its place in the queue: promotes with a deadline, then writebacks and demotes, then other
    /// promotes, then scrubs; within these by deadline and age.
    pub(super) fn rank(&self) -> Rank {
        let class = match (self.spec.task, self.spec.deadline_ms) {
            (Task::Promote, Some(_)) => 0,
            (Task::Demote | Task::Writeback, _) => 1,
            (Task::Promote, None) => 2,
            (Task::Scrub, _) => 3,
        };
        let deadline = self.spec.deadline_ms.unwrap_or(UnixMs::MAX);
        (class, deadline, self.number)
    }

    /// Takes what is to be done next. More files are looked for when at most `low` wait, in
    /// prefixes only if `may_list`.
    pub(super) fn next(&self, low: usize, may_list: bool) -> Next {
        let mut live = self.live.lock();
        if live.finishing || live.cancelled {
            return Next::Nothing;
        }
        self.fill(&mut live, low);
        let wants_scrub = self.spec.task == Task::Scrub && !live.scrubbing;
        let wants_list = !self.is_expanded(&live) && !live.listing && live.ready.len() <= low;
        let next = if wants_scrub {
            live.scrubbing = true;
            live.running += 1;
            Next::Scrub
        } else if wants_list && may_list {
            live.listing = true;
            Next::List(live.cursor.clone())
        } else if let Some(work) = live.ready.pop_front() {
            live.running += 1;
            Next::File(work)
        } else {
            return Next::Nothing;
        };
        if live.started_ms.is_none() {
            live.started_ms = Some(now_ms());
            drop(live);
            self.announce();
        }
        next
    }

    /// Makes targets that are files ready, up to the next prefix.
    fn fill(&self, live: &mut Live, low: usize) {
        while live.ready.len() <= low
            && let Some(Selection::File(name, range)) = self.spec.targets.get(live.cursor.target)
        {
            live.ready.push_back(Work { name: name.clone(), range: *range });
            live.tally.found(1);
            live.cursor.target += 1;
        }
    }

    fn is_expanded(&self, live: &Live) -> bool {
        live.cursor.target >= self.spec.targets.len()
    }

    /// A page of the prefix at the cursor has been listed; an empty one is the end of it. If it
    /// could not be, that prefix is passed over.
    pub(super) fn listed(&self, found: Result<Vec<FileName>>) {
        let mut live = self.live.lock();
        live.listing = false;
        if live.cancelled {
            return;
        }
        let past = Cursor { target: live.cursor.target + 1, after: None };
        match found {
            Ok(names) => {
                match names.last() {
                    Some(last) => live.cursor.after = Some(last.clone()),
                    None => live.cursor = past,
                }
                live.tally.found(names.len());
                live.ready.extend(names.into_iter().map(|name| Work { name, range: None }));
            }
            Err(error) => {
                let target = self.spec.targets[live.cursor.target].to_string();
                live.tally.target_failed(&target, error);
                live.cursor = past;
            }
        }
        drop(live);
        self.announce();
    }

    /// The listing was given up: the job or the node is to stop.
    pub(super) fn abandoned(&self) {
        self.live.lock().listing = false;
    }

    /// A file's turn is over.
    pub(super) fn settled(&self, name: &FileName, outcome: &Result<FileStatus>) {
        let is_stopped = self.progress.is_cancelled();
        {
            let mut live = self.live.lock();
            live.running -= 1;
            match outcome {
                // It was asked to stop, and it did: that is no failure of the file's.
                Err(error) if is_stopped && error.kind() == Kind::Fenced => return,
                _ => live.tally.settled(&name.to_string(), outcome),
            }
        }
        self.announce();
    }

    /// A scrub is over.
    pub(super) fn scrubbed(&self, outcome: Result<ScrubReport>) {
        let is_stopped = self.progress.is_cancelled();
        {
            let mut live = self.live.lock();
            live.running -= 1;
            match outcome {
                Ok(report) => {
                    live.scrub = Some(report.into());
                    if let Some(error) = unrepaired(&report) {
                        live.tally.target_failed("the tier", error);
                    }
                }
                Err(error) if is_stopped && error.kind() == Kind::Fenced => {}
                Err(error) => live.tally.target_failed("the tier", error),
            }
        }
        self.announce();
    }

    /// Asks the job to stop: nothing new is begun, and what runs is told.
    pub(super) fn cancel(&self) {
        {
            let mut live = self.live.lock();
            live.cancelled = true;
            live.ready.clear();
        }
        self.progress.cancel();
        self.announce();
    }

    /// Whether it has nothing left to do. Answers `true` once: whoever gets it finishes the job.
    pub(super) fn take_finish(&self) -> bool {
        let mut live = self.live.lock();
        let has_scrubbed = self.spec.task != Task::Scrub || live.scrubbing;
        let is_exhausted = self.is_expanded(&live) && live.ready.is_empty() && has_scrubbed;
        let is_idle = live.running == 0 && !live.listing;
        let take = !live.finishing && is_idle && (live.cancelled || is_exhausted);
        live.finishing |= take;
        take
    }

    /// The job as it ends.
    pub(super) fn end(&self) -> proto::Job {
        let mut job = self.snapshot(Detail::Full);
        let finished = now_ms();
        let live = self.live.lock();
        job.set_state(if live.cancelled {
            proto::JobState::Cancelled
        } else if live.tally.has_failed() {
            proto::JobState::Failed
        } else {
            proto::JobState::Done
        });
        job.finished = Some(timestamp(finished));
        job.deadline_missed = self.spec.deadline_ms.is_some_and(|deadline| finished > deadline);
        job.targets.truncate(BRIEF_TARGETS);
        job
    }

    /// Publishes the end.
    pub(super) fn ended(&self, job: Arc<proto::Job>) {
        self.live.lock().end = Some(job);
        self.announce();
    }

    /// Whether it has been started and is not over.
    pub(super) fn is_running(&self) -> bool {
        let live = self.live.lock();
        live.started_ms.is_some() && live.end.is_none()
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        self.live.lock().end.is_some()
    }

    /// Changes whenever something but the bytes does.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// The job as it stands.
    pub(crate) fn snapshot(&self, detail: Detail) -> proto::Job {
        let live = self.live.lock();
        if let Some(end) = &live.end {
            return cut(end, detail);
        }
        let mut job = cut(&self.base, detail);
        job.progress = Some(live.tally.progress(self.progress.bytes(), self.is_expanded(&live)));
        if let Some(started) = live.started_ms {
            job.set_state(proto::JobState::Running);
            job.started = Some(timestamp(started));
        }
        job.cancel_requested = live.cancelled;
        job.deadline_missed = self.spec.deadline_ms.is_some_and(|deadline| now_ms() > deadline);
        job.errors.clone_from(live.tally.errors());
        job.scrub = live.scrub;
        if detail == Detail::Full {
            job.results.clone_from(live.tally.results());
        }
        job
    }

    fn announce(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

/// What a scrub could not make whole, as an error.
fn unrepaired(report: &ScrubReport) -> Option<Error> {
    (report.unrepaired + report.quarantined > 0).then(|| {
        Kind::Corrupt.error(format!(
            "{} damaged parts could not be made whole, and {} files are quarantined: \
             `forebay ls` names them",
            report.unrepaired, report.quarantined
        ))
    })
}
