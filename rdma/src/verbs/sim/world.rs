//! Everything on a simulated network, and the order in which it happens.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dma::{Region, Window};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::memory::Rights;
use super::super::send_queue::Local;
use super::connection::{Id, IdRef, Told};
use super::options::SimVerbsOptions;
use super::pair::Pair;
use super::queue::{PairRef, Queue, ReceiveQueue};

/// Shared by all ends.
pub(super) type Shared = Arc<Mutex<World>>;

/// A test that panicked while it held the lock has failed already; the others may go on.
pub(super) fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
#[derive(Debug)]
pub(super) struct World {
    pub(super) rng: SmallRng,
    /// Looks at completion queues so far.
    pub(super) clock: u64,
    pub(super) options: SimVerbsOptions,
    /// What is yet to happen, by time and then by the order in which it was caused.
    agenda: BTreeMap<(u64, u64), Due>,
    /// Numbers so far: of causes, and of what may not be mistaken for another.
    serial: u64,
    pub(super) memory: HashMap<u32, Registered>,
    pub(super) domains: usize,
    pub(super) queues: HashMap<u32, Queue>,
    pub(super) shared: HashMap<u32, ReceiveQueue>,
    pub(super) pairs: BTreeMap<u32, Pair>,
    /// Numbers of queue pairs that are gone.
    pub(super) free_pairs: Vec<u32>,
    pub(super) ids: BTreeMap<usize, Id>,
    pub(super) free_ids: Vec<usize>,
    /// Events that were not taken yet, of each channel.
    pub(super) channels: BTreeMap<u32, VecDeque<(IdRef, Told)>>,
    /// The ids that listen, of each shard.
    pub(super) listeners: Vec<usize>,
    /// How each status was told how often.
    pub(super) statuses: BTreeMap<u32, u64>,
    /// What was put aside, and from when on it is done.
    errands: Vec<(u64, Errand)>,
}

/// What happens next.
#[derive(Debug)]
pub(super) enum Due {
    /// The device works on a queue pair's next work request.
    Execute(PairRef),
    /// The other side acknowledged the first that was worked on.
    Acknowledge(PairRef),
    /// What is left of a broken queue pair ends.
    Flush(PairRef),
    /// The completion of a receive is written.
    Received(PairRef),
    /// Somebody is told of a connection.
    Tell(IdRef, Told),
}

/// What is done beside everything else.
pub(super) struct Errand(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Errand(…)")
    }
}

/// Time passes: whatever is due happens, and then what was put aside.
pub(super) fn step(world: &Mutex<World>) {
    lock(world).step();
    // It looks at the world by itself.
    while let Some(Errand(work)) = { lock(world).next_errand() } {
        work();
    }
}

/// Does at once whatever was put aside: it holds the world, which would else hold it for ever.
pub(super) fn finish_errands(world: &Mutex<World>) {
    let errands = std::mem::take(&mut lock(world).errands);
    errands.into_iter().for_each(|(_, Errand(work))| work());
}

/// Memory that a device knows.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) domain: u32,
    pub(super) rights: Rights,
    pub(super) region: Arc<Region>,
    /// Where in the region it begins, how long it is, and its address for work requests.
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) address: u64,
}

impl Registered {
    /// All of a region, at its own address.
    pub(super) fn whole(domain: u32, rights: Rights, region: &Arc<Region>) -> Self {
        let region = Arc::clone(region);
        let (length, address) = (region.length() as u64, region.base().addr().get() as u64);
        Self { domain, rights, region, offset: 0, length, address }
    }
}

impl World {
    pub(super) fn new(seed: u64, options: SimVerbsOptions) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            clock: 0,
            options,
            agenda: BTreeMap::new(),
            serial: 0,
            memory: HashMap::new(),
            domains: 0,
            queues: HashMap::new(),
            shared: HashMap::new(),
            pairs: BTreeMap::new(),
            free_pairs: Vec::new(),
            ids: BTreeMap::new(),
            free_ids: Vec::new(),
            channels: BTreeMap::new(),
            listeners: Vec::new(),
            statuses: BTreeMap::new(),
            errands: Vec::new(),
        }
    }

    /// A number that nothing else has.
    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The same, where few are made.
    pub(super) fn next_number(&mut self) -> u32 {
        u32::try_from(self.next_serial()).expect("a test makes few of them")
    }

    pub(super) fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.random_bool(chance)
    }

    /// A time that is soon.
    pub(super) fn soon(&mut self) -> u64 {
        self.clock + self.rng.random_range(0..=self.options.delay)
    }

    pub(super) fn schedule(&mut self, at: u64, due: Due) {
        let serial = self.next_serial();
        self.agenda.insert((at, serial), due);
    }

    /// Has something done later, by what has no part in the polling.
    pub(super) fn put_aside(&mut self, work: Box<dyn FnOnce() + Send>) {
        let most = self.options.registering;
        let at = self.clock + self.rng.random_range(most / 2..=most);
        self.errands.push((at, Errand(work)));
    }

    fn next_errand(&mut self) -> Option<Errand> {
        let due = self.errands.iter().position(|(at, _)| *at <= self.clock)?;
        Some(self.errands.remove(due).1)
    }

    /// Whatever devices do by now happens.
    pub(super) fn step(&mut self) {
        self.clock += 1;
        while let Some(next) = self.agenda.first_entry() {
            if next.key().0 > self.clock {
                return;
            }
            match next.remove() {
                Due::Execute(pair) => self.execute(pair),
                Due::Acknowledge(pair) => self.acknowledge(pair),
                Due::Flush(pair) => self.flush(pair),
                Due::Received(pair) => self.received(pair),
                Due::Tell(id, told) => self.tell(id, told),
            }
        }
    }

    /// Makes memory known. Its key.
    pub(super) fn register(&mut self, known: Registered) -> u32 {
        loop {
            let key = self.rng.random();
            if let Entry::Vacant(place) = self.memory.entry(key) {
                place.insert(known);
                return key;
            }
        }
    }

    /// Memory of a domain by its key, if all of it is there and may be used so.
    pub(super) fn window(&self, domain: u32, place: Local, rights: Rights) -> Option<Window> {
        let known = self.memory.get(&place.key)?;
        if known.domain != domain || !known.rights.allow(rights) {
            return None;
        }
        let at = place.address.checked_sub(known.address)?;
        let is_inside = at.checked_add(place.length.into())? <= known.length;
        let window =
            || Window::new(Arc::clone(&known.region), known.offset + at, place.length as usize);
        is_inside.then(window)?.ok()
    }
}
