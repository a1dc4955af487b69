use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Chain;
use std::ops::Bound;
use std::str::Bytes;
use std::sync::Arc;

use extent::{FileId, FileName};

use crate::File;
use crate::id_table::IdTable;

/// All files, by id and by name.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_id: IdTable,
    by_name: BTreeMap<NameKey, Arc<File>>,
}

impl Index {
    pub(crate) fn find(&self, id: FileId) -> Option<&Arc<File>> {
        self.by_id.find(id)
    }

    pub(crate) fn insert(&mut self, file: &Arc<File>) {
        self.by_id.insert(file);
        self.by_name.insert(NameKey(Arc::clone(file)), Arc::clone(file));
    }

    pub(crate) fn remove(&mut self, file: &File) {
        self.by_id.remove(file.id());
        self.by_name.remove(file.name() as &dyn Name);
    }

    pub(crate) fn by_id(&self) -> &IdTable {
        &self.by_id
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Up to `limit` files whose `silo/key` begins with `prefix` and comes after `after`, in byte
    /// order.
    pub(crate) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Arc<File>> {
        let start: Bound<&dyn Name> = match &after {
            Some(after) if *after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(&prefix),
        };
        let files = self.by_name.range::<dyn Name, _>((start, Bound::Unbounded));
        files
            .map(|(_, file)| file)
            .take_while(|file| begins_with(file.name(), prefix))
            .take(limit)
            .cloned()
            .collect()
    }
}

fn begins_with(name: &FileName, prefix: &str) -> bool {
    let mut bytes = name.bytes();
    prefix.bytes().all(|byte| bytes.next() == Some(byte))
}

type NameBytes<'a> = Chain<Chain<Bytes<'a>, Bytes<'a>>, Bytes<'a>>;

/// Something that is ordered as the bytes of `silo/key`, without putting them together.
trait Name {
    fn parts(&self) -> (&str, &str, &str);

    fn bytes(&self) -> NameBytes<'_> {
        let (silo, slash, key) = self.parts();
        silo.bytes().chain(slash.bytes()).chain(key.bytes())
    }
}

impl Name for FileName {
    fn parts(&self) -> (&str, &str, &str) {
        (self.silo(), "/", self.key())
    }
}

impl Name for &str {
    fn parts(&self) -> (&str, &str, &str) {
        (self, "", "")
    }
}

impl Ord for dyn Name + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        let (ours, theirs) = (self.parts(), other.parts());
        if (ours.0, ours.1) == (theirs.0, theirs.1) {
            // Files of one silo, which is nearly always.
            return ours.2.cmp(theirs.2);
        }
        self.bytes().cmp(other.bytes())
    }
}

impl PartialOrd for dyn Name + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Name + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for dyn Name + '_ {}

/// A file as the key of its own name: the name is in memory once.
#[derive(Debug)]
struct NameKey(Arc<File>);

impl<'a> Borrow<dyn Name + 'a> for NameKey {
    fn borrow(&self) -> &(dyn Name + 'a) {
        self.0.name()
    }
}

impl Ord for NameKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0.name() as &dyn Name).cmp(other.0.name() as &dyn Name)
    }
}

impl PartialOrd for NameKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for NameKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for NameKey {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::file::testing::file;

    proptest! {
        #[test]
        fn lists_in_byte_order(
            names in proptest::collection::btree_set("[ab]{1,2}(-|)/[ab/]{1,3}", 0..30),
            prefix in "[ab]{0,2}(|-|/)[ab/]{0,2}",
            after in proptest::option::of("[ab]{1,2}/[ab/]{0,3}"),
            limit in 0usize..20,
        ) {
            let mut index = Index::default();
            for name in &names {
                index.insert(&file(name));
            }
            let expected: Vec<&String> = names
                .iter()
                .filter(|name| name.starts_with(&prefix))
                .filter(|name| after.as_ref().is_none_or(|after| *name > after))
                .take(limit)
                .collect();
            let found = index.list(&prefix, after.as_deref(), limit);
            let found: Vec<String> = found.iter().map(|file| file.name().to_string()).collect();
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
            for name in &names {
                index.remove(&file(name));
            }
            prop_assert_eq!(index.len() + index.by_name.len(), 0);
        }
    }
}
