//! A command between its submission and its end.

use std::io;

use dma::Region;
use extent::{Error, Kind, Result};
use io_uring::{opcode, squeue, types};

use crate::device::ring::Ring;
use crate::device::{Command, DeviceIndex, Location, Media, Token};

/// How often a command that the kernel interrupted is submitted again before it fails.
const MOST_RETRIES: u8 = 8;

/// Owns a command, and so its memory, for as long as the kernel may use it.
pub(super) struct InFlight {
    token: Token,
    command: Command,
    /// Bytes that earlier, short attempts moved.
    moved: usize,
    retries: u8,
    /// Why the command fails without having been tried.
    refusal: Option<Error>,
}

impl InFlight {
    pub(super) fn new(token: Token, command: Command, refusal: Option<Error>) -> Self {
        Self { token, command, moved: 0, retries: 0, refusal }
    }

    pub(super) fn into_parts(self) -> (Token, Command) {
        (self.token, self.command)
    }

    pub(super) fn command(&self) -> &Command {
        &self.command
    }

    /// Whether it only goes through the ring to be reported.
    pub(super) fn is_refused(&self) -> bool {
        self.refusal.is_some()
    }

    /// The entry for what is still to be moved.
    pub(super) fn entry(&self, ring: &Ring) -> squeue::Entry {
        if self.refusal.is_some() {
            return opcode::Nop::new().build();
        }
        match &self.command {
            // Refused before: the kernel has no such entry for files and block devices.
            Command::Deallocate { .. } => opcode::Nop::new().build(),
            Command::Flush(device) => {
                opcode::Fsync::new(fixed(*device)).flags(types::FsyncFlags::DATASYNC).build()
            }
            Command::Read { at, into } => {
                let memory = into.address().as_ptr();
                let part = self.part(at, ring, into.region(), memory, into.length());
                match part.place {
                    Some(place) => {
                        opcode::ReadFixed::new(part.file, part.memory, part.length, place)
                            .offset(part.offset)
                            .build()
                    }
                    None => opcode::Read::new(part.file, part.memory, part.length)
                        .offset(part.offset)
                        .build(),
                }
            }
            Command::Write { at, from } => {
                let memory = from.address().as_ptr();
                let part = self.part(at, ring, from.region(), memory, from.length());
                match part.place {
                    Some(place) => {
                        opcode::WriteFixed::new(part.file, part.memory, part.length, place)
                            .offset(part.offset)
                            .build()
                    }
                    None => opcode::Write::new(part.file, part.memory, part.length)
                        .offset(part.offset)
                        .build(),
                }
            }
        }
    }

    /// The place of registered memory in which a part of the command's lies.
    pub(super) fn place(&self, ring: &Ring, memory: *mut u8, length: usize) -> Option<u16> {
        let region = match &self.command {
            Command::Flush(_) | Command::Deallocate { .. } => return None,
            Command::Read { into, .. } => into.region(),
            Command::Write { from, .. } => from.region(),
        };
        ring.place(region, memory.addr() - region.base().addr().get(), length)
    }

    fn part(
        &self,
        at: &Location,
        ring: &Ring,
        region: &Region,
        memory: *mut u8,
        length: usize,
    ) -> Part {
        let start = memory.addr() - region.base().addr().get() + self.moved;
        let length = length - self.moved;
        Part {
            file: fixed(at.device),
            memory: memory.wrapping_add(self.moved),
            length: u32::try_from(length).expect("larger commands were refused"),
            offset: at.offset + self.moved as u64,
            place: ring.place(region, start, length),
        }
    }

    /// What became of the command; `None` if the rest of it must be submitted.
    pub(super) fn on_completion(&mut self, result: i32, media: &Media) -> Option<Result<()>> {
        if let Some(refusal) = self.refusal.take() {
            return Some(Err(refusal));
        }
        let moved = match usize::try_from(result) {
            Ok(moved) => moved,
            Err(_) => {
                let interrupted = matches!(-result, libc::EAGAIN | libc::EINTR);
                if interrupted && self.retries < MOST_RETRIES {
                    self.retries += 1;
                    return None;
                }
                let error = io::Error::from_raw_os_error(-result);
                return Some(Err(Error::io(self.describe(media), error)));
            }
        };
        self.moved += moved;
        let length = self.command.length();
        if self.moved == length {
            return Some(Ok(()));
        }
        let block = media.geometry(self.command.device()).block_bytes as usize;
        if moved != 0 && self.moved < length && moved.is_multiple_of(block) {
            return None;
        }
        Some(Err(Kind::Io.error(format!(
            "{} ended after {} bytes: was the file truncated?",
            self.describe(media),
            self.moved
        ))))
    }

    fn describe(&self, media: &Media) -> String {
        describe(&self.command, media)
    }
}

/// A command in an operator's words.
pub(super) fn describe(command: &Command, media: &Media) -> String {
    let path = media.path(command.device()).display();
    match command {
        Command::Read { at, into } => {
            format!("reading {} bytes at {} of {path}", into.length(), at.offset)
        }
        Command::Write { at, from } => {
            format!("writing {} bytes at {} of {path}", from.length(), at.offset)
        }
        Command::Flush(_) => format!("flushing {path}"),
        Command::Deallocate { at, bytes } => {
            format!("deallocating {bytes} bytes at {} of {path}", at.offset)
        }
    }
}

struct Part {
    file: types::Fixed,
    memory: *mut u8,
    length: u32,
    offset: u64,
    place: Option<u16>,
}

pub(super) fn fixed(device: DeviceIndex) -> types::Fixed {
    types::Fixed(u32::from(device.0))
}
