//! Where things are in the link.

use extent::wire::{MAX_BODY_BYTES, MAX_CREDITS, REPLY_BYTES};
use extent::{Kind, Result};

/// 64-bit words of a request slot: a long capsule.
pub(super) const REQUEST_WORDS: usize = 16;
/// 64-bit words of a reply slot: a reply and its longest body.
pub(super) const REPLY_WORDS: usize = 32;
/// The fewest slots of a ring: they fill a page.
pub(super) const MIN_SLOTS: u32 = 32;
/// The most slots of a ring: more requests cannot be in flight.
pub(super) const MAX_SLOTS: u32 = MAX_CREDITS as u32;

/// The node's wake word.
pub(super) const NODE_WAKE_AT: usize = 640;
/// The client's wake word.
pub(super) const CLIENT_WAKE_AT: usize = 768;

const SLOTS_AT: usize = 4096;
const WORD_BYTES: usize = 8;

const _: () = assert!(REPLY_WORDS * WORD_BYTES == REPLY_BYTES + MAX_BODY_BYTES);
const _: () = assert!(MAX_SLOTS.is_power_of_two() && MIN_SLOTS.is_power_of_two());

/// The offsets of one ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) slots: u32,
    pub(super) tail_at: usize,
    pub(super) head_at: usize,
    pub(super) slots_at: usize,
}

/// A link's geometry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    request_slots: u32,
    reply_slots: u32,
}

impl Layout {
    /// A link of exactly these rings.
    ///
    /// # Errors
    /// [`Kind::Invalid`] unless both are powers of two from [`MIN_SLOTS`] to [`MAX_SLOTS`].
    pub(super) fn new(request_slots: u32, reply_slots: u32) -> Result<Self> {
        let sound =
            |slots: u32| slots.is_power_of_two() && (MIN_SLOTS..=MAX_SLOTS).contains(&slots);
        if !sound(request_slots) || !sound(reply_slots) {
            return Err(Kind::Invalid.error(format!(
                "rings of {request_slots} and {reply_slots} slots: powers of two from {MIN_SLOTS} to {MAX_SLOTS} are possible"
            )));
        }
        Ok(Self { request_slots, reply_slots })
    }

    /// The link that comes nearest to what a client wishes for and no ring of which is longer than
    /// `max_slots`.
    pub(super) fn granted(wished: (u32, u32), max_slots: u32) -> Self {
        let max = max_slots.clamp(MIN_SLOTS, MAX_SLOTS);
        let max = if max.is_power_of_two() { max } else { max.next_power_of_two() / 2 };
        let grant = |slots: u32| slots.clamp(MIN_SLOTS, max).next_power_of_two();
        Self { request_slots: grant(wished.0), reply_slots: grant(wished.1) }
    }

    pub(super) fn slots(&self) -> (u32, u32) {
        (self.request_slots, self.reply_slots)
    }

    pub(super) fn requests(&self) -> Place {
        Place { slots: self.request_slots, tail_at: 128, head_at: 256, slots_at: SLOTS_AT }
    }

    pub(super) fn replies(&self) -> Place {
        let slots_at = SLOTS_AT + self.request_slots as usize * REQUEST_WORDS * WORD_BYTES;
        Place { slots: self.reply_slots, tail_at: 384, head_at: 512, slots_at }
    }

    /// Bytes of the whole link.
    pub(super) fn bytes(&self) -> usize {
        self.replies().slots_at + self.reply_slots as usize * REPLY_WORDS * WORD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_256_slots_is_where_the_protocol_says() {
        let layout = Layout::new(256, 256).expect("powers of two");
        assert_eq!(layout.requests().slots_at, 4096);
        assert_eq!(layout.replies().slots_at, 4096 + 256 * 128);
        assert_eq!(layout.bytes(), 4096 + 256 * 384);
    }

    #[test]
    fn any_wish_is_granted_within_bounds() {
        for max in [0, 1, 32, 100, 1000, 1024, u32::MAX] {
            for wish in [0, 1, 31, 33, 500, 1024, 5000, u32::MAX] {
                let (requests, replies) = Layout::granted((wish, wish / 2), max).slots();
                Layout::new(requests, replies).expect("sound");
                assert!(requests <= max.max(MIN_SLOTS));
            }
        }
        for bad in [(0, 64), (64, 0), (48, 64), (64, 2048), (16, 16)] {
            assert_eq!(Layout::new(bad.0, bad.1).expect_err("unsound").kind(), Kind::Invalid);
        }
    }
}
