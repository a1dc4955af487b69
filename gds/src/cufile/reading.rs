use std::io;
use std::sync::Arc;

use extent::{Kind, Result};

use super::handle::Handle;
use super::library::ALIGN_BYTES;
use super::registration::{Registered, address};
use super::{LocalFile, answer};
use crate::DeviceSpan;
use crate::bugs::{self, Bug};

/// Calls in a row that may bring nothing although the file goes on.
const MOST_IDLE: u32 = 3;

/// A read under way, in the thread and the context that it is done in.
pub(super) struct Reading<'a> {
    file: &'a LocalFile,
    handle: &'a Handle,
    offset: u64,
    into: &'a DeviceSpan,
    /// Kept until the read has ended.
    registered: Option<Arc<Registered>>,
    calls: u64,
}

impl<'a> Reading<'a> {
    /// What is to be read is inside 63 bits.
    pub(super) fn new(
        file: &'a LocalFile,
        handle: &'a Handle,
        offset: u64,
        into: &'a DeviceSpan,
        registered: Option<Arc<Registered>>,
    ) -> Self {
        Self { file, handle, offset, into, registered, calls: 0 }
    }

    /// Calls of the library so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    /// Reads all that there is. How many bytes.
    pub(super) fn run(&mut self) -> Result<usize> {
        let mut wanted = self.file.there(self.offset, self.into.len())?;
        let (mut at, mut idle) = (0, 0);
        while at < wanted {
            let asked = self.cut(at, wanted);
            let bytes = self.call(at, asked)?;
            at += bytes;
            if bytes == asked {
                idle = 0;
                continue;
            }
            if bugs::is(Bug::ShortReadEnds) {
                break;
            }
            // By the library, by a signal, or because the file is shorter by now.
            wanted = self.file.there(self.offset, wanted)?;
            idle = if bytes == 0 { idle + 1 } else { 0 };
            if idle > MOST_IDLE && at < wanted {
                return Err(Kind::Io.error(format!(
                    "cuFileRead brings nothing at {} of the file, which goes on: look at cufile.log",
                    self.offset + at as u64
                )));
            }
        }
        Ok(at)
    }

    /// Bytes of the next call: no more than the library takes at once, up to a whole page of the file.
    fn cut(&self, at: usize, wanted: usize) -> usize {
        let most = self.handle.library.info().most_bytes;
        let into_page = (self.offset + at as u64) % ALIGN_BYTES as u64;
        let into_page = usize::try_from(into_page).expect("less than a page");
        let left = wanted - at;
        if bugs::is(Bug::CutsForgotten) { left } else { left.min(most - into_page) }
    }

    /// One call.
    fn call(&mut self, at: usize, asked: usize) -> Result<usize> {
        self.calls += 1;
        let (mut base, mut front) = (self.into.pointer().0, 0);
        if let Some(registered) = &self.registered
            && !bugs::is(Bug::RegisteredByPart)
        {
            front = base - registered.pointer().0;
            base = registered.pointer().0;
        }
        let signed = |number: u64| i64::try_from(number).expect("looked at before");
        let (position, front) = (signed(self.offset + at as u64), signed(front + at as u64));
        let read = self.handle.library.functions.read;
        // SAFETY: the handle is registered, the memory is the device's and stays, registered or not, until the call
        // has ended, or for ever if nobody knows.
        let answer = unsafe { read(self.handle.raw, address(base), asked, position, front) };
        let errno = io::Error::last_os_error();
        if answer == -1 && errno.kind() == io::ErrorKind::Interrupted {
            return Ok(0);
        }
        answer::of_read(answer, errno, asked)
    }
}
