//! The memory that checksums take, and what goes when there is too much of it.
//!
//! An extent has one CRC32C for each of its blocks, and its descriptor has them, too. A short row of
//! them lies beside its slot and always stays. A longer one is a *vector* of its own, which may be
//! dropped; whoever needs it then reads the descriptor. What holds:
//!
//! 1. A vector is put in a slot's place by somebody who holds the slot, or by recovery, and taken out
//!    before the slot is handed in. So it is never that of another use of the slot.
//! 2. A vector may go only once it is *offered*: its extent's generation is clean, and its descriptor
//!    was written, or found by recovery. It is offered once, and nothing makes it dirty again.
//! 3. Going means leaving its place. Who has it keeps it, and its bytes count until the last has
//!    let it go.
//! 4. Places are locked one by one, and only after the list of what is offered, never before.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::shelf::Shelf;

/// What a vector takes besides its checksums: its place, its counts, its ticket, and what the
/// allocator adds. With up to sixteen checksums it would be more than they are.
pub(crate) const VECTOR_BYTES: u64 = 112;
/// How many vectors that were used of late are spared before one goes all the same.
const MOST_SPARED: usize = 32;
/// Tickets of vectors that are gone are looked for once there are so many more than vectors.
const STALE_TICKETS: usize = 1024;

/// How much memory checksums may take, and do take.
#[derive(Debug)]
pub(crate) struct ChecksumMemory {
    limit_bytes: u64,
    most_beside: u32,
    bytes: AtomicU64,
    vectors: AtomicU64,
    dropped: AtomicU64,
    serials: AtomicU64,
    /// Of vectors that may go, in the order of a clock's hand.
    offered: Mutex<VecDeque<Ticket>>,
}

/// The checksums of one extent.
#[derive(Debug)]
pub(crate) struct Vector {
    sums: Box<[AtomicU32]>,
    memory: Arc<ChecksumMemory>,
    /// What a ticket knows it by.
    serial: u64,
    /// Since the hand was here last.
    used: AtomicBool,
    offered: AtomicBool,
}

/// Where a vector that may go was put.
#[derive(Debug)]
struct Ticket {
    shelf: Weak<Shelf>,
    slot: u32,
    serial: u64,
}

/// What became of a vector that was to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// It left its place.
    Dropped,
    /// It was used since the last time.
    Spared,
    /// It was not there any more.
    Gone,
}

impl Default for ChecksumMemory {
    fn default() -> Self {
        Self::new(u64::MAX, 16)
    }
}

impl ChecksumMemory {
    /// For so many bytes, with rows of at most `most_beside` checksums beside their slots.
    pub(crate) fn new(limit_bytes: u64, most_beside: u32) -> Self {
        Self {
            limit_bytes,
            most_beside,
            bytes: AtomicU64::new(0),
            vectors: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            serials: AtomicU64::new(0),
            offered: Mutex::default(),
        }
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Whether slots of that many checksums have them beside.
    pub(crate) fn is_beside(&self, checksums: u32) -> bool {
        checksums <= self.most_beside
    }

    pub(crate) fn charge(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn discharge(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Charges for a vector of that many checksums if there is room for it.
    fn try_charge(&self, checksums: usize) -> bool {
        let more = cost(checksums);
        let add = |bytes: u64| bytes.checked_add(more).filter(|sum| *sum <= self.limit_bytes);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// A vector in a slot's place may go from now on.
    fn offer(&self, ticket: Ticket) {
        // Where all may stay, nobody ever asks.
        if self.limit_bytes == u64::MAX {
            return;
        }
        let mut offered = self.offered.lock();
        offered.push_back(ticket);
        let live = usize::try_from(self.vectors.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        if offered.len() > live.saturating_mul(2).saturating_add(STALE_TICKETS) {
            // Two for each one that comes, so that they never pile up and no call takes long.
            for _ in 0..2 {
                let next = offered.pop_front();
                offered.extend(next.filter(Ticket::is_good));
            }
        }
    }

    /// Drops vectors until there is room, or none may go: a second chance for each that was used
    /// since its last one.
    pub(crate) fn make_room(&self) {
        if self.bytes() <= self.limit_bytes {
            return;
        }
        let mut offered = self.offered.lock();
        let mut spared = 0;
        while self.bytes() > self.limit_bytes {
            let Some(ticket) = offered.pop_front() else { return };
            let Some(shelf) = ticket.shelf.upgrade() else { continue };
            match shelf.drop_vector(ticket.slot, ticket.serial, spared < MOST_SPARED) {
                Fate::Dropped => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
                Fate::Spared => {
                    spared += 1;
                    offered.push_back(ticket);
                }
                Fate::Gone => {}
            }
        }
    }
}

impl Vector {
    /// One that counts, whether there is room for it or not.
    pub(crate) fn new(memory: &Arc<ChecksumMemory>, sums: impl Iterator<Item = u32>) -> Arc<Self> {
        let sums: Box<[AtomicU32]> = sums.map(AtomicU32::new).collect();
        memory.charge(cost(sums.len()));
        Self::charged(memory, sums)
    }

    /// One if there is room for it.
    pub(crate) fn try_new(
        memory: &Arc<ChecksumMemory>,
        sums: impl ExactSizeIterator<Item = u32>,
    ) -> Option<Arc<Self>> {
        memory
            .try_charge(sums.len())
            .then(|| Self::charged(memory, sums.map(AtomicU32::new).collect()))
    }

    fn charged(memory: &Arc<ChecksumMemory>, sums: Box<[AtomicU32]>) -> Arc<Self> {
        memory.vectors.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            sums,
            memory: Arc::clone(memory),
            serial: memory.serials.fetch_add(1, Ordering::Relaxed),
            used: AtomicBool::new(false),
            offered: AtomicBool::new(false),
        })
    }

    pub(crate) fn sums(&self) -> &[AtomicU32] {
        &self.sums
    }

    /// Has it spared the next time.
    pub(crate) fn note_use(&self) {
        // Mostly set already: then its line stays in the caches of all who read.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was used since this was asked last.
    pub(crate) fn take_use(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn is(&self, serial: u64) -> bool {
        self.serial == serial
    }

    /// It was put in a slot's place, and may go.
    pub(crate) fn offer(&self, shelf: &Arc<Shelf>, slot: u32) {
        if !self.offered.swap(true, Ordering::Relaxed) {
            let shelf = Arc::downgrade(shelf);
            self.memory.offer(Ticket { shelf, slot, serial: self.serial });
        }
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.memory.vectors.fetch_sub(1, Ordering::Relaxed);
        self.memory.discharge(cost(self.sums.len()));
    }
}

impl Ticket {
    fn is_good(&self) -> bool {
        self.shelf.upgrade().is_some_and(|shelf| shelf.has_vector(self.slot, self.serial))
    }
}

fn cost(checksums: usize) -> u64 {
    VECTOR_BYTES + 4 * checksums as u64
}

#[cfg(test)]
mod tests {
    use crate::TierId;
    use crate::holdings::Holdings;
    use crate::shelf::testing::shelf;
    use crate::shelf::{Hold, Shelf};

    use super::*;

    const SUMS: u64 = 16;
    const EACH: u64 = VECTOR_BYTES + 4 * SUMS;

    fn holdings(vectors: u64) -> Arc<Holdings> {
        Arc::new(Holdings::new(TierId(1), ChecksumMemory::new(vectors * EACH, 0)))
    }

    fn sums(seed: u32) -> impl ExactSizeIterator<Item = u32> {
        (0..16).map(move |block: u32| seed * 100 + block)
    }

    fn fill(shelf: &Arc<Shelf>, slot: u32, seed: u32) -> Hold {
        let hold = shelf.hold(slot);
        hold.set_checksums(sums(seed));
        hold
    }

    /// What a slot's checksums are the checksums of.
    fn seed_of(vector: &Vector) -> u32 {
        let found: Vec<u32> = vector.sums().iter().map(|s| s.load(Ordering::Relaxed)).collect();
        let seed = found[0] / 100;
        assert!(sums(seed).eq(found), "checksums of two extents are mixed");
        seed
    }

    #[test]
    fn what_is_not_offered_stays() {
        let holdings = holdings(0);
        let shelf = shelf(&holdings, 4);
        let hold = fill(&shelf, 1, 7);
        assert_eq!(hold.vector().map(|v| seed_of(&v)), Some(7));
        hold.offer();
        assert!(hold.vector().is_none(), "there is no room for it");
        assert_eq!((holdings.checksums.bytes(), holdings.checksums.dropped()), (0, 1));
    }

    #[test]
    fn a_vector_that_was_used_gets_a_second_chance() {
        let holdings = holdings(3);
        let shelf = shelf(&holdings, 4);
        let holds: Vec<Hold> = (0..3).map(|slot| fill(&shelf, slot, slot)).collect();
        holds.iter().for_each(Hold::offer);
        holds[0].vector().expect("in memory").note_use();
        let fourth = fill(&shelf, 3, 3);
        assert!(holds[1].vector().is_none(), "the oldest that was not used");
        assert!(holds[0].vector().is_some() && holds[2].vector().is_some());
        assert!(fourth.vector().is_some() && holdings.checksums.bytes() == 3 * EACH);
    }

    #[test]
    fn who_has_a_vector_keeps_it_and_its_bytes_count() {
        let holdings = holdings(1);
        let shelf = shelf(&holdings, 2);
        let first = fill(&shelf, 0, 5);
        let kept = first.vector().expect("in memory");
        first.offer();
        let second = fill(&shelf, 1, 6);
        assert!(first.vector().is_none() && seed_of(&kept) == 5);
        assert_eq!(holdings.checksums.bytes(), 2 * EACH);
        drop(kept);
        assert_eq!(holdings.checksums.bytes(), EACH);
        drop((first, second));
        assert_eq!(holdings.checksums.bytes(), 0);
    }

    #[test]
    fn a_slot_that_is_used_again_has_nothing_of_before() {
        let holdings = holdings(10);
        let shelf = shelf(&holdings, 1);
        let hold = fill(&shelf, 0, 1);
        hold.offer();
        let old = hold.vector().expect("in memory");
        drop(hold);
        let hold = shelf.hold(0);
        assert!(hold.vector().is_none(), "nothing was put there yet");
        hold.set_checksums(sums(2));
        hold.keep(&old);
        assert_eq!(hold.vector().map(|v| seed_of(&v)), Some(2), "what is there stays");
        // The ticket of the first use does nothing to the second.
        hold.offer();
        assert_eq!(shelf.drop_vector(0, 0, false), Fate::Gone);
        assert!(hold.vector().is_some());
    }

    #[test]
    fn recovery_keeps_what_there_is_room_for() {
        let holdings = holdings(2);
        let shelf = shelf(&holdings, 5);
        (0..4).for_each(|slot| shelf.offer_checksums(slot, sums(slot)));
        let here = |slot| shelf.has_vector(slot, u64::from(slot));
        assert!(here(0) && here(1) && !here(2) && !here(3));
        assert_eq!(holdings.checksums.dropped(), 0);
        // What must stay takes the place of what need not.
        shelf.set_checksums(4, sums(4));
        assert!(!here(0) && here(1) && holdings.checksums.bytes() == 2 * EACH);
    }

    #[test]
    fn tickets_of_what_is_gone_do_not_pile_up() {
        let holdings = holdings(1 << 20);
        let shelf = shelf(&holdings, 1);
        for round in 0..20_000 {
            fill(&shelf, 0, round).offer();
        }
        assert!(holdings.checksums.offered.lock().len() <= STALE_TICKETS + 4);
        assert_eq!(holdings.take_returned().len(), 20_000);
    }

    /// Readers, those who read descriptors, and the one who uses slots again, all at once.
    #[test]
    fn nobody_ever_sees_the_checksums_of_another_use() {
        const SLOTS: u32 = 4;
        const ROUNDS: u32 = 400;
        let holdings = holdings(2);
        let shelf = shelf(&holdings, SLOTS);
        // What the table of a generation is: the hold of each slot, and which use it is.
        let table: Vec<Mutex<Option<(Hold, u32)>>> = (0..SLOTS).map(|_| Mutex::default()).collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let (table, over, memory) = (&table, &over, &holdings.checksums);
                scope.spawn(move || {
                    let mut slot = reader;
                    while !over.load(Ordering::Relaxed) {
                        slot = (slot + 1) % table.len();
                        let held = table[slot].lock().as_ref().map(|(h, seed)| (h.used(), *seed));
                        let Some((hold, seed)) = held else { continue };
                        match hold.vector() {
                            Some(vector) => assert_eq!(seed_of(&vector), seed),
                            None => hold.keep(&Vector::new(memory, sums(seed))),
                        }
                    }
                });
            }
            let _over = Over(&over);
            for round in 1..=ROUNDS {
                let slot = round % SLOTS;
                drop(table[slot as usize].lock().take());
                while shelf.holders(slot) != 0 {
                    std::thread::yield_now();
                }
                let hold = fill(&shelf, slot, round);
                hold.offer();
                *table[slot as usize].lock() = Some((hold, round));
            }
        });
        drop(table);
        assert_eq!(holdings.checksums.bytes(), 0);
        assert!(holdings.checksums.dropped() > 0, "there was never room for all");
    }

    /// Also when something panics.
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
