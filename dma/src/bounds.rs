use std::ops::{Bound, Range, RangeBounds};

/// Bounds as a range of `length` bytes; `None` if they are not inside.
#[must_use]
pub fn range_within(bounds: &impl RangeBounds<usize>, length: usize) -> Option<Range<usize>> {
    let start = match bounds.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let end = match bounds.end_bound() {
        Bound::Included(end) => end.checked_add(1)?,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => length,
    };
    (start <= end && end <= length).then_some(start..end)
}
