//! Which recalled extents are worth a place in the tier.

use std::collections::{HashSet, VecDeque};

use extent::{ExtentIndex, FileId};
use parking_lot::Mutex;

/// How many misses are remembered.
const REMEMBERED: usize = 1 << 16;

/// Remembers recent misses: a second one within the memory is worth a place, a single pass over a
/// large data set is not.
#[derive(Default)]
pub(super) struct Admission(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    set: HashSet<(FileId, ExtentIndex)>,
    order: VecDeque<(FileId, ExtentIndex)>,
}

impl Admission {
    /// Notes a miss, and returns whether there was one before.
    pub(super) fn is_second_touch(&self, file: FileId, index: ExtentIndex) -> bool {
        let mut seen = self.0.lock();
        if !seen.set.insert((file, index)) {
            return true;
        }
        seen.order.push_back((file, index));
        if seen.order.len() > REMEMBERED
            && let Some(oldest) = seen.order.pop_front()
        {
            seen.set.remove(&oldest);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_recent_second_touch_counts() {
        let admission = Admission::default();
        let touch = |n: u32| admission.is_second_touch(FileId(1), ExtentIndex(n));
        assert!(!touch(0) && touch(0) && touch(0));
        let many = u32::try_from(REMEMBERED).expect("small");
        assert!((1..=many).all(|n| !touch(n)), "a scan is never admitted");
        assert!(!touch(0), "forgotten after the scan");
    }
}
