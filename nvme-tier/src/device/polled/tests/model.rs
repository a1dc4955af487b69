//! A model of an NVMe controller: registers in plain memory, and a thread that does what hardware
//! would do about them. It can misbehave.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use extent::Result;
use parking_lot::Mutex;

use crate::device::nvme::pages::{controller_page, namespace_page};
use crate::device::nvme::{
    CompletionEntry, Protection, ProtectionType, SubmissionEntry, admin, io, offset,
};
use crate::device::polled::{Host, Registers};

pub(super) const BLOCK: usize = 512;
pub(super) const BLOCKS: u64 = 4096;
const REGISTER_BYTES: usize = 0x3000;
/// Addresses of the bus are those of memory, and this: whoever forgets to translate is found out.
const BUS: u64 = 1 << 52;

/// What a model does wrong, or otherwise than most.
#[derive(Clone, Debug, Default)]
pub(super) struct Behaviour {
    pub(super) never_ready: bool,
    pub(super) never_stops: bool,
    /// The capabilities register, if not the usual one.
    pub(super) capabilities: Option<u64>,
    /// Changes the Identify Controller page.
    pub(super) identify: Option<fn(&mut Vec<u8>)>,
    /// Changes the Identify Namespace page.
    pub(super) namespace: Option<fn(&mut Vec<u8>)>,
    /// I/O queue pairs that it grants.
    pub(super) queues: Option<u16>,
    /// Protects its blocks.
    pub(super) protection: bool,
    /// Answers with this status field to so many I/O commands first.
    pub(super) status: Option<(u16, u32)>,
    /// Swallows so many I/O commands.
    pub(super) swallow: u32,
    /// Completes so many commands that are not there.
    pub(super) phantom: u32,
    /// Completes so many commands twice.
    pub(super) twice: u32,
    /// Answers no Identify.
    pub(super) mute: bool,
    /// Looks at its shadow doorbells all the time, and wants no other.
    pub(super) awake: bool,
    /// Answers log pages with Invalid Log Page.
    pub(super) no_logs: bool,
    /// Makes no I/O queues.
    pub(super) no_queues: bool,
    /// Flips a bit of what so many reads return.
    pub(super) rot: u32,
    /// Changes the Identify page about the NVM command set; there is none without.
    pub(super) limits: Option<fn(&mut Vec<u8>)>,
}

#[derive(Debug)]
pub(super) struct Model {
    memory: NonNull<u8>,
    state: Mutex<State>,
    stop: AtomicBool,
    wanted_back: AtomicBool,
    pub(super) released: AtomicBool,
    pub(super) mapped: Mutex<BTreeMap<u64, u64>>,
    pub(super) resets: AtomicU32,
    pub(super) aborts: AtomicU32,
    pub(super) shutdowns: AtomicU32,
    /// Deallocations, each as an opcode, its first block and its blocks.
    pub(super) deallocated: Mutex<Vec<(u8, u64, u64)>>,
    /// Whether it was told that the host takes retry delays.
    pub(super) delays_allowed: AtomicBool,
}

// SAFETY: the memory is only accessed by volatile reads and writes of words, as registers are.
#[allow(unsafe_code)]
unsafe impl Send for Model {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Model {}

#[derive(Debug)]
struct State {
    behaviour: Behaviour,
    enabled: bool,
    data: Vec<u8>,
    tuples: Vec<u8>,
    submission: BTreeMap<u16, Ring>,
    completion: BTreeMap<u16, Ring>,
    shadow: Option<(u64, u64)>,
    listening: Vec<u16>,
    /// Events to be told.
    events: Vec<u32>,
    health_warning: u8,
    stuck: Vec<(u16, u16)>,
}

#[derive(Clone, Debug)]
struct Ring {
    at: u64,
    entries: u16,
    /// Next entry to read or to write.
    index: u16,
    phase: bool,
    completion: u16,
}

impl Model {
    pub(super) fn start(behaviour: Behaviour) -> Arc<Self> {
        let layout = Layout::from_size_align(REGISTER_BYTES, 4096).expect("a layout");
        // SAFETY: the layout has a size.
        #[allow(unsafe_code)]
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory");
        let state = State {
            behaviour,
            enabled: false,
            data: vec![0; BLOCK * usize::try_from(BLOCKS).expect("small")],
            tuples: vec![0xff; 8 * usize::try_from(BLOCKS).expect("small")],
            submission: BTreeMap::new(),
            completion: BTreeMap::new(),
            shadow: None,
            listening: Vec::new(),
            events: Vec::new(),
            health_warning: 0,
            stuck: Vec::new(),
        };
        let model = Arc::new(Self {
            memory,
            state: Mutex::new(state),
            stop: AtomicBool::new(false),
            wanted_back: AtomicBool::new(false),
            released: AtomicBool::new(false),
            mapped: Mutex::default(),
            resets: AtomicU32::new(0),
            aborts: AtomicU32::new(0),
            shutdowns: AtomicU32::new(0),
            deallocated: Mutex::default(),
            delays_allowed: AtomicBool::new(false),
        });
        // MQES 255, CQR, TO 500 ms, CSS with the NVM command set.
        let capabilities = (1u64 << 37) | (1 << 24) | (1 << 16) | 255;
        let capabilities = model.state.lock().behaviour.capabilities.unwrap_or(capabilities);
        model.registers().write_u64(offset::CAP, capabilities);
        let weak = Arc::downgrade(&model);
        thread::spawn(move || run(&weak));
        model
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state.lock().behaviour);
    }

    /// Pulls it out of its slot.
    pub(super) fn pull(&self) {
        self.stop.store(true, Ordering::Release);
        // Once the thread is past its last look at the registers.
        drop(self.state.lock());
        self.registers().write_u32(offset::CSTS, u32::MAX);
    }

    /// Has the kernel want it back.
    pub(super) fn want_back(&self) {
        self.wanted_back.store(true, Ordering::Release);
    }

    /// Warns of its health.
    pub(super) fn warn(&self, warning: u8) {
        let mut state = self.state.lock();
        state.health_warning = warning;
        // SMART / Health status, spare below threshold, log page 2.
        state.events.push(0x0002_0201);
    }

    /// Reports a fatal error.
    pub(super) fn break_down(&self) {
        let _state = self.state.lock();
        self.registers().write_u32(offset::CSTS, 0b11);
    }

    /// How many commands it has swallowed and not given back.
    pub(super) fn swallowed(&self) -> usize {
        self.state.lock().stuck.len()
    }

    /// One bit of a block rots.
    pub(super) fn rot(&self, at: usize) {
        self.state.lock().data[at] ^= 1;
    }

    fn step(&self, state: &mut State) {
        let registers = self.registers();
        let configuration = registers.read_u32(offset::CC);
        let enable = configuration & 1 != 0;
        if configuration >> 14 & 0b11 != 0 && registers.read_u32(offset::CSTS) & 0b1100 == 0 {
            self.shutdowns.fetch_add(1, Ordering::Relaxed);
            registers.write_u32(offset::CSTS, registers.read_u32(offset::CSTS) | 0b1000);
        }
        if enable != state.enabled {
            self.switch(state, enable);
        }
        if !state.enabled || state.behaviour.never_ready {
            return;
        }
        let ids: Vec<u16> = state.submission.keys().copied().collect();
        for id in ids {
            while let Some(entry) = self.fetch(state, id) {
                self.perform(state, id, &entry);
            }
        }
        while !state.events.is_empty() && !state.listening.is_empty() {
            let (event, cid) = (state.events.remove(0), state.listening.remove(0));
            self.complete(state, 0, cid, event, 0);
        }
    }

    fn switch(&self, state: &mut State, enable: bool) {
        let registers = self.registers();
        if !enable {
            if state.behaviour.never_stops {
                return;
            }
            self.resets.fetch_add(1, Ordering::Relaxed);
            state.submission.clear();
            state.completion.clear();
            state.listening.clear();
            state.stuck.clear();
            state.shadow = None;
            state.enabled = false;
            for doorbell in (offset::DOORBELLS..REGISTER_BYTES).step_by(4) {
                registers.write_u32(doorbell, 0);
            }
            registers.write_u32(offset::CSTS, 0);
            return;
        }
        state.enabled = true;
        let attributes = registers.read_u32(offset::AQA);
        let entries = |zero_based: u32| u16::try_from(zero_based & 0xfff).expect("twelve bits") + 1;
        let ring = |at, entries| Ring { at, entries, index: 0, phase: true, completion: 0 };
        let admin = [offset::ASQ, offset::ACQ].map(|at| registers.read_u64(at));
        state.submission.insert(0, ring(admin[0], entries(attributes)));
        state.completion.insert(0, ring(admin[1], entries(attributes >> 16)));
        if !state.behaviour.never_ready {
            registers.write_u32(offset::CSTS, 1);
        }
    }

    /// The next submission entry of a queue.
    fn fetch(&self, state: &mut State, id: u16) -> Option<SubmissionEntry> {
        let tail = self.doorbell(state, id, 0);
        let ring = state.submission.get_mut(&id)?;
        if ring.index == tail {
            return None;
        }
        let entry = self.load(ring.at + 64 * u64::from(ring.index));
        ring.index = (ring.index + 1) % ring.entries;
        let index = ring.index;
        if let (Some((_, events)), true) = (state.shadow, id != 0 && !state.behaviour.awake) {
            // As hardware that sleeps would: the next step past here rings the register.
            self.store(events + 8 * u64::from(id), &u32::from(index));
        }
        Some(entry)
    }

    fn doorbell(&self, state: &State, id: u16, side: u64) -> u16 {
        let place = 8 * u64::from(id) + 4 * side;
        let value: u32 = match state.shadow {
            Some((values, _)) if id != 0 => self.load(values + place),
            _ => self
                .registers()
                .read_u32(offset::DOORBELLS + usize::try_from(place).expect("small")),
        };
        u16::try_from(value).expect("sixteen bits")
    }

    fn complete(&self, state: &mut State, queue: u16, cid: u16, result: u32, status: u16) {
        let Some(id) = state.submission.get(&queue).map(|ring| ring.completion) else { return };
        let head = self.doorbell(state, id, 1);
        let ring = state.completion.get_mut(&id).expect("made before");
        let next = (ring.index + 1) % ring.entries;
        assert_ne!(next, head, "the host lets completion queue {id} overflow");
        let mut entry = CompletionEntry {
            result,
            cid,
            submission_queue: queue,
            status_and_phase: status << 1 | u16::from(!ring.phase),
            ..CompletionEntry::default()
        };
        let at = ring.at + 16 * u64::from(ring.index);
        // The phase last, as a bus does with the end of an entry.
        self.store(at, &entry);
        entry.status_and_phase ^= 1;
        std::sync::atomic::fence(Ordering::Release);
        self.store(at + 14, &entry.status_and_phase);
        ring.index = next;
        if next == 0 {
            ring.phase = !ring.phase;
        }
    }

    fn perform(&self, state: &mut State, queue: u16, entry: &SubmissionEntry) {
        if queue != 0 {
            return self.perform_io(state, queue, entry);
        }
        let (id, size) = ((entry.cdw10 & 0xffff) as u16, (entry.cdw10 >> 16) as u16);
        let ring = |completion| Ring {
            at: entry.data[0],
            entries: size + 1,
            index: 0,
            phase: true,
            completion,
        };
        let mut result = 0;
        let creates = [admin::CREATE_COMPLETION_QUEUE, admin::CREATE_SUBMISSION_QUEUE]
            .contains(&entry.opcode());
        if creates && state.behaviour.no_queues {
            return self.complete(state, 0, entry.cid(), 0, 0x4101);
        }
        if entry.opcode() == admin::GET_LOG_PAGE && state.behaviour.no_logs {
            return self.complete(state, 0, entry.cid(), 0, 0x4109);
        }
        match entry.opcode() {
            admin::IDENTIFY if state.behaviour.mute => return,
            admin::IDENTIFY
                if entry.cdw10 == admin::CNS_COMMAND_SET && state.behaviour.limits.is_none() =>
            {
                return self.complete(state, 0, entry.cid(), 0, 0x4002);
            }
            admin::IDENTIFY => {
                let page = state.identify(entry.cdw10 & 0xff);
                self.store_bytes(entry.data[0], &page);
            }
            admin::GET_LOG_PAGE => {
                let mut page = vec![0; 512];
                page[0] = state.health_warning;
                page[1..3].copy_from_slice(&300u16.to_le_bytes());
                self.store_bytes(entry.data[0], &page);
            }
            admin::SET_FEATURES if entry.cdw10 & 0xff == admin::FEATURE_NUMBER_OF_QUEUES => {
                let granted = u32::from(state.behaviour.queues.unwrap_or(8) - 1);
                result = granted << 16 | granted;
            }
            admin::SET_FEATURES if entry.cdw10 & 0xff == admin::FEATURE_HOST_BEHAVIOR => {
                let acre: u8 = self.load(entry.data[0]);
                self.delays_allowed.store(acre == 1, Ordering::Release);
            }
            admin::GET_FEATURES => result = 1,
            admin::CREATE_COMPLETION_QUEUE => {
                state.completion.insert(id, ring(id));
            }
            admin::CREATE_SUBMISSION_QUEUE => {
                state.submission.insert(id, ring((entry.cdw11 >> 16) as u16));
            }
            admin::DELETE_SUBMISSION_QUEUE => {
                state.submission.remove(&id);
            }
            admin::DELETE_COMPLETION_QUEUE => {
                state.completion.remove(&id);
            }
            admin::ASYNCHRONOUS_EVENT_REQUEST => {
                state.listening.push(entry.cid());
                return;
            }
            admin::DOORBELL_BUFFER_CONFIG => state.shadow = Some((entry.data[0], entry.data[1])),
            admin::ABORT => {
                self.aborts.fetch_add(1, Ordering::Relaxed);
                let stuck = (id, size);
                if state.stuck.contains(&stuck) {
                    state.stuck.retain(|other| *other != stuck);
                    self.complete(state, id, size, 0, 0x07);
                }
            }
            _ => {}
        }
        self.complete(state, 0, entry.cid(), result, 0);
    }

    fn perform_io(&self, state: &mut State, queue: u16, entry: &SubmissionEntry) {
        let counted = |count: &mut u32| {
            let some = *count > 0;
            *count = count.saturating_sub(1);
            some
        };
        if counted(&mut state.behaviour.swallow) {
            state.stuck.push((queue, entry.cid()));
            return;
        }
        if let Some((status, count)) = &mut state.behaviour.status
            && counted(count)
        {
            let status = *status;
            self.complete(state, queue, entry.cid(), 0, status);
            if counted(&mut state.behaviour.twice) {
                self.complete(state, queue, entry.cid(), 0, status);
            }
            return;
        }
        let status = self.transfer(state, entry);
        self.complete(state, queue, entry.cid(), 0, status);
        if counted(&mut state.behaviour.twice) {
            self.complete(state, queue, entry.cid(), 0, 0);
        }
        if counted(&mut state.behaviour.phantom) {
            self.complete(state, queue, 0xbeef, 0, 0);
        }
    }

    /// Moves the data of a read or a write; with which status.
    fn transfer(&self, state: &mut State, entry: &SubmissionEntry) -> u16 {
        if entry.opcode() == io::FLUSH {
            return 0;
        }
        if [io::DATASET_MANAGEMENT, io::WRITE_ZEROES].contains(&entry.opcode()) {
            return self.deallocate(state, entry);
        }
        let lba = u64::from(entry.cdw11) << 32 | u64::from(entry.cdw10);
        let blocks = u64::from(entry.cdw12 & 0xffff) + 1;
        if lba + blocks > BLOCKS {
            return 0x4080;
        }
        let small = |value: u64| usize::try_from(value).expect("small");
        let (at, length) = (small(lba) * BLOCK, small(blocks) * BLOCK);
        let tuples = small(lba) * 8..small(lba + blocks) * 8;
        let pieces = self.pieces(entry, length);
        if entry.opcode() == io::WRITE {
            let mut place = at;
            for (address, length) in pieces {
                self.load_bytes(address, &mut state.data[place..place + length]);
                place += length;
            }
            if state.behaviour.protection {
                self.load_bytes(entry.metadata, &mut state.tuples[tuples.clone()]);
                let protection = Protection { kind: ProtectionType::One, block_bytes: BLOCK };
                let data = &state.data[at..at + length];
                if protection.verify(lba, data, &state.tuples[tuples]).is_err() {
                    return 0x4282;
                }
            }
            return 0;
        }
        let rotten = state.behaviour.rot > 0;
        state.behaviour.rot = state.behaviour.rot.saturating_sub(1);
        let mut data = state.data[at..at + length].to_vec();
        if rotten {
            data[length / 2] ^= 0x10;
        }
        let mut place = 0;
        for (address, length) in pieces {
            self.store_bytes(address, &data[place..place + length]);
            place += length;
        }
        if state.behaviour.protection {
            self.store_bytes(entry.metadata, &state.tuples[tuples]);
        }
        0
    }

    /// Lets go of blocks, which read as zeroes without protection from then on.
    fn deallocate(&self, state: &mut State, entry: &SubmissionEntry) -> u16 {
        let (lba, blocks) = if entry.opcode() == io::DATASET_MANAGEMENT {
            assert_eq!((entry.cdw10, entry.cdw11), (0, 4), "one range, to be deallocated");
            // As some hardware does, all that could be ranges is read.
            let mut page = [0; 4096];
            self.load_bytes(entry.data[0], &mut page);
            let at = |at: usize| {
                page[at..at + 4].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
            };
            (at(12) << 32 | at(8), at(4))
        } else {
            assert_eq!(entry.cdw12 >> 25 & 1, 1, "zeroes that deallocate");
            let lba = u64::from(entry.cdw11) << 32 | u64::from(entry.cdw10);
            (lba, u64::from(entry.cdw12 & 0xffff) + 1)
        };
        if lba + blocks > BLOCKS {
            return 0x4080;
        }
        self.deallocated.lock().push((entry.opcode(), lba, blocks));
        let small = |value: u64| usize::try_from(value).expect("small");
        state.data[small(lba) * BLOCK..small(lba + blocks) * BLOCK].fill(0);
        state.tuples[small(lba) * 8..small(lba + blocks) * 8].fill(0xff);
        0
    }

    /// Where a command's data is, page by page.
    fn pieces(&self, entry: &SubmissionEntry, length: usize) -> Vec<(u64, usize)> {
        if entry.is_sgl() {
            assert_eq!(entry.data[1], length as u64, "a descriptor of the data's length");
            return vec![(entry.data[0], length)];
        }
        let first = length.min(4096 - usize::try_from(entry.data[0] % 4096).expect("small"));
        let mut pieces = vec![(entry.data[0], first)];
        let mut left = length - first;
        let is_list = left > 4096;
        for index in 0.. {
            if left == 0 {
                break;
            }
            let page: u64 =
                if is_list { self.load(entry.data[1] + 8 * index) } else { entry.data[1] };
            assert!(page.is_multiple_of(4096), "a PRP entry inside a page: {page:x}h");
            pieces.push((page, left.min(4096)));
            left -= left.min(4096);
        }
        pieces
    }

    /// Where memory of the bus is in this process; it must have been mapped.
    fn translate(&self, iova: u64, length: usize) -> *mut u8 {
        let mapped = self.mapped.lock();
        let (start, size) = mapped.range(..=iova).next_back().expect("an address that is mapped");
        assert!(iova + length as u64 <= start + size, "{length} bytes at {iova:x}h are not mapped");
        std::ptr::with_exposed_provenance_mut(usize::try_from(iova - BUS).expect("an address"))
    }

    #[allow(unsafe_code)]
    fn load<T: Copy>(&self, iova: u64) -> T {
        // SAFETY: the host has mapped it for this.
        unsafe { self.translate(iova, size_of::<T>()).cast::<T>().read_volatile() }
    }

    #[allow(unsafe_code)]
    fn store<T: Copy>(&self, iova: u64, value: &T) {
        // SAFETY: the host has mapped it for this.
        unsafe { self.translate(iova, size_of::<T>()).cast::<T>().write_volatile(*value) }
    }

    #[allow(unsafe_code)]
    fn load_bytes(&self, iova: u64, bytes: &mut [u8]) {
        let from = self.translate(iova, bytes.len());
        // SAFETY: the host has mapped it for this, and waits meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    #[allow(unsafe_code)]
    fn store_bytes(&self, iova: u64, bytes: &[u8]) {
        let to = self.translate(iova, bytes.len());
        // SAFETY: the host has mapped it for this, and waits meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }
}

impl State {
    fn identify(&self, cns: u32) -> Vec<u8> {
        match cns {
            admin::CNS_NAMESPACE => {
                let mut page = namespace_page(BLOCKS, 9);
                if self.behaviour.protection {
                    (page[128], page[29]) = (8, 1);
                }
                self.behaviour.namespace.inspect(|change| change(&mut page));
                page
            }
            admin::CNS_CONTROLLER => {
                let mut page = controller_page();
                self.behaviour.identify.inspect(|change| change(&mut page));
                page
            }
            admin::CNS_COMMAND_SET => {
                let mut page = vec![0; 4096];
                self.behaviour.limits.inspect(|change| change(&mut page));
                page
            }
            _ => {
                let mut page = vec![0; 4096];
                page[0] = 1;
                page
            }
        }
    }
}

fn run(model: &Weak<Model>) {
    while let Some(model) = model.upgrade() {
        let mut state = model.state.lock();
        if model.stop.load(Ordering::Acquire) {
            return;
        }
        model.step(&mut state);
        drop(state);
        drop(model);
        thread::yield_now();
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(REGISTER_BYTES, 4096).expect("a layout");
        // SAFETY: allocated with the same layout, and nobody has the registers any more.
        #[allow(unsafe_code)]
        unsafe {
            dealloc(self.memory.as_ptr(), layout);
        }
    }
}

impl Host for Model {
    fn name(&self) -> String {
        "model".to_owned()
    }

    #[allow(unsafe_code)]
    fn registers(&self) -> Registers {
        // SAFETY: the memory is as long, and lives as long as the model.
        unsafe { Registers::new(self.memory, REGISTER_BYTES) }
    }

    fn map(&self, memory: NonNull<u8>, length: usize) -> Result<u64> {
        assert!(memory.addr().get().is_multiple_of(4096) && length.is_multiple_of(4096));
        let iova = memory.as_ptr().expose_provenance() as u64 + BUS;
        let overlaps = self.mapped.lock().insert(iova, length as u64);
        assert_eq!(overlaps, None, "mapped twice");
        Ok(iova)
    }

    fn unmap(&self, iova: u64, length: usize) {
        assert_eq!(self.mapped.lock().remove(&iova), Some(length as u64));
    }

    fn set_bus_master(&self, _on: bool) -> Result<()> {
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.behaviour.never_stops = false;
        self.registers().write_u32(offset::CC, 0);
        self.step(&mut state);
        Ok(())
    }

    fn is_wanted_back(&self) -> bool {
        self.wanted_back.swap(false, Ordering::AcqRel)
    }

    fn release(&self) {
        self.released.store(true, Ordering::Release);
        self.pull();
    }
}
