//! Replies to READs, STATs and PINGs that are nearly right, of a node that is mistaken or worse: whatever it says on a
//! connection, each operation ends once, with its memory unless a device may still write to that; and where checksums are
//! compared, no read has other bytes than its own.
#![expect(clippy::cast_possible_truncation, reason = "a test's numbers are small")]

use std::collections::HashSet;
use std::time::Duration;

use extent::wire::{Landing, OpenMode, Reply, Served};
use extent::{Generation, Kind};
use proptest::prelude::*;

use super::{Completed, Options, Session, Ticket};
use crate::fake::Fake;
use rdma::Fabric;

/// Polls before the node is given up: it may have swallowed replies.
const PATIENCE: usize = 300;
const FILE_BYTES: usize = 20_000;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % sides
    }

    fn number(&mut self) -> u64 {
        [0, 1, 4095, u64::from(u32::MAX), u64::MAX, self.0][self.roll(6) as usize]
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = self.roll(200);
        (0..length).map(|_| self.roll(256) as u8).collect()
    }
}

/// Spoils about every third reply of a poll.
fn twist(replies: &mut Vec<Reply>, dice: &mut Dice) {
    for index in 0..replies.len() {
        if dice.roll(3) != 0 {
            continue;
        }
        let tag = replies[dice.roll(replies.len() as u64) as usize].tag;
        let mut again = None;
        let reply = &mut replies[index];
        match dice.roll(11) {
            0 => reply.tag = tag,
            1 => reply.tag ^= 1 << dice.roll(32),
            // Not the number of a file: the node would not know it either.
            2 if reply.body.is_empty() => reply.value = dice.number(),
            3 => reply.value = reply.value.wrapping_add(1).wrapping_sub(2 * dice.roll(2)),
            4 => reply.status = Err(Kind::ALL[dice.roll(Kind::ALL.len() as u64) as usize]),
            5 => reply.credits = dice.number() as u16,
            6 => reply.body = dice.bytes(),
            7 => reply.body.truncate(dice.roll(40) as usize),
            8 => again = Some(reply.clone()),
            9 => reply.payload_crc ^= 1 << dice.roll(32),
            _ => (reply.served, reply.landing) = (Served::Repair, Landing::Nothing),
        }
        replies.extend(again);
    }
    if dice.roll(20) == 0 {
        replies.pop();
    }
}

/// What is asked for, and where it begins and how much it is, if it is a READ.
fn ask(session: &mut Session, handle: u64, dice: &mut Dice) -> Option<(Ticket, u64, usize)> {
    let ticket = match dice.roll(4) {
        0 => session.submit_ping(),
        1 => session.submit_stat(handle),
        _ => {
            let length = dice.roll(9000) as usize + 1;
            let memory = session.allocate(length).ok()?;
            let offset = dice.roll(FILE_BYTES as u64 + 100);
            let read = session.submit_read(handle, offset, memory, 0..length);
            return Some((read.ok()?, offset, length));
        }
    };
    Some((ticket.ok()?, 0, 0))
}

/// Polls until everything ended, and takes the node away if that does not come.
fn finish(session: &mut Session, fake: &Fake) -> Vec<Completed> {
    let mut completed = Vec::new();
    session.kick();
    for poll in 0..2 * PATIENCE {
        if session.outstanding() == 0 {
            return completed;
        }
        if poll == PATIENCE {
            fake.node().lose_after = Some(0);
        }
        session.poll(&mut completed);
        session.wait(Duration::ZERO);
    }
    panic!("{} operations never ended", session.outstanding());
}

/// Reads, and looks at what comes. Panics at the first harm.
fn read_from_a_node_that_errs(seed: u64, credits: u16, verify: bool, count: usize, shared: bool) {
    let fake = Fake::new();
    let bytes = fake.add_file("data/a", FILE_BYTES);
    (fake.node().seed, fake.node().credits) = (seed, credits);
    let fabric = if shared { Fabric::SharedMemory } else { Fabric::Tcp };
    let options = Options { verify, ..Options::default() };
    let mut session = Session::connect(fake.channel(fabric), &options).expect("a node");
    let name = "data/a".parse().expect("a name");
    session.submit_open(&name, OpenMode::Read(Generation(0))).expect("room");
    let opened = finish(&mut session, &fake).pop().expect("an answer");
    let (handle, _) = opened.opened().expect("there");

    let mut dice = Dice(seed);
    let mut spoiling = Dice(!seed);
    fake.node().twist = Some(Box::new(move |replies| twist(replies, &mut spoiling)));
    let asked: Vec<_> = (0..count).filter_map(|_| ask(&mut session, handle, &mut dice)).collect();
    let completed = finish(&mut session, &fake);

    let ended: HashSet<_> = completed.iter().map(|done| done.ticket).collect();
    assert_eq!(ended.len(), completed.len(), "an operation ended twice");
    assert_eq!(completed.len(), asked.len());
    for done in completed {
        let found = asked.iter().find(|(ticket, ..)| *ticket == done.ticket);
        let (_, offset, most) = *found.expect("nothing ends that was not asked for");
        assert!(done.bytes <= most as u64, "{} bytes of {most}", done.bytes);
        assert!(shared || most == 0 || done.memory.is_some());
        if let Some(memory) = &done.memory {
            let read = &memory.as_slice()[..done.bytes as usize];
            if verify && done.result.is_ok() && !read.is_empty() {
                assert_eq!(read, &bytes[offset as usize..][..read.len()]);
            }
        }
        // Whatever it says of the file is parsed, or refused.
        drop(done.opened());
    }
    drop(session);
    assert_eq!(fake.node().channels, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn replies_that_are_nearly_right_do_no_harm(
        seed: u64, credits in 1u16..12, verify: bool, count in 1usize..40, shared: bool,
    ) {
        read_from_a_node_that_errs(seed, credits, verify, count, shared);
    }
}

/// The same in worlds that do not change from run to run.
#[cfg(feature = "seeded-bugs")]
pub(crate) fn replies_that_are_nearly_right() {
    for seed in 0..200 {
        read_from_a_node_that_errs(seed, 1 + seed as u16 % 11, true, 20, seed % 2 == 0);
    }
}
