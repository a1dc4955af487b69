//! What belongs to one process.

use std::mem::ManuallyDrop;
use std::process;

use extent::{Kind, Result};

/// Something that a forked child must neither use nor tear down: its threads are gone, its locks
/// may be held for ever, and its connection is the parent's.
pub(crate) struct Bound<T> {
    process: u32,
    value: ManuallyDrop<T>,
}

impl<T> Bound<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { process: process::id(), value: ManuallyDrop::new(value) }
    }

    /// The value, in the process that made it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] in any other.
    pub(crate) fn here(&self) -> Result<&T> {
        let here = process::id();
        if here == self.process {
            return Ok(&self.value);
        }
        Err(Kind::Unsupported.error(format!(
            "this belongs to process {}, and after a fork this is process {here}: connect again in \
             each process, or start processes by spawn",
            self.process
        )))
    }
}

impl<T> Drop for Bound<T> {
    fn drop(&mut self) {
        if process::id() == self.process {
            // Once, as nothing looks at it after this.
            drop(take(&mut self.value));
        }
    }
}

#[expect(unsafe_code, reason = "the only way to drop what a forked child has to leave alone")]
fn take<T>(value: &mut ManuallyDrop<T>) -> T {
    // SAFETY: only `drop` calls this, which runs once.
    unsafe { ManuallyDrop::take(value) }
}
