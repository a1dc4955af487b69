use std::sync::Arc;

use extent::FileId;

use crate::File;
use crate::hash::IdHash;

/// Parts of the table, each of which grows by itself: nobody waits for ten million files to move.
const PARTS: usize = 256;

/// All files by id: open addressing, sixteen bytes a place, four places to a cache line, at most
/// three in four of them taken. A lookup can be told apart into what to fetch and what to look at.
#[derive(Debug)]
pub(crate) struct IdTable {
    hash: IdHash,
    parts: Box<[Part]>,
    files: usize,
}

#[derive(Debug, Default)]
struct Part {
    /// None, or a power of two.
    places: Box<[Place]>,
    taken: usize,
}

/// A file, and the hash of its id, so that files of other ids need not be looked at.
#[derive(Debug, Default)]
struct Place {
    hash: u64,
    file: Option<Arc<File>>,
}

impl Default for IdTable {
    fn default() -> Self {
        let parts = (0..PARTS).map(|_| Part::default()).collect();
        Self { hash: IdHash::default(), parts, files: 0 }
    }
}

impl IdTable {
    pub(crate) fn len(&self) -> usize {
        self.files
    }

    pub(crate) fn find(&self, id: FileId) -> Option<&Arc<File>> {
        self.find_hashed(self.hash(id), id)
    }

    pub(crate) fn hash(&self, id: FileId) -> u64 {
        self.hash.of(id)
    }

    /// Has the processor fetch the place that a hash leads to.
    pub(crate) fn prefetch(&self, hash: u64) {
        let part = &self.parts[part_of(hash)];
        if !part.places.is_empty() {
            dma::prefetch(&part.places[part.first(hash)]);
        }
    }

    /// The file of an id with this hash.
    pub(crate) fn find_hashed(&self, hash: u64, id: FileId) -> Option<&Arc<File>> {
        let part = &self.parts[part_of(hash)];
        part.run(hash).find(|(known, file)| *known == hash && file.id() == id).map(|(_, f)| f)
    }

    /// The first file of this hash, which nearly always is that of the id: without a look at it.
    pub(crate) fn candidate(&self, hash: u64) -> Option<&Arc<File>> {
        let part = &self.parts[part_of(hash)];
        part.run(hash).find(|(known, _)| *known == hash).map(|(_, file)| file)
    }

    /// Adds a file, in the place of one of the same id.
    pub(crate) fn insert(&mut self, file: &Arc<File>) {
        let hash = self.hash(file.id());
        self.files += usize::from(self.parts[part_of(hash)].insert(hash, file));
    }

    pub(crate) fn remove(&mut self, id: FileId) {
        let hash = self.hash(id);
        self.files -= usize::from(self.parts[part_of(hash)].remove(hash, id));
    }
}

const fn part_of(hash: u64) -> usize {
    (hash >> 56) as usize % PARTS
}

impl Part {
    /// Where a hash is looked for first.
    #[expect(clippy::cast_possible_truncation, reason = "the low bits of a hash")]
    fn first(&self, hash: u64) -> usize {
        hash as usize & (self.places.len() - 1)
    }

    /// The taken places from a hash's first on, to the next free one, which there always is.
    fn run(&self, hash: u64) -> impl Iterator<Item = (u64, &Arc<File>)> {
        let first = if self.places.is_empty() { 0 } else { self.first(hash) };
        let (before, after) = self.places.split_at(first);
        after.iter().chain(before).map_while(|place| Some((place.hash, place.file.as_ref()?)))
    }

    fn insert(&mut self, hash: u64, file: &Arc<File>) -> bool {
        if (self.taken + 1) * 4 > self.places.len() * 3 {
            self.grow();
        }
        let mut at = self.first(hash);
        while let Some(known) = &self.places[at].file {
            if known.id() == file.id() {
                self.places[at].file = Some(Arc::clone(file));
                return false;
            }
            at = self.after(at);
        }
        self.places[at] = Place { hash, file: Some(Arc::clone(file)) };
        self.taken += 1;
        true
    }

    fn grow(&mut self) {
        let count = (self.places.len() * 2).max(4);
        let old =
            std::mem::replace(&mut self.places, (0..count).map(|_| Place::default()).collect());
        for place in old {
            if place.file.is_some() {
                let mut at = self.first(place.hash);
                while self.places[at].file.is_some() {
                    at = self.after(at);
                }
                self.places[at] = place;
            }
        }
    }

    fn remove(&mut self, hash: u64, id: FileId) -> bool {
        let Some(steps) = self.run(hash).position(|(_, file)| file.id() == id) else {
            return false;
        };
        let mut hole = (self.first(hash) + steps) & (self.places.len() - 1);
        self.places[hole] = Place::default();
        self.taken -= 1;
        // What follows moves up, unless it would come before the first place it is looked for at.
        let mut at = self.after(hole);
        while self.places[at].file.is_some() {
            let from_first = at.wrapping_sub(self.first(self.places[at].hash));
            let from_hole = at.wrapping_sub(hole);
            let mask = self.places.len() - 1;
            if from_first & mask >= from_hole & mask {
                self.places.swap(hole, at);
                hole = at;
            }
            at = self.after(at);
        }
        true
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::file::testing::file;

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec((0u8..3, 0u32..60), 0..400)) {
            let (mut table, mut map) = (IdTable::default(), BTreeMap::new());
            for (step, name) in steps {
                // Few hashes: all in one part, and in runs.
                let file = file(&format!("s/{name}"));
                let hash = u64::from(name % 5);
                let part = &mut table.parts[0];
                if step == 0 {
                    prop_assert_eq!(part.remove(hash, file.id()), map.remove(&name).is_some());
                } else {
                    prop_assert_eq!(part.insert(hash, &file), map.insert(name, file).is_none());
                }
                prop_assert_eq!(part.taken, map.len());
                for (name, file) in &map {
                    let found = table.find_hashed(u64::from(name % 5), file.id());
                    prop_assert!(found.is_some_and(|found| Arc::ptr_eq(found, file)), "{}", name);
                }
            }
        }
    }

    #[test]
    fn many_files_are_found_and_removed() {
        let mut table = IdTable::default();
        let files: Vec<_> = (0..5000).map(|number| file(&format!("s/{number}"))).collect();
        files.iter().for_each(|file| table.insert(file));
        files.iter().for_each(|file| table.insert(file));
        assert_eq!(table.len(), files.len());
        for file in &files {
            assert!(table.find(file.id()).is_some_and(|found| Arc::ptr_eq(found, file)));
            assert!(table.candidate(table.hash(file.id())).is_some());
        }
        files.iter().step_by(2).for_each(|file| table.remove(file.id()));
        let found = files.iter().filter(|file| table.find(file.id()).is_some()).count();
        assert_eq!((table.len(), found), (2500, 2500));
    }
}
