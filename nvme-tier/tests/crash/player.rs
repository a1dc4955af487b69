//! Plays a workload on simulated disks that record it.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use extent::{ExtentIndex, FileName};
use forebay_nvme_tier::device::DeviceIndex;
use forebay_nvme_tier::device::sim::{FaultPlan, Image, SimDisk, SimOptions};
use forebay_nvme_tier::{Copies, Draft, Reservation, State};

use crate::common::{
    EXTENT, Rig, keeping, name, narrow, options, pool, small_disk, small_format, version,
};
use crate::model::{Content, Run, Vouched, observe};
use crate::stage::{Stage, Task};
use crate::workload::{Op, Pace, Start, Step, Workload};

/// Slabs: one for records and one for each size of slot, and one more that either may get.
const SLABS: u64 = 4;
/// A full extent and a short one, which is in a slot of another size; and a short one alone.
const LENGTHS: [u64; 2] = [EXTENT + 5000, 9000];

/// The tier that a workload begins from, made once for each start and block size.
#[derive(Default)]
pub struct Beginnings(HashMap<(u32, &'static str, u16), Vec<Image>>);

type Written = (Draft, Vec<(Reservation, Box<[u32]>)>);

struct Player<'a> {
    stage: &'a Stage,
    pace: Pace,
    /// Whether the second file is pinned.
    pinned: bool,
    drafts: RefCell<HashMap<usize, Written>>,
}

/// The names of the two files: the first takes several blocks of 512 bytes of its record.
pub fn names() -> Vec<FileName> {
    vec![name(&format!("s/{}", "deep/".repeat(180))), name("s/b")]
}

impl Beginnings {
    /// Plays a workload on one of two devices: what it writes is there once, and the other device comes
    /// back as it was.
    pub fn play_without(&mut self, workload: &Workload, absent: DeviceIndex) -> Run {
        let sim = sim(workload.block_bytes, Copies::Two);
        let disk = SimDisk::from_images(sim, self.images(workload));
        disk.record();
        let rig = Rig::without(disk.clone(), options(), pool(), &[absent]).expect("recovers");
        rig.tier.allow_eviction();
        let observed = observe(&rig, &names()).expect("one of two copies is enough");
        let contents = observed.files.into_iter().map(|seen| seen.content).collect();
        let stage = Stage::new(rig, names(), contents, (Copies::Two, Some(absent)));
        stage.took(observed.next_attempt);
        play(&stage, workload);
        assert_eq!(disk.faults_injected(), 0, "commands for a device that is not there");
        stage.finish()
    }

    /// Plays a workload. With `faults` devices fail, from the moment that it begins.
    pub fn play(&mut self, workload: &Workload, faults: FaultPlan) -> Run {
        let copies = workload.copies;
        let sim = sim(workload.block_bytes, copies);
        let disk = SimDisk::from_images(sim, self.images(workload));
        disk.record();
        let rig = Rig::with(disk, keeping(copies)).expect("a beginning recovers");
        rig.tier.allow_eviction();
        let observed = observe(&rig, &names()).expect("a beginning is sound");
        if workload.start == Start::Pinned {
            let file = rig.find(&names()[1]).expect("it is there");
            rig.tier.pin(&file, "job", u64::MAX);
        }
        // A device that fails and another one that is lost are two faults.
        let judged = if faults == FaultPlan::new() { copies } else { Copies::One };
        rig.disk.set_faults(faults);
        let contents = observed.files.into_iter().map(|seen| seen.content).collect();
        let stage = Stage::new(rig, names(), contents, (judged, None));
        stage.took(observed.next_attempt);
        play(&stage, workload);
        stage.finish()
    }

    fn images(&mut self, workload: &Workload) -> Vec<Image> {
        let Workload { block_bytes, copies, .. } = *workload;
        let (kind, files) = match workload.start {
            Start::Empty => ("empty", None),
            Start::Clean | Start::Pinned => ("clean", Some(Op::Promote)),
            Start::Dirty => ("dirty", Some(Op::Write)),
        };
        let made = self.0.entry((block_bytes, kind, devices(copies)));
        made.or_insert_with(|| begin(files, block_bytes, copies)).clone()
    }
}

fn devices(copies: Copies) -> u16 {
    match copies {
        Copies::One => 1,
        Copies::Two => 2,
    }
}

fn sim(block_bytes: u32, copies: Copies) -> SimOptions {
    SimOptions { most_delay_polls: 1, ..small_disk(SLABS, devices(copies), block_bytes, 1) }
}

fn begin(files: Option<Op>, block_bytes: u32, copies: Copies) -> Vec<Image> {
    let rig = Rig::new(sim(block_bytes, copies), &small_format());
    let rig = Rig::with(rig.disk.clone(), keeping(copies)).expect("a new tier recovers");
    rig.disk.record();
    let stage = Stage::new(rig, names(), vec![Content::Absent; 2], (copies, None));
    let then = |op| if op == Op::Write { vec![op, Op::Commit] } else { vec![op] };
    let ops = files.map_or(Vec::new(), then);
    let steps = (0..2).flat_map(|file| ops.iter().map(move |op| Step { op: *op, file })).collect();
    let (start, pace) = (Start::Empty, Pace::InTurn);
    play(&stage, &Workload { start, pace, block_bytes, copies, steps });
    let mut rig = stage.rig.into_inner();
    rig.ask(|tier, done| tier.flush(done)).expect("flushes");
    rig.settle();
    rig.disk.durable_image()
}

fn play(stage: &Stage, workload: &Workload) {
    let pinned = workload.start == Start::Pinned;
    let player = Player { stage, pace: workload.pace, pinned, drafts: RefCell::default() };
    let lanes = match workload.pace {
        Pace::AtOnce => (0..3)
            .map(|lane| workload.steps.iter().filter(|s| s.lane() == lane).collect())
            .collect(),
        Pace::InTurn | Pace::Eager => vec![workload.steps.iter().collect::<Vec<_>>()],
    };
    let tasks = lanes.into_iter().map(|steps| Box::pin(player.lane(steps)) as Task<'_>);
    stage.run(tasks.collect());
}

impl Player<'_> {
    async fn lane(&self, steps: Vec<&Step>) {
        for step in steps {
            match step.op {
                Op::Promote => self.promote(step.file).await,
                Op::Write => self.write(step.file).await,
                Op::Commit => self.commit(step.file).await,
                Op::Release => self.release(step.file).await,
                Op::Evict => self.evict().await,
                Op::Demote => self.demote(step.file).await,
                Op::Forget => self.forget(step.file).await,
                Op::Rebase => self.rebase(step.file).await,
                Op::GiveUp => self.give_up(step.file).await,
            }
            if self.pace == Pace::InTurn {
                self.stage.rig.borrow_mut().settle();
            }
        }
    }

    async fn promote(&self, file: usize) {
        let (stage, name) = (self.stage, self.stage.names[file].clone());
        let newest = stage.find(file).map(|file| file.newest());
        let whole =
            |g: &forebay_nvme_tier::FileGeneration| g.resident_extents() == g.extent_count();
        // What is all there is promoted again because its silo has a new version.
        let known = newest.filter(|newest| newest.state() == State::Dirty || !whole(newest));
        let known = known.and_then(|newest| newest.base());
        let text = known.map_or_else(|| stage.new_version(), |v| v.as_str().to_owned());
        let (length, v, asked) = (LENGTHS[file], version(&text), stage.now());
        let answer = stage.ask(|tier, done| tier.register(name, length, v, done)).await;
        let content = answer.1.as_ref().ok().map(|known| {
            let attempt = known.newest().attempt().0;
            match stage.content(file) {
                same @ (Content::Clean { .. } | Content::Dirty { .. })
                    if same.attempt() == Some(attempt) =>
                {
                    same
                }
                _ => Content::Clean {
                    attempt,
                    length,
                    version: text,
                    mark: None,
                    seed: attempt,
                    written: false,
                },
            }
        });
        let Some(known) = stage.answered(file, asked, answer, content) else { return };
        let generation = known.newest();
        stage.took(generation.attempt().0);
        let mut published = Vec::new();
        for index in 0..generation.extent_count() {
            let at = ExtentIndex(index);
            if generation.state() == State::Dirty || generation.extent(at).is_some() {
                continue;
            }
            let (_, slot) = stage.ask(|tier, done| tier.reserve(&generation, at, done)).await;
            let Ok(slot) = slot else { return };
            let sums = stage.rig.borrow_mut().try_write(&slot, generation.attempt().0);
            let Ok(sums) = sums else { return };
            let (_, done) = stage.ask(|tier, done| tier.publish(slot, sums, done)).await;
            if done.is_ok() {
                published.push(index);
            }
        }
        // One of the two is asked to be durable.
        if file == 0
            && let (from, Ok(())) = stage.ask(|tier, done| tier.flush(done)).await
        {
            let attempt = generation.attempt().0;
            published
                .into_iter()
                .for_each(|index| stage.vouch(Vouched { file, attempt, index, from }));
        }
    }

    async fn write(&self, file: usize) {
        let (stage, name) = (self.stage, self.stage.names[file].clone());
        self.drafts.borrow_mut().remove(&file);
        let draft = stage.rig.borrow().tier.begin(name, LENGTHS[file]);
        let Ok(draft) = draft else { return };
        stage.took(draft.attempt().0);
        let mut parts = Vec::new();
        for index in 0..narrow(LENGTHS[file].div_ceil(EXTENT)) {
            let bytes = narrow((LENGTHS[file] - u64::from(index) * EXTENT).min(EXTENT));
            let at = ExtentIndex(index);
            let (_, slot) =
                stage.ask(|tier, done| tier.reserve_draft(&draft, at, bytes, done)).await;
            let Ok(slot) = slot else { return };
            let sums = stage.rig.borrow_mut().try_write(&slot, draft.attempt().0);
            let Ok(sums) = sums else { return };
            parts.push((slot, sums));
        }
        self.drafts.borrow_mut().insert(file, (draft, parts));
    }

    async fn commit(&self, file: usize) {
        let (stage, length) = (self.stage, LENGTHS[file]);
        let written = self.drafts.borrow_mut().remove(&file);
        let Some((draft, parts)) = written else { return };
        let attempt = draft.attempt().0;
        let base = match stage.content(file) {
            Content::Absent => None,
            Content::Clean { version, .. } => Some(version),
            Content::Dirty { base, .. } => base,
        };
        let extents: BTreeSet<u32> = (0..narrow(parts.len() as u64)).collect();
        let content = Content::Dirty { attempt, length, base, mark: None, seed: attempt, extents };
        let asked = stage.now();
        let answer = stage.ask(|tier, done| tier.commit(draft, length, parts, done)).await;
        stage.answered(file, asked, answer, Some(content));
    }

    async fn release(&self, file: usize) {
        let stage = self.stage;
        let Some(known) = stage.find(file) else { return };
        let generation = known.newest();
        stage.dropped(file);
        if self.pace == Pace::AtOnce {
            let extents =
                (0..generation.extent_count()).filter_map(|i| generation.extent(ExtentIndex(i)));
            extents.for_each(|extent| stage.hold(&generation, extent));
        }
        let before = generation.resident_extents();
        let (_, freed) = stage.ask(|tier, done| tier.release(&generation, 0..9, done)).await;
        let kept = generation.resident_extents() == before;
        assert!(freed.is_ok() || kept, "a release that was refused let extents go");
    }

    /// Takes slots until something was evicted or nothing can be, and gives them back.
    async fn evict(&self) {
        let stage = self.stage;
        (0..2).for_each(|file| stage.dropped(file));
        let pinned = stage.find(1).map(|file| file.newest()).filter(|_| self.pinned);
        let before = pinned.as_ref().map(|pinned| pinned.resident_extents());
        let evicted = || stage.rig.borrow().tier.usage().evicted_extents;
        let first = evicted();
        let draft = stage.rig.borrow().tier.begin(name("s/filler"), EXTENT);
        let Ok(draft) = draft else { return };
        stage.took(draft.attempt().0);
        let mut taken = Vec::new();
        while evicted() == first {
            let at = ExtentIndex(narrow(taken.len() as u64));
            let (_, slot) =
                stage.ask(|tier, done| tier.reserve_draft(&draft, at, narrow(EXTENT), done)).await;
            let Ok(slot) = slot else { break };
            taken.push(slot);
        }
        let after = pinned.as_ref().map(|pinned| pinned.resident_extents());
        assert_eq!(before, after, "extents of a pinned file were evicted");
    }

    async fn demote(&self, file: usize) {
        let stage = self.stage;
        let Some(known) = stage.find(file) else { return };
        let generation = known.newest();
        let Content::Dirty { attempt, length, seed, .. } = stage.content(file) else { return };
        let (text, asked) = (stage.new_version(), stage.now());
        let v = version(&text);
        let content =
            Content::Clean { attempt, length, version: text, mark: None, seed, written: true };
        let answer = stage.ask(|tier, done| tier.settle(&generation, v, done)).await;
        stage.answered(file, asked, answer, Some(content));
        self.release(file).await;
    }

    async fn rebase(&self, file: usize) {
        let stage = self.stage;
        let Some(known) = stage.find(file) else { return };
        let generation = known.newest();
        let Content::Dirty { attempt, length, mark, seed, extents, .. } = stage.content(file)
        else {
            return;
        };
        let (text, asked) = (stage.new_version(), stage.now());
        let base = Some(version(&text));
        let content = Content::Dirty { attempt, length, base: Some(text), mark, seed, extents };
        let answer = stage.ask(|tier, done| tier.rebase(&generation, base, done)).await;
        stage.answered(file, asked, answer, Some(content));
    }

    async fn give_up(&self, file: usize) {
        let stage = self.stage;
        let Some(known) = stage.find(file) else { return };
        let generation = known.newest();
        let Content::Dirty { .. } = stage.content(file) else { return };
        let (length, text, asked) = (LENGTHS[file], stage.new_version(), stage.now());
        let v = version(&text);
        let answer =
            stage.ask(|tier, done| tier.give_up(&known, &generation, length, v, done)).await;
        let content = answer.1.as_ref().ok().map(|known| {
            let attempt = known.newest().attempt().0;
            stage.took(attempt);
            let (version, mark, written) = (text, None, false);
            Content::Clean { attempt, length, version, mark, seed: attempt, written }
        });
        drop(stage.answered(file, asked, answer, content));
    }

    async fn forget(&self, file: usize) {
        let stage = self.stage;
        let Some(known) = stage.find(file) else { return };
        stage.dropped(file);
        let asked = stage.now();
        let answer = stage.ask(|tier, done| tier.forget(&known, done)).await;
        stage.answered(file, asked, answer, Some(Content::Absent));
    }
}
