//! The tests prove themselves: each of the mistakes of `bugs::Bug` is made, and something must
//! notice, within a bounded number of crash images. Nothing notices anything while none is made.
//!
//! `cargo test -p forebay-nvme-tier --features seeded-bugs --test bugs -- --nocapture` prints a
//! table of what caught which, and after how many images.

#![expect(clippy::print_stdout, reason = "the table is for people")]

#[path = "../crash/apart.rs"]
mod apart;
#[path = "../common/mod.rs"]
mod common;
#[path = "../crash/cuts.rs"]
mod cuts;
#[path = "../crash/discard.rs"]
mod discard;
#[path = "../crash/driver.rs"]
mod driver;
#[path = "../crash/enumeration.rs"]
mod enumeration;
#[path = "../crash/judge.rs"]
mod judge;
#[path = "../crash/lost.rs"]
mod lost;
#[path = "../crash/model.rs"]
mod model;
#[path = "../crash/player.rs"]
mod player;
#[path = "../crash/random.rs"]
mod random;
#[path = "../crash/rot.rs"]
mod rot;
#[path = "../crash/stage.rs"]
mod stage;
#[path = "../crash/workload.rs"]
mod workload;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use cuts::Effort;
use enumeration::Failure;
use forebay_nvme_tier::bugs::{Bug, during};

const THREADS: usize = 2;

/// One of the tests of `tests/crash`, small enough to be run for every mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Catcher {
    Enumeration,
    FailingDevices,
    Rot,
    SmallBlocks,
    NewProcess,
    LongRun,
    Discards,
    LostWrites,
    Twice,
    ComeBack,
    Apart,
    GoneOn,
}

impl Catcher {
    const ALL: [Self; 12] = [
        Self::Enumeration,
        Self::FailingDevices,
        Self::Rot,
        Self::SmallBlocks,
        Self::NewProcess,
        Self::LongRun,
        Self::Discards,
        Self::LostWrites,
        Self::Twice,
        Self::ComeBack,
        Self::Apart,
        Self::GoneOn,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Enumeration => "short workloads, every cut",
            Self::FailingDevices => "failing devices, every cut",
            Self::Rot => "rot and misdirection",
            Self::SmallBlocks => "random runs on 512-byte blocks",
            Self::NewProcess => "random runs with a new process",
            Self::LongRun => "long random runs",
            Self::Discards => "devices told of freed space",
            Self::LostWrites => "slots used again, lost writes",
            Self::Twice => "two copies, every cut, a device lost",
            Self::ComeBack => "a device that comes back, every cut",
            Self::GoneOn => "a device fails, another goes on",
            Self::Apart => "kept once, asked for without its device",
        }
    }

    /// How many images it looked at if it found nothing.
    fn run(self) -> Result<u64, Failure> {
        const EFFORT: Effort = Effort { all_subsets_of: 4, samples: 8, torn: 1, nested_one_in: 4 };
        let workloads = || enumeration::scattered(150);
        match self {
            Self::Enumeration => {
                enumeration::enumerate_group(&workloads(), EFFORT).map(|c| c.schedules())
            }
            Self::FailingDevices => {
                let few = Effort { nested_one_in: 16, ..EFFORT };
                enumeration::fail_everywhere(&enumeration::committing(97), few)
                    .map(|c| c.schedules())
            }
            Self::Rot => rot::damage_everything(&workloads()),
            Self::SmallBlocks => random::play(6, random::small_blocks).map(|c| c.schedules()),
            Self::NewProcess => random::play(16, random::new_process).map(|c| c.schedules()),
            Self::Discards => discard::play(12),
            Self::LongRun => random::play(4, random::long_run).map(|c| c.schedules()),
            Self::LostWrites => lost::lose_writes(),
            Self::Apart => apart::ask_without(),
            Self::GoneOn => apart::fail_and_go_on(),
            Self::Twice => {
                let workloads = enumeration::scattered_twice(100);
                enumeration::enumerate_group(&workloads, EFFORT).map(|c| c.schedules())
            }
            Self::ComeBack => {
                let few = Effort { nested_one_in: 16, ..EFFORT };
                let workloads = enumeration::dirty_twice(20);
                enumeration::come_back_everywhere(&workloads, few).map(|c| c.schedules())
            }
        }
    }
}

fn catcher_of(bug: Bug) -> Catcher {
    match bug {
        Bug::FailedFlushIgnored | Bug::FailedFlushRetried | Bug::FailedWriteIgnored => {
            Catcher::FailingDevices
        }
        Bug::RecordUnchecked
        | Bug::RecordAnywhere
        | Bug::OneRecordCopy
        | Bug::DamagedCopyIsNewer
        | Bug::DescriptorUnchecked
        | Bug::DescriptorAnywhere
        | Bug::AnyEpoch
        | Bug::LostExtentUnnoticed
        | Bug::OneHeader
        | Bug::OneSuperblockRaised => Catcher::Rot,
        Bug::UnflushedWindows | Bug::TornTakenForDamaged => Catcher::SmallBlocks,
        Bug::UnflushedRecovery => Catcher::NewProcess,
        Bug::OldSlotsTooEarly => Catcher::LongRun,
        Bug::DiscardedTooEarly | Bug::GrantedWhileDiscarded => Catcher::Discards,
        Bug::VectorUnidentified | Bug::VectorOfEarlierUse => Catcher::LostWrites,
        Bug::CopiesTogether
        | Bug::CopyUnflushed
        | Bug::RecordCopiesTogether
        | Bug::OutvotedOnce
        | Bug::IncompleteServed
        | Bug::CopiesKept
        | Bug::CopyForgotten => Catcher::Twice,
        Bug::AbsentForgotten => Catcher::ComeBack,
        Bug::BlindRecordWins => Catcher::Apart,
        Bug::FailureUntold => Catcher::GoneOn,
        _ => Catcher::Enumeration,
    }
}

#[test]
fn every_seeded_bug_is_caught() {
    quietly();
    let next = AtomicUsize::new(0);
    let hunt = || {
        let mut missed = Vec::new();
        while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            let catcher = catcher_of(*bug);
            match during(Some(*bug), || catcher.run()) {
                Err(Failure { after, .. }) => {
                    println!("| {bug:?} | {} | {after} |", catcher.name());
                }
                Ok(looked_at) => missed.push((*bug, catcher, looked_at)),
            }
        }
        missed
    };
    let missed: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(hunt)).collect();
        let missed = threads.into_iter().map(|thread| thread.join().expect("it comes to an end"));
        missed.flatten().collect()
    });
    // The hook is gone again, so that this is heard.
    let _quiet = std::panic::take_hook();
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
}

#[test]
fn without_a_bug_nothing_is_found() {
    for catcher in Catcher::ALL {
        match catcher.run() {
            Ok(looked_at) => println!("| none | {} | {looked_at} |", catcher.name()),
            Err(Failure { what, .. }) => panic!("{catcher:?} found {what}"),
        }
    }
}

/// What panics on purpose would fill the screen; what matters is in the message.
fn quietly() {
    std::panic::set_hook(Box::new(|_| {}));
}
