//! Values in a row, in huge pages.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::arena::{Arena, SPAN_BYTES, THING_ALIGN_BYTES};

static ARENA: Mutex<Arena> = Mutex::new(Arena::new());

/// Values in a row, as in a boxed slice, but together with those of other runs in memory that the
/// kernel is asked to make of huge pages: for what is looked up at random in gigabytes, where the
/// processor would look for the page longer than for the value.
pub struct Run<T> {
    first: NonNull<T>,
    length: usize,
}

// SAFETY: a run owns its values and nothing else.
unsafe impl<T: Send> Send for Run<T> {}
// SAFETY: `&Run` gives `&[T]` and nothing else.
unsafe impl<T: Sync> Sync for Run<T> {}

impl<T: Default> Run<T> {
    /// So many values, each the default.
    ///
    /// # Panics
    /// If they take more than 256 KiB. Aborts, as any allocation, if there is no memory.
    #[must_use]
    pub fn new(length: usize) -> Self {
        const { assert!(align_of::<T>() <= THING_ALIGN_BYTES && size_of::<T>() != 0) };
        if length == 0 {
            return Self::default();
        }
        let layout = Layout::array::<T>(length).expect("256 KiB at most");
        assert!(layout.size() <= SPAN_BYTES, "{length} values take {} bytes", layout.size());
        let Ok(first) = arena().take(layout.size()) else { handle_alloc_error(layout) };
        let first: NonNull<T> = first.cast();
        for index in 0..length {
            // SAFETY: the arena gave this much memory, and the index is within it.
            let place = unsafe { first.add(index) };
            // SAFETY: nobody else has it, and it is aligned for these values.
            unsafe { place.write(T::default()) };
        }
        Self { first, length }
    }
}

impl<T> Default for Run<T> {
    fn default() -> Self {
        Self { first: NonNull::dangling(), length: 0 }
    }
}

impl<T> Deref for Run<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` wrote so many values there, or there are none.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl<T> DerefMut for Run<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and whoever borrows the run alone borrows its values alone.
        unsafe { slice::from_raw_parts_mut(self.first.as_ptr(), self.length) }
    }
}

impl<T> Drop for Run<T> {
    fn drop(&mut self) {
        if self.length == 0 {
            return;
        }
        let values: *mut [T] = &raw mut **self;
        // SAFETY: they are there, and nobody sees them afterwards.
        unsafe { ptr::drop_in_place(values) };
        // Only now: a value that is dropped may drop runs of its own.
        arena().give_back(self.first.cast(), self.length * size_of::<T>());
    }
}

impl<T: fmt::Debug> fmt::Debug for Run<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

fn arena() -> MutexGuard<'static, Arena> {
    // It never panics between two changes that belong together.
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn values_are_made_kept_and_dropped() {
        let counted = Arc::new(());
        let mut runs: Vec<Run<Option<Arc<()>>>> = (0..50).map(Run::new).collect();
        for (length, run) in runs.iter_mut().enumerate() {
            assert!(run.len() == length && run.iter().all(Option::is_none));
            run.fill(Some(Arc::clone(&counted)));
        }
        assert_eq!(Arc::strong_count(&counted), 1 + (0..50).sum::<usize>());
        runs.truncate(10);
        assert_eq!(Arc::strong_count(&counted), 1 + (0..10).sum::<usize>());
        drop(runs);
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    #[test]
    fn threads_never_share_values() {
        std::thread::scope(|scope| {
            for thread in 0u64..4 {
                scope.spawn(move || {
                    let mut runs: Vec<Run<u64>> = Vec::new();
                    for round in 0..2000 {
                        let mut run = Run::new(round % 97);
                        run.fill(thread);
                        runs.push(run);
                        if round % 3 == 0 {
                            let gone = runs.swap_remove(round / 7 % runs.len());
                            assert!(gone.iter().all(|value| *value == thread));
                        }
                    }
                    assert!(runs.iter().all(|run| run.iter().all(|value| *value == thread)));
                });
            }
        });
    }
}
