//! The interface as C uses it, against a small node over real fabrics. With the feature
//! `seeded-bugs`, each mistake that [`crate::bugs`] knows is made, and one of these tests must fail
//! for it.
#![expect(unsafe_code, reason = "these are the calls that C makes")]

#[path = "../../tests/mini/mod.rs"]
mod mini;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr;

use mini::Mini;

use crate::abi::{self, Cqe, Options};
use crate::calls::{files, reads, rings, words, writes};
use crate::{Ring, handle};

const FILE_BYTES: usize = 3_000_000;

fn bytes() -> Vec<u8> {
    (0..FILE_BYTES).map(|i| u8::try_from((i ^ (i >> 9)) % 251).expect("small")).collect()
}

/// A ring of so many entries, with a file.
struct Rig {
    ring: *mut Ring,
    file: u64,
}

impl Rig {
    fn open(endpoint: &str, entries: u32) -> Self {
        let size = u32::try_from(size_of::<Options>()).expect("small");
        let options = Options { size, entries, ..Options::DEFAULT };
        let endpoint = CString::new(endpoint).expect("no zeroes");
        let (mut ring, mut file) = (ptr::null_mut(), 0);
        // SAFETY: all of these live as long as the call.
        assert_eq!(unsafe { rings::forebay_open(endpoint.as_ptr(), &options, &mut ring) }, 0);
        // SAFETY: likewise.
        let opened = unsafe { files::forebay_file_open(ring, c"data/a".as_ptr(), 0, &mut file) };
        assert_eq!(opened, 0, "{}", last_error());
        Self { ring, file }
    }

    fn shared(mini: &Mini, entries: u32) -> Self {
        Self::open(&format!("unix:{}", mini.socket.display()), entries)
    }

    fn alloc(&self, length: usize) -> *mut u8 {
        let mut memory = ptr::null_mut();
        // SAFETY: `memory` lives as long as the call.
        let result = unsafe { rings::forebay_alloc(self.ring, length as u64, &mut memory) };
        assert_eq!(result, 0, "{}", last_error());
        memory.cast()
    }

    fn free(&self, memory: *mut u8) -> i32 {
        // SAFETY: any address is looked up.
        unsafe { rings::forebay_free(self.ring, memory.cast()) }
    }

    /// Prepares a read. False if the ring is full.
    fn read(&self, buffer: *mut u8, length: usize, offset: usize, user_data: u64) -> bool {
        // SAFETY: the ring is open.
        let sqe = unsafe { reads::forebay_get_sqe(self.ring) };
        if sqe.is_null() {
            return false;
        }
        let buffer = buffer.cast::<c_void>();
        let (length, offset) = (length as u64, offset as u64);
        // SAFETY: it was just handed out; whoever calls keeps the buffer.
        assert_eq!(unsafe { reads::forebay_prep_read(sqe, self.file, buffer, length, offset) }, 0);
        // SAFETY: likewise.
        unsafe { (*sqe).user_data = user_data };
        true
    }

    fn submit(&self) -> i32 {
        // SAFETY: the ring is open; buffers are kept until the reads complete.
        unsafe { reads::forebay_submit(self.ring) }
    }

    /// The next completion, seen.
    fn next(&self) -> Cqe {
        let mut cqe = ptr::null();
        // SAFETY: the ring is open, and `cqe` lives as long as the call.
        let waited = unsafe { reads::forebay_wait_cqe(self.ring, &mut cqe, -1) };
        assert_eq!(waited, 0, "{}", last_error());
        // SAFETY: it was just handed out.
        let copy = unsafe { *cqe };
        // SAFETY: likewise.
        assert_eq!(unsafe { reads::forebay_cqe_seen(self.ring, cqe) }, 0);
        copy
    }

    fn only(&self, buffer: *mut u8, length: usize, offset: usize) -> Cqe {
        assert!(self.read(buffer, length, offset, 1));
        assert_eq!(self.submit(), 1);
        self.next()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // SAFETY: once.
        let closed = unsafe { rings::forebay_close(self.ring) };
        assert!(closed == 0 || std::thread::panicking(), "{}", last_error());
    }
}

fn last_error() -> String {
    // SAFETY: the words are this thread's.
    let words = unsafe { CStr::from_ptr(words::forebay_last_error()) };
    words.to_string_lossy().into_owned()
}

/// What is at an address that no read is under way to.
fn at<'a>(memory: *const u8, length: usize) -> &'a [u8] {
    // SAFETY: as whoever calls knows.
    unsafe { std::slice::from_raw_parts(memory, length) }
}

fn endpoints(mini: &Mini) -> [String; 2] {
    [format!("unix:{}", mini.socket.display()), format!("tcp://{}", mini.address)]
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
        let mut cqe = ptr::null();
        // SAFETY: `cqe` lives as long as the call.
        let more = unsafe { reads::forebay_peek_cqe(rig.ring, &mut cqe) };
        assert_eq!((more, cqe.is_null()), (-abi::TIMED_OUT, true));
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
    let mut second = 0;
    // SAFETY: the ring is open, and `second` lives as long as the call.
    let opened = unsafe { files::forebay_file_open(rig.ring, c"data/b".as_ptr(), 0, &mut second) };
    assert_eq!(opened, 0);
    // SAFETY: the ring is open.
    assert_eq!(unsafe { files::forebay_file_close(rig.ring, second) }, 0);
    let mut third = 0;
    // SAFETY: as above.
    assert_eq!(unsafe { files::forebay_file_open(rig.ring, c"data/b".as_ptr(), 0, &mut third) }, 0);
    // SAFETY: as above.
    let closed = unsafe { files::forebay_file_close(rig.ring, second) };
    assert_eq!(closed, -abi::INVALID, "it is not the third");
    let stale = Rig { ring: rig.ring, file: second };
    let cqe = stale.only(memory, 10, 0);
    std::mem::forget(stale);
    assert_eq!(cqe.result, -i64::from(abi::INVALID));
    // SAFETY: as above.
    assert_eq!(unsafe { files::forebay_file_close(rig.ring, third) }, 0);
}

fn memory_stays_while_it_is_read_into() {
    let content = bytes();
    let mini = Mini::start(content.clone());
    let rig = Rig::shared(&mini, 4);
    let memory = rig.alloc(2_000_000);
    assert!(rig.read(memory, 2_000_000, 0, 1));
    assert_eq!(rig.submit(), 1);
    assert_eq!(rig.free(memory), -abi::BUSY);
    // SAFETY: the ring is open.
    assert_eq!(unsafe { files::forebay_file_close(rig.ring, rig.file) }, -abi::BUSY);
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

const SCENES: &[(&str, fn())] = &[
    ("reads", every_read_completes_once_with_its_own_bytes),
    ("full", a_full_ring_takes_no_more_and_loses_nothing),
    ("short", reads_end_with_the_file),
    ("closed", what_is_closed_is_refused),
    ("memory", memory_stays_while_it_is_read_into),
];

#[test]
fn all_scenes_play_out() {
    for (name, scene) in SCENES {
        eprintln!("{name}");
        scene();
    }
}

#[test]
fn requests_that_make_no_sense_complete_with_why() {
    let mini = Mini::start(bytes());
    let rig = Rig::shared(&mini, 8);
    let memory = rig.alloc(8192);
    let mut own = [0u8; 64];
    let (ring, file) = (rig.ring, rig.file);
    let sqe = || {
        // SAFETY: the ring is open.
        unsafe { reads::forebay_get_sqe(ring) }
    };
    let good = || {
        let sqe = sqe();
        // SAFETY: it was just handed out.
        let prepared =
            unsafe { reads::forebay_prep_read(sqe, file, own.as_ptr().cast_mut().cast(), 64, 0) };
        assert_eq!(prepared, 0);
        sqe
    };
    // SAFETY: each was just handed out, and is not submitted yet.
    unsafe {
        sqe();
        (*good()).opcode = 77;
        (*good()).flags = 1;
        (*good()).reserved[1] = 1;
        (*good()).buffer = ptr::null_mut();
        (*good()).offset = u64::MAX;
        (*good()).length = u64::MAX / 2 + 1;
        (*good()).buffer = memory.add(8192 - 63).cast();
    }
    assert_eq!(rig.submit(), 8);
    for _ in 0..8 {
        let mut cqe = ptr::null();
        // SAFETY: as above.
        assert_eq!(unsafe { reads::forebay_peek_cqe(ring, &mut cqe) }, 0);
        // SAFETY: just handed out.
        assert_eq!(unsafe { (*cqe).result }, -i64::from(abi::INVALID));
        assert!(!last_error().is_empty());
        // SAFETY: as above.
        assert_eq!(unsafe { reads::forebay_cqe_seen(ring, cqe) }, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { reads::forebay_cqe_seen(ring, cqe) }, -abi::INVALID, "once");
    }
    let before = memory.wrapping_sub(1);
    assert_eq!(rig.only(before, 64, 0).result, -i64::from(abi::INVALID), "reaches into memory");
    assert_eq!(rig.only(own.as_mut_ptr(), 64, 0).result, 64);
    let mut cqe = ptr::null();
    // SAFETY: as above.
    let idle = unsafe { reads::forebay_wait_cqe(ring, &mut cqe, -1) };
    assert_eq!(idle, -abi::INVALID, "nothing is under way");
}

#[test]
fn rings_are_told_from_what_is_none() {
    let mini = Mini::start(bytes());
    let rig = Rig::shared(&mini, 4);
    let ring = rig.ring;
    // SAFETY: the ring is open.
    let nested = unsafe { handle::with(ring, |_| Ok(reads::forebay_submit(ring))) };
    assert_eq!(nested.expect("the outer call"), -abi::BUSY);
    let other = Rig::shared(&mini, 4);
    let mut length = 0;
    // SAFETY: both are open.
    let foreign = unsafe { files::forebay_file_length(ring, other.file, &mut length) };
    assert_eq!(foreign, -abi::INVALID, "another ring's file");
    drop(rig);
    // SAFETY: closed rings are remembered.
    unsafe {
        assert_eq!(rings::forebay_close(ring), -abi::INVALID);
        assert_eq!(reads::forebay_submit(ring), -abi::INVALID);
        assert!(reads::forebay_get_sqe(ring).is_null());
    }
    assert_eq!(last_error(), "the ring is closed");
    let strange = [0u64; 16];
    // SAFETY: there are zeroes where a ring has its mark.
    let none = unsafe { reads::forebay_submit(strange.as_ptr().cast_mut().cast()) };
    assert_eq!((none, last_error().as_str()), (-abi::INVALID, "this is no ring"));
}

#[test]
fn generations_are_written_by_copy_and_without() {
    let mini = Mini::start(bytes());
    for endpoint in endpoints(&mini) {
        let rig = Rig::open(&endpoint, 4);
        let memory = rig.alloc(1000);
        let own = vec![3u8; 2_500_000];
        let (mut writer, mut generation) = (0, 0);
        // SAFETY: everything lives as long as its call, and the memory has a thousand bytes.
        unsafe {
            memory.write_bytes(9, 1000);
            assert_eq!(writes::forebay_create(rig.ring, c"data/a".as_ptr(), 0, &mut writer), 0);
            let wrong = files::forebay_file_close(rig.ring, writer);
            assert_eq!(wrong, -abi::INVALID, "a writer is no file");
            let (from, length) = (own.as_ptr().cast(), own.len() as u64);
            assert_eq!(writes::forebay_write(rig.ring, writer, from, length, 11), 0);
            let from = memory.cast_const().cast();
            assert_eq!(writes::forebay_write(rig.ring, writer, from, 1000, 2_500_011), 0);
            let far = writes::forebay_write(rig.ring, writer, from, 1001, 0);
            assert_eq!(far, -abi::INVALID, "past the end of the memory");
            let committed = writes::forebay_commit(rig.ring, writer, 3_000_000, &mut generation);
            assert_eq!((committed, generation), (0, 1));
            assert_eq!(writes::forebay_abort(rig.ring, writer), -abi::INVALID, "it is closed");
            assert_eq!(writes::forebay_create(rig.ring, c"data/a".as_ptr(), 0, &mut writer), 0);
            assert_eq!(writes::forebay_abort(rig.ring, writer), 0);
        }
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
