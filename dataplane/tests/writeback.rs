//! Write-backs through the whole node: whose object it is that stands in a silo, and what is done about it.

extern crate forebay_dataplane as dataplane;

#[path = "bad_input/lab.rs"]
mod lab;
#[path = "sim/wired.rs"]
mod wired;

use std::time::Duration;

use dataplane::{Keep, Progress, PromoteOptions, Residency};
use extent::wire::OpenMode;
use extent::{FileName, Kind, Result};
use silo::ObjectMeta;
use silo::sim::Faults;

use lab::{Lab, contents, in_virtual_time};

const BYTES: usize = 200_000;
const SEVERAL: usize = 8;

fn name() -> FileName {
    "data/f".parse().expect("a name")
}

async fn write(lab: &Lab, seed: u64) -> Vec<u8> {
    let (mut client, bytes) = (lab.client(), contents(seed, BYTES));
    let handle = client.open(&name(), OpenMode::Write(0)).await.expect("writable");
    client.write(handle, 0, &bytes).await.expect("written");
    client.commit(handle, BYTES as u64).await.expect("committed");
    client.close(handle).await;
    bytes
}

async fn writeback(lab: &Lab) -> Result<Residency> {
    let status = lab.handle.writeback(&name(), None, &Progress::new()).await;
    status.map(|status| status.residency)
}

async fn residency(lab: &Lab) -> Residency {
    lab.handle.get(&name()).await.expect("known").residency
}

fn object(lab: &Lab) -> ObjectMeta {
    lab.data.objects().into_iter().find(|object| object.key == "f").expect("it is there")
}

fn stored(lab: &Lab) -> Vec<u8> {
    lab.data.bytes("f").expect("it is there").to_vec()
}

#[test]
fn an_older_upload_that_somebody_put_back_is_theirs() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        let first = write(&lab, 1).await;
        writeback(&lab).await.expect("written back");
        let of_first = object(&lab);
        write(&lab, 2).await;
        writeback(&lab).await.expect("written back");
        // With all that it carried.
        lab.data.put_copy("f", first.clone(), &of_first);
        write(&lab, 3).await;
        assert_eq!(writeback(&lab).await.expect_err("theirs").kind(), Kind::Stale);
        assert_eq!(residency(&lab).await, Residency::Conflict);
        assert_eq!(stored(&lab), first);
    });
}

#[test]
fn uploads_of_ours_that_nobody_took_note_of_are_replaced() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        for seed in 1..5 {
            write(&lab, seed).await;
            // It takes effect, and cannot be looked at.
            let kinds = vec![(Kind::Io, 0.5)];
            let faults = Faults { lost_answer: 1.0, errors: kinds, ..Faults::default() };
            lab.data.set_faults(faults);
            for _ in 0..SEVERAL {
                let _ = writeback(&lab).await;
            }
            lab.data.set_faults(Faults::default());
        }
        let last = write(&lab, 9).await;
        assert_eq!(writeback(&lab).await.expect("written back"), Residency::Clean);
        assert_eq!(stored(&lab), last);
    });
}

#[test]
fn a_write_back_that_waits_can_be_ended_and_leaves_nothing_to_settle() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        let bytes = write(&lab, 1).await;
        lab.data.hold_reads(true);
        let progress = Progress::new();
        let ended = async {
            let ended = lab.handle.writeback(&name(), None, &progress).await;
            assert_eq!(ended.expect_err("cancelled").kind(), Kind::Fenced);
        };
        let ending = async {
            lab.data.waiting_reads(1).await;
            progress.cancel();
        };
        tokio::join!(ended, ending);
        lab.data.hold_reads(false);
        assert_eq!(stored(&lab), bytes, "it is there, and was not looked at");
        for keep in [Keep::Node, Keep::Silo] {
            let settled = lab.handle.resolve(&name(), keep, None).await;
            assert_eq!(settled.expect_err("nothing to settle").kind(), Kind::Invalid);
        }
        assert_eq!(writeback(&lab).await.expect("written back"), Residency::Clean);
        assert_eq!(stored(&lab), bytes);
    });
}

#[test]
fn a_copy_that_is_not_what_was_sent_is_sent_again() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        let bytes = write(&lab, 1).await;
        lab.data.set_faults(Faults { spoilt_upload: 1.0, ..Faults::default() });
        for _ in 0..2 {
            assert_eq!(writeback(&lab).await.expect_err("spoilt").kind(), Kind::Corrupt);
            assert_eq!(residency(&lab).await, Residency::Dirty);
        }
        // Also after a restart, and if somebody asks the silo meanwhile.
        let lab = lab.restart().await;
        let (options, progress) = (PromoteOptions::default(), Progress::new());
        let promoted = lab.handle.promote(&name(), options, &progress).await;
        assert_eq!(promoted.expect("it is here").residency, Residency::Dirty);
        lab.data.set_faults(Faults::default());
        assert_eq!(writeback(&lab).await.expect("written back"), Residency::Clean);
        assert_eq!(stored(&lab), bytes);
    });
}

#[test]
fn what_was_found_and_is_something_else_is_for_somebody_to_choose() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        let bytes = write(&lab, 1).await;
        // The upload takes effect, its answer is lost, and what is found is not what was sent.
        lab.data.set_faults(Faults { lost_answer: 1.0, spoilt_upload: 1.0, ..Faults::default() });
        assert_eq!(writeback(&lab).await.expect_err("not ours").kind(), Kind::Stale);
        assert_eq!(residency(&lab).await, Residency::Conflict);
        lab.data.set_faults(Faults::default());
        lab.handle.resolve(&name(), Keep::Node, None).await.expect("settled");
        assert_eq!(writeback(&lab).await.expect("written back"), Residency::Clean);
        assert_eq!(stored(&lab), bytes);
    });
}

#[test]
fn an_upload_that_is_not_settled_yet_is_no_change() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        write(&lab, 1).await;
        lab.data.hold_reads(true);
        let settling = async {
            writeback(&lab).await.expect("written back");
        };
        let asking = async {
            lab.data.waiting_reads(1).await;
            for _ in 0..SEVERAL {
                let known = lab.handle.register(&name(), None).await.expect("ours");
                assert_eq!(known.generation.0, 1);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            lab.data.hold_reads(false);
        };
        tokio::join!(settling, asking);
        assert_eq!(residency(&lab).await, Residency::Clean);
    });
}
