//! What a node answers when it is asked for something senseless, or something under it breaks: a
//! typed error for the one who asked, and nothing for anybody else.

extern crate forebay_dataplane as dataplane;

#[path = "bad_input/lab.rs"]
mod lab;
#[path = "sim/wired.rs"]
mod wired;

use std::time::Duration;

use dataplane::{Progress, PromoteOptions, Residency};
use extent::wire::{Command, OpenMode, Request, Served};
use extent::{ByteRange, FileName, Generation, Kind};
use nvme_tier::device::sim::{Fault, FaultPlan, FaultRule, Operation, When};
use rdma::Channel;

use lab::{CREDITS, EXTENT_BYTES, Lab, contents, in_virtual_time};

const NEWEST: OpenMode = OpenMode::Read(Generation(0));

fn name(text: &str) -> FileName {
    text.parse().expect("a name")
}

#[test]
fn names_and_generations_that_are_not_there() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        lab.data.put("a", vec![1; 100]);
        let mut client = lab.client();
        let missing = [
            ("data/b", NEWEST, Kind::NotFound),
            ("elsewhere/a", NEWEST, Kind::NotFound),
            ("elsewhere/a", OpenMode::Write(0), Kind::NotFound),
            ("fixed/a", OpenMode::Write(0), Kind::Unsupported),
        ];
        for (file, mode, kind) in missing {
            let error = client.open(&name(file), mode).await.expect_err(file);
            assert_eq!(error.kind(), kind, "{file}: {error}");
        }
        client.open(&name("data/a"), NEWEST).await.expect("it is there");
        let gone = OpenMode::Read(Generation(7));
        let error = client.open(&name("data/a"), gone).await.expect_err("no such generation");
        assert_eq!(error.kind(), Kind::Stale);
        lab.end(client).await;
    });
}

#[test]
fn reads_at_and_past_the_end_are_short() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        lab.data.put("a", vec![1; 100]);
        let mut client = lab.client();
        let handle = client.open(&name("data/a"), NEWEST).await.expect("it is there");
        for (offset, length, bytes) in
            [(0, 0, 0), (100, 10, 0), (u64::MAX - 10, 5, 0), (90, 20, 10)]
        {
            let (found, _) = client.read(handle, offset, length).await.expect("a short read");
            assert_eq!(found.len(), bytes, "{length} at {offset}");
        }
        let error = client.read(handle + 1, 0, 1).await.expect_err("no such handle");
        assert_eq!(error.kind(), Kind::NotFound);
        lab.end(client).await;
    });
}

#[test]
fn handles_do_what_they_were_opened_for() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        let mut client = lab.client();
        let writer = client.open(&name("data/new"), OpenMode::Write(0)).await.expect("writable");
        client.write(writer, 10, &[7; 5000]).await.expect("written");
        let refused = [
            client.read(writer, 0, 1).await.expect_err("reads from a writer").kind(),
            client.commit(writer, 100).await.expect_err("shorter than written").kind(),
        ];
        assert_eq!(refused, [Kind::Invalid; 2]);
        client.commit(writer, 6000).await.expect("committed");
        // It reads what it wrote now, with zeroes where nothing was written.
        let (found, _) = client.read(writer, 0, 6000).await.expect("readable");
        let mut expected = vec![0; 6000];
        expected[10..5010].fill(7);
        assert!(found == expected);
        assert_eq!(
            client.write(writer, 0, &[1]).await.expect_err("committed").kind(),
            Kind::Invalid
        );
        assert_eq!(client.commit(writer, 1).await.expect_err("twice").kind(), Kind::Invalid);

        let announced =
            client.open(&name("data/short"), OpenMode::Write(10)).await.expect("writable");
        let error = client.write(announced, 0, &[1; 11]).await.expect_err("more than announced");
        assert_eq!(error.kind(), Kind::Invalid);
        lab.end(client).await;
    });
}

#[test]
fn more_requests_than_credits_are_refused_one_by_one() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        let mut channel = lab.fabric.connect(0);
        let send = |channel: &mut rdma::SimChannel, tag, command| {
            channel.send(&Request { tag, payload_crc: None, command }).expect("there is room");
        };
        // Before HELLO nothing works; after it, as many as were granted.
        let hello = |versions| Command::Hello { versions, credits: CREDITS, features: 0 };
        send(&mut channel, 1, Command::Ping);
        send(&mut channel, 2, hello((9, 9)));
        send(&mut channel, 3, hello((1, 1)));
        channel.kick().expect("connected");
        let replies = lab.replies(&mut channel, 3).await;
        assert_eq!(replies[0].status, Err(Kind::Invalid));
        assert_eq!(replies[1].status, Err(Kind::Unsupported));
        assert_eq!((replies[2].status, replies[2].credits), (Ok(()), CREDITS));

        // Reads of absent extents stay in flight while the silo is held.
        lab.data.put("a", vec![1; EXTENT_BYTES]);
        lab.handle.register(&name("data/a"), None).await.expect("registered");
        let file = name("data/a").id();
        let open = extent::wire::Open { file, mode: NEWEST, name: extent::wire::Segments::NONE };
        send(&mut channel, 4, Command::Open(open));
        channel.kick().expect("connected");
        let handle = lab.replies(&mut channel, 1).await[0].value;
        lab.data.hold_reads(true);
        let memory = channel.allocate(4096).expect("memory");
        let into = extent::wire::Segments::one(extent::wire::Segment {
            address: 0,
            length: 1,
            key: memory.id().0,
        });
        let range = ByteRange::new(0, 1).expect("in bounds");
        for tag in 0..u32::from(CREDITS) + 3 {
            send(&mut channel, 100 + tag, Command::Read { handle, range, into });
        }
        channel.kick().expect("connected");
        let refused = lab.replies(&mut channel, 3).await;
        assert!(refused.iter().all(|reply| reply.status == Err(Kind::Busy)), "{refused:?}");
        lab.data.hold_reads(false);
        let answered = lab.replies(&mut channel, usize::from(CREDITS)).await;
        assert!(answered.iter().all(|reply| reply.status == Ok(())), "{answered:?}");
        assert_eq!(lab.data.reads(), 1, "one fetch for all of them");
        drop(channel);
        lab.end_without_clients().await;
    });
}

#[test]
fn a_client_that_dies_in_mid_transfer_leaves_nothing_behind() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        lab.data.put("a", contents(1, 3 * EXTENT_BYTES));
        let mut other = lab.client();
        for round in 0..20 {
            let mut client = lab.client();
            let handle = client.open(&name("data/a"), NEWEST).await.expect("it is there");
            let draft = client.open(&name("data/b"), OpenMode::Write(0)).await.expect("writable");
            client.begin_read(handle, 100, 2 * EXTENT_BYTES);
            client.begin_write(draft, 0, &vec![1; EXTENT_BYTES + 1]);
            tokio::time::sleep(Duration::from_micros(round)).await;
            let session = *lab.fabric.sessions().last().expect("a session");
            lab.fabric.sever(session);
        }
        let handle = other.open(&name("data/a"), NEWEST).await.expect("nobody else noticed");
        let (found, _) = other.read(handle, 0, 3 * EXTENT_BYTES).await.expect("readable");
        assert!(found == contents(1, 3 * EXTENT_BYTES));
        assert!(other.open(&name("data/b"), NEWEST).await.is_err(), "nothing was committed");
        lab.end(other).await;
    });
}

#[test]
fn a_tier_full_of_dirty_files_says_so_and_loses_none() {
    in_virtual_time(async {
        let lab = Lab::new(16 << 20);
        let mut client = lab.client();
        let mut written = Vec::new();
        let error = loop {
            let file = name(&format!("data/{}", written.len()));
            let bytes = contents(written.len() as u64, 2 * EXTENT_BYTES);
            let handle = client.open(&file, OpenMode::Write(0)).await.expect("writable");
            let wrote = client.write(handle, 0, &bytes).await;
            let done = match wrote {
                Ok(()) => client.commit(handle, bytes.len() as u64).await,
                error => error,
            };
            match done {
                Ok(()) => written.push((file, bytes)),
                Err(error) => break error,
            }
            assert!(written.len() < 1000, "a small tier never got full");
        };
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        for (file, bytes) in &written {
            let handle = client.open(file, NEWEST).await.expect("committed");
            let (found, _) = client.read(handle, 0, bytes.len()).await.expect("readable");
            assert!(found == *bytes, "{file}");
            client.close(handle).await;
        }
        // Taking some back to their silo makes room again.
        for (file, bytes) in written.iter().take(20) {
            lab.handle.demote(file, None, None, &Progress::new()).await.expect("demoted");
            assert!(lab.data.bytes(file.key()).expect("in the silo") == bytes[..], "{file}");
        }
        let handle = client.open(&name("data/z"), OpenMode::Write(0)).await.expect("writable");
        client.write(handle, 0, &[1; 4096]).await.expect("there is room again");
        client.commit(handle, 4096).await.expect("committed");
        lab.end(client).await;
    });
}

#[test]
fn a_tier_full_of_pinned_files_still_serves_from_the_silo() {
    in_virtual_time(async {
        let lab = Lab::new(16 << 20);
        let mut client = lab.client();
        let day = Duration::from_secs(86400);
        let mut pinned = 0;
        let error = loop {
            let file = name(&format!("data/{pinned}"));
            lab.data.put(file.key(), contents(pinned, 2 * EXTENT_BYTES));
            let options = PromoteOptions::default();
            match lab.handle.promote(&file, options, &Progress::new()).await {
                Ok(_) => lab.handle.pin(&file, "job", day).await.expect("it is known"),
                Err(error) => break error,
            };
            pinned += 1;
            assert!(pinned < 1000, "a small tier never got full");
        };
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        let unlucky = name(&format!("data/{pinned}"));
        let handle = client.open(&unlucky, NEWEST).await.expect("known");
        let (found, served) = client.read(handle, 5, 2 * EXTENT_BYTES - 5).await.expect("served");
        assert!(found == contents(pinned, 2 * EXTENT_BYTES)[5..]);
        assert_eq!(served, Served::Recall);
        let refused = lab.handle.release(&name("data/0"), None, None).await.expect_err("pinned");
        assert_eq!(refused.kind(), Kind::Denied);
        let other = Some(Generation(2));
        let options_at = PromoteOptions { expected: other, ..PromoteOptions::default() };
        let progress = Progress::new();
        for outcome in [
            lab.handle.release(&name("data/0"), None, other).await,
            lab.handle.writeback(&name("data/0"), other, &progress).await,
            lab.handle.demote(&name("data/0"), None, other, &progress).await,
            lab.handle.register(&name("data/0"), other).await,
            lab.handle.promote(&name("data/0"), options_at, &progress).await,
        ] {
            assert_eq!(outcome.expect_err("another generation").kind(), Kind::Stale);
        }
        for number in 0..20 {
            let file = name(&format!("data/{number}"));
            lab.handle.unpin(&file, "job").await.expect("it was pinned");
        }
        let options = PromoteOptions::default();
        let status = lab.handle.promote(&unlucky, options, &Progress::new()).await.expect("room");
        assert_eq!(status.residency, Residency::Clean);
        lab.end(client).await;
    });
}

#[test]
fn a_silo_that_refuses_harms_only_what_needs_it() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        lab.data.put("here", contents(1, EXTENT_BYTES));
        lab.data.put("there", contents(2, EXTENT_BYTES));
        let options = PromoteOptions::default();
        lab.handle.promote(&name("data/here"), options, &Progress::new()).await.expect("promoted");
        lab.handle.register(&name("data/there"), None).await.expect("registered");
        let mut client = lab.client();
        let here = client.open(&name("data/here"), NEWEST).await.expect("known");
        let there = client.open(&name("data/there"), NEWEST).await.expect("known");
        lab.data.set_down(true);
        let (found, served) = client.read(here, 0, EXTENT_BYTES).await.expect("resident");
        assert!(found == contents(1, EXTENT_BYTES) && served == Served::Tier);
        let error = client.read(there, 0, 1).await.expect_err("its silo is down");
        assert!(error.kind().is_transient(), "{error}");
        lab.data.set_down(false);
        let (found, _) = client.read(there, 0, EXTENT_BYTES).await.expect("it came back");
        assert!(found == contents(2, EXTENT_BYTES));
        lab.end(client).await;
    });
}

#[test]
fn a_changed_source_is_never_mixed_with_the_old_one() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        lab.data.put("a", contents(1, 2 * EXTENT_BYTES));
        let mut client = lab.client();
        let old = client.open(&name("data/a"), NEWEST).await.expect("known");
        client.read(old, 0, 1).await.expect("the first extent");
        lab.data.put("a", contents(2, 2 * EXTENT_BYTES));
        let error = client.read(old, 0, 2 * EXTENT_BYTES).await.expect_err("half of it is gone");
        assert_eq!(error.kind(), Kind::Stale);
        let new = client.open(&name("data/a"), NEWEST).await.expect("known");
        let (found, _) = client.read(new, 0, 2 * EXTENT_BYTES).await.expect("the new one");
        assert!(found == contents(2, 2 * EXTENT_BYTES));
        lab.end(client).await;
    });
}

#[test]
fn damage_is_repaired_within_the_read() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        lab.data.put("a", contents(1, EXTENT_BYTES));
        let options = PromoteOptions::default();
        lab.handle.promote(&name("data/a"), options, &Progress::new()).await.expect("promoted");
        let mut client = lab.client();
        let handle = client.open(&name("data/a"), NEWEST).await.expect("known");
        // Once in the client's memory, which is a hint only, and once more in the node's.
        let flip = |nth| FaultRule::new(Operation::Read, When::Nth(nth), Fault::FlipBit);
        lab.disk.set_faults(FaultPlan::new().with(flip(1)).with(flip(2)));
        let (found, served) = client.read(handle, 0, EXTENT_BYTES).await.expect("repaired");
        assert!(found == contents(1, EXTENT_BYTES));
        assert_eq!(served, Served::Repair);
        let status = lab.handle.status().await;
        assert_eq!((status.checksum_errors, status.repairs), (1, 1));
        lab.end(client).await;
    });
}

#[test]
fn a_device_that_vanishes_takes_only_dirty_bytes_with_it() {
    in_virtual_time(async {
        let lab = Lab::new(8 << 20);
        lab.data.put("a", contents(1, EXTENT_BYTES));
        let options = PromoteOptions::default();
        lab.handle.promote(&name("data/a"), options, &Progress::new()).await.expect("promoted");
        let mut client = lab.client();
        let clean = client.open(&name("data/a"), NEWEST).await.expect("known");
        let dirty = client.open(&name("data/b"), OpenMode::Write(0)).await.expect("writable");
        client.write(dirty, 0, &[9; 4096]).await.expect("written");
        client.commit(dirty, 4096).await.expect("committed");
        let draft = client.open(&name("data/c"), OpenMode::Write(0)).await.expect("writable");
        let vanish = FaultRule::new(Operation::Any, When::Nth(1), Fault::Vanish);
        lab.disk.set_faults(FaultPlan::new().with(vanish));

        let (found, served) = client.read(clean, 0, EXTENT_BYTES).await.expect("from the silo");
        assert!(found == contents(1, EXTENT_BYTES) && served == Served::Repair);
        assert_eq!(client.read(dirty, 0, 1).await.expect_err("gone").kind(), Kind::Io);
        let wrote = client.write(draft, 0, &[1; 4096]).await;
        let committed = client.commit(draft, 4096).await;
        assert!(wrote.is_err() || committed.is_err(), "nothing is acknowledged any more");
        lab.end(client).await;
    });
}
