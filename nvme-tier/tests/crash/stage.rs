//! Several things at once on one tier, in one thread, and a log of what was asked and answered.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use extent::{FileName, Kind, Result};
use forebay_nvme_tier::device::sim::FaultPlan;
use forebay_nvme_tier::{Copies, Done, Extent, File, FileGeneration, State, Tier};
use parking_lot::Mutex;

use crate::common::{EXTENT, Rig, name};
use crate::model::{Change, Content, Lost, Run, Vouched};

/// Steps after which something that was to end is taken to hang.
const PATIENCE: usize = 200_000;

pub type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// What was answered, and when.
type Answer<T> = Arc<Mutex<Option<(usize, Result<T>)>>>;

/// A tier and all that is known of what was done to it.
pub struct Stage {
    pub rig: RefCell<Rig>,
    pub names: Vec<FileName>,
    log: RefCell<Log>,
    copies: Copies,
    absent: Lost,
}

struct Log {
    changes: Vec<Vec<Change>>,
    vouched: Vec<Vouched>,
    dropped: Vec<(usize, usize)>,
    blind: Vec<(usize, usize, usize)>,
    held: Vec<(Arc<FileGeneration>, Extent, Vec<u8>)>,
    versions: u64,
    attempts: Vec<(usize, u64)>,
}

impl Stage {
    /// Begins with the files in these states.
    pub fn new(
        rig: Rig,
        names: Vec<FileName>,
        contents: Vec<Content>,
        (copies, absent): (Copies, Lost),
    ) -> Self {
        let begin = |content| vec![Change { asked: 0, acknowledged: Some(0), content }];
        let log = Log {
            changes: contents.into_iter().map(begin).collect(),
            vouched: Vec::new(),
            dropped: Vec::new(),
            blind: Vec::new(),
            held: Vec::new(),
            versions: 100,
            attempts: Vec::new(),
        };
        Self { rig: RefCell::new(rig), names, log: RefCell::new(log), copies, absent }
    }

    /// Runs tasks side by side to their end.
    pub fn run(&self, mut tasks: Vec<Task<'_>>) {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..PATIENCE {
            tasks.retain_mut(|task| task.as_mut().poll(&mut context) == Poll::Pending);
            if tasks.is_empty() {
                return;
            }
            self.rig.borrow_mut().step();
        }
        panic!("an operation never ends: {:?}", self.rig.borrow().ledger);
    }

    /// Asks the tier for something and waits for the answer, and when that came.
    pub async fn ask<T: Send + 'static>(
        &self,
        begin: impl FnOnce(&Tier, Done<T>),
    ) -> (usize, Result<T>) {
        let answer: Answer<T> = Arc::default();
        {
            let rig = self.rig.borrow();
            let (told, disk) = (Arc::clone(&answer), rig.disk.clone());
            begin(&rig.tier, Done::new(move |result| *told.lock() = Some((disk.now(), result))));
        }
        poll_fn(|_| answer.lock().take().map_or(Poll::Pending, Poll::Ready)).await
    }

    pub fn now(&self) -> usize {
        self.rig.borrow().disk.now()
    }

    pub fn find(&self, file: usize) -> Option<Arc<File>> {
        self.rig.borrow().find(&self.names[file])
    }

    pub fn new_version(&self) -> String {
        let mut log = self.log.borrow_mut();
        log.versions += 1;
        format!("v{}", log.versions)
    }

    /// What the file is, if everything asked for so far succeeded.
    pub fn content(&self, file: usize) -> Content {
        let log = self.log.borrow();
        log.changes[file].last().expect("not empty").content.clone()
    }

    /// The answer to something that makes a file into `content`. Refusals change nothing; where a
    /// device failed, it may have happened or not.
    pub fn answered<T>(
        &self,
        file: usize,
        asked: usize,
        (moment, result): (usize, Result<T>),
        content: Option<Content>,
    ) -> Option<T> {
        let mut log = self.log.borrow_mut();
        let acknowledged = result.is_ok().then_some(moment);
        let unsure = matches!(&result, Err(error) if error.kind() == Kind::Io);
        match content {
            Some(content) if acknowledged.is_some() || unsure => {
                log.changes[file].push(Change { asked, acknowledged, content });
            }
            None if unsure => log.blind.push((file, asked, usize::MAX)),
            _ => {}
        }
        result.ok()
    }

    pub fn took(&self, attempt: u64) {
        let now = self.now();
        self.log.borrow_mut().attempts.push((now, attempt));
    }

    pub fn vouch(&self, vouched: Vouched) {
        self.log.borrow_mut().vouched.push(vouched);
    }

    /// From now on extents of a file may go.
    pub fn dropped(&self, file: usize) {
        let now = self.now();
        self.log.borrow_mut().dropped.push((file, now));
    }

    /// Somebody reads an extent from now on: what is in its slot stays there.
    pub fn hold(&self, generation: &Arc<FileGeneration>, extent: Extent) {
        let bytes = self.rig.borrow().read(generation, &extent);
        let bytes = bytes.expect("what is resident is right");
        self.log.borrow_mut().held.push((Arc::clone(generation), extent, bytes));
    }

    /// Everything comes to rest. Readers find what they began to read, whatever is written after.
    pub fn finish(self) -> Run {
        let (mut rig, log) = (self.rig.into_inner(), self.log.into_inner());
        rig.settle();
        let recorder = rig.disk.recorder().expect("it was recorded");
        if self.copies == Copies::Two && self.absent.is_none() && log.held.is_empty() {
            check_slots(&rig, &self.names);
        }
        rig.disk.set_faults(FaultPlan::new());
        let mut number = 0;
        while !log.held.is_empty() && number < 64 {
            let length = if number % 2 == 0 { EXTENT } else { 9000 };
            let _perhaps_no_room = rig.write_file(&name(&format!("t/{number}")), length, &[], 999);
            number += 1;
        }
        for (generation, extent, bytes) in log.held {
            let now = rig.read(&generation, &extent);
            assert!(now.is_some_and(|now| now == bytes), "a reader's extent changed: {extent:?}");
        }
        Run {
            names: self.names,
            changes: log.changes,
            vouched: log.vouched,
            dropped: log.dropped,
            blind: log.blind,
            copies: self.copies,
            absent: self.absent,
            attempts: log.attempts,
            recorder,
        }
    }
}

/// Every slot in use is that of an extent, or of the second copy of a dirty one.
fn check_slots(rig: &Rig, names: &[FileName]) {
    let files = names.iter().filter_map(|name| rig.find(name)).map(|file| file.newest());
    let slots = files.flat_map(|generation| {
        let copies = if generation.state() == State::Dirty { 2 } else { 1 };
        let extents = rig.tier.residents(&generation, 0..u32::MAX);
        let bytes = |extent: &Extent| u64::from(extent.length()).max(16 << 10).next_power_of_two();
        extents.iter().map(|extent| copies * bytes(extent)).collect::<Vec<_>>()
    });
    assert_eq!(rig.tier.usage().slot_bytes, slots.sum::<u64>(), "slots are lost or used twice");
}
