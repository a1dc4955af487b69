//! Rings, and the memory that a node writes itself.
#![expect(unsafe_code, reason = "C calls these")]

use std::ffi::{c_char, c_void};

use client::Endpoint;
use dma::Region;

use super::reads;
use crate::abi::{self, Caps, Options};
use crate::arena::Place;
use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::fork;
use crate::handle::{self, Ring};
use crate::options::{self, Settings};

/// What a call returns: 0, or the negative of an error.
pub(crate) fn status(outcome: Outcome<()>) -> i32 {
    outcome.map_or_else(Failure::keep, |()| 0)
}

/// Writes a result to where C wants it.
///
/// # Errors
/// If that is nowhere.
///
/// # Safety
/// It is null, or a `T` may be written there.
pub(crate) unsafe fn check_place<T>(place: *mut T) -> Outcome<()> {
    if place.is_null() || !place.is_aligned() {
        return Err(Failure::invalid(c"there is no place for the result"));
    }
    Ok(())
}

/// Connects to a node and makes a ring. Blocks for at most the time that connecting may take, for each way to the node.
///
/// `endpoint`: "unix:/path/to/forebay.sock" (shared memory), "tcp://host:port", "rdma://host:port", several of the latter two
/// behind each other, "rdma://a:7443,b:7443", or "auto": shared memory with a node on this machine, else TCP at
/// 127.0.0.1:7440. `options`: NULL for the defaults.
///
/// # Errors
/// FOREBAY_INVALID, FOREBAY_DISCONNECTED if nobody answers, FOREBAY_DENIED, FOREBAY_UNSUPPORTED. `*ring` is NULL then.
///
/// # Safety
/// `options` has as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_open(
    endpoint: *const c_char,
    options: *const Options,
    ring: *mut *mut Ring,
) -> i32 {
    status(handle::guarded(|| {
        // SAFETY: a pointer to a pointer of C's.
        unsafe { check_place(ring) }?;
        // SAFETY: just checked.
        unsafe { ring.write(std::ptr::null_mut()) };
        // SAFETY: C promises a string, and that it stays.
        let endpoint: Endpoint = unsafe { options::text(endpoint) }?.parse()?;
        // SAFETY: C promises what its size says.
        let settings = unsafe { Settings::read(options) }?;
        fork::watch();
        let session = endpoint.session(&settings.session)?;
        let opened = handle::open(Core::new(session, settings));
        // SAFETY: checked above.
        unsafe { ring.write(opened) };
        Ok(())
    }))
}

/// Closes a ring: reads that are under way end without a completion, generations that were not committed are gone, files are
/// closed, memory from forebay_alloc is unmapped, and completions are not to be looked at any more.
///
/// # Errors
/// FOREBAY_INVALID for what is no ring or closed already; the last 64 rings that were closed are known, and older ones must not
/// be used. FOREBAY_BUSY if another thread is in a call. FOREBAY_FORKED: nothing of the parent's is touched.
///
/// # Safety
/// no other thread is about to use the ring.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_close(ring: *mut Ring) -> i32 {
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::close(ring) })
}

/// Allocates memory that the node writes and reads itself: page-aligned, with any bytes in it, at the same address until
/// forebay_free. Any number of reads into different parts of it may be under way at a time. May block while the node takes
/// note.
///
/// # Errors
/// FOREBAY_NO_SPACE, FOREBAY_BUSY if the node maps no more, FOREBAY_DISCONNECTED. `*memory` is NULL then.
///
/// # Safety
/// the memory is the ring's: other rings take it for any other memory, and it is gone when the ring is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_alloc(
    ring: *mut Ring,
    length: u64,
    memory: *mut *mut c_void,
) -> i32 {
    let allocate = |core: &mut Core| {
        // SAFETY: a pointer to a pointer of C's.
        unsafe { check_place(memory) }?;
        // SAFETY: just checked.
        unsafe { memory.write(std::ptr::null_mut()) };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let allocated = core.allocate(length)?;
        let base = core.arena.insert(allocated).cast();
        // SAFETY: checked above.
        unsafe { memory.write(base) };
        Ok(())
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, allocate) })
}

/// Has the node read and write memory of the program's own where it is, over RDMA and TCP: it is registered once, here and with
/// each later connection, until forebay_free. Any number of reads into different parts of it may be under way at a time, and no
/// byte is copied once more. Fast reads come of registering once what is read into often: over RDMA this locks its pages.
///
/// # Errors
/// FOREBAY_UNSUPPORTED over shared memory, where a node maps only what was made for it: read into it without registering it, or
/// take forebay_alloc's. FOREBAY_NO_SPACE over the limit on locked memory (`ulimit -l`); FOREBAY_INVALID if a part of it is
/// registered, or forebay_alloc's; FOREBAY_DISCONNECTED.
///
/// # Safety
/// there are so many bytes at `memory`, and they stay until forebay_free of that address or forebay_close has returned 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_register(
    ring: *mut Ring,
    memory: *mut c_void,
    length: u64,
) -> i32 {
    let register = |core: &mut Core| {
        let (base, length, place) = reads::buffer(core, memory, length, 0)?;
        if place != Place::Outside {
            return Err(Failure::invalid(c"this memory is the ring's already"));
        }
        // SAFETY: C promises that it stays, and that nobody else uses it while a read does.
        let region = unsafe { Region::lent(base, length) }?;
        let registered = core.register(&region)?;
        core.arena.insert(registered);
        Ok(())
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, register) })
}

/// Gives memory back, by the address that forebay_alloc returned or forebay_register got. When this has returned 0, no device
/// reaches it any more by this ring.
///
/// # Errors
/// FOREBAY_INVALID if none of this ring's begins there; FOREBAY_BUSY if reads into it are under way: it is still there then.
///
/// # Safety
/// nobody looks any more into memory that forebay_alloc returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_free(ring: *mut Ring, memory: *mut c_void) -> i32 {
    let free = |core: &mut Core| {
        let memory = core.arena.remove(memory.addr())?;
        core.session.release(memory);
        Ok(())
    };
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, free) })
}

/// Says what this machine offers, and a ring, which may be NULL.
///
/// # Errors
/// FOREBAY_INVALID.
///
/// # Safety
/// `caps` has as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_get_caps(ring: *mut Ring, caps: *mut Caps) -> i32 {
    status(handle::guarded(|| {
        // SAFETY: a struct of C's.
        unsafe { check_place(caps) }?;
        // SAFETY: not null.
        let size = unsafe { options::size_of(caps) }?;
        let mut found = Caps::of_machine();
        if !ring.is_null() {
            // SAFETY: C promises a ring.
            found = unsafe { handle::with(ring, |core| Ok(found.of_ring(core))) }?;
        }
        let known = size.min(size_of::<Caps>());
        found.size = u32::try_from(known).unwrap_or(0);
        // SAFETY: C promises as many bytes; what this version does not know becomes zero.
        unsafe { caps.cast::<u8>().write_bytes(0, size) };
        let from = (&raw const found).cast::<u8>();
        // SAFETY: both have so many bytes.
        unsafe { from.copy_to_nonoverlapping(caps.cast(), known) };
        Ok(())
    }))
}

/// The interface that this library has: FOREBAY_ABI of its header.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_abi() -> u32 {
    abi::ABI
}
