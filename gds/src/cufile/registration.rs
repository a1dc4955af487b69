use std::ffi::c_void;
use std::fmt;
use std::mem;
use std::ptr;
use std::sync::{Arc, Weak};

use extent::{Kind, Result};

use super::{CuFile, answer};
use crate::bugs::{self, Bug};
use crate::{DevicePointer, DeviceSpan};

/// Device memory that cuFile has pinned, so that storage reaches it without a buffer of the library's between:
/// for memory that is read into again and again. It is given back before the memory is freed.
#[derive(Debug)]
pub struct Registration {
    registered: Arc<Registered>,
}

impl Registration {
    /// The memory.
    #[must_use]
    pub fn span(&self) -> &DeviceSpan {
        &self.registered.span
    }
}

/// Registered memory, which reads into it keep, too.
pub(super) struct Registered {
    library: &'static CuFile,
    span: DeviceSpan,
}

/// Registered memory in the table of a library, by its first address. It is there until it has been given back.
pub(super) struct Entry {
    /// The address behind it.
    end: u64,
    registered: Weak<Registered>,
}

impl CuFile {
    /// Registers device memory, until what this answers is dropped, and reads into it have ended.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for no memory, or some that overlaps what is registered; [`Kind::NoSpace`] if so much
    /// cannot be pinned; [`Kind::Unsupported`] if the device is not CUDA's; what cuFile answers.
    pub fn register(&'static self, span: &DeviceSpan) -> Result<Registration> {
        if span.is_empty() {
            return Err(Kind::Invalid.error("registering device memory of zero bytes"));
        }
        let (begin, end) = ends(span);
        let mut table = self.registered.lock();
        // What is registered does not overlap: the last that begins before the end is the only one to look at.
        if table.range(..end).next_back().is_some_and(|(_, entry)| entry.end > begin) {
            return Err(Kind::Invalid.error("this device memory is registered already"));
        }
        let mut answered = Ok(());
        span.device().api.with_context(&mut || {
            // SAFETY: the memory stays at least until it is given back: the span that is kept sees to that.
            let answer = unsafe { (self.functions.buf_register)(address(begin), span.len(), 0) };
            answered = answer::check("cuFileBufRegister", answer);
        })?;
        answered?;
        let registered = Arc::new(Registered { library: self, span: span.clone() });
        table.insert(begin, Entry { end, registered: Arc::downgrade(&registered) });
        Ok(Registration { registered })
    }

    /// The registered memory that a span is in.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if only a part of it is; [`Kind::Busy`] if that memory is being given back just now.
    pub(super) fn registered(&self, span: &DeviceSpan) -> Result<Option<Arc<Registered>>> {
        let (begin, end) = ends(span);
        let table = self.registered.lock();
        let found = table.range(..end).next_back().filter(|(_, entry)| entry.end > begin);
        let Some((base, entry)) = found else { return Ok(None) };
        if *base > begin || entry.end < end {
            let reason =
                "a part of this device memory is registered: read that and the rest one by one";
            return Err(Kind::Invalid.error(reason));
        }
        entry.registered.upgrade().map(Some).ok_or_else(|| {
            Kind::Busy.error("this device memory is being given back by cuFile: ask again")
        })
    }
}

impl Registered {
    /// Its first address.
    pub(super) fn pointer(&self) -> DevicePointer {
        self.span.pointer()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if bugs::is(Bug::FreedWhileRegistered) {
            return;
        }
        let base = self.span.pointer().0;
        let mut table = self.library.registered.lock();
        let mut answered = Ok(());
        let called = self.span.device().api.with_context(&mut || {
            // SAFETY: it was registered, no read uses it, and it is not freed before this is dropped.
            let answer = unsafe { (self.library.functions.buf_deregister)(address(base)) };
            answered = answer::check("cuFileBufDeregister", answer);
        });
        table.remove(&base);
        if let Err(error) = called.and(answered) {
            // Storage may still be let in: the memory must not become somebody else's.
            tracing::debug!(%error, "device memory stays registered");
            mem::forget(self.span.clone());
        }
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registered").field(&self.span).finish()
    }
}

/// Its first address, and the one behind it.
fn ends(span: &DeviceSpan) -> (u64, u64) {
    let begin = span.pointer().0;
    (begin, begin.saturating_add(span.len() as u64))
}

/// An address of the device, as cuFile takes it.
pub(super) fn address(pointer: u64) -> *mut c_void {
    ptr::without_provenance_mut(usize::try_from(pointer).expect("addresses have 64 bits"))
}
