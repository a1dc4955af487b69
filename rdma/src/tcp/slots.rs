use crate::SessionId;

use super::session::Session;

/// The sessions of a transport, found by a number whose low bits are the session's place.
pub(super) struct Slots {
    base: SessionId,
    list: Vec<Option<Session>>,
    free: Vec<usize>,
    /// Sessions so far: makes every number a new one.
    serial: u64,
}

const PLACE_BITS: u32 = 14;

impl Slots {
    /// The most sessions.
    pub(super) const MAX: usize = 1 << PLACE_BITS;

    pub(super) fn new(base: SessionId) -> Self {
        Self { base, list: Vec::new(), free: Vec::new(), serial: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len() - self.free.len()
    }

    /// The number that the session inserted next must have.
    pub(super) fn next(&self) -> SessionId {
        let place = self.free.last().copied().unwrap_or(self.list.len());
        SessionId(self.base.0 | self.serial << PLACE_BITS | place as u64)
    }

    pub(super) fn insert(&mut self, session: Session) {
        assert_eq!(session.id, self.next(), "sessions are numbered here");
        self.serial += 1;
        match self.free.pop() {
            Some(place) => self.list[place] = Some(session),
            None => self.list.push(Some(session)),
        }
    }

    pub(super) fn find(&mut self, id: SessionId) -> Option<&mut Session> {
        self.list.get_mut(place_of(id))?.as_mut().filter(|session| session.id == id)
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.find(id)?;
        self.free.push(place_of(id));
        self.list[place_of(id)].take()
    }
}

fn place_of(id: SessionId) -> usize {
    usize::try_from(id.0 & ((1 << PLACE_BITS) - 1)).expect("14 bits")
}
