//! The power goes at every moment of short runs.
//!
//! A run does a few operations, some of them at once, on simulated disks that record every write and
//! flush. Then, for every moment of it, and for many choices of what of the unflushed writes
//! survives (each write whole, absent or torn at blocks), the disks are rebuilt and the tier is
//! recovered. What it holds is compared with a model: each file must be in the state after its last
//! acknowledged operation, or after one that had been asked for and not been acknowledged. Then
//! recovery's own clean-up runs and the power goes again, which must change nothing, and new
//! files are written over all that is free, which must harm nothing.
//!
//! The last test proves that this catches something: on disks that lie about flushes it must fail.

mod common;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use common::{EXTENT, Rig, name, pattern, small_disk, small_format, version};
use extent::{ExtentIndex, FileName, Kind, Result};
use forebay_nvme_tier::device::sim::{
    Fault, FaultPlan, FaultRule, Operation, Recorder, SimDisk, SimOptions, Survival, When,
    WriteRecord,
};
use forebay_nvme_tier::device::{DeviceIndex, Location};
use forebay_nvme_tier::{FileGeneration, Mark, State};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const FILES: usize = 3;
const LONGEST: u64 = 3;

/// What is durable of a file.
#[derive(Clone, PartialEq, Eq)]
enum Content {
    Absent,
    Clean { attempt: u64, length: u64, version: String, mark: Option<Mark>, seed: u64, written: bool },
    Dirty { attempt: u64, length: u64, base: Option<String>, mark: Option<Mark>, seed: u64, extents: BTreeSet<u32> },
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Clean { attempt, length, version, mark, seed, .. } => {
                write!(f, "clean #{attempt} {length} B of {version} {mark:?}, seed {seed}")
            }
            Self::Dirty { attempt, length, base, mark, seed, extents } => write!(
                f,
                "dirty #{attempt} {length} B {extents:?} on {base:?} {mark:?}, seed {seed}"
            ),
        }
    }
}

/// One change of a file's state, from when it was asked for to when it was acknowledged.
#[derive(Clone, Debug)]
struct Change {
    asked: usize,
    acknowledged: Option<usize>,
    content: Content,
}

/// An extent of which a flush, acknowledged at a moment, vouches.
#[derive(Clone, Debug)]
struct Vouched {
    file: usize,
    attempt: u64,
    index: u32,
    from: usize,
}

type Answer<T> = Arc<Mutex<Option<(usize, Result<T>)>>>;

/// A record operation that was asked for: it ends in a change, or in none if it was refused.
struct Asked {
    file: usize,
    asked: usize,
    answer: Answer<u64>,
    /// What the file is if it succeeds, given the attempt that it made.
    then: Box<dyn Fn(&Content, u64) -> Content>,
}

/// A run and all that is known of it.
struct Run {
    names: Vec<FileName>,
    changes: Vec<Vec<Change>>,
    vouched: Vec<Vouched>,
    /// From when on a file's extents may go for other reasons.
    dropped: Vec<(usize, usize)>,
    /// Files that something was asked of when the process died, and between which moments nobody
    /// can tell what became of it.
    blind: Vec<(usize, usize, usize)>,
    recorder: Recorder,
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
    versions: u64,
}

/// A run of a number of operations on new disks, the last `after_kill` of them after the process
/// died and came back, without a power cut.
fn run(sim: SimOptions, operations: usize, after_kill: usize) -> Run {
    let rig = Rig::new(sim, &small_format());
    run_on(rig, operations, after_kill)
}

fn run_on(rig: Rig, operations: usize, after_kill: usize) -> Run {
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
        let length = self.rng.random_range(0..=LONGEST) * EXTENT + self.rng.random_range(0..9) * 500;
        let Ok(draft) = self.rig.tier.begin(self.names[file].clone(), length) else { return };
        let attempt = draft.attempt().0;
        let mut parts = Vec::new();
        let mut extents = BTreeSet::new();
        for index in 0..u32::try_from(length.div_ceil(EXTENT)).expect("few") {
            if self.rng.random_bool(0.2) {
                continue;
            }
            let bytes = u32::try_from((length - u64::from(index) * EXTENT).min(EXTENT)).expect("small");
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
        let Ok(slot) = self.rig.ask(|tier, done| tier.reserve(&generation, at, done)) else { return };
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

    /// The process dies: what is in flight hangs, what is queued is lost. Another one starts on
    /// the same disks, with their caches as they are, and what it finds then must last.
    fn kill(mut self) -> Self {
        let disk = self.rig.disk.clone();
        let Rig { queue, data, pool, tier, ledger, .. } = self.rig;
        drop((ledger, queue, data, pool, tier));
        self.rig = Rig::on(disk).expect("recovers");
        self.rig.tier.allow_eviction();
        let now = self.rig.disk.now();
        let open = self.take_answers();
        for (file, name) in self.names.iter().enumerate() {
            let content = observe(&self.rig, name, None).expect("whole");
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
        let Self { names, changes, dropped, blind, .. } = self;
        Run { names, changes, vouched, dropped, blind, recorder }
    }
}

/// What a file is on a recovered tier, and how it fails the model whatever it is: its attempt must
/// be one of the history, if one is given.
fn observe(rig: &Rig, name: &FileName, history: Option<&[Change]>) -> Result<Content, String> {
    let Some(file) = rig.find(name) else { return Ok(Content::Absent) };
    let generation = file.newest();
    let attempt = generation.attempt().0;
    let seed = attempt;
    let is_known = |change: &Change| match &change.content {
        Content::Absent => false,
        Content::Clean { attempt: a, .. } | Content::Dirty { attempt: a, .. } => *a == attempt,
    };
    if !history.is_none_or(|history| history.iter().any(is_known)) {
        return Err(format!("attempt {attempt} of {name} never succeeded"));
    }
    if generation.mark() == Some(Mark::Quarantined) {
        return Err(format!("{name} is quarantined"));
    }
    let mut extents = BTreeSet::new();
    for index in 0..generation.extent_count() {
        let Some(extent) = generation.extent(ExtentIndex(index)) else { continue };
        let expected = pattern(seed, index, extent.length() as usize);
        match rig.read(&extent) {
            Some(bytes) if bytes == expected[..bytes.len()] => {
                extents.insert(index);
            }
            Some(_) => return Err(format!("extent {index} of {name} holds something else")),
            // The checksum tells that its data is lost: the silo has it.
            None if generation.state() == State::Clean => {}
            None => return Err(format!("extent {index} of dirty {name} is damaged")),
        }
    }
    let text = |version: Option<extent::SourceVersion>| version.map(|v| v.as_str().to_owned());
    let (length, mark) = (generation.length(), generation.mark());
    Ok(match generation.state() {
        State::Dirty => {
            Content::Dirty { attempt, length, base: text(generation.base()), mark, seed, extents }
        }
        State::Clean => Content::Clean {
            attempt,
            length,
            version: text(generation.version()).ok_or("clean, and of no version")?,
            mark,
            seed,
            written: generation.is_written(),
        },
    })
}

/// Whether a recovered tier is what the model allows after a cut. What each file was found as.
fn judge(run: &Run, rig: &Rig, moment: usize) -> Result<Vec<Content>, String> {
    let mut found = Vec::new();
    for (file, name) in run.names.iter().enumerate() {
        let history = &run.changes[file];
        let open = |(f, from, to): &(usize, usize, usize)| *f == file && (*from..*to).contains(&moment);
        if run.blind.iter().any(open) {
            found.push(observe(rig, name, None)?);
            continue;
        }
        let content = observe(rig, name, Some(history))?;
        let certain = history
            .iter()
            .rposition(|change| change.acknowledged.is_some_and(|at| at <= moment))
            .expect("the beginning is acknowledged");
        let possible = history[certain..].iter().enumerate();
        let possible = possible.filter(|(after, change)| *after == 0 || change.asked <= moment);
        let possible: Vec<&Content> = possible.map(|(_, change)| &change.content).collect();
        if !possible.contains(&&content) {
            return Err(format!("{name} is {content:?} and may be {possible:?}"));
        }
        found.push(content);
    }
    for vouched in run.vouched.iter().filter(|vouched| vouched.from <= moment) {
        let history = &run.changes[vouched.file];
        let changed = |change: &Change| change.asked > 0 && change.asked <= moment;
        let dropped = run.dropped.iter().any(|(file, at)| *file == vouched.file && *at <= moment);
        // Its generation may be gone, or its extents let go, by what was asked for later.
        let current = history.iter().rfind(|change| changed(change)).map(|change| &change.content);
        let same = matches!(current, Some(Content::Clean { attempt, .. }) if *attempt == vouched.attempt);
        if same && !dropped {
            let generation = rig.find(&run.names[vouched.file]).ok_or("a vouched file is gone")?.newest();
            if !rig.holds(&generation, vouched.index, vouched.attempt) {
                return Err(format!("extent {} of {} was flushed", vouched.index, vouched.file));
            }
        }
    }
    Ok(found)
}

/// Recovers after a cut, then lets recovery clean up, cuts again, and fills what is free.
fn survive(run: &Run, disk: SimDisk, moment: usize, rng: &mut SmallRng) -> Result<(), String> {
    let rig = Rig::on(disk).map_err(|error| format!("no recovery: {error}"))?;
    let found = judge(run, &rig, moment)?;
    let unchanged = |rig: &Rig, when: &str| -> Result<(), String> {
        for (file, name) in run.names.iter().enumerate() {
            let now = observe(rig, name, None).map_err(|e| format!("{when}: {e}"))?;
            if now != found[file] {
                return Err(format!("{when}: {name} was {:?} and is {now:?}", found[file]));
            }
        }
        Ok(())
    };
    let mut rig = rig;
    for _ in 0..rng.random_range(0..30) {
        rig.step();
    }
    let again = rig.disk.crash(&mut |write| random_survival(write, rng));
    unchanged(&Rig::on(again).map_err(|e| e.to_string())?, "cut while cleaning up")?;
    rig.settle();
    unchanged(&rig, "after cleaning up")?;
    if rng.random_range(0..8) == 0 {
        let mut number = 0;
        while rig.write_file(&name(&format!("t/{number}")), EXTENT, &[], 999).is_ok() {
            number += 1;
        }
        // Clean files may be evicted by that, and their records stay.
        unchanged(&rig, "after filling the tier")?;
        let last = rig.disk.crash(&mut |_| Survival::Lost);
        unchanged(&Rig::on(last).map_err(|e| e.to_string())?, "after filling and a cut")?;
    }
    Ok(())
}

fn random_survival(write: &WriteRecord, rng: &mut SmallRng) -> Survival {
    match rng.random_range(0..3) {
        0 => Survival::Lost,
        1 => Survival::Whole,
        _ => {
            let blocks = u32::try_from(write.data.len() / 512).expect("small");
            Survival::Torn((0..blocks).filter(|_| rng.random_bool(0.5)).collect())
        }
    }
}

/// Every moment of a run; every subset of up to `all` unflushed writes, beyond that a sample.
/// The first thing that went wrong.
fn cut_everywhere(run: &Run, seed: u64, all: usize, sample: usize) -> Result<u64, String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut recorder = run.recorder.clone();
    let mut cuts = 0;
    for moment in 0..=recorder.moments() {
        let unflushed = recorder.unflushed_at(moment);
        let mut choices: Vec<Option<u64>> = Vec::new();
        if unflushed.len() <= all {
            choices.extend((0..1u64 << unflushed.len()).map(Some));
        } else {
            choices.extend([Some(0), Some(u64::MAX)]);
        }
        choices.extend(vec![None; sample]);
        for choice in choices {
            let mut number = 0;
            let mut survival = |write: &WriteRecord| {
                number += 1;
                match choice {
                    None => random_survival(write, &mut rng),
                    Some(subset) if subset >> ((number - 1) % 64) & 1 == 1 => Survival::Whole,
                    Some(_) => Survival::Lost,
                }
            };
            let disk = recorder.crash_at(moment, &mut survival);
            survive(run, disk, moment, &mut rng).map_err(|what| {
                format!("seed {seed}, cut at {moment} with choice {choice:?}: {what}")
            })?;
            cuts += 1;
        }
    }
    Ok(cuts)
}

/// How many seeds each of these tests tries; more in a longer run.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let more = std::env::var("FOREBAY_CRASH_SEEDS").ok().and_then(|text| text.parse().ok());
    0..more.unwrap_or(few)
}

#[test]
fn every_cut_of_a_few_operations_leaves_old_or_new() {
    for seed in seeds(3) {
        let sim = SimOptions { most_delay_polls: 2, ..small_disk(10, 1, 4096, seed) };
        let run = run(sim, 5, 0);
        if let Err(what) = cut_everywhere(&run, seed, 5, 3) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn small_blocks_tear_records_and_descriptors() {
    for seed in seeds(2) {
        let sim = small_disk(10, 1, 512, 1000 + seed);
        let disk = SimDisk::new(sim);
        // What was there before looks like anything but erased.
        for slab in 0..10 {
            let at = Location { device: DeviceIndex(0), offset: (1 << 20) + slab * (256 << 10) };
            disk.poke(at, &pattern(seed, 77, 256 << 10));
        }
        let run = run_on(Rig::over(disk, &small_format()), 6, 0);
        if let Err(what) = cut_everywhere(&run, seed, 2, 6) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn two_devices_commit_as_one() {
    for seed in seeds(2) {
        let sim = SimOptions { most_delay_polls: 8, ..small_disk(8, 2, 4096, 2000 + seed) };
        let run = run(sim, 6, 0);
        if let Err(what) = cut_everywhere(&run, seed, 2, 5) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn long_runs_reuse_slots_and_survive() {
    for seed in seeds(2) {
        let sim = small_disk(7, 1, 4096, 3000 + seed);
        let run = run(sim, 60, 0);
        if let Err(what) = cut_everywhere(&run, seed, 0, 0) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn what_a_new_process_found_survives_a_power_cut() {
    for seed in seeds(8) {
        let sim = SimOptions { most_delay_polls: 10, ..small_disk(10, 1, 4096, 4000 + seed) };
        let run = run(sim, 9, 3);
        if let Err(what) = cut_everywhere(&run, seed, 0, 1) {
            panic!("{what}\n{:#?}", run.changes);
        }
    }
}

#[test]
fn disks_that_lie_about_flushes_are_caught() {
    let caught = (0..6u64).filter(|seed| {
        let sim = small_disk(10, 1, 4096, *seed);
        let rig = Rig::new(sim, &small_format());
        let lie = FaultRule::new(Operation::Flush, When::From(1), Fault::Lose);
        rig.disk.set_faults(FaultPlan::new().with(lie));
        let run = run_on(rig, 6, 0);
        cut_everywhere(&run, *seed, 0, 2).is_err()
    });
    assert!(caught.count() >= 4, "a tier on such disks must fail these tests");
}
