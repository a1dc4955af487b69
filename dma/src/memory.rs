//! What an operation in flight owns.
#![allow(unsafe_code)]

use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use extent::{Kind, Result};

use crate::{Buffer, Region, verify};

/// A range of a region that another process maps and may change at any moment. It is only ever
/// copied or checksummed, never borrowed as a slice by callers.
#[derive(Clone, Debug)]
pub struct Window {
    region: Arc<Region>,
    offset: usize,
    length: usize,
}

impl Window {
    /// A range of `region`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is not inside the region.
    pub fn new(region: Arc<Region>, offset: u64, length: usize) -> Result<Self> {
        let inside = |offset: usize| {
            offset.checked_add(length).is_some_and(|end| end <= region.length()).then_some(offset)
        };
        match usize::try_from(offset).ok().and_then(inside) {
            Some(offset) => Ok(Self { region, offset, length }),
            None => Err(Kind::Invalid.error(format!(
                "{length} bytes at {offset} are outside a region of {} bytes",
                region.length()
            ))),
        }
    }

    /// Bytes in it.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// A part of it.
    ///
    /// # Panics
    /// If the part is not inside.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.length, "a part is inside");
        Self {
            region: Arc::clone(&self.region),
            offset: self.offset + range.start,
            length: range.end - range.start,
        }
    }

    /// Whether its address is a multiple of `unit` bytes.
    #[must_use]
    pub fn is_aligned(&self, unit: usize) -> bool {
        self.address().addr().get().is_multiple_of(unit)
    }

    /// Copies `bytes` to its front.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn copy_in(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.length, "{} bytes into {}", bytes.len(), self.length);
        // SAFETY: `new` checked the bounds, the `Arc` keeps the mapping, and the two do not
        // overlap: `bytes` is a Rust slice, and none is ever made of a shared region.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.address().as_ptr(), bytes.len()) };
    }

    /// Copies its front into all of `bytes`.
    ///
    /// # Panics
    /// If there are not enough.
    pub fn copy_out(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.length, "{} bytes out of {}", bytes.len(), self.length);
        // SAFETY: as in `copy_in`.
        unsafe {
            ptr::copy_nonoverlapping(self.address().as_ptr(), bytes.as_mut_ptr(), bytes.len())
        };
    }

    fn address(&self) -> NonNull<u8> {
        self.region.at(self.offset, self.length)
    }

    fn span(&self) -> Span<'_> {
        Span { region: &self.region, offset: self.offset, length: self.length }
    }
}

/// A buffer whose contents are final, shared between the reads it answers and the write that
/// stores it.
pub type Frozen = Arc<Buffer>;

/// Memory that a device or fabric writes into.
#[derive(Debug)]
pub enum Target {
    /// A range of an exclusive buffer.
    Buffer(Buffer, Range<usize>),
    /// A client's own memory.
    Window(Window),
}

/// Memory that a device or fabric reads from.
#[derive(Debug)]
pub enum Source {
    /// A range of an exclusive buffer.
    Buffer(Buffer, Range<usize>),
    /// A range of a shared, final buffer.
    Frozen(Frozen, Range<usize>),
    /// A client's own memory.
    Window(Window),
}

/// Which part of a region memory is: all that a device needs to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The region.
    pub region: &'a Arc<Region>,
    /// Where in it the memory begins.
    pub offset: usize,
    /// Bytes.
    pub length: usize,
}

impl Target {
    /// Which part of a region it is.
    ///
    /// # Panics
    /// If a range lies outside its buffer.
    #[inline]
    #[must_use]
    pub fn span(&self) -> Span<'_> {
        match self {
            Self::Buffer(buffer, range) => buffer_span(buffer, range),
            Self::Window(window) => window.span(),
        }
    }

    /// Bytes in it.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Buffer(_, range) => range.len(),
            Self::Window(window) => window.length,
        }
    }

    /// The address of its first byte, valid while this value lives.
    ///
    /// # Panics
    /// If a range lies outside its buffer.
    #[must_use]
    pub fn address(&self) -> NonNull<u8> {
        match self {
            Self::Buffer(buffer, range) => address_in(buffer, range),
            Self::Window(window) => window.address(),
        }
    }

    /// The region it lies in.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        match self {
            Self::Buffer(buffer, _) => buffer.region(),
            Self::Window(window) => &window.region,
        }
    }

    /// Copies `bytes` to its front, as a device would.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn copy_in(&mut self, bytes: &[u8]) {
        match self {
            Self::Buffer(buffer, range) => {
                buffer.as_mut_slice()[range.clone()][..bytes.len()].copy_from_slice(bytes);
            }
            Self::Window(window) => window.copy_in(bytes),
        }
    }

    /// The index of the first block whose CRC32C is not the expected one. On a window the answer
    /// is a hint only: its owner may be writing to it.
    ///
    /// # Panics
    /// If `expected` does not hold one value for each block.
    #[must_use]
    pub fn first_mismatch(
        &self,
        block_bytes: usize,
        expected: impl ExactSizeIterator<Item = u32>,
    ) -> Option<usize> {
        // SAFETY: the address is valid for that many bytes while `self` lives. In a window the
        // bytes may change while they are read.
        unsafe { verify::first_mismatch(self.address(), self.length(), block_bytes, expected) }
    }

    /// The exclusive buffer, if it is one.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Buffer(buffer, _) => Some(buffer),
            Self::Window(_) => None,
        }
    }
}

impl Source {
    /// Which part of a region it is.
    ///
    /// # Panics
    /// If a range lies outside its buffer.
    #[inline]
    #[must_use]
    pub fn span(&self) -> Span<'_> {
        match self {
            Self::Buffer(buffer, range) => buffer_span(buffer, range),
            Self::Frozen(buffer, range) => buffer_span(buffer, range),
            Self::Window(window) => window.span(),
        }
    }

    /// Bytes in it.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Buffer(_, range) | Self::Frozen(_, range) => range.len(),
            Self::Window(window) => window.length,
        }
    }

    /// The address of its first byte, valid while this value lives.
    ///
    /// # Panics
    /// If a range lies outside its buffer.
    #[must_use]
    pub fn address(&self) -> NonNull<u8> {
        match self {
            Self::Buffer(buffer, range) => address_in(buffer, range),
            Self::Frozen(buffer, range) => address_in(buffer, range),
            Self::Window(window) => window.address(),
        }
    }

    /// The region it lies in.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        match self {
            Self::Buffer(buffer, _) => buffer.region(),
            Self::Frozen(buffer, _) => buffer.region(),
            Self::Window(window) => &window.region,
        }
    }

    /// Its bytes, unless they are in a client's memory.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Buffer(buffer, range) => Some(&buffer.as_slice()[range.clone()]),
            Self::Frozen(buffer, range) => Some(&buffer.as_slice()[range.clone()]),
            Self::Window(_) => None,
        }
    }

    /// Copies its front into all of `bytes`, as a device would.
    ///
    /// # Panics
    /// If there are not enough.
    pub fn copy_out(&self, bytes: &mut [u8]) {
        match self {
            Self::Window(window) => window.copy_out(bytes),
            _ => bytes.copy_from_slice(&self.bytes().unwrap_or_default()[..bytes.len()]),
        }
    }

    /// The exclusive buffer, if it is one.
    #[must_use]
    pub fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Buffer(buffer, _) => Some(buffer),
            Self::Frozen(..) | Self::Window(_) => None,
        }
    }
}

fn address_in(buffer: &Buffer, range: &Range<usize>) -> NonNull<u8> {
    let span = buffer_span(buffer, range);
    span.region.at(span.offset, span.length)
}

#[inline]
fn buffer_span<'a>(buffer: &'a Buffer, range: &Range<usize>) -> Span<'a> {
    assert!(range.start <= range.end && range.end <= buffer.capacity(), "a range is inside");
    let (offset, length) = (buffer.offset() + range.start, range.end - range.start);
    Span { region: buffer.region(), offset, length }
}

#[cfg(test)]
mod tests {
    use extent::checksum;

    use super::*;
    use crate::{HugePages, Pool, SizeClass};

    #[test]
    fn windows_stay_inside_their_region() {
        let region = Region::anonymous(8192, HugePages::Never).expect("memory");
        for (offset, length) in [(8192, 1), (u64::MAX, 1), (1, usize::MAX), (4096, 4097)] {
            let error = Window::new(Arc::clone(&region), offset, length).expect_err("outside");
            assert_eq!(error.kind(), Kind::Invalid);
        }
        let window = Window::new(region, 4000, 1000).expect("inside");
        window.part(10..20).copy_in(b"0123456789");
        let mut back = [0; 12];
        window.part(9..21).copy_out(&mut back);
        assert_eq!(&back, b"\x000123456789\0");
        assert!(window.part(96..200).is_aligned(4096) && !window.is_aligned(4096));
    }

    #[test]
    fn a_flipped_bit_in_a_target_is_seen() {
        let sizes = [SizeClass { bytes: 16384, count: 1 }];
        let pool = Pool::new(&sizes, HugePages::Never).expect("memory");
        let mut target = Target::Buffer(pool.take(1).expect("free"), 4096..12288);
        target.copy_in(&[3; 8192]);
        let sums: Vec<u32> = checksum::crc32c_blocks(&[3; 8192], 4096).collect();
        assert_eq!(target.first_mismatch(4096, sums.iter().copied()), None);
        target.copy_in(&[2]);
        assert_eq!(target.first_mismatch(4096, sums.iter().copied()), Some(0));
    }
}
