use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Mutex as TurnLock, OwnedMutexGuard};

type Turns = Mutex<HashMap<String, Weak<TurnLock<()>>>>;

/// Request ids being worked on, so that a repetition waits for the first and gets its answer.
#[derive(Default)]
pub(super) struct Inflight {
    turns: Arc<Turns>,
}

impl Inflight {
    /// Waits until nobody else works on this request id.
    pub(super) async fn enter(&self, id: &str) -> Turn {
        let lock = {
            let mut turns = self.turns.lock();
            let known = turns.get(id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                turns.insert(id.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        let turns = Arc::clone(&self.turns);
        // Made before the wait: whoever gives up waiting cleans up as well.
        let leave = Leave { turns, id: id.to_owned(), lock: Arc::clone(&lock) };
        let guard = lock.lock_owned().await;
        Turn { _guard: guard, _leave: leave }
    }
}

/// The right to work on a request id. The guard goes first, then the entry.
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
    _leave: Leave,
}

struct Leave {
    turns: Arc<Turns>,
    id: String,
    lock: Arc<TurnLock<()>>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut turns = self.turns.lock();
        // Others hold it too if they wait for their turn; new ones need the map's lock.
        if Arc::strong_count(&self.lock) == 1 {
            turns.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_same_id_takes_turns_and_leaves_nothing_behind() {
        let inflight = Inflight::default();
        let first = inflight.enter("a").await;
        let other = inflight.enter("b").await;
        {
            let mut second = std::pin::pin!(inflight.enter("a"));
            let woken = std::future::poll_fn(|cx| {
                std::task::Poll::Ready(second.as_mut().poll(cx).is_ready())
            });
            assert!(!woken.await, "the first is not done");
            drop(first);
            drop(second.await);
        }
        drop(other);
        assert!(inflight.turns.lock().is_empty());
    }
}
