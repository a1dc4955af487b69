//! Reads of extents whose checksums are not in memory: there is none for them but for what is dirty.

extern crate forebay_dataplane as dataplane;

#[path = "bad_input/lab.rs"]
mod lab;
#[path = "bad_input/rot.rs"]
mod rot;
#[path = "sim/wired.rs"]
mod wired;

use std::time::Duration;

use dataplane::{Progress, PromoteOptions, ScrubOptions};
use extent::wire::{OpenMode, Served};
use extent::{FileName, Generation};
use nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, SimOptions, When};

use lab::{CREDITS, EXTENT_BYTES, Lab, Ways, contents, in_virtual_time};
use rot::{flip, places_of};

const NEWEST: OpenMode = OpenMode::Read(Generation(0));
const BYTES: usize = 3 * EXTENT_BYTES + 9001;
/// Straight into clients' memory, and through buffers as over TCP.
const WINDOWS: [bool; 2] = [true, false];

fn name(text: &str) -> FileName {
    text.parse().expect("a name")
}

/// A node with one clean file, and memory for no checksums.
async fn furnished(windows: bool) -> Lab {
    let sim = SimOptions { capacity_bytes: 8 << 20, ..SimOptions::default() };
    let lab = Lab::made(sim, Ways { checksum_memory_bytes: 0, windows, ..Ways::default() });
    lab.data.put("a", contents(1, BYTES));
    promote(&lab).await;
    lab
}

async fn promote(lab: &Lab) {
    let options = PromoteOptions::default();
    lab.handle.promote(&name("data/a"), options, &Progress::new()).await.expect("promoted");
}

/// Where the descriptors of all extents stand.
fn descriptors(lab: &Lab) -> Vec<u64> {
    places_of(&lab.disk, b"4bED", 512)
}

fn on(places: &[u64], when: When, fault: Fault) -> FaultPlan {
    let rule = |at: &u64| FaultRule::new(Operation::Read, when, fault).within(*at..*at + 512);
    places.iter().fold(FaultPlan::new(), |plan, at| plan.with(rule(at)))
}

#[test]
fn every_way_to_read() {
    in_virtual_time(async {
        for windows in WINDOWS {
            let lab = furnished(windows).await;
            let whole = contents(1, BYTES);
            let mut client = lab.client();
            let handle = client.open(&name("data/a"), NEWEST).await.expect("known");
            let extent = EXTENT_BYTES as u64;
            let ranges = [
                (0, BYTES),
                (0, 4096),
                (8192, 4096),
                (5, 1),
                (4095, 2),
                (100, 9000),
                (extent - 1, 2),
                (extent - 4096, 8192),
                (3 * extent, 9001),
                (3 * extent + 8999, 2),
                (BYTES as u64 - 1, 1),
            ];
            for (offset, length) in ranges {
                let (found, served) = client.read(handle, offset, length).await.expect("read");
                let from = usize::try_from(offset).expect("small");
                assert!(found == whole[from..from + length], "{length} bytes at {offset}");
                assert_eq!(served, Served::Tier);
            }
            let status = lab.handle.status().await;
            assert!(status.checksum_misses >= 11 && status.dropped_checksums >= 11);
            assert_eq!((status.checksum_hits, status.checksum_errors), (0, 0));
            assert_eq!((status.checksum_memory_bytes, status.misses), (0, 0));
            lab.end(client).await;
        }
    });
}

#[test]
fn many_reads_of_an_extent_share_one_read_of_its_descriptor() {
    in_virtual_time(async {
        for windows in WINDOWS {
            let lab = furnished(windows).await;
            let whole = contents(1, BYTES);
            let places = descriptors(&lab);
            lab.disk.set_faults(on(&places, When::From(1), Fault::Stick));
            let mut client = lab.client();
            let handle = client.open(&name("data/a"), NEWEST).await.expect("known");
            let reads: Vec<_> = (0..u64::from(CREDITS))
                .map(|block| client.begin_read(handle, block * 4096 + block % 3, 4096))
                .collect();
            let waiting = tokio::time::timeout(Duration::from_secs(1), client.finish(reads[0]));
            assert!(waiting.await.is_err(), "its checksums are not there yet");
            assert_eq!(lab.disk.faults_injected(), 1, "one read for all of them");
            lab.disk.set_faults(FaultPlan::new());
            lab.disk.release_stuck();
            for (block, ticket) in reads.into_iter().enumerate() {
                let done = client.finish(ticket).await;
                done.result.expect("after all");
                let from = block * 4096 + block % 3;
                let memory = done.memory.expect("it comes back");
                assert!(memory.as_slice()[..4096] == whole[from..from + 4096], "{block}");
            }
            lab.end(client).await;
        }
    });
}

#[test]
fn a_descriptor_that_is_late_holds_up_nobody_else() {
    in_virtual_time(async {
        let lab = furnished(true).await;
        let places = descriptors(&lab);
        lab.disk.set_faults(on(&places[..1], When::Nth(1), Fault::Stick));
        let mut stuck = 0;
        let mut clients: Vec<_> = (0..4).map(|_| lab.client()).collect();
        let mut tickets = Vec::new();
        for (index, client) in (0u64..).zip(&mut clients) {
            let handle = client.open(&name("data/a"), NEWEST).await.expect("known");
            let ticket = client.begin_read(handle, index * EXTENT_BYTES as u64, 100);
            let patience = Duration::from_millis(100);
            stuck +=
                usize::from(tokio::time::timeout(patience, client.finish(ticket)).await.is_err());
            tickets.push(ticket);
        }
        assert_eq!(stuck, 1, "only who needs that one waits");
        lab.disk.release_stuck();
        drop(clients);
        lab.end_without_clients().await;
    });
}

#[test]
fn a_descriptor_that_does_not_hold_costs_a_fetch_within_the_read() {
    in_virtual_time(async {
        for windows in WINDOWS {
            // Of its head, of a checksum, of its own checksum.
            for byte in [0, 9, 50, 90, 101, 130, 510] {
                let lab = furnished(windows).await;
                for at in descriptors(&lab) {
                    flip(&lab.disk, at + byte);
                }
                read_repaired(lab, byte).await;
            }
        }
    });
}

#[test]
fn a_descriptor_that_cannot_be_read_costs_a_fetch_within_the_read() {
    in_virtual_time(async {
        for windows in WINDOWS {
            for fault in [Fault::Fail, Fault::FlipBit, Fault::Misdirect] {
                let lab = furnished(windows).await;
                let places = descriptors(&lab);
                lab.disk.set_faults(on(&places, When::Nth(1), fault));
                read_repaired(lab, 0).await;
            }
        }
    });
}

/// Three extents are fetched again within one read, each once though it takes several pieces of each;
/// and then they are there as before.
async fn read_repaired(lab: Lab, byte: u64) {
    let mut client = lab.client();
    let handle = client.open(&name("data/a"), NEWEST).await.expect("known");
    let (from, length) = (100, 3 * EXTENT_BYTES - 200);
    let expected = &contents(1, BYTES)[from..from + length];
    let (found, served) = client.read(handle, from as u64, length).await.expect("repaired");
    assert!(found == expected, "byte {byte}");
    assert_eq!(served, Served::Repair, "byte {byte}");
    assert_eq!(lab.handle.status().await.checksum_errors, 3, "byte {byte}");
    lab.disk.set_faults(FaultPlan::new());
    promote(&lab).await;
    let (found, served) = client.read(handle, from as u64, length).await.expect("as before");
    assert!(found == expected && served == Served::Tier, "byte {byte}");
}

#[test]
fn what_is_dirty_is_verified_without_its_descriptor() {
    in_virtual_time(async {
        let sim = SimOptions { capacity_bytes: 8 << 20, ..SimOptions::default() };
        let lab = Lab::made(sim, Ways { checksum_memory_bytes: 0, ..Ways::default() });
        let mut client = lab.client();
        let handle = client.open(&name("data/d"), OpenMode::Write(0)).await.expect("writable");
        client.write(handle, 0, &contents(2, BYTES)).await.expect("written");
        client.commit(handle, BYTES as u64).await.expect("committed");
        client.close(handle).await;
        let lab = {
            drop(client);
            lab.restart().await
        };
        assert!(lab.handle.status().await.checksum_memory_bytes > 0, "though there is none for it");
        for at in descriptors(&lab) {
            flip(&lab.disk, at + 130);
        }
        let mut client = lab.client();
        let handle = client.open(&name("data/d"), NEWEST).await.expect("known");
        let (found, served) = client.read(handle, 0, BYTES).await.expect("whole");
        assert!(found == contents(2, BYTES) && served == Served::Tier);
        // Nothing but memory has what a scrub writes down again.
        let scrubbed = lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
        let report = scrubbed.expect("scrubbed");
        assert_eq!((report.metadata_damaged, report.metadata_repaired), (4, 4), "{report:?}");
        assert_eq!((report.damaged, report.unrepaired), (0, 0), "{report:?}");
        // Once its silo has it, its checksums may go.
        let (file, progress) = (name("data/d"), Progress::new());
        lab.handle.writeback(&file, None, &progress).await.expect("written back");
        assert_eq!(lab.handle.status().await.checksum_memory_bytes, 0);
        let (found, served) = client.read(handle, 0, BYTES).await.expect("whole");
        assert!(found == contents(2, BYTES) && served == Served::Tier);
        lab.end(client).await;
    });
}

#[test]
fn a_scrub_reads_descriptors_and_fetches_again_what_they_cannot_vouch_for() {
    in_virtual_time(async {
        let lab = furnished(true).await;
        let scrub = async || {
            let scrubbed = lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
            scrubbed.expect("scrubbed")
        };
        let report = scrub().await;
        let found = (report.damaged, report.metadata_damaged, report.unrepaired);
        assert_eq!((report.extents, found), (4, (0, 0, 0)), "{report:?}");
        assert_eq!(lab.handle.status().await.checksum_memory_bytes, 0);
        for at in &descriptors(&lab)[..2] {
            flip(&lab.disk, at + 101);
        }
        rot::rot(&lab.disk, &contents(1, BYTES)[3 * EXTENT_BYTES..], 7);
        let report = scrub().await;
        assert_eq!((report.metadata_damaged, report.metadata_repaired), (2, 2), "{report:?}");
        assert_eq!((report.damaged, report.repaired, report.unrepaired), (1, 1, 0), "{report:?}");
        let report = scrub().await;
        assert_eq!((report.metadata_damaged, report.damaged), (0, 0), "{report:?}");
        let mut client = lab.client();
        let handle = client.open(&name("data/a"), NEWEST).await.expect("known");
        let (found, served) = client.read(handle, 0, BYTES).await.expect("whole");
        assert!(found == contents(1, BYTES) && served == Served::Tier);
        drop(client);
        // With its silo down it is dropped rather than believed.
        for at in descriptors(&lab) {
            flip(&lab.disk, at + 101);
        }
        lab.data.set_down(true);
        let report = scrub().await;
        assert_eq!((report.metadata_damaged, report.unrepaired), (4, 4), "{report:?}");
        let mut client = lab.client();
        let handle = client.open(&name("data/a"), NEWEST).await.expect("known");
        let error = client.read(handle, 0, 1).await.expect_err("it is nowhere");
        assert!(error.kind().is_transient(), "{error}");
        lab.end(client).await;
    });
}
