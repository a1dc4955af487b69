//! Work that blocks a thread.

use std::panic::resume_unwind;

/// Runs `work` on a thread made for blocking. The work is not stopped when the caller gives up.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // The runtime is shutting down, and drops this future too.
        Err(_) => futures::future::pending().await,
    }
}
