//! A part of a READ that is looked at again.

use crate::looks::Looks;

/// A part of a request that is read once more.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// From the request's start.
    pub(super) at: u64,
    pub(super) length: u64,
    pub(super) looks: Looks,
}

impl Part {
    pub(super) fn new(at: u64, length: u64) -> Self {
        Self { at, length, looks: Looks::default() }
    }

    /// The same in single blocks, once that may help; `offset` is where in the file the request begins.
    pub(super) fn pieces(self, offset: u64, block: u64) -> Vec<Self> {
        let Self { at, length, looks } = self;
        if !looks.may_differ() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::looks::Next;

    #[test]
    fn blocks_are_cut_where_the_file_says() {
        let mut part = Part::new(100, 9000);
        assert_eq!(part.pieces(4000, 4096).len(), 1, "not yet");
        for _ in 0..3 {
            let Next::Again(looks) = part.looks.after(false, true) else {
                panic!("there are more")
            };
            part.looks = looks;
        }
        let pieces: Vec<_> = part.pieces(4000, 4096).iter().map(|p| (p.at, p.length)).collect();
        assert_eq!(pieces, [(100, 4092), (4192, 4096), (8288, 812)]);
    }
}
