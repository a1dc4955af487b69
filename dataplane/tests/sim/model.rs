//! What the files hold, as far as clients may know.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use extent::FileName;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// All contents that were ever sent to be committed, in order, and whether each was acknowledged.
#[derive(Clone, Default)]
pub(crate) struct History(Vec<(Arc<[u8]>, bool)>);

impl History {
    /// The place of the last acknowledged contents: nothing acknowledged before it may be seen by
    /// whoever opens the file from now on. What was never acknowledged may have happened late.
    pub(crate) fn floor(&self) -> Option<usize> {
        self.0.iter().rposition(|(_, acknowledged)| *acknowledged)
    }

    /// Where bytes first differ from each of the contents, for a failing run's report.
    pub(crate) fn differences(&self, offset: usize, bytes: &[u8]) -> Vec<String> {
        let differ = |(contents, acknowledged): &(Arc<[u8]>, bool)| {
            let part = contents.get(offset..offset + bytes.len()).unwrap_or_default();
            let same = part.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            let wrong = part.iter().zip(bytes).filter(|(a, b)| a != b).count();
            // Right bytes in a wrong place tell more than wrong bytes.
            let probe = &bytes[..bytes.len().min(16)];
            let found = contents.windows(probe.len().max(1)).position(|window| window == probe);
            format!(
                "{} bytes, acknowledged {acknowledged}: {same} alike, {wrong} wrong, the first found at {found:?}",
                contents.len()
            )
        };
        self.0.iter().map(differ).collect()
    }

    /// Whether a file opened when the floor was `floor` may have these bytes at `offset`, and be
    /// `length` bytes long.
    pub(crate) fn allows(
        &self,
        floor: Option<usize>,
        offset: usize,
        bytes: &[u8],
        length: u64,
    ) -> bool {
        self.0.iter().enumerate().any(|(at, (contents, acknowledged))| {
            (!acknowledged || floor.is_none_or(|floor| at >= floor))
                && contents.len() as u64 == length
                && contents.get(offset..offset + bytes.len()).is_some_and(|part| part == bytes)
        })
    }
}

/// Shared by the clients and the end of the world.
#[derive(Clone, Default)]
pub(crate) struct Model(Arc<Mutex<BTreeMap<FileName, History>>>);

impl Model {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<FileName, History>> {
        self.0.lock().expect("nobody panics under the lock")
    }

    pub(crate) fn of(&self, name: &FileName) -> History {
        self.lock().get(name).cloned().unwrap_or_default()
    }

    /// A commit is about to be sent. Returns what to acknowledge it by.
    pub(crate) fn sending(&self, name: &FileName, bytes: &Arc<[u8]>) -> usize {
        let mut files = self.lock();
        let History(entries) = files.entry(name.clone()).or_default();
        entries.push((Arc::clone(bytes), false));
        entries.len() - 1
    }

    /// The node said that it is committed.
    pub(crate) fn acknowledged(&self, name: &FileName, entry: usize) {
        if let Some(History(entries)) = self.lock().get_mut(name) {
            entries[entry].1 = true;
        }
    }

    pub(crate) fn names(&self) -> Vec<FileName> {
        self.lock().keys().cloned().collect()
    }
}

/// Bytes that tell where they belong, unlike any others.
pub(crate) fn contents(seed: u64, length: usize) -> Arc<[u8]> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

/// A length that is small, odd, or around a block or an extent.
pub(crate) fn any_length(rng: &mut SmallRng, extent_bytes: usize) -> usize {
    let around = |rng: &mut SmallRng, at: usize| (at + rng.random_range(0..3)).saturating_sub(1);
    match rng.random_range(0..6) {
        0 => rng.random_range(0..64),
        1 => around(rng, 4096),
        2 => around(rng, extent_bytes),
        3 => around(rng, 2 * extent_bytes),
        _ => rng.random_range(0..3 * extent_bytes),
    }
}
