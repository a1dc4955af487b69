//! Receives that queue pairs of simulated devices share, and the messages that wait for some.

use super::queue::{PairRef, Receive};
use super::world::{Due, World};

impl World {
    /// Adds places for messages to a shared receive queue.
    pub(super) fn post_shared(&mut self, number: u32, receives: &[Receive]) {
        let queue = self.shared.get_mut(&number).expect("it is live");
        queue.posted.extend(receives);
        assert!(queue.posted.len() <= queue.capacity, "more receives than a queue has room for");
        if let Some(completions) = queue.queue {
            let completions = self.queues.get_mut(&completions).expect("queue pairs keep it");
            completions.expect(receives.len());
        }
        self.serve(number);
    }

    /// Has the completions of shared receives come to the queue of the pairs that share them.
    pub(super) fn attach(&mut self, shared: u32, queue: u32) {
        let shared = self.shared.get_mut(&shared).expect("its pairs keep it");
        if shared.queue.is_none() {
            shared.queue = Some(queue);
            let posted = shared.posted.len();
            self.queues.get_mut(&queue).expect("its pairs keep it").expect(posted);
        }
        assert_eq!(shared.queue, Some(queue), "receives that are shared by several queues");
    }

    /// Has a message that waits for a receive not wait any more: what it would be for is gone.
    pub(super) fn try_again(&mut self, which: PairRef) {
        let soon = self.soon();
        if self.pair(which).is_some_and(|pair| std::mem::take(&mut pair.waits)) {
            self.schedule(soon, Due::Execute(which));
        }
    }

    /// There are receives again: those that waited for them go on, as far as they suffice.
    pub(super) fn serve(&mut self, shared: u32) {
        loop {
            let queue = self.shared.get_mut(&shared).expect("it is live");
            if queue.posted.is_empty() {
                return;
            }
            let Some(next) = queue.waiting.pop_front() else { return };
            if self.pair(next).is_some_and(|pair| std::mem::take(&mut pair.waits)) {
                self.execute(next);
            }
        }
    }
}
