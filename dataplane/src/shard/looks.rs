//! How often, and in which of its copies, something that a device could not give was looked at.

use extent::ExtentIndex;
use nvme_tier::{Extent, FileGeneration};

use super::recall::Damage;
use crate::bugs::{self, Bug};

/// How often each copy is looked at before it is believed to be damaged.
const MOST: u8 = 3;
/// How often one is looked at before the other one gets its turn, unless its device fails.
const SOON: u8 = 2;
/// After so many looks at a part that has two copies, each of its blocks is looked at on its own: the
/// copies may be damaged in different places.
const WHOLE_LOOKS: u8 = 3;

/// A part of a request that is read once more.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// From the request's start.
    pub(super) at: u64,
    pub(super) length: u64,
    pub(super) looks: Looks,
}

/// The looks at one part.
#[derive(Clone, Copy, Default)]
pub(super) struct Looks {
    /// At the first copy, and at the second.
    count: [u8; 2],
    /// Whether its device could not read it, when it was last asked.
    unreadable: [bool; 2],
    /// Whether the next look is at the second copy.
    pub(super) second: bool,
}

/// What is to be done after a look that showed damage.
pub(super) enum Next {
    /// Look again, at the copy that is noted.
    Again(Looks),
    /// Every copy there is reads damaged.
    Lost,
    /// A device could not read its copy, which may be sound.
    Unreadable,
}

impl Part {
    pub(super) fn new(at: u64, length: u64) -> Self {
        Self { at, length, looks: Looks::default() }
    }

    /// The same in single blocks, once that may help; `offset` is where in the file the request begins.
    pub(super) fn pieces(self, offset: u64, block: u64) -> Vec<Self> {
        let Self { at, length, looks } = self;
        if looks.count.iter().sum::<u8>() < WHOLE_LOOKS || looks.count[1] == 0 {
            return vec![self];
        }
        let (mut from, end) = (offset + at, offset + at + length);
        let mut pieces = Vec::new();
        while from < end {
            let to = (from + 1).next_multiple_of(block).min(end);
            pieces.push(Self { at: from - offset, length: to - from, looks });
            from = to;
        }
        pieces
    }
}

impl Looks {
    /// The copy to look at.
    pub(super) fn source(self, generation: &FileGeneration, index: ExtentIndex) -> Option<Extent> {
        let second = if self.second { generation.copy(index) } else { None };
        second.or_else(|| generation.extent(index))
    }

    /// What comes after damage in the copy that was looked at.
    pub(super) fn after(mut self, damage: &Damage, has_copy: bool) -> Next {
        if bugs::is(Bug::FirstDamageBelieved) {
            return Next::Lost;
        }
        let (this, other) = (usize::from(self.second), usize::from(!self.second));
        self.count[this] += 1;
        self.unreadable[this] = !matches!(damage, Damage::Checksum);
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
    use extent::Kind;

    use super::*;

    fn device() -> Damage {
        Damage::Device(Kind::Io.error("it is gone"))
    }

    /// The copies that are looked at, one after the other, and how that ends.
    fn all(damage: [fn() -> Damage; 2], has_copy: bool) -> (Vec<bool>, &'static str) {
        let (mut looks, mut seen) = (Looks::default(), Vec::new());
        loop {
            seen.push(looks.second);
            match looks.after(&damage[usize::from(looks.second)](), has_copy) {
                Next::Again(again) => looks = again,
                Next::Lost => return (seen, "lost"),
                Next::Unreadable => return (seen, "unreadable"),
            }
        }
    }

    #[test]
    fn each_copy_is_looked_at_three_times_before_anything_is_lost() {
        let bad = || Damage::Checksum;
        assert_eq!(all([bad, bad], false), (vec![false; 3], "lost"));
        assert_eq!(all([device, bad], false), (vec![false; 3], "unreadable"));
        let turns = [bad as fn() -> Damage, device];
        for first in turns {
            for second in turns {
                let (seen, end) = all([first, second], true);
                assert_eq!(seen.iter().filter(|second| **second).count(), 3, "{seen:?}");
                assert_eq!(seen.len(), 6, "{seen:?}");
                let gone =
                    matches!(first(), Damage::Device(_)) || matches!(second(), Damage::Device(_));
                assert_eq!(end, if gone { "unreadable" } else { "lost" });
            }
        }
        assert_eq!(all([device, bad], true).0[..2], [false, true], "at once");
    }

    #[test]
    fn blocks_are_cut_where_the_file_says() {
        let mut part = Part::new(100, 9000);
        assert_eq!(part.pieces(4000, 4096).len(), 1, "not yet");
        part.looks.count = [2, 1];
        let pieces: Vec<_> = part.pieces(4000, 4096).iter().map(|p| (p.at, p.length)).collect();
        assert_eq!(pieces, [(100, 4092), (4192, 4096), (8288, 812)]);
    }
}
