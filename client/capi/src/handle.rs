//! What C holds in its hands: rings, and how a call gets at one.
#![expect(unsafe_code, reason = "C hands pointers over")]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};

use crate::abi;
use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::fork;

const OPEN: u64 = u64::from_le_bytes(*b"4bayRING");
const CLOSED: u64 = u64::from_le_bytes(*b"4bayDONE");
/// Closed rings that are still known as such. The oldest is then freed.
const REMEMBERED: usize = 64;

/// A ring: a connection to a node, and the reads that one thread has on the way. The rest of it is
/// the library's.
pub struct Ring {
    magic: AtomicU64,
    /// A thread is in a call.
    busy: AtomicBool,
    /// A rule was broken: what is in here makes no sense any more.
    broken: AtomicBool,
    /// The process that opened it.
    process: u32,
    core: UnsafeCell<Option<Box<Core>>>,
}

// SAFETY: whoever sets `busy` has the core to itself, and closed rings have none.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

/// The oldest comes first.
static CLOSED_RINGS: Mutex<VecDeque<Box<Ring>>> = Mutex::new(VecDeque::new());

/// Hands a ring out to C.
pub(crate) fn open(core: Core) -> *mut Ring {
    Box::into_raw(Box::new(Ring {
        magic: AtomicU64::new(OPEN),
        busy: AtomicBool::new(false),
        broken: AtomicBool::new(false),
        process: fork::generation(),
        core: UnsafeCell::new(Some(Box::new(core))),
    }))
}

/// Does something with a ring.
///
/// # Safety
/// `ring` is null, or came from [`open`] and was closed no more than [`REMEMBERED`] rings ago.
pub(crate) unsafe fn with<T>(
    ring: *mut Ring,
    act: impl FnOnce(&mut Core) -> Outcome<T>,
) -> Outcome<T> {
    // SAFETY: as the caller promises.
    let ring = unsafe { seen(ring) }?;
    let turn = Turn::take(ring)?;
    if ring.broken.load(Ordering::Relaxed) {
        return Err(BROKEN);
    }
    // SAFETY: the turn keeps all others out, and calls do not nest.
    let core = unsafe { &mut *ring.core.get() };
    let Some(core) = core.as_deref_mut() else { return Err(CLOSED_ALREADY) };
    let outcome = guarded(|| act(core));
    if outcome.as_ref().is_err_and(|failure| failure.code == abi::BROKEN) {
        ring.broken.store(true, Ordering::Relaxed);
    }
    drop(turn);
    outcome
}

/// Closes a ring, and everything that is its own.
///
/// # Safety
/// As [`with`].
pub(crate) unsafe fn close(ring: *mut Ring) -> Outcome<()> {
    // SAFETY: as the caller promises.
    let seen = unsafe { seen(ring) }?;
    let turn = Turn::take(seen)?;
    if seen.magic.swap(CLOSED, Ordering::AcqRel) != OPEN {
        return Err(CLOSED_ALREADY);
    }
    // SAFETY: the turn keeps all others out.
    let core = unsafe { &mut *seen.core.get() }.take();
    drop(turn);
    // What is broken may break once more when it is dropped: it is closed all the same.
    let _ = guarded(|| {
        drop(core);
        Ok(())
    });
    // SAFETY: it came from `open`, and only one close gets here.
    let ring = unsafe { Box::from_raw(ring) };
    // Held by nobody for long, but for one that was in here when the process forked: then it is leaked.
    let mut closed = match CLOSED_RINGS.try_lock() {
        Ok(closed) => closed,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            std::mem::forget(ring);
            return Ok(());
        }
    };
    closed.push_back(ring);
    if closed.len() > REMEMBERED {
        drop(closed.pop_front());
    }
    Ok(())
}

/// Does something that must not unwind into C.
pub(crate) fn guarded<T>(act: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(BROKEN))
}

const BROKEN: Failure =
    Failure::of(abi::BROKEN, c"the library broke a rule of its own: close the ring, and report it");
const CLOSED_ALREADY: Failure = Failure::invalid(c"the ring is closed");

/// # Safety
/// As [`with`].
unsafe fn seen<'a>(ring: *mut Ring) -> Outcome<&'a Ring> {
    if ring.is_null() {
        return Err(Failure::invalid(c"the ring is a null pointer"));
    }
    if !ring.is_aligned() {
        return Err(Failure::invalid(c"this is no ring"));
    }
    // SAFETY: as the caller promises; rings outlive being closed.
    let ring = unsafe { &*ring };
    match ring.magic.load(Ordering::Acquire) {
        OPEN if ring.process == fork::generation() => Ok(ring),
        OPEN => Err(Failure::of(
            abi::FORKED,
            c"the ring was opened before a fork, and belongs to the parent: open one in this process",
        )),
        CLOSED => Err(CLOSED_ALREADY),
        _ => Err(Failure::invalid(c"this is no ring")),
    }
}

/// A thread's turn with a ring.
struct Turn<'a>(&'a Ring);

impl<'a> Turn<'a> {
    fn take(ring: &'a Ring) -> Outcome<Self> {
        if ring.busy.swap(true, Ordering::Acquire) {
            return Err(Failure::of(abi::BUSY, c"another thread is in a call with this ring"));
        }
        Ok(Self(ring))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}
