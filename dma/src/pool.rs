//! A bounded number of buffers in a few sizes, cut from one region.
#![allow(unsafe_code)]

use std::slice;
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;
use extent::{Kind, Result};

use crate::{ALIGN_BYTES, HugePages, Region};

/// How many buffers of one size a pool holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizeClass {
    /// Bytes of each; a multiple of [`ALIGN_BYTES`].
    pub bytes: usize,
    /// How many there are.
    pub count: usize,
}

/// How many buffers of one size are out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClassUse {
    /// The class.
    pub class: SizeClass,
    /// Buffers taken and not yet given back.
    pub taken: usize,
}

/// A fixed set of buffers. Taking and giving back is lock-free; there are never more.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

struct Inner {
    region: Arc<Region>,
    classes: Vec<Class>,
    on_return: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("classes", &self.classes).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Class {
    size: SizeClass,
    /// Offsets, in the region, of the buffers that are free.
    free: ArrayQueue<usize>,
}

impl Pool {
    /// A pool of the given classes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if there is no class, or one is empty or not a multiple of
    /// [`ALIGN_BYTES`]; [`Kind::NoSpace`] if the memory is not there.
    pub fn new(sizes: &[SizeClass], huge: HugePages) -> Result<Self> {
        let sound = |s: &SizeClass| {
            let fits = u32::try_from(s.bytes).is_ok();
            fits && s.bytes != 0 && s.bytes.is_multiple_of(ALIGN_BYTES) && s.count != 0
        };
        if sizes.is_empty() || !sizes.iter().all(sound) {
            return Err(Kind::Invalid.error(format!(
                "buffer classes must be non-empty, of multiples of {ALIGN_BYTES} bytes below 4 GiB: \
                 {sizes:?}"
            )));
        }
        let total = sizes.iter().map(|size| size.bytes * size.count).sum();
        let region = Region::anonymous(total, huge)?;
        let mut sizes = sizes.to_vec();
        sizes.sort_by_key(|size| size.bytes);
        let mut offset = 0;
        let mut classes = Vec::with_capacity(sizes.len());
        for size in sizes {
            let free = ArrayQueue::new(size.count);
            for _ in 0..size.count {
                free.push(offset).expect("as many places as buffers");
                offset += size.bytes;
            }
            classes.push(Class { size, free });
        }
        Ok(Self(Arc::new(Inner { region, classes, on_return: OnceLock::new() })))
    }

    /// A buffer of at least `bytes`, of the smallest class that has one; `None` if all are out.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Option<Buffer> {
        let fitting = |class: &Class| class.size.bytes >= bytes;
        let first = self.0.classes.iter().position(fitting)?;
        self.0.classes.iter().enumerate().skip(first).find_map(|(index, class)| {
            let offset = class.free.pop()?;
            let narrow = |number: usize| u32::try_from(number).expect("checked by Pool::new");
            let (class, capacity) = (narrow(index), narrow(class.size.bytes));
            Some(Buffer { pool: Arc::clone(&self.0), offset, class, capacity })
        })
    }

    /// Has `hook` called whenever a buffer comes back, for those who wait for one. The first hook
    /// stays.
    pub fn on_return(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.on_return.set(Box::new(hook));
    }

    /// Bytes of the largest class.
    #[must_use]
    pub fn largest_bytes(&self) -> usize {
        self.0.classes.last().map_or(0, |class| class.size.bytes)
    }

    /// The memory that all buffers are cut from.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.0.region
    }

    /// Whether every buffer of every class is taken.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.0.classes.iter().all(|class| class.free.is_empty())
    }

    /// How many buffers of each class are out, smallest class first.
    #[must_use]
    pub fn usage(&self) -> Vec<ClassUse> {
        let of = |class: &Class| ClassUse {
            class: class.size,
            taken: class.size.count - class.free.len(),
        };
        self.0.classes.iter().map(of).collect()
    }
}

/// Exclusive use of a piece of a pool, given back on drop. Holds whatever its last user left.
#[derive(Debug)]
pub struct Buffer {
    pool: Arc<Inner>,
    offset: usize,
    class: u32,
    /// Bytes, kept here since every operation asks for it.
    capacity: u32,
}

impl Buffer {
    /// Bytes it holds.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// The region it is cut from.
    #[inline]
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.pool.region
    }

    /// Where in the region it begins.
    #[inline]
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        let base = self.pool.region.at(self.offset, self.capacity());
        // SAFETY: the pool gave this piece to nobody else, and `&self` keeps writers out.
        unsafe { slice::from_raw_parts(base.as_ptr(), self.capacity()) }
    }

    /// Its bytes, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let base = self.pool.region.at(self.offset, self.capacity());
        // SAFETY: the pool gave this piece to nobody else, and `&mut self` is exclusive.
        unsafe { slice::from_raw_parts_mut(base.as_ptr(), self.capacity()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let back = self.pool.classes[self.class as usize].free.push(self.offset);
        debug_assert!(back.is_ok(), "a buffer came back twice");
        if let Some(hook) = self.pool.on_return.get() {
            hook();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        let sizes = [SizeClass { bytes: 65536, count: 1 }, SizeClass { bytes: 4096, count: 2 }];
        Pool::new(&sizes, HugePages::Never).expect("memory")
    }

    #[test]
    fn the_smallest_fitting_class_goes_first_and_then_the_next() {
        let pool = pool();
        let small = [pool.take(1).expect("one"), pool.take(4096).expect("two")];
        assert!(small.iter().all(|buffer| buffer.capacity() == 4096));
        let large = pool.take(1).expect("falls to the next class");
        assert_eq!(large.capacity(), 65536);
        assert!(pool.take(1).is_none());
        drop(large);
        assert!(pool.take(65536).is_some());
        assert!(pool.take(65537).is_none());
        assert_eq!(pool.usage().iter().map(|class| class.taken).sum::<usize>(), 2);
    }

    #[test]
    fn buffers_do_not_overlap() {
        let pool = pool();
        let mut all: Vec<_> = std::iter::from_fn(|| pool.take(1)).collect();
        for (mark, buffer) in (1u8..).zip(&mut all) {
            buffer.as_mut_slice().fill(mark);
        }
        for (mark, buffer) in (1u8..).zip(&all) {
            assert!(buffer.as_slice().iter().all(|byte| *byte == mark));
        }
    }
}
