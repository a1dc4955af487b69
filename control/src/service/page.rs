use extent::{Kind, Result};
use prost::Message;

/// Items of a page if the request does not say.
const DEFAULT: u32 = 100;
/// Items of a page, at most.
const MOST: u32 = 1000;
/// Bytes of a page's items, about: a page ends early rather than become too long to send.
const BYTES: usize = 1 << 20;

/// How many items a page has.
pub(super) fn size(asked: u32) -> usize {
    let size = if asked == 0 { DEFAULT } else { asked.min(MOST) };
    usize::try_from(size).expect("at most a thousand")
}

/// Whether `items` fill a page.
pub(super) struct Filler {
    left: usize,
    bytes: usize,
}

impl Filler {
    pub(super) fn new(size: usize) -> Self {
        Self { left: size, bytes: 0 }
    }

    /// Counts an item that was put on the page.
    pub(super) fn put(&mut self, item: &impl Message) {
        self.left = self.left.saturating_sub(1);
        self.bytes += item.encoded_len();
    }

    /// Whether it holds no more.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0 || self.bytes >= BYTES
    }
}

/// A page token of ours.
///
/// # Errors
/// [`Kind::Invalid`].
pub(super) fn token<T: std::str::FromStr>(text: &str) -> Result<Option<T>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Kind::Invalid.error(
            "this page token is not one of this list's: pass next_page_token back as it came",
        )
    })
}
