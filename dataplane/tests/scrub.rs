//! Scrub through the whole node: what is damaged is found, and made whole where that is possible.

extern crate forebay_dataplane as dataplane;

#[path = "bad_input/lab.rs"]
mod lab;
#[path = "bad_input/rot.rs"]
mod rot;
#[path = "sim/wired.rs"]
mod wired;

use std::sync::Arc;
use std::time::Duration;

use dataplane::{Keep, Progress, PromoteOptions, Residency, ScrubOptions, ScrubReport};
use extent::wire::{OpenMode, Served};
use extent::{FileName, Generation, Kind};
use nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, When};

use lab::{EXTENT_BYTES, Lab, contents, in_virtual_time};
use rot::{places_of, rot};

const NEWEST: OpenMode = OpenMode::Read(Generation(0));
const CLEAN_BYTES: usize = 3 * EXTENT_BYTES + 5000;
const DIRTY_BYTES: usize = 2 * EXTENT_BYTES;

fn name(text: &str) -> FileName {
    text.parse().expect("a name")
}

/// A node with a clean file and a dirty one.
async fn furnished() -> Lab {
    let lab = Lab::new(8 << 20);
    lab.data.put("clean", contents(1, CLEAN_BYTES));
    lab.handle
        .promote(&name("data/clean"), PromoteOptions::default(), &Progress::new())
        .await
        .expect("promoted");
    let mut client = lab.client();
    let handle = client.open(&name("data/dirty"), OpenMode::Write(0)).await.expect("writable");
    client.write(handle, 0, &contents(2, DIRTY_BYTES)).await.expect("written");
    client.commit(handle, DIRTY_BYTES as u64).await.expect("committed");
    client.close(handle).await;
    lab
}

async fn scrub(lab: &Lab) -> ScrubReport {
    lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await.expect("scrubbed")
}

async fn read(lab: &Lab, file: &str, length: usize) -> (Result<Vec<u8>, Kind>, Option<Served>) {
    let mut client = lab.client();
    let handle = client.open(&name(file), NEWEST).await.expect("known");
    match client.read(handle, 0, length).await {
        Ok((bytes, served)) => (Ok(bytes), Some(served)),
        Err(error) => (Err(error.kind()), None),
    }
}

#[test]
fn a_sound_tier_is_read_whole_and_changes_nothing() {
    in_virtual_time(async {
        let lab = furnished().await;
        let progress = Progress::new();
        let report = lab.handle.scrub(ScrubOptions::default(), &progress).await.expect("scrubbed");
        let bytes = (CLEAN_BYTES + DIRTY_BYTES) as u64;
        assert_eq!((report.files, report.extents, report.bytes), (2, 6, bytes));
        assert_eq!(progress.bytes(), (bytes, bytes));
        // Two superblocks, two headers of two slabs at least, one record and a pair, six descriptors.
        assert!(report.complete && report.metadata_entries >= 2 + 4 + 3 + 6, "{report:?}");
        let found =
            (report.damaged, report.metadata_damaged, report.unrepaired, report.quarantined);
        assert_eq!(found, (0, 0, 0, 0));
        let status = lab.handle.status().await.scrub;
        assert_eq!((status.last, status.running), (Some(report), None));
        assert_eq!((status.extents, status.bytes), (6, bytes));
        lab.end_without_clients().await;
    });
}

#[test]
fn clean_damage_is_fetched_again_and_dirty_damage_is_set_aside() {
    in_virtual_time(async {
        let lab = furnished().await;
        let (clean, dirty) = (contents(1, CLEAN_BYTES), contents(2, DIRTY_BYTES));
        rot(&lab.disk, &clean[EXTENT_BYTES..], 77);
        rot(&lab.disk, &clean[3 * EXTENT_BYTES..], 4000);
        rot(&lab.disk, &dirty[EXTENT_BYTES..], 9);
        let report = scrub(&lab).await;
        assert_eq!((report.damaged, report.repaired, report.unrepaired), (3, 2, 1), "{report:?}");
        assert_eq!(report.quarantined, 1);
        assert_eq!(read(&lab, "data/clean", CLEAN_BYTES).await, (Ok(clean), Some(Served::Tier)));
        assert_eq!(read(&lab, "data/dirty", DIRTY_BYTES).await.0, Err(Kind::Corrupt));
        let status = lab.handle.get(&name("data/dirty")).await.expect("known");
        assert_eq!(status.residency, Residency::Quarantined);
        let counted = lab.handle.status().await.scrub;
        assert_eq!((counted.damaged, counted.repaired, counted.quarantined), (3, 2, 1));
        // It stays damaged, and is reported each time; nothing else is.
        let lab = lab.restart().await;
        let report = scrub(&lab).await;
        assert_eq!((report.damaged, report.repaired, report.unrepaired), (1, 0, 1), "{report:?}");
        assert_eq!(report.quarantined, 1);
        // Until somebody settles it.
        let dirty = name("data/dirty");
        let resolve = |keep| lab.handle.resolve(&dirty, keep, None);
        assert_eq!(resolve(Keep::Node).await.expect_err("damaged").kind(), Kind::Denied);
        assert_eq!(resolve(Keep::Silo).await.expect_err("there is none").kind(), Kind::NotFound);
        lab.data.put("dirty", contents(3, CLEAN_BYTES));
        let settled = resolve(Keep::Silo).await.expect("settled");
        assert_eq!((settled.residency, settled.resident_extents), (Residency::Absent, 0));
        assert_eq!(read(&lab, "data/dirty", CLEAN_BYTES).await.0, Ok(contents(3, CLEAN_BYTES)));
        let lab = lab.restart().await;
        let report = scrub(&lab).await;
        assert_eq!((report.damaged, report.quarantined), (0, 0), "{report:?}");
        assert_eq!(lab.handle.status().await.dirty_files, 0);
    });
}

#[test]
fn a_silo_that_is_down_leaves_a_hole_that_a_later_read_fills() {
    in_virtual_time(async {
        let lab = furnished().await;
        let clean = contents(1, CLEAN_BYTES);
        rot(&lab.disk, &clean, 5);
        lab.data.set_down(true);
        let report = scrub(&lab).await;
        assert_eq!((report.damaged, report.repaired, report.unrepaired), (1, 0, 1));
        lab.data.set_down(false);
        assert_eq!(read(&lab, "data/clean", CLEAN_BYTES).await.0, Ok(clean));
    });
}

#[test]
fn damaged_metadata_is_written_again_from_memory() {
    in_virtual_time(async {
        let lab = furnished().await;
        // Both files' descriptors, one copy of each record, headers and superblocks.
        let descriptors = places_of(&lab.disk, b"4bED", 512);
        let records = places_of(&lab.disk, b"4bFR", 2048);
        let headers = places_of(&lab.disk, b"4bSH", 4096);
        assert_eq!((descriptors.len(), records.len()), (6, 3));
        let mut damaged = 0;
        for at in descriptors.iter().chain(&records).chain(headers.iter().step_by(2)).chain(&[0]) {
            rot::flip(&lab.disk, at + 60);
            damaged += 1;
        }
        let report = scrub(&lab).await;
        let found = (report.metadata_damaged, report.metadata_repaired, report.unrepaired);
        assert_eq!(found, (damaged, damaged, 0), "{report:?}");
        assert_eq!((report.damaged, report.quarantined), (0, 0));
        let again = scrub(&lab).await;
        assert_eq!((again.metadata_damaged, again.metadata_entries), (0, report.metadata_entries));
        // And the next process finds all of it.
        let lab = lab.restart().await;
        let status = lab.handle.status().await;
        assert_eq!((status.files, status.resident_extents, status.dirty_files), (2, 6, 1));
        let dirty = read(&lab, "data/dirty", DIRTY_BYTES).await;
        assert_eq!(dirty, (Ok(contents(2, DIRTY_BYTES)), Some(Served::Tier)));
    });
}

#[test]
fn a_bit_that_flips_on_the_way_is_no_damage() {
    in_virtual_time(async {
        for nth in 1..12 {
            let lab = furnished().await;
            for fault in [Fault::FlipBit, Fault::Misdirect, Fault::Stale, Fault::Fail] {
                let rule = FaultRule::new(Operation::Read, When::Nth(nth), fault);
                lab.disk.set_faults(FaultPlan::new().with(rule));
                let report = scrub(&lab).await;
                assert_eq!(lab.disk.faults_injected(), 1);
                let found = (report.damaged, report.unreadable, report.quarantined);
                assert_eq!(found, (0, 0, 0), "{fault:?} {nth}");
                // Superblocks and headers are rewritten at the first doubt: they are all the same.
                assert_eq!(report.metadata_damaged, report.metadata_repaired, "{fault:?} {nth}");
            }
        }
    });
}

#[test]
fn what_a_device_cannot_read_is_fetched_again_or_reported() {
    in_virtual_time(async {
        let lab = furnished().await;
        let (clean, dirty) = (contents(1, CLEAN_BYTES), contents(2, DIRTY_BYTES));
        let mut plan = FaultPlan::new();
        for bytes in [&clean, &dirty] {
            let at = rot::find(&lab.disk, bytes);
            let rule = FaultRule::new(Operation::Read, When::From(1), Fault::Fail);
            plan = plan.with(rule.within(at..at + 4096));
        }
        lab.disk.set_faults(plan);
        let report = scrub(&lab).await;
        assert_eq!((report.unreadable, report.repaired, report.unrepaired), (2, 1, 1));
        assert_eq!((report.damaged, report.quarantined), (0, 0), "it may be readable again");
        lab.disk.set_faults(FaultPlan::new());
        assert_eq!(read(&lab, "data/clean", CLEAN_BYTES).await.0, Ok(clean));
        assert_eq!(read(&lab, "data/dirty", DIRTY_BYTES).await.0, Ok(dirty));
    });
}

#[test]
fn the_rate_is_kept_and_reads_do_not_wait() {
    in_virtual_time(async {
        let lab = Arc::new(furnished().await);
        let begun = tokio::time::Instant::now();
        let options = ScrubOptions { rate_bytes_per_s: Some(64 << 10) };
        let running = {
            let lab = Arc::clone(&lab);
            tokio::spawn(async move { lab.handle.scrub(options, &Progress::new()).await })
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let status = lab.handle.status().await.scrub;
        assert!(status.running.is_some() && status.bytes < 64 << 10, "{status:?}");
        let busy = lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
        assert_eq!(busy.expect_err("one at a time").kind(), Kind::Busy);
        let asked = tokio::time::Instant::now();
        assert_eq!(
            read(&lab, "data/clean", 100).await.0,
            Ok(contents(1, CLEAN_BYTES)[..100].to_vec())
        );
        assert!(asked.elapsed() < Duration::from_millis(50), "in the node's own time");
        let report = running.await.expect("no panic").expect("scrubbed");
        let least = Duration::from_secs(report.bytes / (64 << 10));
        assert!(begun.elapsed() >= least, "{:?} for {} bytes", begun.elapsed(), report.bytes);
        assert_eq!(report.rate_bytes_per_s, 64 << 10);
    });
}

#[test]
fn promotes_and_misses_go_first_but_do_not_stop_it() {
    in_virtual_time(async {
        let lab = furnished().await;
        lab.data.put("other", contents(3, 4 * EXTENT_BYTES));
        lab.data.hold_reads(true);
        let handle = Arc::clone(&lab.handle);
        let promote = tokio::spawn(async move {
            let other = name("data/other");
            handle.promote(&other, PromoteOptions::default(), &Progress::new()).await
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let begun = tokio::time::Instant::now();
        let fast = ScrubOptions { rate_bytes_per_s: Some(1 << 40) };
        let report = lab.handle.scrub(fast, &Progress::new()).await.expect("scrubbed");
        assert_eq!((report.extents, report.complete), (6, true), "it ages");
        assert!(begun.elapsed() >= Duration::from_millis(6 * 100), "each read made way");
        lab.data.hold_reads(false);
        promote.await.expect("no panic").expect("promoted");
        let begun = tokio::time::Instant::now();
        lab.handle.scrub(fast, &Progress::new()).await.expect("scrubbed");
        assert!(begun.elapsed() < Duration::from_millis(100), "nothing to make way for");
    });
}

#[test]
fn one_that_is_stopped_says_how_far_it_came() {
    in_virtual_time(async {
        let lab = furnished().await;
        let progress = Progress::new();
        let options = ScrubOptions { rate_bytes_per_s: Some(64 << 10) };
        let stop = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            progress.cancel();
        };
        let (report, ()) = tokio::join!(lab.handle.scrub(options, &progress), stop);
        let report = report.expect("how far it came");
        assert!(!report.complete && (1..6).contains(&report.extents), "{report:?}");
        lab.end_without_clients().await;
    });
}
