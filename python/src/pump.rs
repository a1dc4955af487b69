//! The thread that looks after a session while nobody waits for it.
//!
//! Reads that were started go on by themselves as far as the node's credits reach; beyond that, and
//! over TCP, somebody has to take replies and send more. Python may be busy with something else
//! meanwhile, or wait in an event loop. This thread never touches the interpreter.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use extent::{Error, Result};

use crate::engine::Engine;

/// How often it looks, unless an event loop waits.
const TICK: Duration = Duration::from_millis(1);

/// Wakes the thread.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<Rung>,
    condition: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Rung {
    #[default]
    No,
    Yes,
    Stop,
}

impl Bell {
    pub(crate) fn ring(&self) {
        let mut rung = self.lock();
        if *rung == Rung::No {
            *rung = Rung::Yes;
            self.condition.notify_one();
        }
    }

    pub(crate) fn stop(&self) {
        *self.lock() = Rung::Stop;
        self.condition.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Rung> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to go on.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let not_yet = |rung: &mut Rung| *rung == Rung::No;
        let mut rung = match limit {
            Some(limit) => {
                let waited = self.condition.wait_timeout_while(self.lock(), limit, not_yet);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = self.condition.wait_while(self.lock(), not_yet);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
        let go_on = *rung != Rung::Stop;
        if go_on {
            *rung = Rung::No;
        }
        go_on
    }
}

/// Starts the thread; it ends with the engine.
///
/// # Errors
/// [`extent::Kind::Io`] if there can be no more threads.
pub(crate) fn start(engine: &Arc<Engine>, bell: Arc<Bell>) -> Result<()> {
    let engine = Arc::downgrade(engine);
    let thread = thread::Builder::new().name("forebay".to_owned());
    thread
        .spawn(move || run(&engine, &bell))
        .map_err(|error| Error::io("starting the client's thread", error))?;
    Ok(())
}

fn run(engine: &Weak<Engine>, bell: &Bell) {
    let mut busy = false;
    while bell.wait(busy.then_some(TICK)) {
        let Some(engine) = engine.upgrade() else { return };
        busy = engine.pump();
    }
}
