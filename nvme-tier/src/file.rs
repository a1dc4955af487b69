use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use extent::{FileId, FileName, Generation, Kind, Result};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::FileGeneration;

/// A file known to the tier. What a lookup needs comes first, and is in one cache line.
#[derive(Debug)]
#[repr(C, align(32))]
pub struct File {
    id: FileId,
    newest: RwLock<Arc<FileGeneration>>,
    name: FileName,
    pins: Arc<Pins>,
}

const _: () = assert!(offset_of!(File, name) <= 32, "a lookup needs one line");

impl File {
    pub(crate) fn new(
        id: FileId,
        name: FileName,
        pins: Arc<Pins>,
        newest: Arc<FileGeneration>,
    ) -> Arc<Self> {
        Arc::new(Self { id, name, newest: RwLock::new(newest), pins })
    }

    /// Its id: a hash of its name.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &FileName {
        &self.name
    }

    /// The newest committed generation. Whoever keeps it reads from it, whatever comes after.
    #[must_use]
    pub fn newest(&self) -> Arc<FileGeneration> {
        Arc::clone(&self.newest.read())
    }

    /// The newest committed generation, if it is the one that the caller has decided upon.
    ///
    /// # Errors
    /// [`Kind::Stale`] if it is another.
    pub fn newest_at(&self, expected: Option<Generation>) -> Result<Arc<FileGeneration>> {
        let newest = self.newest();
        check_expected(&self.name, newest.number(), expected)?;
        Ok(newest)
    }

    /// Who pins it, and until when, in milliseconds since 1970. Expired pins may be among them.
    #[must_use]
    pub fn pins(&self) -> Vec<(String, u64)> {
        self.pins.owners.lock().clone()
    }

    /// Has the processor fetch what a lookup needs of it.
    pub(crate) fn prefetch(&self) {
        dma::prefetch(&self.id);
    }

    /// The newest generation without holding it; also for whoever has it locked already.
    pub(crate) fn newest_locked(&self) -> RwLockReadGuard<'_, Arc<FileGeneration>> {
        self.newest.read_recursive()
    }

    pub(crate) fn pin_set(&self) -> &Arc<Pins> {
        &self.pins
    }

    pub(crate) fn is_newest(&self, generation: &FileGeneration) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.newest.read()), generation)
    }

    /// Puts a generation in the place of the newest.
    pub(crate) fn replace(&self, generation: Arc<FileGeneration>) {
        let old = std::mem::replace(&mut *self.newest.write(), generation);
        old.supersede();
    }
}

/// Whether a file is at the generation expected, if one is; 0 is that of a file nobody knows.
pub(crate) fn check_expected(
    name: &FileName,
    at: Generation,
    expected: Option<Generation>,
) -> Result<()> {
    match expected {
        Some(expected) if expected != at => Err(Kind::Stale.error(format!(
            "{name} is at generation {at}, not {expected}: read its status and decide again"
        ))),
        _ => Ok(()),
    }
}

/// Who keeps a file from being evicted, and until when.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    owners: Mutex<Vec<(String, u64)>>,
    any: AtomicBool,
}

impl Pins {
    /// Adds a pin, in the place of an earlier one of the same owner.
    pub(crate) fn pin(&self, owner: &str, until_unix_ms: u64) {
        let mut owners = self.owners.lock();
        owners.retain(|(other, _)| other != owner);
        owners.push((owner.to_owned(), until_unix_ms));
        self.any.store(true, Ordering::Release);
    }

    /// Ends a pin. Whether there was one.
    pub(crate) fn unpin(&self, owner: &str) -> bool {
        let mut owners = self.owners.lock();
        let before = owners.len();
        owners.retain(|(other, _)| other != owner);
        self.any.store(!owners.is_empty(), Ordering::Release);
        owners.len() < before
    }

    /// Whether a pin holds at this time. Expired ones are forgotten.
    pub(crate) fn is_pinned(&self, now_unix_ms: u64) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut owners = self.owners.lock();
        owners.retain(|(_, until)| *until > now_unix_ms);
        self.any.store(!owners.is_empty(), Ordering::Release);
        !owners.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use extent::Attempt;

    use super::*;
    use crate::State;
    use crate::generation::{Facts, GenerationShape};

    /// A clean, empty file.
    pub(crate) fn file(name: &str) -> Arc<File> {
        let name: FileName = name.parse().expect("a good name");
        let shape = GenerationShape {
            number: Generation(1),
            attempt: Attempt(1),
            length: 0,
            extent_bytes: 65536,
            extents_written: 0,
            written: false,
            twice: false,
            blind: false,
        };
        let facts = Facts { state: State::Clean, mark: None, source: None };
        let generation = FileGeneration::new(name.id(), shape, Arc::default(), facts);
        File::new(name.id(), name, Arc::default(), generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_expire_and_replace_each_other() {
        let pins = Pins::default();
        pins.pin("job", 100);
        pins.pin("job", 50);
        pins.pin("other", 70);
        assert!(pins.is_pinned(49) && pins.is_pinned(69) && !pins.is_pinned(70));
        assert!(!pins.unpin("job"), "expired pins are forgotten");
        pins.pin("job", 200);
        assert!(pins.unpin("job") && !pins.is_pinned(0));
    }
}
