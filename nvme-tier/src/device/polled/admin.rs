//! The admin queue: one command at a time, waited for by polling. It is for whoever sets up,
//! watches and mends; no I/O passes through it.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use extent::{Kind, Result};

use super::doorbell::{Doorbell, Side};
use super::memory::DmaMemory;
use super::rings::{CompletionRing, SubmissionRing};
use super::{Host, Registers};
use crate::clock;
use crate::device::nvme::{
    AdminQueueAttributes, AsynchronousEvent, Capabilities, CompletionEntry, DataPointer,
    PAGE_BYTES, Status, SubmissionEntry, admin, offset,
};

const ENTRIES: u16 = 32;
const COMPLETIONS_AT: usize = PAGE_BYTES;
const DATA_AT: usize = 2 * PAGE_BYTES;

/// Command ids of asynchronous event requests; others are below.
const FIRST_EVENT_CID: u16 = 0xff00;

/// More at once than this come only from a device that is broken, and is heard anyway.
const MOST_EVENTS: u16 = 4;

/// Polled without a pause this often, then with one.
const SPINS: u32 = 1000;
const PAUSE: Duration = Duration::from_micros(50);

#[derive(Debug)]
pub(super) struct AdminQueue {
    submission: SubmissionRing,
    completion: CompletionRing,
    /// Submission entries, completion entries, and a page for a command's data.
    memory: DmaMemory,
    registers: Registers,
    /// How long a command may take.
    limit: Duration,
    next_cid: u16,
    /// Which event requests the controller holds: a bit for each id.
    listening: u16,
    /// Whether a command was not answered: then only a reset helps.
    silent: bool,
    events: Vec<AsynchronousEvent>,
}

impl AdminQueue {
    pub(super) fn new(
        host: &Arc<dyn Host>,
        capabilities: Capabilities,
        limit: Duration,
    ) -> Result<Self> {
        let memory = DmaMemory::new(host, 3 * PAGE_BYTES)?;
        let registers = host.registers();
        let doorbell = |side| Doorbell::new(registers, capabilities, 0, side, None);
        // SAFETY: the memory is fresh and zeroed, and kept beside the rings.
        let submission = unsafe {
            let entries = memory.at(0, usize::from(ENTRIES) * 64).cast();
            SubmissionRing::new(entries, ENTRIES, doorbell(Side::Submission))
        };
        // SAFETY: as above. Every command is waited for, so few are ever in flight.
        let completion = unsafe {
            let entries = memory.at(COMPLETIONS_AT, usize::from(ENTRIES) * 16).cast();
            CompletionRing::new(entries, ENTRIES, ENTRIES - 1, doorbell(Side::Completion))
        };
        let events = Vec::with_capacity(usize::from(MOST_EVENTS));
        Ok(Self {
            submission,
            completion,
            memory,
            registers,
            limit,
            next_cid: 0,
            listening: 0,
            silent: false,
            events,
        })
    }

    /// Empties the rings and tells the controller, which is disabled, where they are.
    pub(super) fn attach(&mut self) {
        self.memory.zero(0, 2 * PAGE_BYTES);
        self.submission.clear();
        self.completion.clear();
        self.listening = 0;
        self.silent = false;
        self.registers.write_u32(offset::AQA, AdminQueueAttributes::of(ENTRIES).0);
        self.registers.write_u64(offset::ASQ, self.memory.iova(0));
        self.registers.write_u64(offset::ACQ, self.memory.iova(COMPLETIONS_AT));
    }

    /// Sends a command and waits for its end.
    ///
    /// # Errors
    /// [`Kind::Io`] if the controller does not answer in time, after which it needs a reset; and
    /// as its status says.
    pub(super) fn execute(
        &mut self,
        doing: &str,
        mut entry: SubmissionEntry,
    ) -> Result<CompletionEntry> {
        let cid = self.next_cid;
        self.next_cid = (cid + 1) % FIRST_EVENT_CID;
        entry.cdw0 = entry.cdw0 & 0xffff | u32::from(cid) << 16;
        self.submission.push(&entry);
        self.submission.ring();
        let begin = clock::now();
        let mut spins = 0;
        loop {
            while let Some(completion) = self.next() {
                if completion.cid == cid {
                    let status = completion.status();
                    return if status.is_success() {
                        Ok(completion)
                    } else {
                        Err(status.error(doing))
                    };
                }
                tracing::warn!(
                    cid = completion.cid,
                    "an admin command that nobody waits for ended"
                );
            }
            if begin.elapsed() > self.limit {
                self.silent = true;
                return Err(Kind::Io.error(format!(
                    "{doing}: the controller did not answer in {} s",
                    self.limit.as_secs_f32()
                )));
            }
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::sleep(PAUSE) }
        }
    }

    /// As [`AdminQueue::execute`], for commands that return a page; its first `length` bytes.
    ///
    /// # Errors
    /// As [`AdminQueue::execute`].
    pub(super) fn fetch(
        &mut self,
        doing: &str,
        entry: SubmissionEntry,
        length: usize,
    ) -> Result<Vec<u8>> {
        self.memory.zero(DATA_AT, PAGE_BYTES);
        let entry = entry.with_data(DataPointer::Prp(self.memory.iova(DATA_AT), 0));
        self.execute(doing, entry)?;
        Ok(self.memory.copy(DATA_AT, length))
    }

    /// As [`AdminQueue::execute`], for commands that take a few bytes.
    ///
    /// # Errors
    /// As [`AdminQueue::execute`].
    pub(super) fn give(&mut self, doing: &str, entry: SubmissionEntry, bytes: &[u8]) -> Result<()> {
        self.memory.zero(DATA_AT, PAGE_BYTES);
        self.memory.write(DATA_AT, bytes);
        let entry = entry.with_data(DataPointer::Prp(self.memory.iova(DATA_AT), 0));
        self.execute(doing, entry).map(|_| ())
    }

    /// Whether it has left a command without an answer.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Has the controller tell of what happens to it, with so many requests at once.
    pub(super) fn listen(&mut self, allowed: u16) {
        for id in 0..allowed.min(MOST_EVENTS) {
            if self.listening >> id & 1 == 0 {
                let opcode = admin::ASYNCHRONOUS_EVENT_REQUEST;
                self.submission.push(&SubmissionEntry::new(opcode, FIRST_EVENT_CID + id, 0));
                self.listening |= 1 << id;
            }
        }
        self.submission.ring();
    }

    /// What it has told since.
    pub(super) fn take_events(&mut self) -> Vec<AsynchronousEvent> {
        while self.next().is_some() {
            tracing::warn!("an admin command that nobody waits for ended");
        }
        std::mem::take(&mut self.events)
    }

    /// The next completion that is no event's.
    fn next(&mut self) -> Option<CompletionEntry> {
        loop {
            let completion = self.completion.next()?;
            self.completion.report();
            if completion.cid < FIRST_EVENT_CID {
                return Some(completion);
            }
            let id = completion.cid - FIRST_EVENT_CID;
            self.listening &= !1u16.checked_shl(id.into()).unwrap_or(0);
            match completion.status() {
                status if status.is_success() && self.events.len() < usize::from(MOST_EVENTS) => {
                    self.events.push(AsynchronousEvent(completion.result));
                }
                status if status.is_success() => {}
                status => refused(status),
            }
        }
    }
}

fn refused(status: Status) {
    tracing::debug!(%status, "an asynchronous event request ended");
}
