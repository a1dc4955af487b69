//! Sessions by number.

use crate::SessionId;

/// What is found by its number.
pub(crate) trait Numbered {
    /// The number that it was made with.
    fn id(&self) -> SessionId;
}

/// The sessions of a transport, found by a number whose low bits are the session's place.
#[derive(Debug)]
pub(crate) struct Slots<S> {
    base: SessionId,
    list: Vec<Option<S>>,
    free: Vec<usize>,
    /// Sessions so far: makes every number a new one.
    serial: u64,
}

const PLACE_BITS: u32 = 14;
/// Of a number, what tells it from all that were in the same place in a long while.
pub(crate) const LOW_BITS: u32 = u32::MAX >> 1;

impl<S: Numbered> Slots<S> {
    /// The most sessions.
    pub(crate) const MAX: usize = 1 << PLACE_BITS;

    pub(crate) fn new(base: SessionId) -> Self {
        Self { base, list: Vec::new(), free: Vec::new(), serial: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len() - self.free.len()
    }

    /// The number that the session inserted next must have.
    pub(crate) fn next(&self) -> SessionId {
        let place = self.free.last().copied().unwrap_or(self.list.len());
        SessionId(self.base.0 | self.serial << PLACE_BITS | place as u64)
    }

    pub(crate) fn insert(&mut self, session: S) {
        assert_eq!(session.id(), self.next(), "sessions are numbered here");
        self.serial += 1;
        match self.free.pop() {
            Some(place) => self.list[place] = Some(session),
            None => self.list.push(Some(session)),
        }
    }

    pub(crate) fn find(&mut self, id: SessionId) -> Option<&mut S> {
        self.list.get_mut(place_of(id))?.as_mut().filter(|session| session.id() == id)
    }

    /// The session whose number has these [`LOW_BITS`].
    pub(crate) fn find_low(&mut self, low: u32) -> Option<&mut S> {
        let place = place_of(SessionId(low.into()));
        let same = |session: &&mut S| session.id().0 & u64::from(LOW_BITS) == u64::from(low);
        self.list.get_mut(place)?.as_mut().filter(same)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &S> {
        self.list.iter().flatten()
    }

    /// The numbers of all.
    pub(crate) fn ids(&self) -> Vec<SessionId> {
        self.iter().map(Numbered::id).collect()
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<S> {
        self.find(id)?;
        self.free.push(place_of(id));
        self.list[place_of(id)].take()
    }
}

fn place_of(id: SessionId) -> usize {
    usize::try_from(id.0 & ((1 << PLACE_BITS) - 1)).expect("14 bits")
}
