//! The interface as C uses it, against a small node over real fabrics. With the feature
//! `seeded-bugs`, each mistake that [`crate::bugs`] knows is made, and one of these tests must fail
//! for it.
#![expect(unsafe_code, reason = "these are the calls that C makes")]

#[path = "../../tests/mini/mod.rs"]
mod mini;
mod rig;

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::ptr;

use mini::Mini;
use rig::{Rig, at, endpoints, last_error};

use crate::abi;
use crate::handle;

const FILE_BYTES: usize = 3_000_000;

fn bytes() -> Vec<u8> {
    (0..FILE_BYTES).map(|i| u8::try_from((i ^ (i >> 9)) % 251).expect("small")).collect()
}

/// Many reads at once, half of them into memory that is copied to. Each completes once, with its own
/// bytes.
fn every_read_completes_once_with_its_own_bytes() {
    const READS: usize = 300;
    const LENGTH: usize = 5000;
    let content = bytes();
    let mini = Mini::start(content.clone());
    for endpoint in endpoints(&mini) {
        let rig = Rig::open(&endpoint, 32);
        let direct = rig.alloc(32 * LENGTH);
        let mut copied = vec![0u8; 32 * LENGTH];
        let mut under_way = HashMap::new();
        let mut free: Vec<usize> = (0..32).collect();
        let mut done = 0;
        for read in 0..READS {
            let Some(place) = free.pop() else { unreachable!("one is freed before") };
            let base = if read % 2 == 0 { direct } else { copied.as_mut_ptr() };
            let buffer = base.wrapping_add(place * LENGTH);
            let offset = read * 9973 % (FILE_BYTES - LENGTH);
            assert!(rig.read(buffer, LENGTH, offset, read as u64));
            under_way.insert(read as u64, (place, buffer, offset));
            if !free.is_empty() && read + 1 != READS {
                continue;
            }
            let submitted = rig.submit();
            assert!(submitted > 0);
            while !under_way.is_empty() && (free.is_empty() || read + 1 == READS) {
                let cqe = rig.next();
                let (place, buffer, offset) =
                    under_way.remove(&cqe.user_data).expect("it is under way");
                assert_eq!(cqe.result, LENGTH as i64, "{}", last_error());
                assert!(at(buffer, LENGTH) == &content[offset..offset + LENGTH]);
                let is_copy = cqe.flags & abi::PATH_CLIENT_COPY != 0;
                assert_eq!(is_copy, cqe.user_data % 2 == 1);
                assert_eq!(cqe.served, abi::SERVED_TIER);
                free.push(place);
                done += 1;
            }
        }
        assert_eq!(done, READS);
        assert_eq!(rig.peek().map(|_| ()), Err(-abi::TIMED_OUT));
    }
}

fn a_full_ring_takes_no_more_and_loses_nothing() {
    let mini = Mini::start(bytes());
    let rig = Rig::shared(&mini, 4);
    let memory = rig.alloc(4096);
    for round in 0..20 {
        for read in 0..4 {
            assert!(rig.read(memory, 10, 0, round * 10 + read));
            if read == 1 {
                assert_eq!(rig.submit(), 2);
            }
        }
        assert!(!rig.read(memory, 10, 0, 99), "prepared and under way");
        assert_eq!(rig.submit(), 2);
        assert!(!rig.read(memory, 10, 0, 99), "under way, or completed");
        let mut seen: Vec<u64> = (0..3).map(|_| rig.next().user_data).collect();
        assert!(rig.read(memory, 10, 0, round * 10 + 4), "one was seen");
        assert_eq!(rig.submit(), 1);
        seen.extend([rig.next().user_data, rig.next().user_data]);
        seen.sort_unstable();
        assert_eq!(seen, (0..5).map(|read| round * 10 + read).collect::<Vec<_>>());
    }
}

fn reads_end_with_the_file() {
    let content = bytes();
    let mini = Mini::start(content.clone());
    let rig = Rig::shared(&mini, 4);
    let mut copied = vec![7u8; 3_500_000];
    let direct = rig.alloc(copied.len());
    for offset in [0, 1, 1_500_000, FILE_BYTES - 1, FILE_BYTES, FILE_BYTES + 5] {
        let left = FILE_BYTES.saturating_sub(offset);
        for buffer in [direct, copied.as_mut_ptr()] {
            let cqe = rig.only(buffer, 3_500_000, offset);
            assert_eq!(cqe.result, left as i64, "{}", last_error());
            assert!(at(buffer, left) == &content[FILE_BYTES - left..]);
        }
        assert!(copied[left.max(FILE_BYTES)..].iter().all(|byte| *byte == 7), "no byte too many");
    }
    assert_eq!(rig.only(direct, 0, 5).result, 0);
    assert_eq!(rig.only(copied.as_mut_ptr(), 0, 5).result, 0);
}

fn what_is_closed_is_refused() {
    let mini = Mini::start(bytes());
    let rig = Rig::shared(&mini, 4);
    let memory = rig.alloc(4096);
    let second = rig.open_file(c"data/b").expect("there");
    assert_eq!(rig.close_file(second), 0);
    let third = rig.open_file(c"data/b").expect("there");
    assert_eq!(rig.close_file(second), -abi::INVALID, "it is not the third");
    let stale = ManuallyDrop::new(Rig { ring: rig.ring, file: second });
    assert_eq!(stale.only(memory, 10, 0).result, -i64::from(abi::INVALID));
    assert_eq!(rig.close_file(third), 0);
}

fn memory_stays_while_it_is_read_into() {
    let content = bytes();
    let mini = Mini::start(content.clone());
    let rig = Rig::shared(&mini, 4);
    let memory = rig.alloc(2_000_000);
    assert!(rig.read(memory, 2_000_000, 0, 1));
    assert_eq!(rig.submit(), 1);
    assert_eq!(rig.free(memory), -abi::BUSY);
    assert_eq!(rig.close_file(rig.file), -abi::BUSY);
    assert_eq!(rig.next().result, 2_000_000);
    assert!(at(memory, 2_000_000) == &content[..2_000_000]);
    for (address, result) in [
        (memory.wrapping_add(4096), -abi::INVALID),
        (ptr::null_mut(), -abi::INVALID),
        (memory, 0),
        (memory, -abi::INVALID),
    ] {
        assert_eq!(rig.free(address), result);
    }
}

fn memory_of_the_programs_own_is_read_into_where_it_is() {
    let content = bytes();
    let mini = Mini::start(content.clone());
    let mut own = vec![7u8; 2_000_001];
    let rig = Rig::open(&format!("tcp://{}", mini.address), 4);
    let memory = own[1..].as_mut_ptr();
    assert_eq!(rig.register(&mut own[1..]), 0, "{}", last_error());
    for overlapping in [0..10, 100..200, 2_000_000..2_000_001] {
        assert_eq!(rig.register(&mut own[overlapping]), -abi::INVALID);
    }
    let cqe = rig.only(memory.wrapping_add(5), 1_500_000, 9);
    assert_eq!(cqe.result, 1_500_000, "{}", last_error());
    assert_eq!(cqe.flags & abi::PATH_CLIENT_COPY, 0);
    assert!(at(memory.wrapping_add(5), 1_500_000) == &content[9..1_500_009]);
    assert!(rig.read(memory, 1_000_000, 0, 1));
    assert_eq!(rig.submit(), 1);
    assert_eq!(rig.free(memory), -abi::BUSY);
    assert_eq!(rig.next().result, 1_000_000);
    assert_eq!(rig.free(memory), 0);
    assert_eq!(rig.free(memory), -abi::INVALID);
    let cqe = rig.only(memory, 10, 0);
    assert_eq!((cqe.result, cqe.flags & abi::PATH_CLIENT_COPY), (10, abi::PATH_CLIENT_COPY));
    assert_eq!(rig.register(&mut own), 0, "and once more");
    drop(rig);
    assert_eq!((own[0], own[2_000_000]), (7, 7), "nothing beside it");

    let rig = Rig::shared(&mini, 4);
    assert_eq!(rig.register(&mut own), -abi::UNSUPPORTED);
    assert!(last_error().contains("made for it"), "{}", last_error());
    assert_eq!(rig.only(own.as_mut_ptr(), 10, 0).result, 10);
}

const SCENES: &[(&str, fn())] = &[
    ("reads", every_read_completes_once_with_its_own_bytes),
    ("full", a_full_ring_takes_no_more_and_loses_nothing),
    ("short", reads_end_with_the_file),
    ("closed", what_is_closed_is_refused),
    ("memory", memory_stays_while_it_is_read_into),
    ("own", memory_of_the_programs_own_is_read_into_where_it_is),
];

#[test]
fn all_scenes_play_out() {
    for (_, scene) in SCENES {
        scene();
    }
}

#[test]
fn two_calls_at_once_are_noticed() {
    let mini = Mini::start(bytes());
    let rig = Rig::shared(&mini, 4);
    let inner = |_: &mut crate::core::Core| Ok(rig.submit());
    // SAFETY: the ring is open.
    let outer = unsafe { handle::with(rig.ring, inner) };
    assert_eq!(outer.expect("the outer call"), -abi::BUSY);
    assert_eq!(rig.submit(), 0);
}

#[test]
fn generations_are_written_over_either_fabric() {
    let mini = Mini::start(bytes());
    for endpoint in endpoints(&mini) {
        let rig = Rig::open(&endpoint, 4);
        let memory = rig.alloc(1000);
        // SAFETY: it has so many bytes.
        unsafe { memory.write_bytes(9, 1000) };
        let own = vec![3u8; 2_500_000];
        let writer = rig.create(c"data/a");
        assert_eq!(rig.close_file(writer), -abi::INVALID, "a writer is no file");
        assert_eq!(rig.write(writer, &own, 11), 0);
        assert_eq!(rig.write(writer, at(memory, 1000), 2_500_011), 0);
        assert_eq!(rig.commit(writer, 3_000_000), Ok(1));
        assert_eq!(rig.commit(writer, 3_000_000), Err(-abi::INVALID));
        let mut back = vec![0u8; 2_501_000];
        assert_eq!(rig.only(back.as_mut_ptr(), 2_501_000, 11).result, 2_501_000);
        assert!(back[..2_500_000].iter().all(|byte| *byte == 3));
        assert!(back[2_500_000..].iter().all(|byte| *byte == 9));
    }
}

#[cfg(feature = "seeded-bugs")]
#[test]
fn every_mistake_is_noticed() {
    use crate::bugs::{Bug, during};

    for bug in Bug::ALL {
        let fails = |scene: fn()| during(Some(*bug), || std::panic::catch_unwind(scene).is_err());
        let found = SCENES.iter().find(|(_, scene)| fails(*scene)).map(|(name, _)| *name);
        assert!(found.is_some(), "{bug:?} is not noticed");
    }
}

#[cfg(feature = "seeded-bugs")]
#[test]
fn what_panics_ends_its_ring_and_nothing_else() {
    use crate::bugs::{Bug, during};

    let mini = Mini::start(bytes());
    let (rig, other) = (Rig::shared(&mini, 4), Rig::shared(&mini, 4));
    let mut own = [0u8; 64];
    assert!(rig.read(own.as_mut_ptr(), 64, 0, 1));
    assert_eq!(during(Some(Bug::Panics), || rig.submit()), -abi::BROKEN);
    assert_eq!(rig.submit(), -abi::BROKEN);
    assert!(!rig.read(own.as_mut_ptr(), 64, 0, 1));
    assert_eq!(other.only(own.as_mut_ptr(), 64, 0).result, 64);
}
