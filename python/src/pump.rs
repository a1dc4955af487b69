//! The thread that looks after a session while nobody waits for it.
//!
//! Reads that were started go on by themselves as far as the node's credits reach; beyond that, and
//! over TCP, somebody has to take replies and send more. Python may be busy with something else
//! meanwhile, or wait in an event loop. This thread never touches the interpreter.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use extent::{Error, Result};
use parking_lot::{Condvar, Mutex};

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
        let mut rung = self.rung.lock();
        if *rung == Rung::No {
            *rung = Rung::Yes;
            self.condition.notify_one();
        }
    }

    pub(crate) fn stop(&self) {
        *self.rung.lock() = Rung::Stop;
        self.condition.notify_one();
    }

    /// Whether to go on.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let mut rung = self.rung.lock();
        if *rung == Rung::No {
            match limit {
                Some(limit) => {
                    self.condition.wait_for(&mut rung, limit);
                }
                None => self.condition.wait_while(&mut rung, |rung| *rung == Rung::No),
            }
        }
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
