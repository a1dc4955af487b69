//! The files and generations that a ring has open.

use extent::wire::OpenBody;

use crate::abi;
use crate::failure::{Failure, Outcome};
use crate::table::Table;

/// One of them.
pub(crate) struct Open {
    /// The session's number of it.
    pub(crate) handle: u64,
    pub(crate) role: Role,
    /// Transfers of it that have not ended.
    pub(crate) in_flight: usize,
}

/// What it is for.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Reader { length: u64, generation: u64 },
    Writer,
}

/// See the module.
pub(crate) struct Opened(Table<Open>);

impl Opened {
    pub(crate) fn new() -> Self {
        Self(Table::with_capacity(0))
    }

    /// Whether one more may be opened.
    ///
    /// # Errors
    /// If not.
    pub(crate) fn check_room(&self) -> Outcome<()> {
        if self.0.is_full() {
            return Err(Failure::of(
                abi::BUSY,
                c"too many files are open in this ring: close some",
            ));
        }
        Ok(())
    }

    /// Takes a file in that the session has opened to read it, or to write it if nothing is known
    /// of it. Its number.
    pub(crate) fn insert(&mut self, handle: u64, body: Option<&OpenBody>) -> u64 {
        let role = body.map_or(Role::Writer, |body| Role::Reader {
            length: body.length,
            generation: body.generation.0,
        });
        self.0.insert(Open { handle, role, in_flight: 0 })
    }

    /// A transfer of it begins.
    pub(crate) fn begin(&mut self, number: u64) {
        if let Some(open) = self.0.get_mut(number) {
            open.in_flight += 1;
        }
    }

    /// A transfer of it has ended.
    pub(crate) fn end(&mut self, number: u64) {
        if let Some(open) = self.0.get_mut(number) {
            open.in_flight -= 1;
        }
    }

    /// Takes it out. What the session calls it.
    ///
    /// # Errors
    /// If it is not open, or transfers of it are under way.
    pub(crate) fn remove(&mut self, number: u64) -> Outcome<u64> {
        if self.get(number)?.in_flight != 0 {
            return Err(Failure::of(abi::BUSY, c"reads of this file are under way: wait for them"));
        }
        Ok(self.0.remove(number).map_or(0, |open| open.handle))
    }

    /// The session's number of a file, its length and its generation.
    ///
    /// # Errors
    /// If it is not open, or is being written.
    pub(crate) fn reader(&self, number: u64) -> Outcome<(u64, u64, u64)> {
        let open = self.get(number)?;
        match open.role {
            Role::Reader { length, generation } => Ok((open.handle, length, generation)),
            Role::Writer => Err(Failure::invalid(c"this is a generation that is being written")),
        }
    }

    /// The session's number of a generation that is being written.
    ///
    /// # Errors
    /// If it is not open, or is read.
    pub(crate) fn writer(&self, number: u64) -> Outcome<u64> {
        let open = self.get(number)?;
        match open.role {
            Role::Writer => Ok(open.handle),
            Role::Reader { .. } => Err(Failure::invalid(c"this is a file that is read")),
        }
    }

    fn get(&self, number: u64) -> Outcome<&Open> {
        let strange = Failure::invalid(c"nothing of this number is open in this ring");
        self.0.get(number).ok_or(strange)
    }
}
