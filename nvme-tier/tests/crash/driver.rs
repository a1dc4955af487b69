//! A run of a few operations, several at once, and what was told of them.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::collections::BTreeSet;
use std::sync::Arc;

use extent::{ExtentIndex, FileName, Kind, Result};
use forebay_nvme_tier::device::Device;
use forebay_nvme_tier::device::sim::SimOptions;
use forebay_nvme_tier::{Extent, FileGeneration, Mark, State};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::{EXTENT, Rig, name, narrow, small_format, version};
use crate::model::{Change, Content, Run, Vouched, observe};

const FILES: usize = 3;
const LONGEST: u64 = 3;

type Answer<T> = Arc<Mutex<Option<(usize, Result<T>)>>>;

type Then = Box<dyn Fn(&Content, u64) -> Content>;

/// A record operation that was asked for: it ends in a change, or in none if it was refused.
struct Asked {
    file: usize,
    asked: usize,
    answer: Answer<u64>,
    /// What the file is if it succeeds, given the attempt that it made.
    then: Then,
}

struct Driver {
    rig: Rig,
    rng: SmallRng,
    names: Vec<FileName>,
    asked: Vec<Asked>,
    /// Fills: file, attempt, index, and when they were published.
    published: Vec<(usize, u64, u32, Answer<()>)>,
    flushes: Vec<(usize, Answer<()>)>,
    dropped: Vec<(usize, usize)>,
    blind: Vec<(usize, usize, usize)>,
    changes: Vec<Vec<Change>>,
    attempts: Vec<(usize, u64)>,
    /// What readers hold, and what they found in it.
    held: Vec<(Arc<FileGeneration>, Extent, Vec<u8>)>,
    versions: u64,
}

/// A run of a number of operations on new disks, the last `after_kill` of them after the process
/// died and came back, without a power cut.
pub fn run(sim: SimOptions, operations: usize, after_kill: usize) -> Run {
    let rig = Rig::new(sim, &small_format());
    run_on(rig, operations, after_kill)
}

pub fn run_on(rig: Rig, operations: usize, after_kill: usize) -> Run {
    let seed = rig.disk.options().seed;
    rig.tier.allow_eviction();
    rig.disk.record();
    let start = Change { asked: 0, acknowledged: Some(0), content: Content::Absent };
    let names = (0..FILES).map(|n| name(&format!("s/{n}"))).collect();
    let mut driver = Driver {
        rig,
        rng: SmallRng::seed_from_u64(seed),
        names,
        asked: Vec::new(),
        published: Vec::new(),
        flushes: Vec::new(),
        dropped: Vec::new(),
        blind: Vec::new(),
        changes: vec![vec![start]; FILES],
        attempts: Vec::new(),
        held: Vec::new(),
        versions: 0,
    };
    for number in 0..operations {
        if number + after_kill == operations && after_kill > 0 {
            driver = driver.kill();
        }
        driver.operate();
        // Often several operations are under way at once.
        for _ in 0..driver.rng.random_range(0..40) {
            driver.rig.step();
        }
    }
    driver.rig.settle();
    driver.finish()
}

impl Driver {
    fn operate(&mut self) {
        let file = self.rng.random_range(0..FILES);
        match self.rng.random_range(0..100) {
            0..20 => self.register(file),
            20..45 => self.write(file),
            45..65 => self.fill(file),
            65..80 => self.settle(file),
            80..85 => self.mark(file),
            85..92 => self.forget(file),
            92..95 => self.release(file),
            95..98 => self.read(file),
            _ => {
                let answer = self.post(|tier, done| tier.flush(done), |()| ());
                self.flushes.push((self.rig.disk.now(), answer));
            }
        }
    }

    fn newest(&self, file: usize) -> Option<Arc<FileGeneration>> {
        self.rig.find(&self.names[file]).map(|file| file.newest())
    }

    fn register(&mut self, file: usize) {
        // Half of the time it is the version that is known already.
        self.versions += u64::from(self.rng.random_bool(0.5));
        let (name, text) = (self.names[file].clone(), format!("v{}", self.versions));
        let length = self.rng.random_range(0..=LONGEST) * EXTENT + self.versions % 7 * 1000;
        let (v, known) = (version(&text), text.clone());
        let answer = self.post(
            |tier, done| tier.register(name, length, v, done),
            |file| file.newest().attempt().0,
        );
        self.ask(file, answer, move |before, attempt| match before {
            Content::Clean { attempt: same, .. } | Content::Dirty { attempt: same, .. }
                if *same == attempt =>
            {
                before.clone()
            }
            // What the silo holds is made from the attempt.
            _ => Content::Clean {
                attempt,
                length,
                version: known.clone(),
                mark: None,
                seed: attempt,
                written: false,
            },
        });
    }

    fn write(&mut self, file: usize) {
        let length =
            self.rng.random_range(0..=LONGEST) * EXTENT + self.rng.random_range(0..9) * 500;
        let Ok(draft) = self.rig.tier.begin(self.names[file].clone(), length) else { return };
        let attempt = draft.attempt().0;
        self.attempts.push((self.rig.disk.now(), attempt));
        let mut parts = Vec::new();
        let mut extents = BTreeSet::new();
        for index in 0..narrow(length.div_ceil(EXTENT)) {
            if self.rng.random_bool(0.2) {
                continue;
            }
            let bytes = narrow((length - u64::from(index) * EXTENT).min(EXTENT));
            let at = ExtentIndex(index);
            let slot = self.rig.ask(|tier, done| tier.reserve_draft(&draft, at, bytes, done));
            let Ok(slot) = slot else { return };
            let sums = self.rig.write(&slot, attempt);
            parts.push((slot, sums));
            extents.insert(index);
        }
        if self.rng.random_bool(0.1) {
            return; // Given up: all of it must be gone.
        }
        let answer = self.post(
            |tier, done| tier.commit(draft, length, parts, done),
            |generation| generation.attempt().0,
        );
        self.ask(file, answer, move |before, attempt| {
            let base = match before {
                Content::Absent => None,
                Content::Clean { version, .. } => Some(version.clone()),
                Content::Dirty { base, .. } => base.clone(),
            };
            let extents = extents.clone();
            Content::Dirty { attempt, length, base, mark: None, seed: attempt, extents }
        });
    }

    fn fill(&mut self, file: usize) {
        let Some(generation) = self.newest(file) else { return };
        let count = generation.extent_count();
        if count == 0 || generation.state() == State::Dirty {
            return;
        }
        let index = self.rng.random_range(0..count);
        if generation.is_written() && generation.extent(ExtentIndex(index)).is_none() {
            return; // A hole: the silo has zeroes there, the model has not.
        }
        let at = ExtentIndex(index);
        let Ok(slot) = self.rig.ask(|tier, done| tier.reserve(&generation, at, done)) else {
            return;
        };
        let attempt = generation.attempt().0;
        let sums = self.rig.write(&slot, attempt);
        let answer = self.post(|tier, done| tier.publish(slot, sums, done), |()| ());
        self.published.push((file, attempt, index, answer));
    }

    fn settle(&mut self, file: usize) {
        let Some(generation) = self.newest(file) else { return };
        if generation.state() == State::Clean {
            return;
        }
        self.versions += 1;
        let text = format!("v{}", self.versions);
        let v = version(&text);
        let settled = generation.attempt().0;
        let answer = self.post(|tier, done| tier.settle(&generation, v, done), move |()| settled);
        self.ask(file, answer, move |before, settled| match before.clone() {
            Content::Dirty { attempt, length, seed, .. } if attempt == settled => Content::Clean {
                attempt,
                length,
                version: text.clone(),
                mark: None,
                seed,
                written: true,
            },
            Content::Dirty { attempt, length, mark, seed, extents, .. } => {
                let base = Some(text.clone());
                Content::Dirty { attempt, length, base, mark, seed, extents }
            }
            other => panic!("settling {other:?} succeeded"),
        });
    }

    fn mark(&mut self, file: usize) {
        let Some(generation) = self.newest(file) else { return };
        let mark = self.rng.random_bool(0.7).then_some(Mark::Conflict);
        let marked = generation.attempt().0;
        let answer = self.post(|tier, done| tier.mark(&generation, mark, done), move |()| marked);
        self.ask(file, answer, move |before, _| {
            let mut after = before.clone();
            match &mut after {
                Content::Clean { mark: old, .. } | Content::Dirty { mark: old, .. } => *old = mark,
                Content::Absent => panic!("marking what is not there succeeded"),
            }
            after
        });
    }

    fn forget(&mut self, file: usize) {
        let Some(known) = self.rig.find(&self.names[file]) else { return };
        let answer = self.post(|tier, done| tier.forget(&known, done), |()| 0);
        self.ask(file, answer, |_, _| Content::Absent);
    }

    fn release(&mut self, file: usize) {
        let Some(generation) = self.newest(file) else { return };
        self.dropped.push((file, self.rig.disk.now()));
        let _refused_if_dirty = self.rig.ask(|tier, done| tier.release(&generation, 0..2, done));
    }

    /// Somebody begins to read, and those who did before find what they began to read.
    fn read(&mut self, file: usize) {
        for (generation, extent, bytes) in std::mem::take(&mut self.held) {
            let now = self.rig.read(&generation, &extent);
            assert!(now.is_some_and(|now| now == bytes), "a reader's extent changed: {extent:?}");
        }
        let Some(generation) = self.newest(file) else { return };
        let extents =
            (0..generation.extent_count()).filter_map(|i| generation.extent(ExtentIndex(i)));
        self.held = extents
            .map(|extent| {
                let bytes = self.rig.read(&generation, &extent);
                (Arc::clone(&generation), extent, bytes.expect("what is resident is right"))
            })
            .collect();
    }

    fn post<T: Send + 'static, U: Send + 'static>(
        &mut self,
        begin: impl FnOnce(&forebay_nvme_tier::Tier, forebay_nvme_tier::Done<T>),
        keep: impl FnOnce(T) -> U + Send + 'static,
    ) -> Answer<U> {
        let answer: Answer<U> = Arc::default();
        let (told, disk) = (Arc::clone(&answer), self.rig.disk.clone());
        let done = move |result: Result<T>| *told.lock() = Some((disk.now(), result.map(keep)));
        begin(&self.rig.tier, forebay_nvme_tier::Done::new(done));
        answer
    }

    fn ask(
        &mut self,
        file: usize,
        answer: Answer<u64>,
        then: impl Fn(&Content, u64) -> Content + 'static,
    ) {
        let asked = self.rig.disk.now();
        self.asked.push(Asked { file, asked, answer, then: Box::new(then) });
    }

    /// What was answered becomes history; the files and moments of what was not.
    fn take_answers(&mut self) -> Vec<(usize, usize)> {
        let mut open = Vec::new();
        for asked in std::mem::take(&mut self.asked) {
            let (moment, result) = asked.answer.lock().take().expect("every operation ends");
            match result {
                Ok(attempt) => {
                    let history = &mut self.changes[asked.file];
                    let before = &history.last().expect("not empty").content;
                    let content = (asked.then)(before, attempt);
                    let acknowledged = Some(moment);
                    history.push(Change { asked: asked.asked, acknowledged, content });
                }
                Err(error) if error.kind() == Kind::Disconnected => {
                    open.push((asked.file, asked.asked));
                }
                Err(_) => {}
            }
        }
        open
    }

    /// The process dies: what is queued is lost, and what the devices were given still happens
    /// before another one gets hold of them (commands in flight keep the lock). That other one
    /// starts on the same disks, with their caches as they are, and what it finds then must last.
    fn kill(mut self) -> Self {
        let (disk, options) = (self.rig.disk.clone(), self.rig.options);
        self.held.clear();
        let Rig { mut queue, data, tier, ledger, .. } = self.rig;
        drop((ledger, tier, data));
        let mut unheard = Vec::new();
        while queue.in_flight() > 0 {
            queue.kick().expect("the queue works");
            queue.poll(&mut unheard);
        }
        drop(queue);
        self.rig = Rig::with(disk, options).expect("recovers");
        self.rig.tier.allow_eviction();
        let now = self.rig.disk.now();
        let open = self.take_answers();
        let observed = observe(&self.rig, &self.names).expect("whole");
        for (file, seen) in observed.files.into_iter().enumerate() {
            let (name, content) = (&self.names[file], seen.content);
            let from = open.iter().filter(|(f, _)| *f == file).map(|(_, asked)| *asked).min();
            let last = &self.changes[file].last().expect("not empty").content;
            assert!(from.is_some() || *last == content, "{name} was {last:?} and is {content:?}");
            if let Some(from) = from {
                self.blind.push((file, from, now));
                let acknowledged = Some(now);
                self.changes[file].push(Change { asked: from, acknowledged, content });
            }
        }
        self
    }

    fn finish(mut self) -> Run {
        self.read(0);
        let open = self.take_answers();
        assert!(open.is_empty(), "the ledger came to rest");
        let mut vouched = Vec::new();
        for (asked, answer) in &self.flushes {
            let Some((from, Ok(()))) = *answer.lock() else { continue };
            for (file, attempt, index, published) in &self.published {
                if matches!(&*published.lock(), Some((moment, Ok(()))) if moment <= asked) {
                    let (file, attempt, index) = (*file, *attempt, *index);
                    vouched.push(Vouched { file, attempt, index, from });
                }
            }
        }
        let recorder = self.rig.disk.recorder().expect("it was recorded");
        let copies = self.rig.options.dirty_copies;
        let Self { names, changes, dropped, blind, attempts, .. } = self;
        Run { names, changes, vouched, dropped, blind, copies, absent: None, attempts, recorder }
    }
}
