use std::collections::VecDeque;

use extent::{ExtentIndex, FileId};

use crate::device::DeviceIndex;
use crate::layout::Class;
use crate::space::{Resident, Space, Ticket};

/// Which clean extents go first: S3-FIFO for each size class. New extents enter a small queue; those
/// used again before they reach its end move to the main one, the others are evicted and their
/// names remembered, so that one who comes back at once enters the main queue. A scan of many
/// extents, each used once, passes through the small queue and leaves the main one alone.
///
/// Only extents of clean generations are in the queues, as tickets. Those of extents that are gone
/// are passed over, and thrown out when they may be more than half.
#[derive(Debug)]
pub(crate) struct Evictor {
    classes: Vec<Queues>,
    ghost: Ghost,
}

#[derive(Debug, Default)]
struct Queues {
    small: VecDeque<Ticket>,
    main: VecDeque<Ticket>,
    /// How long both together may be before dead entries are thrown out.
    sweep_at: usize,
}

/// What eviction goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn<'a> {
    /// Room is wanted on these devices.
    pub(crate) on: &'a [DeviceIndex],
    pub(crate) now_unix_ms: u64,
    pub(crate) space: &'a Space,
}

/// What happened to the entry at the head of a queue.
enum Verdict {
    Evicted,
    Gone,
    Kept,
}

impl Evictor {
    /// For a tier of about `slots` slots.
    pub(crate) fn new(slots: usize) -> Self {
        let classes = (0..Class::COUNT).map(|_| Queues::default()).collect();
        Self { classes, ghost: Ghost::new(slots) }
    }

    /// A clean extent may be evicted from now on.
    pub(crate) fn admit(
        &mut self,
        class: Class,
        (file, index): (FileId, ExtentIndex),
        ticket: Ticket,
        space: &Space,
    ) {
        let returning = self.ghost.take(name_of(file, index));
        let queues = &mut self.classes[class.index()];
        let queue = if returning { &mut queues.main } else { &mut queues.small };
        queue.push_back(ticket);
        queues.sweep(space);
    }

    /// Before so many are admitted that were never seen here before.
    pub(crate) fn expect_many(&mut self, class: Class, count: usize) {
        let queues = &mut self.classes[class.index()];
        queues.small.reserve_exact(count);
        queues.sweep_at = count * 2 + 1024;
    }

    /// Bytes of the extents that wait in a class's queues, and some that are gone.
    pub(crate) fn queued_bytes(&self, class: Class) -> u64 {
        let queues = &self.classes[class.index()];
        (queues.small.len() + queues.main.len()) as u64 * class.bytes()
    }

    /// Evicts up to `want` extents of a class, looking at no more than `effort` entries. How many.
    pub(crate) fn evict(
        &mut self,
        class: Class,
        want: usize,
        effort: usize,
        turn: Turn<'_>,
    ) -> usize {
        let queues = &mut self.classes[class.index()];
        let mut evicted = 0;
        for _ in 0..effort {
            if evicted == want || (queues.small.is_empty() && queues.main.is_empty()) {
                break;
            }
            match queues.consider(&mut self.ghost, turn) {
                Verdict::Evicted => evicted += 1,
                Verdict::Gone | Verdict::Kept => {}
            }
        }
        evicted
    }

    /// Enough effort to be sure that nothing in a class can be evicted.
    pub(crate) fn full_effort(&self, class: Class) -> usize {
        let queues = &self.classes[class.index()];
        // Each entry may pass from small to main, and then as often as its frequency allows.
        (queues.small.len() + queues.main.len()) * 5
    }
}

impl Queues {
    fn consider(&mut self, ghost: &mut Ghost, turn: Turn<'_>) -> Verdict {
        let small_is_long = self.small.len() * 10 >= self.small.len() + self.main.len();
        let from_small = (small_is_long && !self.small.is_empty()) || self.main.is_empty();
        let head = if from_small { self.small.pop_front() } else { self.main.pop_front() };
        let Some(ticket) = head else { return Verdict::Gone };
        let Some(resident) = turn.space.resident(ticket) else { return Verdict::Gone };
        let Resident { generation, index, slot, .. } = &resident;
        if generation.is_superseded() {
            // It goes with the last reader of its generation.
            return Verdict::Gone;
        }
        let frequency = resident.frequency();
        let elsewhere = !turn.on.contains(&slot.device);
        if elsewhere || resident.is_in_use() || !generation.is_evictable(turn.now_unix_ms) {
            self.main.push_back(ticket);
            return Verdict::Kept;
        }
        if from_small && frequency > 1 {
            resident.set_frequency(0);
            self.main.push_back(ticket);
            return Verdict::Kept;
        }
        if !from_small && frequency > 0 {
            resident.set_frequency(frequency - 1);
            self.main.push_back(ticket);
            return Verdict::Kept;
        }
        if !generation.remove(*index, *slot) {
            return Verdict::Gone;
        }
        ghost.put(name_of(generation.file_id(), *index));
        Verdict::Evicted
    }

    fn sweep(&mut self, space: &Space) {
        if self.small.len() + self.main.len() < self.sweep_at {
            return;
        }
        self.small.retain(|ticket| space.is_valid(*ticket));
        self.main.retain(|ticket| space.is_valid(*ticket));
        self.sweep_at = (self.small.len() + self.main.len()) * 2 + 1024;
    }
}

/// The names of extents evicted of late: a table that forgets by being written over.
#[derive(Debug)]
struct Ghost {
    names: Vec<u32>,
}

impl Ghost {
    fn new(slots: usize) -> Self {
        Self { names: vec![0; slots.next_power_of_two().clamp(1 << 10, 1 << 20)] }
    }

    fn put(&mut self, name: u64) {
        let (at, mark) = self.place(name);
        self.names[at] = mark;
    }

    fn take(&mut self, name: u64) -> bool {
        let (at, mark) = self.place(name);
        let known = self.names[at] == mark;
        if known {
            self.names[at] = 0;
        }
        known
    }

    #[expect(clippy::cast_possible_truncation, reason = "two halves of a hash")]
    fn place(&self, name: u64) -> (usize, u32) {
        let at = (name as usize) & (self.names.len() - 1);
        (at, ((name >> 32) as u32) | 1)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the id is a hash already")]
fn name_of(file: FileId, index: ExtentIndex) -> u64 {
    let mixed = (file.0 as u64) ^ ((u64::from(index.0) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed ^ (mixed >> 29)
}
