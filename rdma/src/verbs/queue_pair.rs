//! Queue pairs: one reliable connection each.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::Arc;

use extent::Result;

use super::adapter::{check, none};
use super::completion::CompletionQueue;
use super::connection::CmId;
use super::ffi;
use super::memory::ProtectionDomain;
use super::provider::Provider;
use super::rdma_core::RdmaCore;
use super::receive::{Slots, post_to};
use super::send_queue::{BATCH, MESSAGE_BYTES, Posting, Postings, Wire, Work};

/// How long the other side waits where it finds no receive: 0.64 ms (InfiniBand specification, volume
/// 1, table 46); RDMA CM would have it wait for 655.
const RECEIVER_PAUSE: u8 = 12;

/// Where a queue pair's messages come in.
#[derive(Debug)]
pub(super) enum Receives<P: Provider = RdmaCore> {
    /// Places that it shares with others.
    Shared(Arc<P::SharedReceiveQueue>),
    /// Its own.
    Own(Slots<P>),
}

/// A connection that can be sent over. Dropping it destroys it, and then the device uses none of the
/// memory that was posted any more.
#[derive(Debug)]
pub(super) struct QueuePair {
    number: u32,
    inline_bytes: u32,
    /// From which messages are sent that are too long to be inline, with one slot for each place of
    /// the send queue.
    staging: Option<Slots>,
    depth: u32,
    receives: Receives,
    // The order in which they are dropped: the id after its queue pair, then what that used.
    id: CmId,
    _queue: Arc<CompletionQueue>,
    _domain: Arc<ProtectionDomain>,
}

impl QueuePair {
    /// Makes a queue pair for a connection. All its completions come to one queue.
    pub(super) fn new(
        id: CmId,
        domain: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue>,
        receives: Receives,
        depth: u32,
    ) -> Result<Self> {
        let messages = u32::try_from(MESSAGE_BYTES).expect("short");
        let made = create(&id, domain, queue, &receives, depth, messages);
        // Some devices take no more than a few bytes inline.
        let inline = match made {
            Ok(inline) => inline,
            Err(_) => create(&id, domain, queue, &receives, depth, 0)?,
        };
        // SAFETY: the id is live.
        let raw = unsafe { (*id.as_ptr()).qp };
        // SAFETY: it has a queue pair now.
        let number = unsafe { (*raw).qp_num };
        let mut pair = Self {
            number,
            inline_bytes: inline,
            staging: None,
            depth,
            receives,
            id,
            _queue: Arc::clone(queue),
            _domain: Arc::clone(domain),
        };
        if inline < messages {
            pair.staging = Some(Slots::new(domain, messages, depth)?);
        }
        Ok(pair)
    }

    /// What completions call it.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn id(&self) -> &CmId {
        &self.id
    }

    pub(super) fn receives(&self) -> &Receives {
        &self.receives
    }

    /// Makes slots of its own ready for messages (again).
    pub(super) fn post_receives(&self, which: &[u32]) -> Result<()> {
        match &self.receives {
            Receives::Own(slots) => post_to(self.as_ptr(), slots, which),
            Receives::Shared(shared) => shared.post(which),
        }
    }

    /// Of a connection that can send: takes from the other side whatever right RDMA CM gave it to use
    /// this side's memory through this queue pair (no memory of a node has such rights either; one
    /// fence is not enough), and has it try again soon where it finds no receive.
    pub(super) fn settle(&self) -> Result<()> {
        // SAFETY: a C struct of numbers, for which zero is a value.
        let mut attributes: ffi::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = ffi::IBV_QPS_RTS;
        attributes.qp_access_flags = 0;
        attributes.min_rnr_timer = RECEIVER_PAUSE;
        let mask = ffi::IBV_QP_STATE | ffi::IBV_QP_ACCESS_FLAGS | ffi::IBV_QP_MIN_RNR_TIMER;
        // SAFETY: the queue pair is live; the attributes are read during the call.
        let failed =
            unsafe { (ffi::library()?.ibv_modify_qp)(self.as_ptr(), &raw mut attributes, mask) };
        check(failed, "setting up a queue pair")
    }

    /// Takes it to a state, as no node does.
    #[cfg(test)]
    pub(super) fn force(&self, state: u32) -> Result<()> {
        // SAFETY: a C struct of numbers, for which zero is a value.
        let mut attributes: ffi::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = state;
        let library = ffi::library()?;
        // SAFETY: the queue pair is live; the attributes are read during the call.
        let failed = unsafe {
            (library.ibv_modify_qp)(self.as_ptr(), &raw mut attributes, ffi::IBV_QP_STATE)
        };
        check(failed, "changing a queue pair")
    }

    /// Has a device forget a key, as no node does: this side's device, or the other side's by a message.
    #[cfg(test)]
    pub(super) fn invalidate(
        &self,
        key: u32,
        message: Option<super::send_queue::Local>,
    ) -> Result<()> {
        let opcode = match message {
            Some(_) => ffi::IBV_WR_SEND_WITH_INV,
            None => ffi::IBV_WR_LOCAL_INV,
        };
        let mut element = message.map(|local| ffi::ibv_sge {
            addr: local.address,
            length: local.length,
            lkey: local.key,
        });
        let mut request = ffi::ibv_send_wr {
            wr_id: 0,
            next: none(),
            sg_list: element.as_mut().map_or(none(), |element| &raw mut *element),
            num_sge: i32::from(message.is_some()),
            opcode,
            send_flags: ffi::IBV_SEND_SIGNALED,
            // The same place of a union.
            imm_data: key,
            remote_addr: 0,
            rkey: 0,
            rest: [0; 9],
        };
        let mut bad = none();
        // SAFETY: the request and its element live until this returns, and the caller keeps its memory.
        let failed = unsafe { ffi::post_send(self.as_ptr(), &raw mut request, &raw mut bad) };
        check(failed, "posting work requests")
    }

    fn as_ptr(&self) -> *mut ffi::ibv_qp {
        // SAFETY: the id is live, and has its queue pair until this is dropped.
        unsafe { (*self.id.as_ptr()).qp }
    }

    fn entry(&self, posting: &Posting<'_>) -> Entry {
        let mut flags = if posting.signalled { ffi::IBV_SEND_SIGNALED } else { 0 };
        let mut immediate = 0;
        let element = |local: &super::send_queue::Local| ffi::ibv_sge {
            addr: local.address,
            length: local.length,
            lkey: local.key,
        };
        let (opcode, element, remote) = match posting.work {
            Work::Write { from, to, immediate: None, .. } => {
                (ffi::IBV_WR_RDMA_WRITE, element(from), Some(*to))
            }
            Work::Write { from, to, immediate: Some(message), .. } => {
                flags |= ffi::IBV_SEND_SOLICITED;
                immediate = message.to_be();
                (ffi::IBV_WR_RDMA_WRITE_WITH_IMM, element(from), Some(*to))
            }
            Work::Read { into, from, .. } => (ffi::IBV_WR_RDMA_READ, element(into), Some(*from)),
            Work::Send(message) => {
                flags |= ffi::IBV_SEND_SOLICITED;
                let length = u32::from(message.length);
                let element = match &self.staging {
                    Some(staging) if length > self.inline_bytes => {
                        let number = u32::try_from(posting.id & u64::from(u32::MAX));
                        let slot = number.expect("masked") % self.depth;
                        staging.copy_in(slot, message.as_slice());
                        staging.element(slot, length)
                    }
                    _ => {
                        flags |= ffi::IBV_SEND_INLINE;
                        let addr = message.bytes.as_ptr().addr() as u64;
                        ffi::ibv_sge { addr, length, lkey: 0 }
                    }
                };
                (ffi::IBV_WR_SEND, element, None)
            }
        };
        let request = ffi::ibv_send_wr {
            wr_id: posting.id,
            next: none(),
            sg_list: none(),
            num_sge: 1,
            opcode,
            send_flags: flags,
            imm_data: immediate,
            remote_addr: remote.map_or(0, |remote| remote.address),
            rkey: remote.map_or(0, |remote| remote.key),
            rest: [0; 9],
        };
        Entry { request, element }
    }
}

/// Makes the queue pair of an id, with room for so many bytes in its entries. Returns how many there
/// are.
fn create(
    id: &CmId,
    domain: &Arc<ProtectionDomain>,
    queue: &Arc<CompletionQueue>,
    receives: &Receives,
    depth: u32,
    inline_bytes: u32,
) -> Result<u32> {
    let (srq, own) = match receives {
        Receives::Shared(shared) => (shared.as_ptr(), 0),
        Receives::Own(slots) => (none(), slots.count()),
    };
    let mut attributes = ffi::ibv_qp_init_attr {
        qp_context: none(),
        send_cq: queue.as_ptr(),
        recv_cq: queue.as_ptr(),
        srq,
        cap: ffi::ibv_qp_cap {
            max_send_wr: depth,
            max_recv_wr: own,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: inline_bytes,
        },
        qp_type: ffi::IBV_QPT_RC,
        sq_sig_all: 0,
    };
    // SAFETY: everything named is live; the attributes are read and written during the call.
    let failed = unsafe {
        (ffi::library()?.rdma_create_qp)(id.as_ptr(), domain.as_ptr(), &raw mut attributes)
    };
    check(failed, "making a queue pair")?;
    Ok(attributes.cap.max_inline_data)
}

/// A work request and the memory that it names.
#[repr(C)]
struct Entry {
    /// First, so that its address is the entry's.
    request: ffi::ibv_send_wr,
    element: ffi::ibv_sge,
}

impl Wire for QueuePair {
    fn post<'a>(&mut self, postings: impl Postings<'a>) -> (usize, Result<()>) {
        let count = postings.len();
        assert!(count <= BATCH, "{count} work requests at once");
        // Most lists are short, and the entries large: none is written that is not used.
        let mut list = [const { MaybeUninit::<Entry>::uninit() }; BATCH];
        let mut next = none();
        for (posting, place) in postings.zip(&mut list[..count]).rev() {
            let entry = place.write(self.entry(&posting));
            entry.request.sg_list = &raw mut entry.element;
            entry.request.next = next;
            next = &raw mut entry.request;
        }
        let mut bad = none();
        // SAFETY: the list, its elements and inline bytes live until this returns; the memory that
        // they name is kept by the send queue until they complete or this queue pair is destroyed.
        let failed = unsafe { ffi::post_send(self.as_ptr(), next, &raw mut bad) };
        let result = check(failed, "posting work requests");
        let taken = match &result {
            Ok(()) => count,
            // It names the first that it did not take. One that names none may have taken all before the device could
            // be told: their completions need places.
            Err(_) => {
                let mut used = list[..count].iter();
                used.position(|entry| entry.as_ptr().addr() == bad.addr()).unwrap_or(count)
            }
        };
        (taken, result)
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let Ok(library) = ffi::library() else { return };
        // SAFETY: the id is live and has a queue pair; whatever it used is dropped after this.
        unsafe { (library.rdma_destroy_qp)(self.id.as_ptr()) };
    }
}
