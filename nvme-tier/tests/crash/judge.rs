//! Recovers what a crash left, once for each different image, and says whether that is legal.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use std::collections::HashMap;
use std::ops::AddAssign;
use std::sync::Arc;

use dma::Pool;
use extent::FileName;
use forebay_nvme_tier::device::DeviceIndex;
use forebay_nvme_tier::device::sim::{Recorder, SimDisk, SimOptions, Survival, WriteRecord};
use forebay_nvme_tier::{Copies, TierOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::{EXTENT, Rig, name, options_for, pool};
use crate::cuts::{Effort, choices, leaves_the_same};
use crate::model::{Lost, Observed, Run, judge, judge_without, same_but_clean};

/// What one image turned out to hold.
pub type Verdict = Arc<Result<Observed, String>>;

/// How much was looked at.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub runs: u64,
    /// Moments at which the power was cut.
    pub prefixes: u64,
    /// Choices of what survives, all moments together.
    pub choices: u64,
    /// Different images among them: each was recovered and judged.
    pub images: u64,
    /// Different images that a cut during a recovery left: each was recovered and compared.
    pub nested: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.prefixes += other.prefixes;
        self.choices += other.choices;
        self.images += other.images;
        self.nested += other.nested;
    }
}

impl Counts {
    /// Different images that were recovered.
    pub fn schedules(&self) -> u64 {
        self.images + self.nested
    }
}

/// Keeps what every image seen so far holds: what recovery makes of one depends on nothing else.
pub struct Judge {
    effort: Effort,
    copies: Copies,
    pool: Pool,
    /// By image, and by the device that is lost with it.
    known: HashMap<(u128, Lost), Verdict>,
    /// Equal verdicts are kept once.
    sound: HashMap<Observed, Verdict>,
    pub counts: Counts,
}

impl Judge {
    pub fn new(effort: Effort) -> Self {
        Self {
            effort,
            copies: Copies::One,
            pool: pool(),
            known: HashMap::new(),
            sound: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// Cuts the power at every moment of a run. The first thing that went wrong.
    pub fn cut_everywhere(&mut self, run: &Run, seed: u64) -> Result<(), String> {
        self.counts.runs += 1;
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut recorder = run.recorder.clone();
        self.copies = run.copies;
        let mut found: Vec<(Lost, Verdict)> = Vec::new();
        for moment in 0..=recorder.moments() {
            // The end of a write changes nothing of what a cut can leave, unless another one wants
            // its place; what is acknowledged may change.
            if !is_like_before(&mut recorder, moment) {
                found = self.outcomes(run, &mut recorder, moment, &mut rng)?;
            }
            self.counts.prefixes += 1;
            for (lost, verdict) in &found {
                let legal = match &**verdict {
                    Ok(observed) if lost.is_some() => judge_without(run, observed, moment),
                    Ok(observed) => judge(run, observed, moment),
                    Err(what) => Err(what.clone()),
                };
                legal.map_err(|what| format!("seed {seed}, cut at {moment}, {lost:?}: {what}"))?;
            }
        }
        Ok(())
    }

    /// All that a cut at a moment can leave, each but once; where things are kept twice, also if either
    /// device is lost with it.
    fn outcomes(
        &mut self,
        run: &Run,
        recorder: &mut Recorder,
        moment: usize,
        rng: &mut SmallRng,
    ) -> Result<Vec<(Lost, Verdict)>, String> {
        let mut found: Vec<(Lost, Verdict)> = Vec::new();
        let block_bytes = recorder.options().block_bytes;
        let unflushed = recorder.unflushed_at(moment);
        let prints = recorder.fingerprints_at(moment);
        // Without the one that it went without already there is nothing to lose.
        let mut losses = self.losses(recorder.options().devices);
        losses.retain(|lost| run.absent.is_none() || lost.is_none() || *lost == run.absent);
        for choice in choices(&unflushed, block_bytes, self.effort, rng) {
            self.counts.choices += 1;
            let mut disk: Option<SimDisk> = None;
            for lost in &losses {
                let print = prints.of(&choice);
                let verdict = match print.and_then(|print| self.known.get(&(print, *lost))) {
                    Some(known) => Arc::clone(known),
                    None => {
                        let disk = disk.get_or_insert_with(|| {
                            let mut each = choice.iter().cloned();
                            let survival =
                                &mut |_: &WriteRecord| each.next().expect("one for each write");
                            recorder.crash_at(moment, survival)
                        });
                        let verdict = match lost {
                            None => self.recover(&run.names, disk, rng),
                            Some(device) => self.recover_without(&run.names, disk, *device),
                        };
                        verdict
                            .map_err(|what| format!("cut at {moment} with {choice:?}: {what}"))?
                    }
                };
                if !found.iter().any(|(l, other)| l == lost && Arc::ptr_eq(other, &verdict)) {
                    found.push((*lost, verdict));
                }
            }
        }
        Ok(found)
    }

    /// Nothing, or any of the devices.
    fn losses(&self, devices: u16) -> Vec<Lost> {
        let devices = if self.copies == Copies::Two { devices } else { 0 };
        (0..devices).map(|device| Some(DeviceIndex(device))).chain([None]).collect()
    }

    /// What recovery finds without one of the disks, which it leaves alone.
    fn recover_without(
        &mut self,
        names: &[FileName],
        disk: &SimDisk,
        lost: DeviceIndex,
    ) -> Result<Verdict, String> {
        let key = (disk.fingerprint(), Some(lost));
        if let Some(known) = self.known.get(&key) {
            return Ok(Arc::clone(known));
        }
        self.counts.images += 1;
        let disk = prompt(disk);
        let verdict = self.look_without(names, &disk, &[lost]).map(|(_, observed)| observed);
        let touched = disk.faults_injected();
        if touched > 0 {
            return Err(format!("{touched} commands went to device {lost:?}, which is not there"));
        }
        Ok(self.keep(key, verdict))
    }

    /// What recovery finds on disks. An error if it does not hold what it found.
    pub fn recover(
        &mut self,
        names: &[FileName],
        disk: &SimDisk,
        rng: &mut SmallRng,
    ) -> Result<Verdict, String> {
        let print = (disk.fingerprint(), None);
        if let Some(known) = self.known.get(&print) {
            return Ok(Arc::clone(known));
        }
        self.counts.images += 1;
        let nested = rng.random_ratio(1, self.effort.nested_one_in);
        let disk = prompt(disk);
        if nested {
            disk.record();
        }
        let verdict = self.look(names, &disk);
        let verdict = match verdict {
            Ok((mut rig, observed)) => {
                if nested {
                    self.lose_each(names, &rig, &observed)?;
                    rig.settle();
                    self.lose_each(names, &rig, &observed)?;
                    self.cut_recovery(names, &rig, &observed, rng)?;
                    self.fill(names, rig, &observed, rng)?;
                }
                Ok(observed)
            }
            Err(what) => Err(what),
        };
        Ok(self.keep(print, verdict))
    }

    fn keep(&mut self, key: (u128, Lost), verdict: Result<Observed, String>) -> Verdict {
        let verdict = match verdict {
            Ok(observed) => {
                let sound = self.sound.entry(observed.clone());
                Arc::clone(sound.or_insert_with(|| Arc::new(Ok(observed))))
            }
            Err(what) => Arc::new(Err(what)),
        };
        self.known.insert(key, Arc::clone(&verdict));
        verdict
    }

    fn look(&self, names: &[FileName], disk: &SimDisk) -> Result<(Rig, Observed), String> {
        self.look_without(names, disk, &[])
    }

    fn look_without(
        &self,
        names: &[FileName],
        disk: &SimDisk,
        absent: &[DeviceIndex],
    ) -> Result<(Rig, Observed), String> {
        let options =
            TierOptions { dirty_copies: self.copies, ..options_for(self.counts.schedules()) };
        let rig = Rig::without(disk.clone(), options, self.pool.clone(), absent);
        let rig = rig.map_err(|error| format!("no recovery: {error}"))?;
        let observed = crate::model::observe(&rig, names)?;
        Ok((rig, observed))
    }

    /// What was recovered stays as it is, whichever device is lost from then on.
    fn lose_each(
        &mut self,
        names: &[FileName],
        rig: &Rig,
        observed: &Observed,
    ) -> Result<(), String> {
        for lost in self.losses(rig.disk.options().devices).into_iter().flatten() {
            let disk = rig.disk.crash(&mut |_| Survival::Lost);
            match &*self.recover_without(names, &disk, lost)? {
                Ok(rest) if same_but_clean(observed, rest) => {}
                rest => return Err(format!("{lost:?} was lost later: {rest:?} of {observed:?}")),
            }
        }
        Ok(())
    }

    /// The power goes again, at every moment of a recovery and of the cleaning up that follows:
    /// the next one finds the same.
    fn cut_recovery(
        &mut self,
        names: &[FileName],
        rig: &Rig,
        observed: &Observed,
        rng: &mut SmallRng,
    ) -> Result<(), String> {
        let mut recorder = rig.disk.recorder().expect("it was recorded");
        let block_bytes = recorder.options().block_bytes;
        for moment in 0..=recorder.moments() {
            if is_like_before(&mut recorder, moment) {
                continue;
            }
            let prints = recorder.fingerprints_at(moment);
            let unflushed = recorder.unflushed_at(moment);
            for choice in choices(&unflushed, block_bytes, self.effort.nested(), rng) {
                let known = prints.of(&choice).and_then(|print| self.known.get(&(print, None)));
                let again = match known {
                    Some(known) => Arc::clone(known),
                    None => {
                        let mut each = choice.iter().cloned();
                        let disk = recorder.crash_at(moment, &mut |_| each.next().expect("each"));
                        let print = (disk.fingerprint(), None);
                        match self.known.get(&print) {
                            Some(known) => Arc::clone(known),
                            None => {
                                self.counts.nested += 1;
                                let verdict = self.look(names, &disk).map(|(_, observed)| observed);
                                self.keep(print, verdict)
                            }
                        }
                    }
                };
                let same = (*again).as_ref().is_ok_and(|again| same_contents(again, observed));
                if !same {
                    return Err(format!(
                        "recovery cut at {moment} with {choice:?}: {again:?} after {observed:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// New files over all that is free, and another cut: that harms nothing that was found.
    fn fill(
        &mut self,
        names: &[FileName],
        mut rig: Rig,
        observed: &Observed,
        rng: &mut SmallRng,
    ) -> Result<(), String> {
        if !rng.random_ratio(1, 8) {
            return Ok(());
        }
        rig.tier.allow_eviction();
        let mut number = 0;
        while rig.write_file(&name(&format!("t/{number}")), EXTENT, &[], 999).is_ok() {
            number += 1;
        }
        let last = prompt(&rig.disk.crash(&mut |_| Survival::Lost));
        let (_, after) = self.look(names, &last)?;
        // Clean extents may have been evicted for that; their records stay.
        if same_contents(&after, observed) {
            return Ok(());
        }
        Err(format!("filling the tier made {:?} of {:?}", after.files, observed.files))
    }
}

fn same_contents(a: &Observed, b: &Observed) -> bool {
    a.files.iter().map(|seen| &seen.content).eq(b.files.iter().map(|seen| &seen.content))
}

fn is_like_before(recorder: &mut Recorder, moment: usize) -> bool {
    let same = moment > 0 && leaves_the_same(&recorder.events()[moment - 1]);
    same && recorder.fingerprints_at(moment).are_apart()
}

/// The same contents on disks that answer at once: recoveries are many.
fn prompt(disk: &SimDisk) -> SimDisk {
    let options = SimOptions { most_delay_polls: 0, ..disk.options() };
    SimDisk::from_images(options, disk.durable_image())
}
