//! The standard library's mutex, without poisoning.
//!
//! Not `parking_lot`'s: that one keeps a table of all sleeping threads, and a child that is forked while
//! there are some has a table full of threads that it does not have.

use std::sync::{MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use crate::clock;

/// How long a thread sleeps that wants a lock for which it would not wait for ever.
const PAUSE: Duration = Duration::from_micros(20);

/// See the module.
#[derive(Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn try_lock_for(&self, limit: Duration) -> Option<MutexGuard<'_, T>> {
        let end = clock::now() + limit;
        loop {
            let guard = self.try_lock();
            if guard.is_some() || clock::now() >= end {
                return guard;
            }
            thread::sleep(PAUSE);
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets others take it who wait.
    pub(crate) fn make_way(guard: MutexGuard<'_, T>) {
        drop(guard);
        thread::sleep(PAUSE);
    }
}
