//! What goes wrong, and when.

use std::ops::Range;

use rand::Rng;
use rand::rngs::SmallRng;

use crate::device::{Command, DeviceIndex};

/// What a device does wrong with one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It fails with an I/O error. A write may have happened all the same; after a flush no later
    /// one vouches for the writes that this one covered.
    Fail,
    /// It does not complete, until [`SimDisk::release_stuck`](super::SimDisk::release_stuck).
    Stick,
    /// One bit is wrong, of what a read returns or of what a write stores. Reported as a success.
    FlipBit,
    /// A write lands on, or a read comes from, another place of the device. Reported as a success.
    Misdirect,
    /// A write or a flush is reported as a success and does not happen.
    Lose,
    /// A read finds what was there before the last write to each block. Reported as a success.
    Stale,
    /// The device is gone: this and all later operations on it fail.
    Vanish,
}

/// Which operations a rule is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Advice on what is not needed any more.
    Deallocate,
    /// All of them.
    Any,
}

/// Which of the operations that a rule is about it hits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum When {
    /// The nth, counted from 1.
    Nth(u64),
    /// The nth and all after.
    From(u64),
    /// Each with this chance, from 0 to 1.
    Chance(f64),
}

/// One thing to go wrong.
#[derive(Clone, PartialEq, Debug)]
pub struct FaultRule {
    operation: Operation,
    when: When,
    fault: Fault,
    device: Option<DeviceIndex>,
    range: Option<Range<u64>>,
}

impl FaultRule {
    /// A rule for all devices.
    ///
    /// # Panics
    /// If the fault makes no sense for the operation, such as a flush with a bit flipped.
    #[must_use]
    pub fn new(operation: Operation, when: When, fault: Fault) -> Self {
        let sensible = match fault {
            Fault::Fail | Fault::Stick | Fault::Vanish => true,
            Fault::FlipBit | Fault::Misdirect => {
                matches!(operation, Operation::Read | Operation::Write)
            }
            Fault::Lose => {
                matches!(operation, Operation::Write | Operation::Flush | Operation::Deallocate)
            }
            Fault::Stale => operation == Operation::Read,
        };
        assert!(sensible, "{fault:?} makes no sense for {operation:?}");
        Self { operation, when, fault, device: None, range: None }
    }

    /// Only for this device.
    #[must_use]
    pub fn on(mut self, device: DeviceIndex) -> Self {
        self.device = Some(device);
        self
    }

    /// Only for reads and writes that touch these bytes.
    #[must_use]
    pub fn within(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    fn is_about(&self, command: &Command) -> bool {
        let operation = match command {
            Command::Read { .. } => Operation::Read,
            Command::Write { .. } => Operation::Write,
            Command::Flush(_) => Operation::Flush,
            Command::Deallocate { .. } => Operation::Deallocate,
        };
        let touches = match (&self.range, command) {
            (None, _) => true,
            (Some(_), Command::Flush(_)) => false,
            (Some(range), Command::Read { at, .. } | Command::Write { at, .. }) => {
                at.offset < range.end && range.start < at.offset + command.length() as u64
            }
            (Some(range), Command::Deallocate { at, bytes }) => {
                at.offset < range.end && range.start < at.offset + bytes
            }
        };
        touches
            && (self.operation == Operation::Any || self.operation == operation)
            && self.device.is_none_or(|device| device == command.device())
    }
}

/// All that is to go wrong. Of several rules that hit an operation the first counts.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FaultPlan(Vec<FaultRule>);

impl FaultPlan {
    /// Nothing goes wrong.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// This goes wrong, too.
    #[must_use]
    pub fn with(mut self, rule: FaultRule) -> Self {
        self.0.push(rule);
        self
    }
}

/// A plan and how far it has come.
#[derive(Debug, Default)]
pub(super) struct FaultState {
    /// With the operations each was about so far.
    rules: Vec<(FaultRule, u64)>,
    injected: u64,
}

impl FaultState {
    pub(super) fn new(plan: FaultPlan) -> Self {
        Self { rules: plan.0.into_iter().map(|rule| (rule, 0)).collect(), injected: 0 }
    }

    pub(super) fn injected(&self) -> u64 {
        self.injected
    }

    /// The fault for the next operation.
    pub(super) fn next(&mut self, command: &Command, rng: &mut SmallRng) -> Option<Fault> {
        let mut found = None;
        for (rule, seen) in self.rules.iter_mut().filter(|(rule, _)| rule.is_about(command)) {
            *seen += 1;
            let hit = match rule.when {
                When::Nth(nth) => *seen == nth,
                When::From(nth) => *seen >= nth,
                When::Chance(chance) => rng.random_bool(chance),
            };
            if hit && found.is_none() {
                found = Some(rule.fault);
            }
        }
        self.injected += u64::from(found.is_some());
        found
    }
}
