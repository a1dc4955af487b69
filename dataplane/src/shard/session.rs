//! What the node remembers of a connected client.

use std::sync::Arc;

use extent::wire::{Command, Request as Capsule};
use extent::{Kind, NumberMap, Result};
use nvme_tier::FileGeneration;
use rdma::{Fabric, SessionId};

use crate::slots::Key;

/// The most files that one session may have open.
const MAX_HANDLES: usize = 4096;

/// A shard's sessions. Every request looks its session up several times, and the node numbers them
/// itself, so that no client can choose ones that collide.
pub(super) type Sessions = NumberMap<SessionId, Session>;

/// One client's session.
pub(super) struct Session {
    pub(super) fabric: Fabric,
    /// Bytes of its reads on their way: node memory that they keep busy, and zeroes.
    pub(super) held_bytes: u64,
    /// Zero until HELLO.
    credits: u16,
    in_flight: u16,
    handles: Vec<Option<Handle>>,
}

/// What an open handle stands for.
#[derive(Clone)]
pub(super) enum Handle {
    /// Reads one generation, and keeps it.
    Reader(Arc<FileGeneration>),
    /// Writes a new one.
    Writer(Key),
}

impl Session {
    pub(super) fn new(fabric: Fabric) -> Self {
        Self { fabric, held_bytes: 0, credits: 0, in_flight: 0, handles: Vec::new() }
    }

    /// Takes a credit for a request.
    ///
    /// # Errors
    /// [`Kind::Busy`] if there is none left; [`Kind::Invalid`] if HELLO did not come first.
    pub(super) fn admit(&mut self, capsule: &Capsule) -> Result<()> {
        match capsule.command {
            Command::Hello { .. } if self.credits != 0 => {
                return Err(Kind::Invalid.error("HELLO came twice"));
            }
            Command::Hello { .. } => {}
            _ if self.credits == 0 => {
                return Err(Kind::Invalid.error("the first request of a session must be HELLO"));
            }
            _ if self.in_flight >= self.credits => {
                return Err(Kind::Busy.error(format!(
                    "{} requests are in flight, and the session has {} credits: wait for replies",
                    self.in_flight, self.credits
                )));
            }
            _ => {}
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Gives a request's credit back.
    pub(super) fn finish(&mut self) {
        debug_assert!(self.in_flight > 0, "a reply without a request");
        self.in_flight -= 1;
    }

    pub(super) fn grant(&mut self, credits: u16) {
        self.credits = credits;
    }

    pub(super) fn credits(&self) -> u16 {
        self.credits
    }

    /// # Errors
    /// [`Kind::Busy`] if too many are open.
    pub(super) fn add(&mut self, handle: Handle) -> Result<u64> {
        let index = match self.handles.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.handles.len() < MAX_HANDLES => {
                self.handles.push(None);
                self.handles.len() - 1
            }
            None => {
                return Err(Kind::Busy
                    .error(format!("{MAX_HANDLES} files are open in this session: close some")));
            }
        };
        self.handles[index] = Some(handle);
        Ok(index as u64 + 1)
    }

    /// # Errors
    /// [`Kind::NotFound`] if it is not open.
    pub(super) fn handle(&self, number: u64) -> Result<&Handle> {
        self.place(number)
            .and_then(|index| self.handles[index].as_ref())
            .ok_or_else(|| unknown(number))
    }

    /// # Errors
    /// [`Kind::NotFound`] if it is not open.
    pub(super) fn replace(&mut self, number: u64, handle: Option<Handle>) -> Result<Handle> {
        let index = self.place(number).ok_or_else(|| unknown(number))?;
        std::mem::replace(&mut self.handles[index], handle).ok_or_else(|| unknown(number))
    }

    /// Puts another handle in the place of one that is open.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is not open.
    pub(super) fn replace_open(&mut self, number: u64, handle: Handle) -> Result<()> {
        self.handle(number)?;
        self.replace(number, Some(handle)).map(drop)
    }

    /// Bytes of memory that it has taken.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.handles.capacity() * size_of::<Option<Handle>>()
    }

    pub(super) fn into_handles(self) -> impl Iterator<Item = Handle> {
        self.handles.into_iter().flatten()
    }

    fn place(&self, number: u64) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        (index < self.handles.len()).then_some(index)
    }
}

fn unknown(number: u64) -> extent::Error {
    Kind::NotFound.error(format!("handle {number} is not open in this session"))
}
