//! Requests and completions.
#![expect(unsafe_code, reason = "C calls these")]

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use super::rings::{check_place, status};
use crate::abi::{self, Cqe, File, Sqe};
use crate::arena::Place;
use crate::bugs::{self, Bug};
use crate::clock;
use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::handle::{self, Ring};
use crate::transfer::{Flow, Transfer, Wanted};

/// An empty request, to be prepared before the next forebay_submit. NULL if the ring is full: as many requests as it has entries are
/// prepared, under way, or completed and not seen; or if the ring is none, as forebay_last_error says.
///
/// # Safety
/// the request is the ring's again with the next forebay_submit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_get_sqe(ring: *mut Ring) -> *mut Sqe {
    let get = |core: &mut Core| {
        let full = core.taken() >= core.settings.entries && !bugs::is(Bug::FullRingTakes);
        let request = if full { None } else { core.requests.add() };
        request.ok_or(Failure::of(abi::BUSY, c"the ring is full: look at its completions first"))
    };
    // SAFETY: C promises a ring, or null.
    unsafe { handle::with(ring, get) }.unwrap_or_else(|failure| {
        failure.keep();
        ptr::null_mut()
    })
}

/// Makes a read of a request: `length` bytes of the file from `offset` on, into `buffer`. Sets all but `user_data`.
///
/// Into memory from forebay_alloc, or that forebay_register got, the node writes itself. Into any other the library copies the bytes when they have come, as
/// FOREBAY_PATH_CLIENT_COPY in the completion says.
///
/// # Errors
/// FOREBAY_INVALID for a null pointer. All else is told by the completion.
///
/// # Safety
/// the buffer has so many bytes until the read has completed, and nobody else uses them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_prep_read(
    sqe: *mut Sqe,
    file: File,
    buffer: *mut c_void,
    length: u64,
    offset: u64,
) -> i32 {
    if sqe.is_null() || !sqe.is_aligned() {
        return Failure::invalid(c"the request is a null pointer: is the ring full?").keep();
    }
    // SAFETY: C promises a request of its own.
    let user_data = unsafe { (*sqe).user_data };
    let read = Sqe { opcode: abi::OP_READ, file, buffer, length, offset, user_data, ..Sqe::NONE };
    // SAFETY: likewise.
    unsafe { sqe.write(read) };
    0
}

/// Hands all prepared requests to the node. How many there were: each will have a completion, also those that make no sense.
///
/// # Errors
/// Negative, if the ring is none, or forked, broken or in use by another thread.
///
/// # Safety
/// as with forebay_prep_read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_submit(ring: *mut Ring) -> i32 {
    // SAFETY: C promises a ring, or null.
    let submitted = unsafe { handle::with(ring, |core| Ok(submit(core))) };
    submitted.unwrap_or_else(Failure::keep)
}

fn submit(core: &mut Core) -> i32 {
    let now = clock::now();
    let mut count = 0;
    while let Some(request) = core.requests.take() {
        count += 1;
        match wanted(core, &request, now) {
            Ok(wanted) => core.start(Transfer::new(wanted)),
            Err(failure) => core.refuse(request.user_data, failure),
        }
        assert!(!bugs::is(Bug::Panics), "a rule is broken on purpose");
    }
    core.session.kick();
    count
}

fn wanted(core: &Core, request: &Sqe, begun: Instant) -> Outcome<Wanted> {
    if request.opcode != abi::OP_READ {
        return Err(Failure::invalid(
            c"the request was not prepared, or asks for what is no operation",
        ));
    }
    if request.flags != 0 || request.reserved != [0; 2] {
        return Err(Failure::invalid(c"what is reserved in a request is not 0"));
    }
    let (handle, _, _) = core.opened.reader(request.file)?;
    let (buffer, length, place) = buffer(core, request.buffer, request.length, request.offset)?;
    Ok(Wanted {
        flow: Flow::Read,
        file: request.file,
        handle,
        offset: request.offset,
        buffer,
        length,
        place,
        user_data: request.user_data,
        begun,
    })
}

/// C's buffer, if it makes sense.
pub(crate) fn buffer(
    core: &Core,
    buffer: *mut c_void,
    length: u64,
    offset: u64,
) -> Outcome<(NonNull<u8>, usize, Place)> {
    let Some(buffer) = NonNull::new(buffer.cast::<u8>()) else {
        return Err(Failure::invalid(c"the buffer is a null pointer"));
    };
    if offset.checked_add(length).is_none() {
        return Err(Failure::invalid(c"the bytes go past the end of what a file can be"));
    }
    let length = usize::try_from(length)
        .ok()
        .filter(|length| isize::try_from(*length).is_ok())
        .ok_or(Failure::invalid(c"there is no buffer of that length"))?;
    let place = core.arena.place(buffer.addr().get(), length)?;
    Ok((buffer, length, place))
}

/// The oldest completion that was not seen yet, without waiting; the same one until forebay_cqe_seen.
///
/// If its result is negative, forebay_last_error has the words.
///
/// # Errors
/// FOREBAY_TIMED_OUT if there is none. `*cqe` is NULL then.
///
/// # Safety
/// the completion is the ring's: it is not to be looked at after forebay_cqe_seen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_peek_cqe(ring: *mut Ring, cqe: *mut *const Cqe) -> i32 {
    // SAFETY: as C promises.
    unsafe { hand_out(ring, cqe, |core| first(core).or_else(|| turned(core)).ok_or(NOTHING)) }
}

/// The same, and waits for one for so many microseconds; if `timeout_us` is negative, for as long as it takes: no read takes longer
/// than forebay_options.timeout_us by much.
///
/// # Errors
/// FOREBAY_TIMED_OUT if none came; FOREBAY_INVALID if nothing is under way that could complete. `*cqe` is NULL then.
///
/// # Safety
/// as with forebay_peek_cqe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_wait_cqe(
    ring: *mut Ring,
    cqe: *mut *const Cqe,
    timeout_us: i64,
) -> i32 {
    let wait = |core: &mut Core| {
        if let Some(completion) = first(core) {
            return Ok(completion);
        }
        if !core.is_busy() {
            return Err(Failure::invalid(
                c"nothing is under way that could complete: submit first",
            ));
        }
        let limit = u64::try_from(timeout_us).map_or(Duration::MAX, Duration::from_micros);
        core.advance(limit, |core| first(core)).ok_or(NOTHING)
    };
    // SAFETY: as C promises.
    unsafe { hand_out(ring, cqe, wait) }
}

/// Gives a completion back that was looked at. Completions are given back in the order in which they were handed out.
///
/// # Errors
/// FOREBAY_INVALID if it is not the one that was handed out last, or was given back already.
///
/// # Safety
/// nothing more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_cqe_seen(ring: *mut Ring, cqe: *const Cqe) -> i32 {
    // SAFETY: C promises a ring, or null.
    status(unsafe { handle::with(ring, |core| core.completions.seen(cqe)) })
}

type First = (*const Cqe, Option<Failure>);

const NOTHING: Failure = Failure::of(abi::TIMED_OUT, c"nothing has completed yet");

fn first(core: &Core) -> Option<First> {
    let (completion, failure) = core.completions.first()?;
    Some((completion, failure.cloned()))
}

fn turned(core: &mut Core) -> Option<First> {
    core.turn();
    first(core)
}

/// # Safety
/// The ring is one, or null; a pointer may be written to `place`, unless that is null.
unsafe fn hand_out(
    ring: *mut Ring,
    place: *mut *const Cqe,
    find: impl FnOnce(&mut Core) -> Outcome<First>,
) -> i32 {
    let hand_out = |core: &mut Core| {
        // SAFETY: as the caller promises.
        unsafe { check_place(place) }?;
        // SAFETY: just checked.
        unsafe { place.write(ptr::null()) };
        let (completion, failure) = find(core)?;
        if let Some(failure) = failure {
            failure.keep();
        }
        // SAFETY: checked above.
        unsafe { place.write(completion) };
        Ok(())
    };
    // SAFETY: as the caller promises.
    status(unsafe { handle::with(ring, hand_out) })
}
