//! What a queue does at its bounds.

use std::sync::atomic::Ordering;

use extent::Kind;

use super::model::{BLOCK, BLOCKS};
use super::*;
use crate::device::nvme::offset;
use crate::device::polled::Host;

#[test]
fn what_is_longer_than_the_controller_takes_is_split() {
    // MDTS of 8 KiB, with PRP lists and with SGLs, and a boundary at every 12 KiB.
    let behaviours = [
        Behaviour { identify: Some(|page| page[77] = 1), ..Behaviour::default() },
        Behaviour { identify: Some(|page| (page[77], page[536]) = (1, 1)), ..Behaviour::default() },
        Behaviour { namespace: Some(|page| page[46] = 24), ..Behaviour::default() },
        Behaviour::default(),
    ];
    for behaviour in behaviours {
        let mut rig = Rig::new(behaviour, 2);
        rig.one(rig.write(BLOCK as u64, 200 << 10, 4)).result.expect("written");
        let read = bytes(rig.one(rig.read(0, (200 << 10) + 2 * BLOCK)));
        assert_eq!((read[BLOCK - 1], read[BLOCK], read[BLOCK + (200 << 10)]), (0, 4, 0));
        assert!(read[BLOCK..BLOCK + (200 << 10)].iter().all(|byte| *byte == 4));
    }
}

#[test]
fn a_full_queue_gives_commands_back() {
    let mut rig = Rig::new(Behaviour::default(), 3);
    for token in 0..3 {
        rig.submit(token, rig.read(0, 4096));
    }
    let command = rig.read(0, 4096);
    let back = rig.queue.submit(Token(3), command).expect_err("full");
    assert_eq!(back.length(), 4096);
    assert_eq!(rig.drain().len(), 3);
    rig.one(back).result.expect("read");
}

#[test]
fn rings_wrap_many_times_over() {
    // A completion queue as short as the submission queue, and one that is longer.
    for most_entries in [3, 15, 255] {
        let capabilities = 1u64 << 37 | 1 << 24 | most_entries;
        let behaviour = Behaviour { capabilities: Some(capabilities), ..Behaviour::default() };
        let mut rig = Rig::new(behaviour, 7);
        for round in 0..200u8 {
            for token in 0..7 {
                rig.submit(token, rig.write((token * 4096) % (BLOCKS * 512), 4096, round));
            }
            let mut tokens: Vec<u64> = rig.drain().iter().map(|done| done.token.0).collect();
            tokens.sort_unstable();
            assert_eq!(tokens, [0, 1, 2, 3, 4, 5, 6]);
        }
        assert_eq!(bytes(rig.one(rig.read(6 * 4096, 4096))), [199; 4096]);
    }
}

#[test]
fn shadow_doorbells_spare_the_registers() {
    let written = |awake| {
        let identify: fn(&mut Vec<u8>) = |page| page[257] = 1;
        let behaviour = Behaviour { identify: Some(identify), awake, ..Behaviour::default() };
        let mut rig = Rig::new(behaviour, 4);
        for round in 0..6 {
            rig.one(rig.write(0, 4096, round)).result.expect("written");
        }
        assert_eq!(bytes(rig.one(rig.read(0, 4096))), [5; 4096]);
        rig.model.registers().read_u32(offset::DOORBELLS + 8)
    };
    // Seven steps around a ring of eight.
    assert_eq!(written(false), 7, "the register, since it was asked for every time");
    assert_eq!(written(true), 1, "the first step alone");
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_else_suffers() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    let end = BLOCKS * BLOCK as u64;
    for command in [rig.read(end, 4096), rig.read(end - 512, 4096), rig.read(100, 4096)] {
        let error = rig.one(command).result.expect_err("out of bounds or not whole");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    rig.one(rig.read(end - 4096, 4096)).result.expect("the last blocks");
}

#[test]
fn memory_is_mapped_only_while_it_is_used() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    let before = rig.model.mapped.lock().len();
    rig.submit(1, rig.read(0, 4096));
    assert_eq!(rig.model.mapped.lock().len(), before + 1, "for this command alone");
    rig.drain();
    assert_eq!(rig.model.mapped.lock().len(), before);

    let region = Arc::clone(rig.pool.region());
    rig.queue.register(&region).expect("registers");
    rig.queue.register(&region).expect("again, to no effect");
    let mut other = queue(&rig.controller, 2).expect("a queue");
    let with_other = rig.model.mapped.lock().len();
    other.register(&region).expect("registers");
    assert_eq!(rig.model.mapped.lock().len(), with_other, "once for all queues");

    rig.submit(1, rig.read(0, 4096));
    rig.queue.unregister(region.id());
    drop(other);
    let mapped = rig.model.mapped.lock().len();
    rig.drain().remove(0).result.expect("what is in flight still completes");
    assert_eq!(rig.model.mapped.lock().len(), mapped - 1);
    rig.one(rig.read(0, 4096)).result.expect("as memory that nobody registered");
}

#[test]
fn the_end_is_a_clean_shutdown_with_nothing_left_mapped() {
    let rig = Rig::new(Behaviour::default(), 4);
    let model = Arc::clone(&rig.model);
    drop(rig);
    assert_eq!(model.shutdowns.load(Ordering::Relaxed), 1);
    assert!(model.mapped.lock().is_empty());
}

#[test]
fn a_queue_that_is_dropped_waits_for_what_is_in_flight() {
    let mut rig = Rig::new(Behaviour { swallow: 1, ..Behaviour::default() }, 4);
    rig.submit(1, rig.write(0, 4096, 1));
    let (model, pool) = (Arc::clone(&rig.model), rig.pool.clone());
    drop(rig);
    assert!(model.aborts.load(Ordering::Relaxed) > 0);
    assert_eq!(pool.usage()[0].taken, 0);
}
