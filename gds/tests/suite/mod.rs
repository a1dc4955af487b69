//! What every device must do.
#![allow(unsafe_code)]

#[path = "../piece/mod.rs"]
mod piece;

use std::sync::Arc;
use std::time::Duration;

use extent::Kind;
use forebay_gds::{Device, DevicePointer, DeviceSpan, Pinning, Ring};
pub(crate) use piece::{Piece, bytes};

const SLOT: usize = 64 << 10;
/// Longer than anything here takes; only a failure waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Something that a device must do, by its name.
pub(crate) type Check = (&'static str, fn(&Device));

pub(crate) const CHECKS: &[Check] = &[
    ("odd_ranges_arrive", odd_ranges_arrive),
    ("twenty_times_the_ring_arrives", twenty_times_the_ring_arrives),
    ("a_callers_stream_is_ordered", a_callers_stream_is_ordered),
    ("memory_of_others_is_found_or_refused", memory_of_others_is_found_or_refused),
    ("memory_that_is_not_pinned_is_copied_too", memory_that_is_not_pinned_is_copied_too),
    ("too_much_memory_is_refused", too_much_memory_is_refused),
    ("allocations_are_told_apart", allocations_are_told_apart),
    ("memory_is_exported_or_refused", memory_is_exported_or_refused),
];

pub(crate) fn ring(device: &Device, slots: usize, slot: usize, pinning: Pinning) -> Ring<Piece> {
    let alive = Arc::default();
    let pieces = (0..slots).map(|_| Piece::new(slot, &alive)).collect();
    Ring::new(device, pieces, pinning).expect("a ring")
}

/// Sends bytes through the ring, when there is room in it.
fn send(ring: &mut Ring<Piece>, at: usize, bytes: &[u8], to: &DeviceSpan) {
    let mut ended = Vec::new();
    let (lent, mut piece) = loop {
        match ring.lend() {
            Some(lent) => break lent,
            None => ring.wait(PATIENCE, &mut ended),
        }
    };
    piece.fill(at, bytes);
    ring.copy(lent, piece, at..at + bytes.len(), to).expect("begun");
    ring.poll(&mut ended);
    assert!(ended.iter().all(|copied| copied.result.is_ok()), "{ended:?}");
}

pub(crate) fn finish(ring: &mut Ring<Piece>) {
    let mut ended = Vec::new();
    while ring.under_way() > 0 {
        let before = ended.len();
        ring.wait(PATIENCE, &mut ended);
        assert!(ended.len() > before, "nothing goes on");
    }
    assert!(ended.iter().all(|copied| copied.result.is_ok()), "{ended:?}");
}

fn odd_ranges_arrive(device: &Device) {
    let mut ring = ring(device, 3, SLOT, Pinning::Require);
    ring.prove(PATIENCE).expect("a device that copies");
    let memory = device.allocate(4 * SLOT).expect("device memory");
    // All of it is known before.
    for slot in 0..4 {
        let part = memory.part(slot * SLOT..(slot + 1) * SLOT).expect("inside");
        send(&mut ring, 0, &bytes(SLOT, slot), &part);
    }
    finish(&mut ring);
    let mut expected: Vec<u8> = (0..4).flat_map(|slot| bytes(SLOT, slot)).collect();
    for (round, (at, length, to)) in [
        (0, SLOT, 1),
        (1, SLOT - 1, SLOT),
        (4095, 2, 3),
        (17, 4079, 2 * SLOT + 5),
        (SLOT - 1, 1, 4 * SLOT - 1),
        (511, 513, 4095),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = bytes(length, 10 + round);
        send(&mut ring, at, &bytes, &memory.part(to..to + length).expect("inside"));
        finish(&mut ring);
        expected[to..to + length].copy_from_slice(&bytes);
        assert!(memory.all().to_vec().expect("read back") == expected, "round {round}");
    }
    assert_eq!(ring.stats().unpinned_copies, 0);
}

fn twenty_times_the_ring_arrives(device: &Device) {
    const SLOTS: usize = 4;
    let mut ring = ring(device, SLOTS, SLOT, Pinning::Require);
    let memory = device.allocate(20 * SLOTS * SLOT).expect("device memory");
    for slice in 0..20 * SLOTS {
        let to = memory.part(slice * SLOT..(slice + 1) * SLOT).expect("inside");
        send(&mut ring, 0, &bytes(SLOT, slice), &to);
    }
    finish(&mut ring);
    for (slice, found) in memory.all().to_vec().expect("read back").chunks(SLOT).enumerate() {
        assert!(found == bytes(SLOT, slice), "slice {slice}");
    }
    let stats = ring.stats();
    assert_eq!(stats.copies, 20 * SLOTS as u64);
    assert!(stats.peak_slots <= SLOTS && stats.peak_pinned_bytes <= SLOTS * SLOT, "{stats:?}");
}

fn a_callers_stream_is_ordered(device: &Device) {
    let mut first = ring(device, 2, SLOT, Pinning::Require);
    let mut second = ring(device, 2, SLOT, Pinning::Require);
    let memory = device.allocate(SLOT).expect("device memory");
    let caller = device.stream().expect("a stream");
    for round in 0..50 {
        send(&mut first, 0, &bytes(SLOT, round), &memory.all());
        first.lead(&caller).expect("ordered");
        second.follow(&caller).expect("ordered");
        send(&mut second, 0, &bytes(SLOT, round + 1), &memory.all());
        second.lead(&caller).expect("ordered");
        caller.finish(PATIENCE).expect("done");
        let found = memory.all().to_vec().expect("read back");
        assert!(found == bytes(SLOT, round + 1), "round {round}");
        finish(&mut first);
        finish(&mut second);
    }
}

fn memory_of_others_is_found_or_refused(device: &Device) {
    let memory = device.allocate(1000).expect("device memory");
    let inside = DevicePointer(memory.pointer().0 + 100);
    // SAFETY: `memory` outlives the spans.
    let borrow = |pointer, bytes| unsafe { device.borrow(pointer, bytes) };
    let span = borrow(inside, 900).expect("inside");
    assert_eq!((span.len(), span.pointer()), (900, inside));
    // Drivers may round an allocation's end up, and never as far.
    let beyond = borrow(inside, 1 << 40).expect_err("past its end");
    assert_eq!(beyond.kind(), Kind::Invalid);
    let host = [0_u8; 64];
    let host = DevicePointer(host.as_ptr().expose_provenance() as u64);
    assert_eq!(borrow(host, 64).expect_err("the host's").kind(), Kind::Invalid);
    assert_eq!(borrow(DevicePointer(0), 1).expect_err("nobody's").kind(), Kind::Invalid);
}

fn memory_that_is_not_pinned_is_copied_too(device: &Device) {
    let mut ring = ring(device, 2, SLOT, Pinning::Never);
    let memory = device.allocate(SLOT).expect("device memory");
    send(&mut ring, 5, &bytes(SLOT - 9, 3), &memory.part(4..SLOT - 5).expect("inside"));
    finish(&mut ring);
    let found = memory.part(4..SLOT - 5).expect("inside").to_vec().expect("read back");
    assert!(found == bytes(SLOT - 9, 3));
    assert_eq!((ring.stats().unpinned_copies, ring.stats().peak_pinned_bytes), (1, 0));
}

fn too_much_memory_is_refused(device: &Device) {
    let most = usize::try_from(device.info().memory_bytes).expect("fits");
    let error = device.allocate(most.saturating_mul(2)).expect_err("no device has so much");
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
}

fn allocations_are_told_apart(device: &Device) {
    let (one, other) = (device.allocate(4 << 20), device.allocate(4 << 20));
    let (one, other) = (one.expect("device memory"), other.expect("device memory"));
    let of = |span: DeviceSpan| span.allocation().expect("there");
    let whole = of(one.all());
    assert_eq!(whole, of(one.part(100..200).expect("inside")));
    assert!(whole.range().contains(&one.pointer().0) && whole != of(other.all()));
    assert!(device.has(&whole));
    let gone = one.pointer();
    drop(one);
    assert!(!device.has(&whole));
    assert_eq!(device.export(&whole).expect_err("freed").kind(), Kind::Invalid);
    // Whatever has its address next is something else.
    let again = device.allocate(4 << 20).expect("device memory");
    assert!(again.pointer() != gone || of(again.all()) != whole);
}

fn memory_is_exported_or_refused(device: &Device) {
    let memory = device.allocate(4 << 20).expect("device memory");
    memory.part(5..).expect("inside").fill(&bytes(3000, 7)).expect("filled");
    assert!(memory.part(5..3005).expect("inside").to_vec().expect("read back") == bytes(3000, 7));
    assert!(memory.all().fill(&vec![0; (4 << 20) + 1]).is_err());
    let allocation = memory.all().allocation().expect("there");
    match device.export(&allocation) {
        Ok(exported) => {
            let pages = allocation.pages();
            assert_eq!(exported.address(), pages.start);
            assert_eq!(exported.length() as u64, pages.end - pages.start);
            device.flush_writes().expect("what exports takes in what is written");
        }
        Err(error) => assert_eq!(error.kind(), Kind::Unsupported, "{error}"),
    }
    let tiny = device.allocate(100).expect("device memory").all().allocation();
    if tiny.as_ref().is_ok_and(|tiny| tiny.pages().is_empty()) {
        let error = device.export(&tiny.expect("just seen")).expect_err("no page");
        assert!([Kind::Unsupported, Kind::Invalid].contains(&error.kind()), "{error}");
    }
}
