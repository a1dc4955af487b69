//! Devices that are used apart: files kept once that are asked for anew while the device is absent that
//! has their records, and devices that fail while others go on.
#![allow(dead_code, unreachable_pub, reason = "shared by two tests")]

use extent::{FileName, Kind};
use forebay_nvme_tier::device::DeviceIndex;
use forebay_nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, SimDisk, When};
use forebay_nvme_tier::{Mark, State};

use crate::common::{EXTENT, Rig, name, options, pool, small_disk, small_format, version};
use crate::enumeration::{Failure, calmly};

/// What somebody does who does not find a file.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Register,
    Fill,
    RegisterAgain,
    Forget,
    ForgetAndRegister,
}

/// Files in each of these tiers.
const FILES: u64 = 8;

/// Each kind of request, without either device. How many there were.
pub fn ask_without() -> Result<u64, Failure> {
    use Meanwhile::{Fill, Forget, ForgetAndRegister, Register, RegisterAgain};
    let mut after = 0;
    for meanwhile in [Register, Fill, RegisterAgain, Forget, ForgetAndRegister] {
        for absent in [DeviceIndex(0), DeviceIndex(1)] {
            after += 1;
            let told = |what| format!("{meanwhile:?} without {absent:?}: {what}");
            let outcome = calmly(|| ask(meanwhile, absent).map_err(told));
            outcome.map_err(|what| Failure { what, after })?;
        }
    }
    Ok(after)
}

fn ask(meanwhile: Meanwhile, absent: DeviceIndex) -> Result<(), String> {
    let mut rig = Rig::new(small_disk(12, 2, 4096, 3), &small_format());
    let names: Vec<FileName> = (0..FILES).map(|number| name(&format!("s/{number}"))).collect();
    for (seed, file) in (0..).zip(&names) {
        rig.write_file(file, EXTENT, &[], seed).expect("commits");
    }
    rig.settle();
    let disk = next(&rig);
    let mut rig = Rig::without(disk, options(), pool(), &[absent]).expect("recovers");
    rig.tier.allow_eviction();
    let unknown: Vec<_> = names.iter().filter(|file| rig.find(file).is_none()).collect();
    assert!(!unknown.is_empty() && unknown.len() < names.len(), "some are on either device");
    for file in &unknown {
        meanwhile_do(&mut rig, meanwhile, file);
    }
    rig.settle();
    let mut disk = next(&rig);
    // Twice, since the second start finds what the first one made of it.
    for start in 1..3 {
        let mut rig = Rig::with(disk, options()).expect("recovers");
        let found = rig.report.findings.conflicts;
        if start == 1 && found != unknown.len() as u64 {
            return Err(format!("{found} conflicts instead of {}", unknown.len()));
        }
        for (seed, file) in (0..).zip(&names) {
            let newest = rig.find(file).ok_or_else(|| format!("{file} is gone"))?.newest();
            let mark = unknown.contains(&file).then_some(Mark::Conflict);
            if newest.state() != State::Dirty || newest.mark() != mark {
                return Err(format!("start {start}: {file} is {newest:?}"));
            }
            if !rig.holds(&newest, 0, seed) {
                return Err(format!("start {start}: {file} is damaged"));
            }
        }
        rig.settle();
        disk = next(&rig);
    }
    settle_all(disk, &names)
}

fn meanwhile_do(rig: &mut Rig, meanwhile: Meanwhile, file: &FileName) {
    let known = rig.register(file, EXTENT, "other").expect("registers");
    match meanwhile {
        Meanwhile::Register => {}
        Meanwhile::Fill => rig.fill(&known, 0, 77).expect("fills"),
        Meanwhile::RegisterAgain => {
            rig.register(file, EXTENT, "third").expect("registers");
        }
        Meanwhile::Forget | Meanwhile::ForgetAndRegister => {
            rig.ask(|tier, done| tier.forget(&known, done)).expect("it is clean");
        }
    }
    if matches!(meanwhile, Meanwhile::ForgetAndRegister) {
        rig.register(file, EXTENT, "third").expect("registers");
    }
}

/// What is settled with all devices, forgotten and registered again is not in conflict with what was.
fn settle_all(disk: SimDisk, names: &[FileName]) -> Result<(), String> {
    let mut rig = Rig::with(disk, options()).expect("recovers");
    for file in names {
        let known = rig.find(file).expect("known");
        let newest = known.newest();
        rig.ask(|tier, done| tier.settle(&newest, version("v"), done)).expect("settles");
        rig.ask(|tier, done| tier.forget(&known, done)).expect("it is clean");
        rig.register(file, EXTENT, "w").expect("registers");
    }
    let rig = rig.restart();
    match (rig.report.dirty_files, rig.report.findings.conflicts) {
        (0, 0) => Ok(()),
        found => Err(format!("{found:?} dirty and in conflict after all were settled")),
    }
}

/// The disks as they are when the power goes now.
fn next(rig: &Rig) -> SimDisk {
    SimDisk::from_images(rig.disk.options(), rig.disk.durable_image())
}

/// A device fails while another one goes on, and is then used without that: they are not put together.
pub fn fail_and_go_on() -> Result<u64, Failure> {
    let mut after = 0;
    for failing in [DeviceIndex(0), DeviceIndex(1)] {
        after += 1;
        let outcome = calmly(|| {
            let mut rig = Rig::new(small_disk(12, 2, 4096, 3), &small_format());
            rig.register(&name("s/a"), EXTENT, "v").expect("registers");
            rig.settle();
            let rule = FaultRule::new(Operation::Any, When::From(1), Fault::Vanish).on(failing);
            rig.disk.set_faults(FaultPlan::new().with(rule));
            // The first one to notice may fail; what is acknowledged stands on the other one alone.
            let mut told = 0;
            for number in 0..8 {
                told += u64::from(rig.register(&name(&format!("t/{number}")), 1, "v").is_ok());
            }
            assert!(told > 0, "one device is left");
            let disk = next(&rig);
            let left = DeviceIndex(1 - failing.0);
            drop(Rig::without(disk.clone(), options(), pool(), &[left]).expect("recovers"));
            let disk = SimDisk::from_images(disk.options(), disk.durable_image());
            match Rig::with(disk, options()) {
                Err(error) if error.kind() == Kind::Invalid => Ok(()),
                Err(error) => Err(format!("refused for another reason: {error}")),
                Ok(_) => Err(format!("devices used apart are taken together, {failing:?} failed")),
            }
        });
        outcome.map_err(|what| Failure { what, after })?;
    }
    Ok(after)
}
