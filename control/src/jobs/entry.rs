//! One job that is not over.

use std::collections::VecDeque;
use std::sync::Arc;

use dataplane::{FileStatus, Progress};
use extent::{ByteRange, Error, FileName, Kind, Result};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::spec::{Spec, Task};
use crate::clock::{UnixMs, from_timestamp, now_ms, timestamp};
use crate::proto;

/// Errors kept of a job.
const ERRORS: usize = 32;
/// Results kept of a job.
const RESULTS: usize = 64;
/// Targets shown in brief, and kept of a finished job.
const BRIEF_TARGETS: usize = 16;
/// Bytes of an error's sentence that are kept.
const SENTENCE_BYTES: usize = 512;

/// How much of a job is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Detail {
    Brief,
    Full,
}

/// A file whose turn is to come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Work {
    pub(crate) name: FileName,
    pub(crate) range: Option<ByteRange>,
}

/// Where the targets have been turned into files up to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cursor {
    /// The target that is next.
    pub(crate) target: usize,
    /// Within a prefix: the last name found.
    pub(crate) after: Option<FileName>,
}

/// What a job has to do next.
#[derive(Debug)]
pub(crate) enum Next {
    /// This file.
    File(Work),
    /// Turn targets into files from here on, and call [`Entry::expanded`].
    Expand(Cursor),
    /// Nothing at the moment.
    Nothing,
}

/// A job's place in the queue: the smallest goes first.
pub(crate) type Rank = (u8, UnixMs, u64);

/// A job that is not over.
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) spec: Spec,
    pub(crate) progress: Arc<Progress>,
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
    expanding: bool,
    running: usize,
    /// Taken by whoever finishes the job.
    finishing: bool,
    files_total: u64,
    files_done: u64,
    files_failed: u64,
    targets_failed: u64,
    errors: Vec<proto::FileResult>,
    results: Vec<proto::FileResult>,
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
        let live = Live { cancelled: job.cancel_requested, ..Live::default() };
        let entry = Self {
            number,
            spec,
            progress: Progress::new(),
            base: job,
            live: Mutex::new(live),
            version: watch::Sender::new(0),
        };
        if entry.base.cancel_requested {
            entry.cancel();
        }
        Ok(entry)
    }

    /// Its place in the queue: promotes with a deadline, then writebacks and demotes, then other
    /// promotes; within these by deadline and age.
    pub(crate) fn rank(&self) -> Rank {
        let class = match (self.spec.task, self.spec.deadline_ms) {
            (Task::Promote, Some(_)) => 0,
            (Task::Demote | Task::Writeback, _) => 1,
            (Task::Promote, None) => 2,
        };
        let deadline = self.spec.deadline_ms.unwrap_or(UnixMs::MAX);
        (class, deadline, self.number)
    }

    /// Takes what is to be done next. `low` is how few files may wait before more are looked for.
    pub(crate) fn next(&self, low: usize) -> Next {
        let mut live = self.live.lock();
        if live.finishing || live.cancelled {
            return Next::Nothing;
        }
        let has_more = live.cursor.target < self.spec.targets.len();
        let next = if has_more && !live.expanding && live.ready.len() <= low {
            live.expanding = true;
            Next::Expand(live.cursor.clone())
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

    /// Some targets have been turned into files, up to `cursor`; or the target at `cursor` could
    /// not, and is passed over.
    pub(crate) fn expanded(&self, found: Result<(Vec<Work>, Cursor)>) {
        let mut live = self.live.lock();
        live.expanding = false;
        if live.cancelled {
            return;
        }
        match found {
            Ok((works, cursor)) => {
                live.files_total += works.len() as u64;
                live.ready.extend(works);
                live.cursor = cursor;
            }
            Err(error) => {
                let target = self.spec.targets[live.cursor.target].to_string();
                live.targets_failed += 1;
                live.cursor = Cursor { target: live.cursor.target + 1, after: None };
                note_error(&mut live, result_of(&target, &Err(error)));
            }
        }
        drop(live);
        self.announce();
    }

    /// The expansion was given up because the node stops.
    pub(crate) fn abandoned(&self) {
        self.live.lock().expanding = false;
    }

    /// A file's turn is over.
    pub(crate) fn settled(&self, name: &FileName, outcome: &Result<FileStatus>) {
        let mut live = self.live.lock();
        live.running -= 1;
        let is_stopped = self.progress.is_cancelled();
        let result = result_of(&name.to_string(), outcome);
        match outcome {
            Ok(_) => live.files_done += 1,
            // It was asked to stop, and it did: that is no failure of the file's.
            Err(error) if is_stopped && error.kind() == Kind::Fenced => return,
            Err(_) => {
                live.files_failed += 1;
                note_error(&mut live, result.clone());
            }
        }
        if live.results.len() < RESULTS {
            live.results.push(result);
        }
        drop(live);
        self.announce();
    }

    /// Asks the job to stop: nothing new is begun, and what runs is told.
    pub(crate) fn cancel(&self) {
        {
            let mut live = self.live.lock();
            live.cancelled = true;
            live.ready.clear();
        }
        self.progress.cancel();
        self.announce();
    }

    /// Whether it has nothing left to do. Answers `true` once: whoever gets it finishes the job.
    pub(crate) fn take_finish(&self) -> bool {
        let mut live = self.live.lock();
        let is_expanded = live.cursor.target >= self.spec.targets.len() && live.ready.is_empty();
        let is_idle = live.running == 0 && !live.expanding;
        let take = !live.finishing && is_idle && (live.cancelled || is_expanded);
        live.finishing |= take;
        take
    }

    /// The job as it ends.
    pub(crate) fn end(&self) -> proto::Job {
        let mut job = self.snapshot(Detail::Full);
        let progress = job.progress.unwrap_or_default();
        let finished = now_ms();
        job.set_state(if self.live.lock().cancelled {
            proto::JobState::Cancelled
        } else if progress.files_failed + progress.targets_failed > 0 {
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
    pub(crate) fn ended(&self, job: Arc<proto::Job>) {
        self.live.lock().end = Some(job);
        self.announce();
    }

    /// Whether it has been started and is not over.
    pub(crate) fn is_running(&self) -> bool {
        let live = self.live.lock();
        live.started_ms.is_some() && live.end.is_none()
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
        let (bytes_done, bytes_total) = self.progress.bytes();
        job.progress = Some(proto::JobProgress {
            files_total: live.files_total,
            files_done: live.files_done,
            files_failed: live.files_failed,
            targets_failed: live.targets_failed,
            bytes_done,
            bytes_total,
            expanded: live.cursor.target >= self.spec.targets.len(),
        });
        if let Some(started) = live.started_ms {
            job.set_state(proto::JobState::Running);
            job.started = Some(timestamp(started));
        }
        job.cancel_requested = live.cancelled;
        job.deadline_missed = self.spec.deadline_ms.is_some_and(|deadline| now_ms() > deadline);
        job.errors.clone_from(&live.errors);
        if detail == Detail::Full {
            job.results.clone_from(&live.results);
        }
        job
    }

    fn announce(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

/// A job without what `detail` leaves out.
pub(crate) fn cut(job: &proto::Job, detail: Detail) -> proto::Job {
    if detail == Detail::Full {
        return job.clone();
    }
    let targets = job.targets.iter().take(BRIEF_TARGETS).cloned().collect();
    // Field by field, so that long lists are not copied to be thrown away.
    proto::Job {
        id: job.id.clone(),
        kind: job.kind,
        state: job.state,
        progress: job.progress,
        targets,
        targets_total: job.targets_total,
        labels: job.labels.clone(),
        request_id: job.request_id.clone(),
        controller_epoch: job.controller_epoch,
        expected_generation: job.expected_generation,
        deadline: job.deadline,
        deadline_missed: job.deadline_missed,
        durable: job.durable,
        pin: job.pin.clone(),
        cancel_requested: job.cancel_requested,
        created: job.created,
        started: job.started,
        finished: job.finished,
        restarts: job.restarts,
        errors: job.errors.clone(),
        results: Vec::new(),
    }
}

/// When a stored job ended; `None` if it is not over.
pub(crate) fn finished_ms(job: &proto::Job) -> Option<UnixMs> {
    job.finished.as_ref().and_then(from_timestamp)
}

fn note_error(live: &mut Live, result: proto::FileResult) {
    if live.errors.len() < ERRORS {
        live.errors.push(result);
    }
}

fn result_of(file: &str, outcome: &Result<FileStatus, Error>) -> proto::FileResult {
    let mut result = proto::FileResult { file: file.to_owned(), ..proto::FileResult::default() };
    match outcome {
        Ok(status) => {
            result.generation = status.generation.0;
            result.resident_bytes = status.resident_bytes;
        }
        Err(error) => {
            result.error_kind = error.kind().name().to_owned();
            result.error = error.to_string();
            let end = result.error.floor_char_boundary(SENTENCE_BYTES);
            result.error.truncate(end);
        }
    }
    result
}
