use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use dma::{Region, Source, Target, Window};
use extent::wire::{Reply, Request, Segment};
use extent::{Error, Kind, Result};

use crate::{Event, SessionId, Token, Transfer};

/// One session.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) shard: u16,
    pub(super) windows: bool,
    pub(super) regions: HashMap<u32, Arc<Region>>,
    pub(super) requests: Line<Request>,
    /// Transfers and replies, which keep their order.
    pub(super) posted: Line<Posted>,
    pub(super) replies: Vec<Reply>,
    /// When the node notices that the client has left.
    pub(super) leaves_at: Option<u64>,
}

#[derive(Debug)]
pub(super) enum Posted {
    Write(Transfer, Source),
    Read(Transfer, Target),
    Reply(Reply),
}

/// What waits for its kick, and then for its time.
#[derive(Debug)]
pub(super) struct Line<T> {
    pub(super) staged: VecDeque<T>,
    pub(super) moving: VecDeque<(u64, T)>,
}

impl<T> Line<T> {
    pub(super) const fn new() -> Self {
        Self { staged: VecDeque::new(), moving: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.staged.len() + self.moving.len()
    }

    pub(super) fn kick(&mut self, mut due: impl FnMut() -> u64) {
        self.moving.extend(self.staged.drain(..).map(|item| (due(), item)));
    }

    pub(super) fn pop_due(&mut self, clock: u64) -> Option<T> {
        self.moving.pop_front_if(|(due, _)| *due <= clock).map(|(_, item)| item)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.moving.drain(..).map(|(_, item)| item).chain(self.staged.drain(..))
    }
}

impl Link {
    /// Whether time does something to it.
    pub(super) fn is_moving(&self) -> bool {
        !self.requests.moving.is_empty()
            || !self.posted.moving.is_empty()
            || self.leaves_at.is_some()
    }

    pub(super) fn perform(&mut self, session: SessionId, posted: Posted, news: &mut Vec<Event>) {
        match posted {
            Posted::Write(transfer, from) => {
                let result = self.windows_of(&transfer, from.length()).map(|windows| {
                    let mut bytes = vec![0; from.length()];
                    from.copy_out(&mut bytes);
                    let mut rest = &bytes[..];
                    for window in windows {
                        let (part, behind) = rest.split_at(window.length());
                        window.copy_in(part);
                        rest = behind;
                    }
                });
                news.push(Event::Written { session, token: transfer.token, from, result });
            }
            Posted::Read(transfer, mut into) => {
                let result = self.windows_of(&transfer, into.length()).map(|windows| {
                    let mut bytes = vec![0; into.length()];
                    let mut rest = &mut bytes[..];
                    for window in windows {
                        let (part, behind) = rest.split_at_mut(window.length());
                        window.copy_out(part);
                        rest = behind;
                    }
                    into.copy_in(&bytes);
                });
                news.push(Event::Read { session, token: transfer.token, into, result });
            }
            Posted::Reply(reply) => self.replies.push(reply),
        }
    }

    /// The client memory that a transfer of `length` bytes is about.
    pub(super) fn windows_of(&self, transfer: &Transfer, length: usize) -> Result<Vec<Window>> {
        let length = length as u64;
        let windows: Vec<Window> = transfer
            .segments
            .slice(transfer.at, length)
            .map(|segment| self.window(segment))
            .collect::<Result<_>>()?;
        let there: u64 = windows.iter().map(|window| window.length() as u64).sum();
        if there != length {
            return Err(Kind::Invalid
                .error(format!("a transfer of {length} bytes, and segments for {there}")));
        }
        Ok(windows)
    }

    pub(super) fn window(&self, segment: Segment) -> Result<Window> {
        if self.leaves_at.is_some() {
            return Err(gone());
        }
        let region = self.regions.get(&segment.key).ok_or_else(|| {
            Kind::Invalid.error(format!("the client announced no region {}", segment.key))
        })?;
        Window::new(Arc::clone(region), segment.address, segment.length as usize)
    }

    pub(super) fn forget(&mut self, key: u32, news: &mut Vec<Event>) {
        if let Some(region) = self.regions.remove(&key)
            && self.windows
        {
            news.push(Event::Unmapped { region: region.id() });
        }
    }
}

pub(super) fn refuse(session: SessionId, posted: Posted, reason: &Error, news: &mut Vec<Event>) {
    let result = Err(Kind::Disconnected.error(reason.to_string()));
    let token = |transfer: Transfer| -> Token { transfer.token };
    match posted {
        Posted::Write(transfer, from) => {
            news.push(Event::Written { session, token: token(transfer), from, result });
        }
        Posted::Read(transfer, into) => {
            news.push(Event::Read { session, token: token(transfer), into, result });
        }
        Posted::Reply(_) => {}
    }
}

pub(super) fn gone() -> Error {
    Kind::Disconnected.error("the session is over")
}
