//! Faults of devices under a whole node: whatever one operation does wrong, a client gets the right
//! bytes or an error, never other bytes; and what was acknowledged is there, or is reported.
//!
//! Each test does the same few things (promote, write, commit, read, all twice) with one fault at the
//! first operation, then at the second, and so on until the fault comes too late to matter.

extern crate forebay_dataplane as dataplane;

#[path = "bad_input/lab.rs"]
mod lab;
#[path = "bad_input/rot.rs"]
mod rot;
#[path = "sim/wired.rs"]
mod wired;

use std::time::Duration;

use dataplane::{Progress, PromoteOptions, Residency, ScrubOptions};
use extent::wire::OpenMode;
use extent::{FileName, Generation, Kind, Result};
use nvme_tier::device::DeviceIndex;
use nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, SimOptions, When};

use lab::{EXTENT_BYTES, Lab, USUAL, Ways, contents, in_virtual_time};

const NEWEST: OpenMode = OpenMode::Read(Generation(0));
/// How long a command sticks; much longer than anything takes.
const STALL: Duration = Duration::from_millis(20);
const BYTES: usize = EXTENT_BYTES + 9000;

fn name(text: &str) -> FileName {
    text.parse().expect("a name")
}

/// The last contents that were acknowledged, and those sent last.
#[derive(Clone, Copy, Default)]
struct Written {
    acknowledged: u64,
    sent: u64,
}

/// What the clients of one run know.
struct Story {
    lab: Lab,
    written: Written,
    /// Errors that were answered.
    errors: Vec<Kind>,
}

impl Story {
    async fn begin(ways: Ways) -> Self {
        let sim = SimOptions { capacity_bytes: 8 << 20, ..SimOptions::default() };
        Self::on(Lab::made(sim, ways)).await
    }

    async fn on(lab: Lab) -> Self {
        lab.data.put("clean", contents(1, BYTES));
        let mut story = Self { lab, written: Written::default(), errors: Vec::new() };
        story.write(100).await;
        story.write(101).await;
        assert_eq!((story.written.acknowledged, story.errors.len()), (101, 0), "healthy so far");
        story
    }

    async fn all(&mut self) {
        for round in 0..2 {
            let clean = name("data/clean");
            let options = PromoteOptions { durable: true, ..PromoteOptions::default() };
            let promoted = self.lab.handle.promote(&clean, options, &Progress::new()).await;
            self.note(promoted.map(drop));
            self.write(102 + round).await;
            self.read_all().await;
            let released = self.lab.handle.release(&clean, None, None).await;
            self.note(released.map(drop));
        }
    }

    fn note(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.errors.push(error.kind());
        }
    }

    async fn write(&mut self, seed: u64) {
        let result = self.try_write(seed).await;
        if result.is_ok() {
            self.written.acknowledged = seed;
        }
        self.note(result);
    }

    async fn try_write(&mut self, seed: u64) -> Result<()> {
        let mut client = self.lab.client();
        let handle = client.open(&name("data/dirty"), OpenMode::Write(BYTES as u64)).await?;
        client.write(handle, 0, &contents(seed, BYTES)).await?;
        self.written.sent = seed;
        client.commit(handle, BYTES as u64).await
    }

    /// Every byte that comes is right.
    async fn read_all(&mut self) {
        if let Some(bytes) = self.read("data/clean").await {
            assert!(bytes == contents(1, BYTES), "wrong bytes of the clean file");
        }
        if let Some(bytes) = self.read("data/dirty").await {
            let Written { acknowledged, sent } = self.written;
            let known = (acknowledged..=sent).find(|seed| bytes == contents(*seed, BYTES));
            assert!(known.is_some(), "neither what was acknowledged ({acknowledged}) nor newer");
        }
    }

    async fn read(&mut self, file: &str) -> Option<Vec<u8>> {
        let result = self.try_read(file).await;
        result.map_err(|error| self.errors.push(error.kind())).ok()
    }

    async fn try_read(&mut self, file: &str) -> Result<Vec<u8>> {
        let mut client = self.lab.client();
        let handle = client.open(&name(file), NEWEST).await?;
        Ok(client.read(handle, 0, BYTES).await?.0)
    }

    /// Another process, without faults.
    async fn restart(mut self) -> Self {
        self.lab.disk.set_faults(FaultPlan::new());
        self.lab = self.lab.restart().await;
        self.errors.clear();
        self
    }

    async fn is_quarantined(&self) -> bool {
        let status = self.lab.handle.get(&name("data/dirty")).await.expect("acknowledged");
        status.residency == Residency::Quarantined
    }
}

/// Runs the story with a fault at the first operation, the second, and so on. How many there were.
async fn at_every(
    all: &[Ways],
    operation: Operation,
    fault: Fault,
    judge: impl AsyncFn(Story, u64),
) -> u64 {
    let mut fewest = u64::MAX;
    for ways in all {
        fewest = fewest.min(at_every_of(*ways, operation, fault, &judge).await);
    }
    fewest
}

/// With all checksums in memory, and with none but those of what is dirty.
const BOTH: [Ways; 2] = [USUAL, Ways { checksum_memory_bytes: 0, ..USUAL }];

async fn at_every_of(
    ways: Ways,
    operation: Operation,
    fault: Fault,
    judge: &impl AsyncFn(Story, u64),
) -> u64 {
    for nth in 1.. {
        let mut story = Story::begin(ways).await;
        let rule = FaultRule::new(operation, When::Nth(nth), fault);
        story.lab.disk.set_faults(FaultPlan::new().with(rule));
        story.all().await;
        if story.lab.disk.faults_injected() == 0 {
            assert!(story.errors.is_empty(), "nothing went wrong");
            return nth - 1;
        }
        judge(story, nth).await;
    }
    unreachable!("runs are finite")
}

#[test]
fn a_read_that_goes_wrong_once_is_read_again() {
    in_virtual_time(async {
        for fault in [Fault::Fail, Fault::FlipBit, Fault::Misdirect, Fault::Stale] {
            let reads = at_every(&BOTH, Operation::Read, fault, async |story: Story, nth: u64| {
                assert_eq!(story.errors, [], "{fault:?} of read {nth}");
                let mut story = story.restart().await;
                story.read_all().await;
                assert_eq!(story.errors, [], "{fault:?} of read {nth}");
                assert!(!story.is_quarantined().await, "{fault:?} of read {nth}");
            })
            .await;
            assert!(reads >= 4, "{reads} reads");
        }
    });
}

#[test]
fn a_write_that_goes_elsewhere_gets_lost_or_changes_is_never_served() {
    in_virtual_time(async {
        for fault in [Fault::FlipBit, Fault::Misdirect, Fault::Lose] {
            // What was lost and is not in memory either shows in the descriptors that are read.
            let all = if fault == Fault::Lose { &BOTH[..] } else { &BOTH[..1] };
            let writes = at_every(all, Operation::Write, fault, async |story: Story, nth: u64| {
                let legal = |kind: &Kind| matches!(kind, Kind::Corrupt | Kind::Denied);
                assert!(
                    story.errors.iter().all(legal),
                    "{fault:?} of write {nth}: {:?}",
                    story.errors
                );
                let mut story = story.restart().await;
                story.read_all().await;
                // Gone without a word is the one thing that must not be.
                let bad = story.errors.contains(&Kind::Corrupt);
                assert_eq!(story.is_quarantined().await, bad, "{fault:?} of write {nth}");
                // What is damaged and can be made whole is, and then all is well.
                let scrubbed =
                    story.lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
                let first = scrubbed.expect("scrubbed");
                assert!(bad || first.unrepaired == 0, "{fault:?} of write {nth}: {first:?}");
                let scrubbed =
                    story.lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
                let again = scrubbed.expect("scrubbed");
                assert_eq!(
                    (again.metadata_damaged, again.damaged),
                    (0, first.damaged - first.repaired)
                );
            })
            .await;
            assert!(writes >= 15, "{writes} writes");
        }
    });
}

#[test]
fn an_operation_that_fails_costs_its_own_request_at_most() {
    in_virtual_time(async {
        for operation in [Operation::Write, Operation::Flush] {
            let count =
                at_every(&BOTH[..1], operation, Fault::Fail, async |story: Story, nth: u64| {
                    let legal =
                        |kind: &Kind| matches!(kind, Kind::Io | Kind::Stale | Kind::NotFound);
                    assert!(
                        story.errors.iter().all(legal),
                        "{operation:?} {nth}: {:?}",
                        story.errors
                    );
                    let mut story = story.restart().await;
                    story.read_all().await;
                    assert_eq!(
                        story.errors,
                        [],
                        "{operation:?} {nth}: all that was acknowledged is there"
                    );
                    story.write(200).await;
                    assert_eq!(
                        story.written.acknowledged, 200,
                        "{operation:?} {nth}: and it goes on"
                    );
                })
                .await;
            assert!(count >= 6, "{count} of {operation:?}");
        }
    });
}

#[test]
fn an_operation_that_stalls_is_waited_for() {
    in_virtual_time(async {
        let operations = [Operation::Read, Operation::Write, Operation::Flush];
        let all = BOTH.into_iter().flat_map(|ways| operations.map(|operation| (ways, operation)));
        for (ways, operation) in all {
            for nth in 1.. {
                let mut story = Story::begin(ways).await;
                let rule = FaultRule::new(operation, When::Nth(nth), Fault::Stick);
                story.lab.disk.set_faults(FaultPlan::new().with(rule));
                let disk = story.lab.disk.clone();
                let release = async {
                    loop {
                        tokio::time::sleep(STALL).await;
                        disk.release_stuck();
                    }
                };
                tokio::select! {
                    () = story.all() => {}
                    () = release => {}
                }
                assert_eq!(story.errors, [], "{operation:?} {nth}");
                if disk.faults_injected() == 0 {
                    assert!(nth > 3, "{operation:?} {nth}");
                    break;
                }
            }
        }
    });
}

#[test]
fn a_read_that_stalls_holds_up_nobody_else() {
    in_virtual_time(async {
        let mut story = Story::begin(Ways::default()).await;
        story.all().await;
        let at = rot::find(&story.lab.disk, &contents(103, BYTES));
        let rule =
            FaultRule::new(Operation::Read, When::Nth(1), Fault::Stick).within(at..at + 4096);
        story.lab.disk.set_faults(FaultPlan::new().with(rule));
        let mut slow = story.lab.client();
        let handle = slow.open(&name("data/dirty"), NEWEST).await.expect("known");
        let stuck = slow.begin_read(handle, 0, 4096);
        let _kicked = slow.read(handle, EXTENT_BYTES as u64, 100).await.expect("another extent");
        let others = tokio::time::timeout(Duration::from_secs(1), story.read("data/clean")).await;
        assert!(others.expect("nobody waits").expect("right") == contents(1, BYTES));
        story.lab.disk.release_stuck();
        let done = slow.finish(stuck).await;
        done.result.expect("after all");
    });
}

#[test]
fn a_flush_that_failed_is_never_made_up_for_by_a_later_one() {
    in_virtual_time(async {
        let mut story = Story::begin(Ways::default()).await;
        let rule = FaultRule::new(Operation::Flush, When::Nth(1), Fault::Fail);
        story.lab.disk.set_faults(FaultPlan::new().with(rule));
        // The device works again at once; it is not believed all the same.
        for seed in 102..106 {
            story.write(seed).await;
        }
        assert_eq!(
            (story.written.acknowledged, story.errors.len()),
            (101, 4),
            "{:?}",
            story.errors
        );
        assert!(story.lab.handle.status().await.devices.is_empty(), "the lab names no devices");
        story.read_all().await;
        let mut story = story.restart().await;
        story.read_all().await;
        story.write(107).await;
        assert_eq!((story.written.acknowledged, story.errors.len()), (107, 0), "trusted anew");
    });
}

#[test]
fn a_lost_device_costs_only_the_dirty_files_on_it() {
    in_virtual_time(async {
        let sim = SimOptions { devices: 2, capacity_bytes: 6 << 20, ..SimOptions::default() };
        let mut story = Story::on(Lab::with(sim)).await;
        let clean = name("data/clean");
        let promote = || story.lab.handle.promote(&clean, PromoteOptions::default(), &PROGRESS);
        promote().await.expect("promoted");
        for (lost, expected) in [(0u16, contents(1, BYTES)), (1, contents(1, BYTES))] {
            let rule = FaultRule::new(Operation::Any, When::Nth(1), Fault::Vanish);
            let plan = FaultPlan::new().with(rule.on(DeviceIndex(lost)));
            let disk = story.lab.disk.clone();
            let images = disk.durable_image();
            disk.set_faults(plan);
            // What is clean comes from its silo, whichever device it was on.
            assert!(story.read("data/clean").await.expect("from its silo") == expected);
            // What is dirty is whole, or an error: its extents are spread over both.
            story.errors.clear();
            match story.read("data/dirty").await {
                Some(bytes) => assert!(bytes == contents(101, BYTES)),
                None => assert_eq!(story.errors, [Kind::Io]),
            }
            // The device is back: nothing of what was acknowledged is missing.
            let sim = disk.options();
            let disk = nvme_tier::device::sim::SimDisk::from_images(sim, images);
            let data = story.lab.data.clone();
            story.lab = Lab::on(disk, data);
            story.errors.clear();
            story.read_all().await;
            assert_eq!(story.errors, []);
        }
    });
}

#[test]
fn a_full_tier_refuses_new_bytes_and_keeps_the_old_ones() {
    in_virtual_time(async {
        // Room for a few slabs: dirty files are never evicted.
        let mut story = Story::on(Lab::new((1 << 20) + 6 * (512 << 10))).await;
        let mut kept = Vec::new();
        let refused = loop {
            let file = format!("data/f{}", kept.len());
            let bytes = contents(500 + kept.len() as u64, EXTENT_BYTES);
            let mut client = story.lab.client();
            let handle = client.open(&name(&file), OpenMode::Write(0)).await.expect("writable");
            let mut result = client.write(handle, 0, &bytes).await;
            if result.is_ok() {
                result = client.commit(handle, bytes.len() as u64).await;
            }
            match result {
                Ok(()) => kept.push((file, bytes)),
                Err(error) => break error.kind(),
            }
        };
        assert_eq!((refused, kept.len() > 10), (Kind::NoSpace, true), "{}", kept.len());
        let clean = name("data/clean");
        let promoted = story.lab.handle.promote(&clean, PromoteOptions::default(), &PROGRESS).await;
        assert_eq!(promoted.expect_err("no room").kind(), Kind::NoSpace);
        // A read does without room.
        assert!(story.read("data/clean").await.expect("from its silo") == contents(1, BYTES));
        let scrubbed = story.lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
        assert_eq!(scrubbed.expect("a full tier is scrubbed").unrepaired, 0);
        for (file, bytes) in &kept {
            let mut client = story.lab.client();
            let handle = client.open(&name(file), NEWEST).await.expect("kept");
            let (found, _) = client.read(handle, 0, bytes.len()).await.expect("kept");
            assert!(found == *bytes, "{file}");
        }
        // Once one is written back there is room again.
        let demoted = story.lab.handle.demote(&name(&kept[0].0), None, None, &PROGRESS).await;
        assert_eq!(demoted.expect("written back").resident_extents, 0);
        let mut client = story.lab.client();
        let handle = client.open(&name("data/more"), OpenMode::Write(0)).await.expect("writable");
        client.write(handle, 0, &[7; 100]).await.expect("room");
        client.commit(handle, 100).await.expect("room");
    });
}

static PROGRESS: std::sync::LazyLock<std::sync::Arc<Progress>> =
    std::sync::LazyLock::new(Progress::new);
