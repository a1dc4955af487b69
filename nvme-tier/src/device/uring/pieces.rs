//! Commands to namespaces, in the pieces that the device takes at once.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::mem;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use dma::{HugePages, Region, Source, Target, Window};
use extent::{Error, Result};

use crate::device::nvme::{PAGE_BYTES, Status};
use crate::device::passthrough::{Io, Namespace};
use crate::device::{Command, Media};

/// Pieces of one command that are in flight at once.
pub(super) const PIECES_AT_ONCE: usize = 4;

/// How often a piece that failed in a way that may pass is sent again.
const MOST_RETRIES: u8 = 4;

/// A client's memory is copied this much at a time to compute its protection information: a
/// multiple of every block.
const COPY_BYTES: usize = 64 << 10;

/// The pieces of every slot's command, and memory for their protection information.
#[derive(Default)]
pub(super) struct Pieces {
    all: Vec<Split>,
    metadata: Option<Arc<Region>>,
    /// Bytes of one piece's protection information.
    stride_bytes: usize,
    /// A page for each deallocation in flight, with its range, by slot.
    ranges: HashMap<u32, Arc<Region>>,
    copy: Box<[u8]>,
    /// This kernel does not take registered memory for commands, or not this memory.
    refuses_registered: bool,
}

/// How far a command is.
#[derive(Default)]
struct Split {
    /// Bytes that are in pieces, or were.
    issued: u32,
    pieces: [Piece; PIECES_AT_ONCE],
    failure: Option<Error>,
}

#[derive(Clone, Copy, Default)]
struct Piece {
    /// From the command's start.
    start: u32,
    length: u32,
    retries: u8,
    is_registered: bool,
    is_busy: bool,
}

/// What follows from a piece's end.
pub(super) enum Next {
    /// The piece, or the one in its place, is to be sent.
    Send,
    /// Others are in flight.
    Wait,
    /// The command is over.
    Over(Result<()>),
}

impl Pieces {
    /// Room for so many commands; none if no medium is a namespace.
    pub(super) fn new(media: &Media, depth: usize) -> Result<Self> {
        if media.namespaces().next().is_none() {
            return Ok(Self::default());
        }
        let bytes = |namespace: &Namespace| {
            let protection = namespace.protection()?;
            Some(protection.bytes_for(namespace.largest_piece_bytes() as usize))
        };
        let stride_bytes = media.namespaces().filter_map(bytes).max().unwrap_or(0);
        let (metadata, copy) = if stride_bytes == 0 {
            (None, Box::default())
        } else {
            let bytes = depth * PIECES_AT_ONCE * stride_bytes;
            let region = Region::anonymous(bytes, HugePages::Never)?;
            (Some(region), vec![0; COPY_BYTES].into_boxed_slice())
        };
        let all = (0..depth).map(|_| Split::default()).collect();
        let ranges = HashMap::new();
        Ok(Self { all, metadata, stride_bytes, ranges, copy, refuses_registered: false })
    }

    /// Makes the memory that a command needs beside its own: the range of a deallocation.
    ///
    /// # Errors
    /// [`extent::Kind::NoSpace`] if there is none.
    pub(super) fn make_room(
        &mut self,
        slot: u32,
        command: &Command,
        namespace: Option<&Namespace>,
    ) -> Result<()> {
        let Command::Deallocate { at, bytes } = command else { return Ok(()) };
        let deallocator = namespace.and_then(Namespace::deallocator);
        let Some(deallocator) = deallocator.filter(|it| it.has_range()) else { return Ok(()) };
        let page = Region::anonymous(PAGE_BYTES, HugePages::Never)?;
        let range = deallocator.range(at.offset, *bytes);
        let place = page.at(0, range.len()).as_ptr();
        // SAFETY: the page is new, nobody else has it, and the range fits.
        unsafe { ptr::copy_nonoverlapping(range.as_ptr(), place, range.len()) };
        self.ranges.insert(slot, page);
        Ok(())
    }

    /// The page with the range of a slot's deallocation.
    pub(super) fn range_page(&self, slot: u32) -> Option<*mut u8> {
        self.ranges.get(&slot).map(|page| page.at(0, PAGE_BYTES).as_ptr())
    }

    /// Cuts off the first piece of a new command.
    pub(super) fn begin(&mut self, slot: u32, command: &Command, namespace: &Namespace) {
        let split = &mut self.all[slot as usize];
        debug_assert!(split.pieces.iter().all(|piece| !piece.is_busy), "the last one is over");
        split.issued = 0;
        split.cut(0, command, namespace);
    }

    /// Cuts off another one, if there is more of it.
    pub(super) fn cut(
        &mut self,
        slot: u32,
        piece: usize,
        command: &Command,
        namespace: &Namespace,
    ) -> bool {
        let split = &mut self.all[slot as usize];
        let is_more = (split.issued as usize) < command.length();
        if is_more {
            split.cut(piece, command, namespace);
        }
        is_more
    }

    /// The pieces of a slot's command that are in flight.
    pub(super) fn busy(&self, slot: u32) -> impl Iterator<Item = usize> + use<> {
        let pieces = self.all.get(slot as usize).map(|split| split.pieces).unwrap_or_default();
        (0..PIECES_AT_ONCE).filter(move |piece| pieces[*piece].is_busy)
    }

    /// A piece as the device is to see it; `None` for what moves no bytes. Makes the protection information of
    /// what is written. `find` says where memory is registered.
    pub(super) fn prepare(
        &mut self,
        slot: u32,
        piece: usize,
        command: &Command,
        namespace: &Namespace,
        find: &dyn Fn(*mut u8, usize) -> Option<u16>,
    ) -> Option<Io> {
        let Piece { start, length, .. } = self.all[slot as usize].pieces[piece];
        let (at, address, is_write) = match command {
            Command::Flush(_) | Command::Deallocate { .. } => return None,
            Command::Read { at, into } => (at, into.address(), false),
            Command::Write { at, from } => (at, from.address(), true),
        };
        let offset = at.offset + u64::from(start);
        let mut metadata = ptr::null_mut();
        if namespace.protection().is_some() {
            let tuples = self.tuples(slot, piece, length, namespace);
            metadata = tuples.cast();
            if let Command::Write { from, .. } = command {
                let memory = Memory::of_source(from);
                self.protect(memory, offset, range(start, length), tuples, namespace);
            }
        }
        let memory = address.as_ptr().wrapping_add(start as usize);
        let place = if self.refuses_registered { None } else { find(memory, length as usize) };
        self.all[slot as usize].pieces[piece].is_registered = place.is_some();
        Some(Io { is_write, offset, memory, length, place, metadata })
    }

    fn protect(
        &mut self,
        memory: Memory<'_>,
        offset: u64,
        range: Range<usize>,
        tuples: *mut [u8],
        namespace: &Namespace,
    ) {
        let Some(protection) = namespace.protection() else { return };
        // SAFETY: this part of the region belongs to this piece alone, and the kernel gets it only
        // after this borrow has ended.
        let tuples = unsafe { &mut *tuples };
        let block = u64::from(namespace.block_bytes());
        let made = memory.each(range, &mut self.copy, |at, bytes| {
            let part = protection.bytes_for(at)..protection.bytes_for(at + bytes.len());
            protection.protect((offset + at as u64) / block, bytes, &mut tuples[part]);
            Ok(())
        });
        debug_assert!(made.is_ok(), "protecting does not fail");
    }

    /// Takes a piece's end: what the kernel says of it, and whether what was read is right.
    pub(super) fn on_completion(
        &mut self,
        slot: u32,
        piece: usize,
        result: i32,
        command: &Command,
        namespace: &Namespace,
        describe: &dyn Fn() -> String,
    ) -> Next {
        let split = &mut self.all[slot as usize];
        let was_registered = mem::take(&mut split.pieces[piece].is_registered);
        if result == -libc::EINVAL && was_registered {
            if !mem::replace(&mut self.refuses_registered, true) {
                tracing::info!("this kernel takes no registered memory for NVMe commands");
            }
            return Next::Send;
        }
        let outcome = match split.judge(piece, result, command, describe) {
            None => return Next::Send,
            Some(Ok(())) => self.verify(slot, piece, command, namespace, describe),
            Some(failure) => failure,
        };
        let split = &mut self.all[slot as usize];
        split.pieces[piece].is_busy = false;
        match outcome {
            Ok(()) if split.failure.is_none() && (split.issued as usize) < command.length() => {
                split.cut(piece, command, namespace);
                return Next::Send;
            }
            Ok(()) => {}
            Err(error) => split.failure = split.failure.take().or(Some(error)),
        }
        if split.pieces.iter().any(|piece| piece.is_busy) {
            return Next::Wait;
        }
        if matches!(command, Command::Deallocate { .. }) {
            self.ranges.remove(&slot);
        }
        let split = &mut self.all[slot as usize];
        Next::Over(split.failure.take().map_or(Ok(()), Err))
    }

    /// Gives the memory up for good, since the kernel may still write to it.
    pub(super) fn leak(&mut self) {
        mem::forget(self.metadata.take());
        mem::forget(mem::take(&mut self.ranges));
    }

    fn verify(
        &mut self,
        slot: u32,
        piece: usize,
        command: &Command,
        namespace: &Namespace,
        describe: &dyn Fn() -> String,
    ) -> Result<()> {
        let (Some(protection), Command::Read { at, into }) = (namespace.protection(), command)
        else {
            return Ok(());
        };
        let Piece { start, length, .. } = self.all[slot as usize].pieces[piece];
        let tuples = self.tuples(slot, piece, length, namespace);
        // SAFETY: this part of the region belongs to this piece alone, and the kernel is done with
        // it.
        let tuples = unsafe { &*tuples };
        let (block, offset) = (u64::from(namespace.block_bytes()), at.offset + u64::from(start));
        Memory::of_target(into).each(range(start, length), &mut self.copy, |at, bytes| {
            let part = protection.bytes_for(at)..protection.bytes_for(at + bytes.len());
            protection
                .verify((offset + at as u64) / block, bytes, &tuples[part])
                .map_err(|error| error.while_doing(describe()))
        })
    }

    /// Where a piece's protection information lies.
    fn tuples(&self, slot: u32, piece: usize, length: u32, namespace: &Namespace) -> *mut [u8] {
        let protection = namespace.protection().expect("asked only where there is");
        let region = self.metadata.as_ref().expect("made where one namespace is protected");
        let at = (slot as usize * PIECES_AT_ONCE + piece) * self.stride_bytes;
        let bytes = protection.bytes_for(length as usize);
        ptr::slice_from_raw_parts_mut(region.at(at, bytes).as_ptr(), bytes)
    }
}

impl Split {
    fn cut(&mut self, piece: usize, command: &Command, namespace: &Namespace) {
        let length = match command {
            Command::Flush(_) | Command::Deallocate { .. } => 0,
            Command::Read { at, .. } | Command::Write { at, .. } => {
                let left = command.length() - self.issued as usize;
                let most = namespace.piece_bytes(at.offset + u64::from(self.issued));
                most.min(u32::try_from(left).unwrap_or(u32::MAX))
            }
        };
        self.pieces[piece] =
            Piece { start: self.issued, length, retries: 0, is_registered: false, is_busy: true };
        self.issued += length;
    }

    /// What became of a piece; `None` if it is to be sent again.
    fn judge(
        &mut self,
        piece: usize,
        result: i32,
        command: &Command,
        describe: &dyn Fn() -> String,
    ) -> Option<Result<()>> {
        if result == 0 {
            return Some(Ok(()));
        }
        let is_flush = matches!(command, Command::Flush(_));
        let (may_pass, error) = match u16::try_from(result) {
            Ok(field) => {
                let status = Status::from_field(field);
                // Of a flush that failed nobody knows what it left, so a second one proves nothing.
                (status.is_worth_a_retry() && !is_flush, status.error(describe()))
            }
            Err(_) => {
                let error = io::Error::from_raw_os_error(-result);
                // Not sent yet; or given up by the kernel, which had to reset the controller.
                let unsent = error.raw_os_error() == Some(libc::EAGAIN);
                let given_up = error.raw_os_error() == Some(libc::EINTR) && !is_flush;
                (unsent || given_up, Error::io(describe(), error))
            }
        };
        let piece = &mut self.pieces[piece];
        if may_pass && piece.retries < MOST_RETRIES && self.failure.is_none() {
            piece.retries += 1;
            tracing::debug!(%error, "trying once more");
            return None;
        }
        Some(Err(error))
    }
}

fn range(start: u32, length: u32) -> Range<usize> {
    start as usize..start as usize + length as usize
}

/// A command's memory.
enum Memory<'a> {
    /// A buffer, of which the kernel may have other pieces.
    Own(NonNull<u8>),
    /// A client's, which may change at any moment.
    Window(&'a Window),
}

impl<'a> Memory<'a> {
    fn of_source(source: &'a Source) -> Self {
        match source {
            Source::Buffer(..) | Source::Frozen(..) => Self::Own(source.address()),
            Source::Window(window) => Self::Window(window),
        }
    }

    fn of_target(target: &'a Target) -> Self {
        match target {
            Target::Buffer(..) => Self::Own(target.address()),
            Target::Window(window) => Self::Window(window),
        }
    }

    /// Shows a range, in order: how far from its start, and the bytes there.
    fn each(
        self,
        range: Range<usize>,
        copy: &mut [u8],
        mut show: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Own(start) => {
                let start = start.as_ptr().wrapping_add(range.start);
                // SAFETY: pieces lie inside of the command's memory, which the command owns, and
                // the kernel does not have this one.
                show(0, unsafe { slice::from_raw_parts(start, range.len()) })
            }
            Self::Window(window) => {
                for at in range.clone().step_by(COPY_BYTES) {
                    let end = range.end.min(at + COPY_BYTES);
                    let copy = &mut copy[..end - at];
                    window.part(at..end).copy_out(copy);
                    show(at - range.start, copy)?;
                }
                Ok(())
            }
        }
    }
}
