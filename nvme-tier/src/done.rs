use std::fmt;

use extent::Result;

type Callback<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// What to do when an operation ends. It is called exactly once, at once on the caller's thread or
/// later on the ledger's, so it should be short: send a message, wake a task.
pub struct Done<T>(Option<Callback<T>>);

impl<T> Done<T> {
    /// Calls `f` with the outcome.
    #[must_use]
    pub fn new(f: impl FnOnce(Result<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(f)))
    }

    /// Forgets the outcome.
    #[must_use]
    pub fn ignore() -> Self {
        Self(Some(Box::new(|_outcome| {})))
    }

    /// Reports the outcome.
    ///
    /// # Panics
    /// Never: a `Done` is consumed by its one call.
    pub fn call(mut self, result: Result<T>) {
        let callback = self.0.take().expect("a Done is consumed by its one call");
        callback(result);
    }
}

impl<T> Drop for Done<T> {
    fn drop(&mut self) {
        if self.0.is_some() && !std::thread::panicking() {
            tracing::error!("an operation ended without telling its caller");
            debug_assert!(false, "an operation ended without telling its caller");
        }
    }
}

impl<T> fmt::Debug for Done<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Done")
    }
}
