use std::ops::Range;

use extent::wire::OpenMode;
use extent::{ByteRange, FileName, Kind, Result};

use super::transfer::{Operation, Transfer};
use super::{NAMES, Refused, Session, Ticket};
use crate::Memory;

impl Session {
    /// Reads from `offset` of an open file into `within` of the memory.
    ///
    /// # Errors
    /// [`Kind::Busy`] if too much is outstanding: poll first. [`Kind::Invalid`] if the memory is
    /// another session's or too short. [`Kind::Disconnected`] if the session is over.
    pub fn submit_read(
        &mut self,
        handle: u64,
        offset: u64,
        memory: Memory,
        within: Range<usize>,
    ) -> Result<Ticket, Refused> {
        self.submit_transfer(Operation::Read { handle, offset }, offset, memory, within)
    }

    /// Writes `within` of the memory to `offset` of an open new generation.
    ///
    /// # Errors
    /// As [`Session::submit_read`].
    pub fn submit_write(
        &mut self,
        handle: u64,
        offset: u64,
        memory: Memory,
        within: Range<usize>,
    ) -> Result<Ticket, Refused> {
        self.submit_transfer(Operation::Write { handle, offset }, offset, memory, within)
    }

    fn submit_transfer(
        &mut self,
        operation: Operation,
        offset: u64,
        memory: Memory,
        within: Range<usize>,
    ) -> Result<Ticket, Refused> {
        if let Err(error) = self.check_over() {
            return Err(Refused { error, memory });
        }
        let checked = memory.resolve(&within).and_then(|within| {
            ByteRange::new(offset, within.len() as u64)?;
            if !memory.lives_in(&self.home) {
                return Err(Kind::Invalid
                    .error("the memory belongs to another session: allocate it from this one"));
            }
            Ok(within)
        });
        match checked {
            Ok(within) => self.enqueue(operation, memory, within),
            Err(error) => Err(Refused { error, memory }),
        }
    }

    /// Opens a file by name; the completion's [`super::Completed::opened`] has the handle.
    ///
    /// # Errors
    /// [`Kind::Busy`] if too much is outstanding, or too many opens are: poll first;
    /// [`Kind::Disconnected`] if the session is over.
    pub fn submit_open(&mut self, name: &FileName, mode: OpenMode) -> Result<Ticket> {
        let text = name.to_string();
        let Some(mut memory) = self.names.pop() else {
            return Err(Kind::Busy.error(format!("{NAMES} opens are in flight: poll first")));
        };
        memory.as_mut_slice()[..text.len()].copy_from_slice(text.as_bytes());
        self.enqueue(Operation::Open(mode), memory, 0..text.len()).map_err(|refused| {
            self.names.push(refused.memory);
            refused.error
        })
    }

    /// Makes what was written through a handle durable and visible, at this length in bytes.
    ///
    /// # Errors
    /// As [`Session::submit_open`].
    pub fn submit_commit(&mut self, handle: u64, length: u64) -> Result<Ticket> {
        self.submit_plain(Operation::Commit { handle, length })
    }

    /// Gives a handle back.
    ///
    /// # Errors
    /// As [`Session::submit_open`].
    pub fn submit_close(&mut self, handle: u64) -> Result<Ticket> {
        self.submit_plain(Operation::Close { handle })
    }

    /// Asks again what the node knows of an open file.
    ///
    /// # Errors
    /// As [`Session::submit_open`].
    pub fn submit_stat(&mut self, handle: u64) -> Result<Ticket> {
        self.submit_plain(Operation::Stat { handle })
    }

    /// Asks for an empty answer.
    ///
    /// # Errors
    /// As [`Session::submit_open`].
    pub fn submit_ping(&mut self) -> Result<Ticket> {
        self.submit_plain(Operation::Ping)
    }

    fn submit_plain(&mut self, operation: Operation) -> Result<Ticket> {
        Ok(self.enqueue(operation, Memory::default(), 0..0)?)
    }

    fn enqueue(
        &mut self,
        operation: Operation,
        memory: Memory,
        within: Range<usize>,
    ) -> Result<Ticket, Refused> {
        if let Err(error) = self.admit() {
            return Err(Refused { error, memory });
        }
        let (ticket, index) = self.insert(operation, memory, within);
        self.unsent.push_back(index);
        Ok(ticket)
    }

    /// Whether there is room for another operation.
    pub(super) fn admit(&mut self) -> Result<()> {
        self.check_over()?;
        self.wake();
        if self.outstanding() >= self.options.queue {
            return Err(Kind::Busy.error(format!(
                "{} operations are outstanding, which is the session's limit: poll first",
                self.options.queue
            )));
        }
        Ok(())
    }

    /// A transfer of the session's own, sent before all others.
    pub(super) fn enqueue_own(&mut self, operation: Operation, memory: Memory, length: usize) {
        let (_, index) = self.insert(operation, memory, 0..length);
        self.own += 1;
        self.unsent_own.push_back(index);
    }

    pub(super) fn insert(
        &mut self,
        operation: Operation,
        memory: Memory,
        within: Range<usize>,
    ) -> (Ticket, usize) {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let transfer = Transfer::new(ticket, operation, memory, within);
        let index = self.transfers.insert(|_| transfer);
        // How many wait or end at a time is chance: room for all is made here, and never later.
        self.unsent.reserve(self.transfers.len().saturating_sub(self.unsent.len()));
        self.completed.reserve(self.transfers.len());
        (ticket, index)
    }
}
