use std::fmt;

use crate::{ExtentIndex, Kind, Result};

/// A range of bytes whose end does not overflow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ByteRange {
    offset: u64,
    length: u64,
}

impl ByteRange {
    /// `length` bytes from `offset`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the end is past 2^64 - 1.
    pub fn new(offset: u64, length: u64) -> Result<Self> {
        if offset.checked_add(length).is_none() {
            return Err(Kind::Invalid.error(format!(
                "offset {offset} plus length {length} is past the end of the number line"
            )));
        }
        Ok(Self { offset, length })
    }

    /// The first byte.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// How many bytes.
    #[must_use]
    pub const fn length(self) -> u64 {
        self.length
    }

    /// The first byte behind the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset + self.length
    }

    /// Whether it holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.length == 0
    }

    /// The bytes that both ranges hold; empty where they do not meet.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let offset = self.offset.max(other.offset);
        let end = self.end().min(other.end());
        Self { offset, length: end.saturating_sub(offset) }
    }

    /// The smallest range on multiples of `unit` that covers this one. `unit` is a power of two.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if that range would end past 2^64 - 1.
    pub fn align_outward(self, unit: u64) -> Result<Self> {
        debug_assert!(unit.is_power_of_two());
        let offset = self.offset & !(unit - 1);
        let end = self.end().checked_next_multiple_of(unit).ok_or_else(|| {
            Kind::Invalid.error(format!("{self} ends too near to the end of the number line"))
        })?;
        Self::new(offset, end - offset)
    }

    /// The parts of this range that fall into successive extents of `extent_bytes` each.
    ///
    /// # Panics
    /// If `extent_bytes` is zero, or the range reaches past 2^32 extents: file lengths are
    /// checked against that where files are made.
    pub fn pieces(self, extent_bytes: u64) -> impl Iterator<Item = Piece> {
        let mut at = self.offset;
        std::iter::from_fn(move || {
            if at >= self.end() {
                return None;
            }
            let index = at / extent_bytes;
            let within = at - index * extent_bytes;
            let length = (extent_bytes - within).min(self.end() - at);
            let piece = Piece {
                index: ExtentIndex(u32::try_from(index).expect("a file has at most 2^32 extents")),
                within: Self { offset: within, length },
                at: at - self.offset,
            };
            at += length;
            Some(piece)
        })
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.offset, self.end())
    }
}

/// The part of a range that lies in one extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Which extent.
    pub index: ExtentIndex,
    /// The bytes, counted from the extent's start.
    pub within: ByteRange,
    /// Where the piece begins, counted from the start of the whole range.
    pub at: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn overflow_is_refused() {
        assert_eq!(ByteRange::new(u64::MAX, 1).expect_err("overflow").kind(), Kind::Invalid);
        let last = ByteRange::new(u64::MAX, 0).expect("empty at the end");
        assert_eq!(last.align_outward(4096).expect_err("overflow").kind(), Kind::Invalid);
    }

    proptest! {
        #[test]
        fn pieces_tile_the_range(offset in 0u64..1 << 40, length in 0u64..1 << 22, shift in 14u32..24) {
            let range = ByteRange::new(offset, length).expect("in bounds");
            let size = 1u64 << shift;
            let mut at = 0;
            for piece in range.pieces(size) {
                prop_assert_eq!(piece.at, at);
                prop_assert!(!piece.within.is_empty() && piece.within.end() <= size);
                prop_assert_eq!(u64::from(piece.index.0) * size + piece.within.offset(), offset + at);
                at += piece.within.length();
            }
            prop_assert_eq!(at, length);
        }

        #[test]
        fn aligning_covers_and_is_tight(offset in 0u64..1 << 40, length in 1u64..1 << 22, shift in 9u32..17) {
            let unit = 1u64 << shift;
            let range = ByteRange::new(offset, length).expect("in bounds");
            let wide = range.align_outward(unit).expect("in bounds");
            prop_assert!(wide.offset() <= offset && wide.end() >= range.end());
            prop_assert!(wide.offset().is_multiple_of(unit) && wide.end().is_multiple_of(unit));
            prop_assert!(range.offset() - wide.offset() < unit && wide.end() - range.end() < unit);
        }
    }
}
