//! Who posts next: the sessions that have something to send, one of each tenant after the other.
//!
//! Each tenant has a line of its own. So however many sessions one has, and however little room its
//! completion queue, a session of another tenant waits for one session of each tenant at most.

use std::collections::VecDeque;

use crate::SessionId;

/// See the module. Tenants are named by their places.
#[derive(Debug, Default)]
pub(super) struct Turns {
    lines: Vec<Line>,
    /// Whose turn it is.
    next: usize,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<SessionId>,
    /// Those that found no room, which come first in the next round.
    starved: VecDeque<SessionId>,
    /// Of those that wait, how many have a turn in this round.
    left: usize,
}

impl Turns {
    /// A session has something to post. It must not be here yet.
    pub(super) fn push(&mut self, tenant: usize, session: SessionId) {
        self.line(tenant).waiting.push_back(session);
    }

    /// A session that had its turn found no room: before others of its tenant in the next round.
    pub(super) fn starve(&mut self, tenant: usize, session: SessionId) {
        self.line(tenant).starved.push_back(session);
    }

    /// Begins a round, in which each session that is here now has one turn.
    pub(super) fn begin(&mut self) {
        for line in &mut self.lines {
            while let Some(session) = line.starved.pop_back() {
                line.waiting.push_front(session);
            }
            line.left = line.waiting.len();
        }
    }

    /// The next of this round; `None` at its end.
    pub(super) fn next(&mut self) -> Option<SessionId> {
        for _ in 0..self.lines.len() {
            let place = self.next;
            self.next = (place + 1) % self.lines.len();
            let line = &mut self.lines[place];
            if let Some(left) = line.left.checked_sub(1) {
                line.left = left;
                return line.waiting.pop_front();
            }
        }
        None
    }

    /// Whether nobody waits, but for room.
    pub(super) fn is_idle(&self) -> bool {
        self.lines.iter().all(|line| line.waiting.is_empty())
    }

    /// The places of tenants of which somebody waits for room.
    pub(super) fn starved(&self) -> impl Iterator<Item = usize> + '_ {
        let lines = self.lines.iter().enumerate();
        lines.filter(|(_, line)| !line.starved.is_empty()).map(|(place, _)| place)
    }

    fn line(&mut self, tenant: usize) -> &mut Line {
        if self.lines.len() <= tenant {
            self.lines.resize_with(tenant + 1, Line::default);
        }
        &mut self.lines[tenant]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn round(turns: &mut Turns) -> Vec<u64> {
        turns.begin();
        std::iter::from_fn(|| turns.next()).map(|session| session.0).collect()
    }

    #[test]
    fn a_crowd_of_one_tenant_keeps_no_other_waiting() {
        let mut turns = Turns::default();
        (100..200).for_each(|session| turns.push(0, SessionId(session)));
        turns.push(1, SessionId(1));
        turns.push(3, SessionId(3));
        let order = round(&mut turns);
        assert_eq!(order.len(), 102);
        let place = |session| order.iter().position(|other| *other == session).expect("its turn");
        assert!(place(1) < 3 && place(3) < 3, "{order:?}");
        assert!(turns.is_idle() && round(&mut turns).is_empty());
    }

    #[test]
    fn whoever_found_no_room_comes_first_but_before_nobody_elses() {
        let mut turns = Turns::default();
        (10..13).for_each(|session| turns.push(0, SessionId(session)));
        turns.begin();
        for _ in 0..2 {
            let session = turns.next().expect("its turn");
            turns.starve(0, session);
        }
        turns.push(1, SessionId(1));
        assert_eq!(turns.next(), Some(SessionId(12)), "those that come during a round wait");
        assert_eq!(turns.next(), None);
        assert!(!turns.is_idle());
        turns.push(0, SessionId(12));
        let order = round(&mut turns);
        let of_zero: Vec<_> = order.iter().filter(|session| **session >= 10).collect();
        assert_eq!(of_zero, [&10, &11, &12]);
        assert!(order.iter().position(|session| *session == 1) < Some(2), "{order:?}");
    }

    proptest! {
        /// Whatever happens, each session has one turn in a round, and between two turns of one tenant
        /// each of the others that wait has one.
        #[test]
        fn rounds_are_whole_and_fair(pushes in proptest::collection::vec((0usize..5, 0u8..4), 1..80)) {
            let mut turns = Turns::default();
            let mut tenant_of = HashMap::new();
            for ((tenant, _), number) in pushes.iter().zip(0u64..) {
                turns.push(*tenant, SessionId(number));
                tenant_of.insert(number, *tenant);
            }
            let mut fates = pushes.iter().map(|(_, fate)| *fate);
            for _ in 0..4 {
                let mut left: HashMap<usize, usize> = HashMap::new();
                for tenant in tenant_of.values() {
                    *left.entry(*tenant).or_default() += 1;
                }
                let expected = tenant_of.len();
                turns.begin();
                let mut order = Vec::new();
                while let Some(session) = turns.next() {
                    let tenant = tenant_of[&session.0];
                    order.push(tenant);
                    match fates.next() {
                        Some(0) => turns.starve(tenant, session),
                        Some(1) => turns.push(tenant, session),
                        _ => drop(tenant_of.remove(&session.0)),
                    }
                }
                prop_assert_eq!(order.len(), expected);
                let mut since: HashMap<usize, usize> = HashMap::new();
                for (place, tenant) in order.iter().enumerate() {
                    let waited = place - since.get(tenant).map_or(0, |last| last + 1);
                    prop_assert!(waited < left.len(), "{:?}", order);
                    since.insert(*tenant, place);
                }
            }
        }
    }
}
