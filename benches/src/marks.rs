//! Marks around what is counted: instructions that do nothing, that no compiler makes, and that
//! `ci/lab/instructions` looks for in what a guest executes.
#![allow(unsafe_code)]

/// A section begins.
#[inline(always)]
pub(crate) fn begin() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it exchanges a register with itself.
    unsafe {
        std::arch::asm!("xchg cx, cx", options(nomem, nostack, preserves_flags));
    }
}

/// It ends, and is worth counting or not.
#[inline(always)]
pub(crate) fn end(counts: bool) {
    let _ = counts;
    #[cfg(target_arch = "x86_64")]
    if counts {
        // SAFETY: it exchanges a register with itself.
        unsafe {
            std::arch::asm!("xchg dx, dx", options(nomem, nostack, preserves_flags));
        }
    } else {
        // SAFETY: it exchanges a register with itself.
        unsafe {
            std::arch::asm!("xchg si, si", options(nomem, nostack, preserves_flags));
        }
    }
}

/// It ends, and was what one read takes to be submitted.
#[inline(always)]
pub(crate) fn end_of_submission() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it exchanges a register with itself.
    unsafe {
        std::arch::asm!("xchg di, di", options(nomem, nostack, preserves_flags));
    }
}

/// Have the plugin tell what was counted so far.
#[inline(always)]
pub(crate) fn tell() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it exchanges a register with itself.
    unsafe {
        std::arch::asm!("xchg r9w, r9w", options(nomem, nostack, preserves_flags));
    }
}
