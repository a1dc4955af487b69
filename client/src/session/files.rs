//! The files that a session has open, by numbers of its own: those of a node end with a connection.

use extent::wire::{OpenBody, OpenMode};
use extent::{Error, Generation, Kind, Result};

use super::slab::Slab;
use crate::bugs::{self, Bug};

/// See the module.
pub(super) struct Files {
    open: Slab<OpenFile>,
    /// Files closed so far: no number comes twice.
    closed: u64,
}

struct OpenFile {
    number: u64,
    /// `silo/key`.
    name: Box<[u8]>,
    state: State,
}

enum State {
    /// Reads one generation.
    Reader {
        /// The node's handle; `None` while there is no connection, or it is being opened again.
        node: Option<u64>,
        seen: Seen,
    },
    /// Writes a new one, by this handle of the node's.
    Writer { node: u64, identity: u128 },
    /// Wrote one when the connection was lost.
    Lost { identity: u128 },
    /// As `Lost`, and the COMMIT with this number was sent and not answered.
    InDoubt { identity: u128, commit: usize },
    /// Of no use any more.
    Gone(Error),
}

/// What tells a generation from others.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    generation: Generation,
    length: u64,
    identity: u128,
}

/// What a file needs after a connection was made.
pub(super) struct Reopen<'a> {
    pub(super) name: &'a [u8],
    pub(super) generation: Generation,
}

impl Files {
    pub(super) fn new() -> Self {
        Self { open: Slab::new(), closed: 0 }
    }

    /// Takes a file in that the node has opened. Its number, never 0.
    pub(super) fn insert(
        &mut self,
        name: Box<[u8]>,
        mode: OpenMode,
        node: u64,
        body: &OpenBody,
    ) -> u64 {
        let state = match mode {
            OpenMode::Read(_) => State::Reader { node: Some(node), seen: Seen::of(body) },
            OpenMode::Write(_) => State::Writer { node, identity: body.identity },
        };
        let closed = self.closed << 32;
        let number = |slot: usize| closed | (slot as u64 + 1);
        let slot = self.open.insert(|slot| OpenFile { number: number(slot), name, state });
        number(slot)
    }

    pub(super) fn remove(&mut self, number: u64) {
        if self.get(number).is_some() {
            self.open.remove(slot_of(number));
            self.closed += 1;
        }
    }

    /// The node's handle.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not open; why it cannot be used any more.
    pub(super) fn resolve(&self, number: u64) -> Result<u64> {
        let file = self.get(number).ok_or_else(|| {
            Kind::NotFound.error(format!("handle {number} is not open in this session"))
        })?;
        match &file.state {
            State::Reader { node: Some(node), .. } | State::Writer { node, .. } => Ok(*node),
            State::Reader { node: None, .. } => {
                Err(Kind::Disconnected.error("the file is not open again yet: try again"))
            }
            State::Lost { .. } => Err(draft_lost()),
            State::InDoubt { .. } => Err(in_doubt()),
            State::Gone(error) => Err(error.duplicate()),
        }
    }

    /// Whether no node has it open, and none will.
    pub(super) fn is_lost(&self, number: u64) -> bool {
        self.get(number).is_some_and(|file| {
            matches!(file.state, State::Lost { .. } | State::InDoubt { .. } | State::Gone(_))
        })
    }

    /// A generation is committed: its handle reads from now on.
    pub(super) fn committed(&mut self, number: u64, node: Option<u64>, body: &OpenBody) {
        if let Some(file) = self.get_mut(number) {
            let node = match file.state {
                State::Writer { node, .. } | State::Reader { node: Some(node), .. } => Some(node),
                _ => node,
            };
            file.state = State::Reader { node, seen: Seen::of(body) };
        }
    }

    /// The connection is gone, and all handles with it.
    pub(super) fn lose(&mut self) {
        for file in self.open.iter_mut() {
            match &mut file.state {
                State::Reader { node, .. } => *node = None,
                State::Writer { identity, .. } | State::InDoubt { identity, .. } => {
                    file.state = State::Lost { identity: *identity };
                }
                State::Lost { .. } | State::Gone(_) => {}
            }
        }
    }

    /// Whether requests of this file may be sent once more: those behind a COMMIT in doubt, too, but
    /// for WRITEs, as soon as it is known what became of it.
    pub(super) fn may_repeat(&self, number: u64, writes: bool) -> bool {
        self.get(number).is_none_or(|file| match file.state {
            State::Reader { .. } => true,
            State::InDoubt { .. } => !writes && !bugs::is(Bug::DoubtEndsOthers),
            _ => false,
        })
    }

    /// The answer to this COMMIT was lost. Whether it can be found out how it ended.
    pub(super) fn doubt(&mut self, number: u64, commit: usize) -> bool {
        match self.get_mut(number).map(|file| &mut file.state) {
            Some(state @ State::Lost { identity: 1.. }) => {
                let State::Lost { identity } = *state else { return false };
                *state = State::InDoubt { identity, commit };
                true
            }
            _ => false,
        }
    }

    /// The COMMIT that is in doubt, and the identity of what it made.
    pub(super) fn doubted(&self, number: u64) -> Option<(usize, u128)> {
        match self.get(number)?.state {
            State::InDoubt { identity, commit } => Some((commit, identity)),
            _ => None,
        }
    }

    /// The files to be opened once there is a connection.
    pub(super) fn to_reopen(&self) -> impl Iterator<Item = u64> {
        self.open.iter().filter(|file| file.is_to_reopen()).map(|file| file.number)
    }

    pub(super) fn is_to_reopen(&self, number: u64) -> bool {
        self.get(number).is_some_and(OpenFile::is_to_reopen)
    }

    pub(super) fn reopen(&self, number: u64) -> Option<Reopen<'_>> {
        let file = self.get(number)?;
        let generation = match file.state {
            State::Reader { .. } if bugs::is(Bug::NewestReopened) => Generation(0),
            State::Reader { seen, .. } => seen.generation,
            _ => Generation(0),
        };
        Some(Reopen { name: &file.name, generation })
    }

    /// The node has opened it again. Whether that is what was open before.
    pub(super) fn reopened(&mut self, number: u64, handle: u64, body: &OpenBody) -> bool {
        let Some(State::Reader { node, seen }) = self.get_mut(number).map(|file| &mut file.state)
        else {
            return false;
        };
        if !seen.is_same(Seen::of(body)) && !bugs::is(Bug::NewestReopened) {
            return false;
        }
        *node = Some(handle);
        true
    }

    /// From now on it answers with this.
    pub(super) fn end(&mut self, number: u64, reason: Error) {
        if let Some(file) = self.get_mut(number) {
            file.state = State::Gone(reason);
        }
    }

    /// The same, if it is a generation that was being written and is lost.
    pub(super) fn end_draft(&mut self, number: u64, reason: Error) {
        if let Some(file) = self.get_mut(number)
            && matches!(file.state, State::Lost { .. })
        {
            file.state = State::Gone(reason);
        }
    }

    /// The name, for errors.
    pub(super) fn name(&self, number: u64) -> String {
        let name = self.get(number).map_or(&[][..], |file| &file.name);
        String::from_utf8_lossy(name).into_owned()
    }

    fn get(&self, number: u64) -> Option<&OpenFile> {
        self.open.get(slot_of(number)).filter(|file| file.number == number)
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut OpenFile> {
        self.open.get_mut(slot_of(number)).filter(|file| file.number == number)
    }
}

impl OpenFile {
    fn is_to_reopen(&self) -> bool {
        matches!(self.state, State::Reader { node: None, .. } | State::InDoubt { .. })
    }
}

impl Seen {
    fn of(body: &OpenBody) -> Self {
        Self { generation: body.generation, length: body.length, identity: body.identity }
    }

    /// Identities say more than generations, which are counted anew once a file was forgotten.
    fn is_same(self, other: Self) -> bool {
        self == other || (bugs::is(Bug::IdentityIgnored) && self.generation == other.generation)
    }
}

fn slot_of(number: u64) -> usize {
    usize::try_from((number & u64::from(u32::MAX)).wrapping_sub(1)).unwrap_or(usize::MAX)
}

/// What every later request of a generation gets to hear that was being written.
pub(super) fn draft_lost() -> Error {
    Kind::Disconnected.error(
        "the connection was lost, and the generation that was being written with it: create the \
         file again and write all of it",
    )
}

/// What a COMMIT gets to hear.
pub(super) fn in_doubt() -> Error {
    Kind::Disconnected.error(
        "the connection was lost before the node answered: whether it was committed is not known: \
         open the file and look",
    )
}
