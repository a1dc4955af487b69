//! What is kept on two devices: the loss of one, and damage on either, cost nothing that was
//! acknowledged.

extern crate forebay_dataplane as dataplane;

#[path = "bad_input/lab.rs"]
mod lab;
#[path = "bad_input/twice.rs"]
mod twice;
#[path = "sim/wired.rs"]
mod wired;

use dataplane::{NodeStatus, Progress, Residency, ScrubOptions};
use extent::Kind;
use extent::wire::OpenMode;
use nvme_tier::device::DeviceIndex;
use nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, SimDisk, When};

use lab::{Lab, TWICE, contents, in_virtual_time};
use twice::{BYTES, furnished, holds, name, read, rot, vanish, write};

async fn status(lab: &Lab) -> NodeStatus {
    lab.handle.status().await
}

#[test]
fn either_copy_is_enough_to_read() {
    in_virtual_time(twice::either_is_enough());
}

#[test]
fn a_lost_device_costs_nothing_that_is_kept_twice() {
    in_virtual_time(async {
        for lost in [0, 1] {
            let lab = furnished().await;
            vanish(&lab, lost);
            assert!(read(&lab, "data/dirty").await.expect("one is enough") == contents(7, BYTES));
            let written = lab.handle.writeback(&name("data/dirty"), None, &Progress::new()).await;
            assert_eq!(written.expect("written back").residency, Residency::Clean, "{lost} lost");
            assert!(lab.data.bytes("dirty").expect("it is there") == contents(7, BYTES));
            // Nothing new is taken that could be kept but once, and it says what to do.
            for _ in 0..3 {
                let refused = write(&lab, "data/new", 8).await.expect_err("one device");
                assert_eq!(refused.kind(), Kind::Io, "{refused}");
            }
            let refused = write(&lab, "data/new", 8).await.expect_err("one device");
            assert!(refused.to_string().contains("dirty_copies"), "{refused}");
        }
    });
}

#[test]
fn a_node_starts_without_a_device_and_takes_it_back() {
    in_virtual_time(async {
        for lost in [0, 1] {
            let lab = furnished().await;
            let (disk, data) = (lab.disk.clone(), lab.data.clone());
            let lab = lab.stop().await;
            vanish(&lab, lost);
            let lab = Lab::without(disk.clone(), data.clone(), TWICE, &[DeviceIndex(lost)]);
            assert!(read(&lab, "data/dirty").await.expect("one is enough") == contents(7, BYTES));
            assert_eq!(status(&lab).await.files_missing_copy, 1, "{lost} lost");
            let written = lab.handle.writeback(&name("data/dirty"), None, &Progress::new()).await;
            assert_eq!(written.expect("written back").residency, Residency::Clean);
            assert_eq!(status(&lab).await.files_missing_copy, 0);
            drop(lab.stop().await);
            disk.set_faults(FaultPlan::new());
            let lab = Lab::without(disk, data, TWICE, &[]);
            let known = lab.handle.get(&name("data/dirty")).await.expect("known");
            assert_eq!(known.residency, Residency::Clean, "and not dirty again");
            assert!(read(&lab, "data/dirty").await.expect("whole") == contents(7, BYTES));
        }
    });
}

#[test]
fn damage_in_one_copy_is_read_around_and_mended() {
    in_virtual_time(async {
        for device in [0, 1] {
            let lab = furnished().await;
            rot(&lab, device, 3);
            assert!(read(&lab, "data/dirty").await.expect("the other") == contents(7, BYTES));
            let seen = status(&lab).await;
            let expected = (seen.second_copy_reads > 0, seen.files_missing_copy);
            assert!(matches!(expected, (true, 1) | (false, 0)), "{expected:?}");
            let report = lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
            let report = report.expect("scrubbed");
            assert_eq!((report.damaged, report.repaired, report.unrepaired), (1, 1, 0));
            assert!(holds(&lab, device, 3) && status(&lab).await.files_missing_copy == 0);
            let again = lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
            assert_eq!(again.expect("scrubbed").damaged, 0);
        }
        // One of the two was the first copy, which is the one that is read.
    });
}

#[test]
fn copies_damaged_in_different_places_are_one_whole() {
    in_virtual_time(async {
        let lab = furnished().await;
        rot(&lab, 0, 3);
        rot(&lab, 1, 5);
        assert!(read(&lab, "data/dirty").await.expect("together") == contents(7, BYTES));
        let written = lab.handle.writeback(&name("data/dirty"), None, &Progress::new()).await;
        assert_eq!(written.expect("written back").residency, Residency::Clean);
        let lab = furnished().await;
        rot(&lab, 0, 3);
        rot(&lab, 1, 5);
        let report = lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
        assert_eq!(report.expect("scrubbed").unrepaired, 0);
        assert!(holds(&lab, 0, 3) && holds(&lab, 1, 5));
    });
}

#[test]
fn damage_in_both_copies_is_data_loss() {
    in_virtual_time(async {
        for scrub in [false, true] {
            let lab = furnished().await;
            rot(&lab, 0, 3);
            rot(&lab, 1, 3);
            if scrub {
                let report = lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
                assert_eq!(report.expect("scrubbed").unrepaired, 1);
            }
            let lost = read(&lab, "data/dirty").await.expect_err("nobody has it");
            assert_eq!(lost.kind(), Kind::Corrupt);
            let lab = lab.restart().await;
            let known = lab.handle.get(&name("data/dirty")).await.expect("kept");
            assert_eq!(known.residency, Residency::Quarantined);
        }
    });
}

#[test]
fn damage_beside_a_device_that_is_gone_is_not_for_good() {
    in_virtual_time(async {
        for gone in [0, 1] {
            let lab = furnished().await;
            rot(&lab, 1 - gone, 3);
            let images = lab.disk.durable_image();
            vanish(&lab, gone);
            let error = read(&lab, "data/dirty").await.expect_err("not now");
            assert_eq!(error.kind(), Kind::Io, "{error}");
            let written = lab.handle.writeback(&name("data/dirty"), None, &Progress::new()).await;
            assert_eq!(written.expect_err("not now").kind(), Kind::Io);
            let report = lab.handle.scrub(ScrubOptions::default(), &Progress::new()).await;
            assert!(report.expect("scrubbed").unrepaired > 0);
            // The device is back, and has what the other one lacks.
            let (sim, data) = (lab.disk.options(), lab.data.clone());
            drop(lab.stop().await);
            let lab = Lab::without(SimDisk::from_images(sim, images), data, TWICE, &[]);
            assert!(read(&lab, "data/dirty").await.expect("whole") == contents(7, BYTES));
        }
    });
}

#[test]
fn a_write_that_fails_on_either_device_fails() {
    in_virtual_time(async {
        for device in [0, 1] {
            for operation in [Operation::Write, Operation::Flush] {
                let lab = furnished().await;
                let rule = FaultRule::new(operation, When::Nth(1), Fault::Fail);
                lab.disk.set_faults(FaultPlan::new().with(rule.on(DeviceIndex(device))));
                let error = write(&lab, "data/dirty", 8).await.expect_err("it is not there twice");
                assert_eq!(error.kind(), Kind::Io, "{error}");
                let old = read(&lab, "data/dirty").await.expect("the old one");
                assert!(old == contents(7, BYTES), "{operation:?} on {device}");
            }
        }
    });
}

#[test]
fn a_block_that_is_changed_in_part_is_taken_from_the_copy_that_holds() {
    in_virtual_time(async {
        for (device, lost) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let lab = furnished().await;
            let mut client = lab.client();
            let file = name("data/part");
            let handle = client.open(&file, OpenMode::Write(BYTES as u64)).await.expect("open");
            let mut bytes = contents(9, BYTES);
            client.write(handle, 0, &bytes).await.expect("written");
            let rule = FaultRule::new(Operation::Read, When::From(1), Fault::FlipBit);
            lab.disk.set_faults(FaultPlan::new().with(rule.on(DeviceIndex(device))));
            bytes[5000..5100].fill(1);
            client.write(handle, 5000, &bytes[5000..5100]).await.expect("from the other copy");
            client.commit(handle, BYTES as u64).await.expect("committed");
            vanish(&lab, lost);
            assert!(read(&lab, "data/part").await.expect("whole") == bytes, "{lost} lost");
        }
    });
}

#[test]
fn what_is_written_back_is_kept_once() {
    in_virtual_time(async {
        let lab = furnished().await;
        let twice = status(&lab).await;
        assert_eq!((twice.resident_extents, twice.resident_bytes), (2, BYTES as u64));
        lab.handle.writeback(&name("data/dirty"), None, &Progress::new()).await.expect("written");
        // The ledger erases what nobody needs any more.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let once = status(&lab).await;
        assert_eq!((once.resident_extents, once.resident_bytes), (2, BYTES as u64));
        assert_eq!(once.slot_bytes * 2, twice.slot_bytes);
    });
}
