use std::ops::Range;

/// In what units a device lets go of what nobody needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deallocation {
    /// What the ends of a range should be multiples of: parts of it gain nothing. A multiple of the
    /// geometry's block.
    pub granularity_bytes: u64,
    /// The most bytes of one command; a multiple of the granularity.
    pub most_bytes: u64,
}

impl Deallocation {
    /// The whole units in a range of a device, from the first to the end of the last; `None` if there
    /// is none.
    #[must_use]
    pub fn whole_units(&self, range: Range<u64>) -> Option<Range<u64>> {
        let start = range.start.checked_next_multiple_of(self.granularity_bytes)?;
        let end = range.end - range.end % self.granularity_bytes;
        (start < end).then_some(start..end)
    }

    /// How much of a range the next command takes.
    #[must_use]
    pub fn next_bytes(&self, range: &Range<u64>) -> u64 {
        (range.end - range.start).min(self.most_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_units_are_let_go() {
        let units = Deallocation { granularity_bytes: 16, most_bytes: 32 };
        assert_eq!(units.whole_units(1..100), Some(16..96));
        assert_eq!(units.whole_units(16..32), Some(16..32));
        assert_eq!(units.whole_units(17..32), None);
        assert_eq!(units.whole_units(1..31), None);
        assert_eq!((units.next_bytes(&(16..96)), units.next_bytes(&(80..96))), (32, 16));
    }
}
