//! Blocks that nobody needs, and commands that are to come again later.

use std::sync::atomic::Ordering;

use extent::Kind;

use super::model::{BLOCK, BLOCKS};
use super::*;
use crate::device::nvme::io;

fn deallocate(offset: u64, bytes: u64) -> Command {
    Command::Deallocate { at: Location { device: ZERO, offset }, bytes }
}

/// Writes all of four blocks, lets go of two of them, and reads all: the deallocations that the
/// controller has seen.
fn let_go(behaviour: Behaviour) -> Vec<(u8, u64, u64)> {
    let mut rig = Rig::new(behaviour, 4);
    rig.one(rig.write(0, 4 * BLOCK, 7)).result.expect("written");
    rig.one(deallocate(BLOCK as u64, 2 * BLOCK as u64)).result.expect("taken");
    let read = bytes(rig.one(rig.read(0, 4 * BLOCK)));
    let marks: Vec<u8> = read.chunks(BLOCK).map(|block| block[0]).collect();
    assert_eq!(marks, [7, 0, 0, 7]);
    rig.model.deallocated.lock().clone()
}

#[test]
fn a_deallocation_lets_go_of_its_blocks_and_no_others() {
    let told = [(io::DATASET_MANAGEMENT, 1, 2)];
    assert_eq!(let_go(Behaviour::default()), told);
    let sgl = Behaviour { identify: Some(|page| page[536] = 1), ..Behaviour::default() };
    assert_eq!(let_go(sgl), told);
}

#[test]
fn small_blocks_with_protection_are_not_told_of_without_writing_them() {
    let mut rig = Rig::new(Behaviour { protection: true, ..Behaviour::default() }, 4);
    let error = rig.one(deallocate(0, 4096)).result.expect_err("not offered");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(rig.model.deallocated.lock().is_empty());
}

#[test]
fn without_dataset_management_zeroes_are_written_if_they_deallocate() {
    let behaviour = |protection| Behaviour {
        identify: Some(|page| page[520] = 0b1000),
        namespace: Some(|page| page[33] = 0b1001),
        protection,
        ..Behaviour::default()
    };
    assert_eq!(let_go(behaviour(false)), [(io::WRITE_ZEROES, 1, 2)]);
    assert_eq!(let_go(behaviour(true)), [(io::WRITE_ZEROES, 1, 2)]);
    let wears = Behaviour { namespace: None, ..behaviour(false) };
    let mut rig = Rig::new(wears, 4);
    let error = rig.one(deallocate(0, 4096)).result.expect_err("not offered");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(rig.model.deallocated.lock().is_empty());
}

#[test]
fn more_than_the_controller_takes_is_refused_before_it_is_sent() {
    let limits: fn(&mut Vec<u8>) = |page| page[4] = 16;
    let mut rig = Rig::new(Behaviour { limits: Some(limits), ..Behaviour::default() }, 4);
    rig.one(deallocate(0, 16 * BLOCK as u64)).result.expect("as much as a range takes");
    let end = BLOCKS * BLOCK as u64;
    for (offset, bytes) in [(0, 17 * BLOCK as u64), (100, 512), (0, 0), (end, 512)] {
        let error = rig.one(deallocate(offset, bytes)).result.expect_err("senseless");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    assert_eq!(rig.model.deallocated.lock().len(), 1);
}

#[test]
fn a_deallocation_survives_a_reset_and_holds_its_range_until_it_ends() {
    let mut rig = Rig::new(Behaviour::default(), 4);
    rig.one(rig.write(0, 4096, 7)).result.expect("written");
    let mapped = rig.model.mapped.lock().len();
    rig.model.change(|behaviour| behaviour.swallow = 1);
    rig.submit(1, deallocate(0, 4096));
    rig.queue.kick();
    rig.wait_until("it is swallowed", |rig| rig.model.swallowed() == 1);
    assert_eq!(rig.model.mapped.lock().len(), mapped + 1, "the page with its range");
    rig.model.break_down();
    rig.drain().remove(0).result.expect("sent again");
    assert_eq!(rig.model.mapped.lock().len(), mapped);
    assert_eq!(bytes(rig.one(rig.read(0, 4096))), [0; 4096]);
}

#[test]
fn one_that_asks_for_time_gets_it_and_holds_up_nobody() {
    // The second of three delays is longer than any test: a status names it once, then the first.
    let identify: fn(&mut Vec<u8>) = |page| (page[128], page[131]) = (1, 0xff);
    let mut rig = Rig::new(Behaviour { identify: Some(identify), ..Behaviour::default() }, 4);
    assert!(rig.model.delays_allowed.load(Ordering::Acquire));
    rig.one(rig.write(0, 4096, 3)).result.expect("written");
    let begin = rig.controller.core().ticks();
    // Command Interrupted, CRD 1: a tenth of a second, which is fifty ticks.
    rig.model.change(|behaviour| behaviour.status = Some((1 << 11 | 0x21, 1)));
    assert_eq!(bytes(rig.one(rig.read(0, 4096))), [3; 4096]);
    let waited = rig.controller.core().ticks() - begin;
    assert!(waited >= 50, "{waited} ticks");

    rig.model.change(|behaviour| behaviour.status = Some((2 << 11 | 0x21, 1)));
    rig.submit(1, rig.read(0, 4096));
    rig.queue.kick();
    rig.submit(2, rig.read(4096, 4096));
    let mut done = Vec::new();
    rig.queue.kick();
    let begin = clock::now();
    while done.is_empty() {
        rig.queue.poll(&mut done);
        assert!(begin.elapsed() < PATIENCE, "held up");
        std::thread::yield_now();
    }
    assert_eq!((done[0].token, rig.queue.in_flight()), (Token(2), 1), "the other one waits");
    // A reset ends the wait.
    rig.model.break_down();
    assert_eq!(bytes(rig.drain().remove(0)), [3; 4096]);
}

#[test]
fn no_delay_is_longer_than_is_bearable() {
    let identify: fn(&mut Vec<u8>) = |page| page[132..134].fill(0xff);
    let (_model, controller) =
        open(Behaviour { identify: Some(identify), ..Behaviour::default() }).expect("comes up");
    let ticks =
        |field| controller.core().retry_ticks(crate::device::nvme::Status::from_field(field));
    assert_eq!(ticks(3 << 11 | 0x21), 5000, "ten seconds of the test's ticks");
    assert_eq!((ticks(0x21), ticks(1 << 11 | 0x21)), (0, 0));
}
