//! What a ring must do, each as a function that panics if it does not.
#![allow(unsafe_code)]

#[path = "../exported/mod.rs"]
mod exported;
#[path = "../piece/mod.rs"]
mod piece;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use extent::Kind;
use forebay_gds::{
    Copied, CopyStep, Device, DeviceMemory, DeviceSpan, Pinning, Ring, SoftwareDevice,
};
use piece::{Piece, bytes};

pub(crate) const SCENES: &[(&str, fn())] = &[
    ("odd_ranges_arrive", odd_ranges_arrive),
    ("no_piece_is_lent_while_it_is_read", no_piece_is_lent_while_it_is_read),
    ("failures_are_told_and_pieces_come_back", failures_are_told_and_pieces_come_back),
    ("a_device_that_is_lost_keeps_what_it_may_read", a_device_that_is_lost_keeps_what_it_may_read),
    (
        "a_ring_that_ends_under_a_copy_keeps_its_memory",
        a_ring_that_ends_under_a_copy_keeps_its_memory,
    ),
    ("replaced_memory_is_pinned_and_the_old_is_not", replaced_memory_is_pinned_and_the_old_is_not),
    ("streams_are_ordered", streams_are_ordered),
    ("pins_are_refused_or_done_without", pins_are_refused_or_done_without),
    ("what_does_not_fit_is_refused", what_does_not_fit_is_refused),
    ("device_memory_is_bounded_and_freed", device_memory_is_bounded_and_freed),
    ("only_whole_pages_are_exported", only_whole_pages_are_exported),
];

pub(crate) const SLOT: usize = 8192;
/// Longer than anything here takes; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(20);

pub(crate) struct World {
    pub(crate) software: SoftwareDevice,
    pub(crate) device: Device,
    pub(crate) alive: Arc<AtomicUsize>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let software = SoftwareDevice::new(64 << 20, seed);
        let device = Device::software(&software);
        Self { software, device, alive: Arc::default() }
    }

    fn ring(&self, slots: usize) -> Ring<Piece> {
        let memory = (0..slots).map(|_| Piece::new(SLOT, &self.alive)).collect();
        Ring::new(&self.device, memory, Pinning::Require).expect("a ring")
    }

    fn memory(&self, bytes: usize) -> DeviceMemory {
        self.device.allocate(bytes).expect("device memory")
    }

    fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }
}

/// Sends bytes through one piece.
fn send(ring: &mut Ring<Piece>, at: usize, bytes: &[u8], to: &DeviceSpan) -> extent::Result<()> {
    let (lent, mut piece) = ring.lend().expect("a free piece");
    piece.fill(at, bytes);
    ring.copy(lent, piece, at..at + bytes.len(), to).map(drop)
}

fn finish(ring: &mut Ring<Piece>) -> Vec<Copied> {
    let mut ended = Vec::new();
    while ring.under_way() > 0 {
        let before = ended.len();
        ring.wait(PATIENCE, &mut ended);
        assert!(ended.len() > before, "nothing goes on");
    }
    ended
}

fn odd_ranges_arrive() {
    let world = World::new(1);
    let mut ring = world.ring(3);
    ring.prove(PATIENCE).expect("a device that copies");
    let memory = world.memory(5 * SLOT);
    let mut expected = memory.all().to_vec().expect("read back");
    for (round, (at, length, to)) in
        [(0, SLOT, 1), (1, SLOT - 1, SLOT), (4095, 2, 3), (17, 4079, 2 * SLOT + 5), (100, 0, 7)]
            .into_iter()
            .enumerate()
    {
        let bytes = bytes(length, round);
        send(&mut ring, at, &bytes, &memory.part(to..to + length).expect("inside")).expect("sent");
        expected[to..to + length].copy_from_slice(&bytes);
        assert!(finish(&mut ring).iter().all(|copied| copied.result.is_ok()));
        assert!(memory.all().to_vec().expect("read back") == expected, "round {round}");
    }
    let part = memory.part(1..=3).expect("inside").to_vec().expect("read back");
    assert_eq!(part, expected[1..4]);
}

fn no_piece_is_lent_while_it_is_read() {
    let world = World::new(2);
    let mut ring = world.ring(4);
    let memory = world.memory(80 * SLOT);
    world.software.stall_after(0);
    let mut sent = 0;
    let mut ended = Vec::new();
    while let Some((lent, mut piece)) = ring.lend() {
        assert!(sent < 4, "lent while the device reads it");
        piece.fill(0, &bytes(SLOT, sent));
        let to = memory.part(sent * SLOT..(sent + 1) * SLOT).expect("inside");
        ring.copy(lent, piece, 0..SLOT, &to).expect("sent");
        ring.poll(&mut ended);
        sent += 1;
    }
    assert_eq!((ended.len(), ring.under_way(), ring.stats().waits), (0, 4, 1));
    world.software.resume();
    while sent < 80 {
        let Some((lent, mut piece)) = ring.lend() else {
            ring.wait(PATIENCE, &mut ended);
            continue;
        };
        piece.fill(0, &bytes(SLOT, sent));
        let to = memory.part(sent * SLOT..(sent + 1) * SLOT).expect("inside");
        ring.copy(lent, piece, 0..SLOT, &to).expect("sent");
        ring.poll(&mut ended);
        sent += 1;
    }
    ended.extend(finish(&mut ring));
    assert!(ended.len() == 80 && ended.iter().all(|copied| copied.result.is_ok()));
    let numbers: Vec<u64> = ended.iter().map(|copied| copied.id.0).collect();
    assert!(numbers.is_sorted(), "they end in order");
    assert_eq!(world.software.overtaken_copies(), 0);
    for (index, part) in memory.all().to_vec().expect("read back").chunks(SLOT).enumerate() {
        assert!(part == bytes(SLOT, index), "slice {index}");
    }
    let stats = ring.stats();
    assert_eq!((stats.peak_slots, stats.copies, stats.copied_bytes), (4, 80, 80 * SLOT as u64));
    assert!(stats.peak_pinned_bytes <= 4 * SLOT && world.software.pinned_bytes().1 <= 4 * SLOT);
}

fn failures_are_told_and_pieces_come_back() {
    let world = World::new(3);
    let mut ring = world.ring(2);
    let memory = world.memory(4 * SLOT);
    let part = |index: usize| memory.part(index * SLOT..(index + 1) * SLOT).expect("inside");
    world.software.fail_copy(1);
    send(&mut ring, 0, &bytes(SLOT, 0), &part(0)).expect("sent");
    send(&mut ring, 0, &bytes(SLOT, 1), &part(1)).expect("sent");
    let ended = finish(&mut ring);
    assert!(ended[0].result.is_ok());
    assert_eq!(ended[1].result.as_ref().expect_err("it failed").kind(), Kind::Io);
    world.software.refuse_copy(0);
    send(&mut ring, 0, &bytes(SLOT, 2), &part(2)).expect_err("refused");
    assert_eq!((ring.available(), ring.stats().failures), (2, 2), "no piece is missing");
    send(&mut ring, 0, &bytes(SLOT, 3), &part(3)).expect("sent");
    assert!(finish(&mut ring)[0].result.is_ok());
    assert!(part(3).to_vec().expect("read back") == bytes(SLOT, 3));
    assert!(part(1).to_vec().expect("read back").iter().all(|byte| *byte == 0xA5));
    drop(ring);
    assert_eq!((world.alive(), world.software.pinned_bytes().0), (0, 0), "all of it is given back");
}

fn a_device_that_is_lost_keeps_what_it_may_read() {
    let world = World::new(4);
    let mut ring = world.ring(3);
    let memory = world.memory(2 * SLOT);
    world.software.stall_after(0);
    send(&mut ring, 0, &bytes(SLOT, 0), &memory.part(..SLOT).expect("inside")).expect("sent");
    send(&mut ring, 0, &bytes(SLOT, 1), &memory.part(SLOT..).expect("inside")).expect("sent");
    world.software.lose();
    let ended = finish(&mut ring);
    assert_eq!(ended.len(), 2);
    for copied in ended {
        assert_eq!(copied.result.expect_err("lost").kind(), Kind::Disconnected);
    }
    assert_eq!((ring.available(), ring.missing()), (1, 2));
    let error = send(&mut ring, 0, &bytes(10, 0), &memory.all()).expect_err("lost");
    assert_eq!(error.kind(), Kind::Disconnected);
    drop(ring);
    assert_eq!(world.alive(), 2, "what it may still read is kept for ever");
    assert_eq!(world.device.allocate(1).expect_err("lost").kind(), Kind::Disconnected);
}

fn a_ring_that_ends_under_a_copy_keeps_its_memory() {
    let world = World::new(5);
    let memory = world.memory(SLOT);
    // One that goes on is waited for.
    let mut ring = world.ring(2);
    send(&mut ring, 0, &bytes(SLOT, 0), &memory.all()).expect("sent");
    drop(ring);
    assert_eq!(world.alive(), 0);
    assert!(memory.all().to_vec().expect("read back") == bytes(SLOT, 0));
    // One that fails says so before its memory goes.
    let mut ring = world.ring(2);
    world.software.stall_after(0);
    send(&mut ring, 0, &bytes(SLOT, 1), &memory.all()).expect("sent");
    world.software.lose();
    drop(ring);
    assert_eq!(world.alive(), 1, "nobody knows what it still reads");
}

fn replaced_memory_is_pinned_and_the_old_is_not() {
    let world = World::new(6);
    let mut ring = world.ring(2);
    let memory = world.memory(SLOT);
    send(&mut ring, 0, &bytes(SLOT, 0), &memory.all()).expect("sent");
    finish(&mut ring);
    // As a session does that has made another connection.
    let (lent, old) = ring.lend().expect("free");
    drop(old);
    let mut other = Piece::new(SLOT, &world.alive);
    other.fill(0, &bytes(SLOT, 1));
    ring.copy(lent, other, 0..SLOT, &memory.all()).expect("sent");
    finish(&mut ring);
    assert!(memory.all().to_vec().expect("read back") == bytes(SLOT, 1));
    let unpinned = |step: &CopyStep| matches!(step, CopyStep::Queued { is_pinned: false, .. });
    assert!(!world.software.steps().iter().any(unpinned), "read by the device itself");
    assert_eq!(world.software.pinned_bytes(), (2 * SLOT, 2 * SLOT), "never more than the ring");

    let (lent, gone) = ring.lend().expect("free");
    drop(gone);
    ring.lose(lent);
    assert_eq!((ring.missing(), world.software.pinned_bytes().0), (1, SLOT));
    ring.replace(Piece::new(SLOT, &world.alive)).expect("in its place");
    assert_eq!((ring.available(), world.software.pinned_bytes().0), (2, 2 * SLOT));
    assert_eq!(
        ring.replace(Piece::new(SLOT, &world.alive)).expect_err("whole").kind(),
        Kind::Invalid
    );
}

fn streams_are_ordered() {
    for seed in 0..8 {
        let world = World::new(seed);
        let mut ring = world.ring(2);
        let mut others = world.ring(2);
        let memory = world.memory(2 * SLOT);
        let caller = world.device.stream().expect("a stream");
        let front = memory.part(..SLOT).expect("inside");
        let back = memory.part(SLOT..).expect("inside");
        // What the caller's stream still does with the memory: another ring's copy.
        world.software.hold_copy(0);
        send(&mut others, 0, &bytes(SLOT, 7), &front).expect("sent");
        others.lead(&caller).expect("ordered");
        // The read that is handed to the stream.
        ring.follow(&caller).expect("ordered");
        send(&mut ring, 0, &bytes(SLOT, 8), &front).expect("sent");
        ring.lead(&caller).expect("ordered");
        // Who waits for the stream waits for the read.
        assert_eq!(caller.finish(SHORT).expect_err("not yet").kind(), Kind::Busy);
        // The device does other things meanwhile, and would do this, too.
        for _ in 0..20 {
            back.to_vec().expect("read back");
        }
        assert_eq!(world.software.copies_begun(), 0, "the read waits for the caller's stream");
        world.software.resume();
        caller.finish(PATIENCE).expect("done");
        assert!(front.to_vec().expect("read back") == bytes(SLOT, 8), "seed {seed}");
        finish(&mut ring);
        finish(&mut others);
        let begun = |step: &CopyStep| match step {
            CopyStep::Begun { copy } => Some(*copy),
            _ => None,
        };
        let order: Vec<u64> = world.software.steps().iter().filter_map(begun).collect();
        assert_eq!(order, [0, 1], "seed {seed}");
    }
}

fn pins_are_refused_or_done_without() {
    let world = World::new(8);
    world.software.refuse_pins(true);
    let pieces = || (0..2).map(|_| Piece::new(SLOT, &world.alive)).collect::<Vec<_>>();
    let error = Ring::new(&world.device, pieces(), Pinning::Require).err().expect("refused");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(world.alive(), 0);
    let memory = world.memory(SLOT);
    for pinning in [Pinning::Try, Pinning::Never] {
        let mut ring = Ring::new(&world.device, pieces(), pinning).expect("without");
        let (lent, mut piece) = ring.lend().expect("free");
        piece.fill(0, &bytes(SLOT, 1));
        let begun = ring.copy(lent, piece, 0..SLOT, &memory.all()).expect("sent");
        assert!(!begun.is_pinned);
        finish(&mut ring);
        let stats = ring.stats();
        assert_eq!((stats.unpinned_copies, stats.peak_pinned_bytes), (1, 0));
        assert!(memory.all().to_vec().expect("read back") == bytes(SLOT, 1));
    }
}

fn what_does_not_fit_is_refused() {
    let (world, elsewhere) = (World::new(9), World::new(9));
    let mut ring = world.ring(1);
    let (short, foreign) = (world.memory(10), elsewhere.memory(SLOT));
    for to in [short.all(), foreign.all()] {
        let error = send(&mut ring, 0, &bytes(11, 0), &to).expect_err("no room");
        assert_eq!((error.kind(), ring.available()), (Kind::Invalid, 1));
    }
    let (lent, piece) = ring.lend().expect("free");
    let error = ring.copy(lent, piece, SLOT - 5..SLOT + 5, &short.all()).expect_err("too long");
    assert_eq!((error.kind(), ring.available()), (Kind::Invalid, 1));
    assert!(short.part(5..11).is_err() && short.part(11..).is_err());
    let same = Device::software(&world.software).allocate(SLOT).expect("device memory");
    send(&mut ring, 0, &bytes(SLOT, 1), &same.all()).expect("the same device");
    finish(&mut ring);
    let stream = elsewhere.device.stream().expect("a stream");
    assert_eq!(ring.follow(&stream).expect_err("another's").kind(), Kind::Invalid);
    assert_eq!(ring.lead(&stream).expect_err("another's").kind(), Kind::Invalid);
    let none = Ring::<Piece>::new(&world.device, Vec::new(), Pinning::Try);
    assert_eq!(none.err().expect("empty").kind(), Kind::Invalid);
}

fn device_memory_is_bounded_and_freed() {
    let world = World::new(10);
    let most = world.device.info().memory_bytes;
    let all = world.memory(usize::try_from(most).expect("small"));
    assert_eq!(world.device.allocate(1).expect_err("full").kind(), Kind::NoSpace);
    let part = all.part(5..10).expect("inside");
    drop(all);
    assert_eq!(world.device.allocate(1).expect_err("a part is in use").kind(), Kind::NoSpace);
    drop(part);
    drop(world.memory(1000));
    assert_eq!(world.device.allocate(0).expect_err("none").kind(), Kind::Invalid);
    drop(world.ring(2));
    assert_eq!(world.software.left_behind(), (0, 0, 0));
    let memory = world.memory(100);
    let inside = memory.part(50..).expect("inside").pointer();
    // SAFETY: `memory` outlives the spans.
    let borrow = |bytes| unsafe { world.device.borrow(inside, bytes) };
    assert_eq!(borrow(50).expect("inside").len(), 50);
    assert_eq!(borrow(51).expect_err("past its end").kind(), Kind::Invalid);
    drop(memory);
    assert_eq!(borrow(1).expect_err("freed").kind(), Kind::Invalid);
}

fn only_whole_pages_are_exported() {
    exported::check_written(&Device::software(&SoftwareDevice::exporting(1 << 20, 1)));
}
