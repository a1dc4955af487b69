//! Looking up many extents at once.
//!
//! With ten million extents nothing that a lookup needs is in a cache, and each step says where the
//! next one is: five waits for memory, one after the other. Of a group of requests all take each
//! step together, and ask for what the next one needs: the waits of a group pass at the same time.

use std::sync::Arc;

use extent::{ExtentIndex, FileId};
use parking_lot::RwLockReadGuard;

use crate::shelf::Hold;
use crate::table::ExtentTable;
use crate::{Extent, FileGeneration, Tier};

/// Requests that go step by step together: enough that what the first
/// asked for is there when the last has asked.
const GROUP: usize = 32;

type Newest<'a> = RwLockReadGuard<'a, Arc<FileGeneration>>;
type Table<'a> = RwLockReadGuard<'a, ExtentTable>;

impl Tier {
    /// The extents of the newest generations of files at some indexes, each or `None`, as
    /// [`Tier::file`], [`crate::File::newest`] and [`FileGeneration::extent`] find them one after the
    /// other, and several times as fast where there are many. They are added to a list in order.
    pub fn find_all(&self, wanted: &[(FileId, ExtentIndex)], found: &mut Vec<Option<Extent>>) {
        let index = self.index.read();
        for group in wanted.chunks(GROUP) {
            let mut hashes = [0; GROUP];
            for ((id, _), hash) in group.iter().zip(&mut hashes) {
                *hash = index.by_id().hash(*id);
                index.by_id().prefetch(*hash);
            }
            let mut files = [None; GROUP];
            for (hash, file) in hashes[..group.len()].iter().zip(&mut files) {
                *file = index.by_id().candidate(*hash);
                file.iter().for_each(|file| file.prefetch());
            }
            // Recursive, since a group may want the same twice while somebody waits to write.
            let mut newest: [Option<Newest<'_>>; GROUP] = [const { None }; GROUP];
            let all = group.iter().zip(hashes).zip(&files);
            for ((((id, _), hash), file), newest) in all.zip(&mut newest) {
                // Another file has the same hash: hardly ever.
                let other = || index.by_id().find_hashed(hash, *id);
                let file =
                    file.and_then(|file| if file.id() == *id { Some(file) } else { other() });
                *newest = file.map(|file| file.newest_locked());
                newest.iter().for_each(|newest| newest.prefetch());
            }
            let mut tables: [Option<Table<'_>>; GROUP] = [const { None }; GROUP];
            for (((_, index), newest), table) in group.iter().zip(&newest).zip(&mut tables) {
                *table = newest.as_ref().map(|newest| newest.table_locked());
                table.iter().for_each(|table| table.prefetch(*index));
            }
            for ((_, index), table) in group.iter().zip(&tables) {
                table.iter().for_each(|table| table.prefetch_listed(*index));
            }
            let mut holds = [None; GROUP];
            for (((_, index), table), hold) in group.iter().zip(&tables).zip(&mut holds) {
                *hold = table.as_ref().and_then(|table| table.find(*index));
                hold.iter().for_each(|hold| hold.prefetch());
            }
            for ((hold, newest), (_, index)) in holds.iter().zip(&newest).zip(group) {
                let extent = newest.as_ref().zip(hold.map(Hold::used));
                found.push(extent.map(|(newest, hold)| newest.extent_of(*index, hold).note_use()));
            }
        }
    }
}
