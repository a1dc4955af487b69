//! A table of what is in flight, whose keys are never mistaken for one another.

/// A place in a [`Slots`], and which use of that place it means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    slot: u32,
    tag: u32,
}

impl Key {
    /// As it travels through devices and fabrics: `slot` in the low half, `tag` in the high one.
    pub(crate) const fn pack(self) -> u64 {
        self.slot as u64 | (self.tag as u64) << 32
    }

    /// The opposite of [`Key::pack`].
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    pub(crate) const fn unpack(packed: u64) -> Self {
        Self { slot: packed as u32, tag: (packed >> 32) as u32 }
    }
}

/// Values under keys. A key is good until its value is removed, and never again.
pub(crate) struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

struct Entry<T> {
    tag: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    /// Empty, with room for `capacity` values before it must grow.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) }
    }

    pub(crate) fn insert(&mut self, value: T) -> Key {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.entries[slot as usize];
            entry.value = Some(value);
            return Key { slot, tag: entry.tag };
        }
        let slot = u32::try_from(self.entries.len()).expect("credits bound what is in flight");
        self.entries.push(Entry { tag: 0, value: Some(value) });
        Key { slot, tag: 0 }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.tag == key.tag { entry.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.tag != key.tag {
            return None;
        }
        let value = entry.value.take()?;
        entry.tag = entry.tag.wrapping_add(1);
        self.free.push(key.slot);
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_good_once() {
        let mut slots = Slots::with_capacity(1);
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(Key::unpack(second.pack())), Some(&mut 'b'));
        assert_eq!(slots.len(), 1);
    }
}
