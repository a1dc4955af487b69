//! How often, and in which of its copies, something that a device could not give is looked at.

use extent::ExtentIndex;
use nvme_tier::{Extent, FileGeneration};

use crate::bugs::{self, Bug};

/// How often each copy is looked at before it is believed to be damaged.
const MOST: u8 = 3;
/// How often one is looked at before the other one gets its turn, unless its device fails.
const SOON: u8 = 2;
/// After so many looks at a part that has two copies, each of its blocks is looked at on its own: the
/// copies may be damaged in different places.
const WHOLE_LOOKS: u8 = 3;

/// The looks at one part of an extent.
#[derive(Clone, Copy, Default)]
pub(crate) struct Looks {
    /// At the first copy, and at the second.
    count: [u8; 2],
    /// Whether its device could not read it, when it was last asked.
    unreadable: [bool; 2],
    /// Whether the next look is at the second copy.
    pub(crate) second: bool,
}

/// What is to be done after a look that showed damage.
pub(crate) enum Next {
    /// Look again, at the copy that is noted.
    Again(Looks),
    /// Every copy there is reads damaged.
    Lost,
    /// A device could not read its copy, which may be sound.
    Unreadable,
}

impl Looks {
    /// Whether both copies were looked at, and often enough that they may be damaged in different places.
    pub(crate) fn may_differ(self) -> bool {
        self.count[1] != 0 && self.count.iter().sum::<u8>() >= WHOLE_LOOKS
    }

    /// The copy to look at.
    pub(crate) fn source(self, generation: &FileGeneration, index: ExtentIndex) -> Option<Extent> {
        let second = if self.second { generation.copy(index) } else { None };
        second.or_else(|| generation.extent(index))
    }

    /// What comes after damage in the copy that was looked at; `unreadable` is whether its device could not
    /// give it, or what tells whether it holds.
    pub(crate) fn after(mut self, unreadable: bool, has_copy: bool) -> Next {
        if bugs::is(Bug::FirstDamageBelieved) {
            return Next::Lost;
        }
        let (this, other) = (usize::from(self.second), usize::from(!self.second));
        self.count[this] += 1;
        self.unreadable[this] = unreadable;
        let other_left = has_copy && self.count[other] < MOST && !bugs::is(Bug::CopyIgnored);
        let soon = self.unreadable[this] || self.count[this] >= SOON;
        if other_left && soon {
            self.second = !self.second;
        } else if self.count[this] >= MOST {
            return if self.unreadable == [false, false] { Next::Lost } else { Next::Unreadable };
        }
        Next::Again(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The copies that are looked at, one after the other, and how that ends; of each whether its device
    /// cannot give it.
    fn all(unreadable: [bool; 2], has_copy: bool) -> (Vec<bool>, &'static str) {
        let (mut looks, mut seen) = (Looks::default(), Vec::new());
        loop {
            seen.push(looks.second);
            match looks.after(unreadable[usize::from(looks.second)], has_copy) {
                Next::Again(again) => looks = again,
                Next::Lost => return (seen, "lost"),
                Next::Unreadable => return (seen, "unreadable"),
            }
        }
    }

    #[test]
    fn each_copy_is_looked_at_three_times_before_anything_is_lost() {
        assert_eq!(all([false, false], false), (vec![false; 3], "lost"));
        assert_eq!(all([true, false], false), (vec![false; 3], "unreadable"));
        for first in [false, true] {
            for second in [false, true] {
                let (seen, end) = all([first, second], true);
                assert_eq!(seen.iter().filter(|second| **second).count(), 3, "{seen:?}");
                assert_eq!(seen.len(), 6, "{seen:?}");
                assert_eq!(end, if first || second { "unreadable" } else { "lost" });
            }
        }
        assert_eq!(all([true, false], true).0[..2], [false, true], "at once");
    }
}
