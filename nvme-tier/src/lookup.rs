//! Looking up many extents at once.
//!
//! With ten million extents nothing that a lookup needs is in a cache, and each step says where the
//! next one is: five waits for memory, one after the other. Of a group of requests all take each
//! step together, and ask for what the next one needs: the waits of a group pass at the same time.

use std::sync::Arc;

use extent::{ExtentIndex, FileId};
use parking_lot::RwLockReadGuard;

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
            for hash in &hashes[..group.len()] {
                if let Some(file) = index.by_id().candidate(*hash) {
                    file.prefetch();
                }
            }
            // Recursive, since a group may want the same twice while somebody waits to write.
            let mut newest: [Option<Newest<'_>>; GROUP] = [const { None }; GROUP];
            for (((id, _), hash), newest) in group.iter().zip(hashes).zip(&mut newest) {
                *newest = index.by_id().find_hashed(hash, *id).map(|file| file.newest_locked());
                if let Some(newest) = newest {
                    newest.prefetch();
                }
            }
            let mut tables: [Option<Table<'_>>; GROUP] = [const { None }; GROUP];
            for (((_, index), newest), table) in group.iter().zip(&newest).zip(&mut tables) {
                *table = newest.as_ref().map(|newest| newest.table_locked());
                if let Some(table) = table {
                    table.prefetch(*index);
                }
            }
            let places = || group.iter().zip(&tables).map(|((_, at), t)| Some((t.as_ref()?, *at)));
            places().flatten().for_each(|(table, index)| table.prefetch_place(index));
            let holds = || places().map(|place| place.and_then(|(table, at)| table.find(at)));
            holds().flatten().for_each(crate::shelf::Hold::prefetch);
            for ((hold, newest), (_, index)) in holds().zip(&newest).zip(group) {
                let hold = hold.map(crate::shelf::Hold::used);
                let extent = newest.as_ref().zip(hold);
                found.push(extent.map(|(newest, hold)| newest.extent_of(*index, hold).note_use()));
            }
        }
    }
}
