//! Files of the GPU server's own.

use std::collections::HashSet;
use std::time::Duration;

use extent::{Error, Kind, Result};
use gds::{CopyId, DeviceSpan, Lent, LocalFile, Path, Policy, Transfer};

use super::DeviceReader;
use crate::bugs::{self, Bug};
use crate::{Memory, clock};

/// What a read of a local file into a device's memory did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalDeviceRead {
    /// Bytes read: fewer than asked for only at the end of the file.
    pub bytes: u64,
    /// The way they took; of several pieces, the worst.
    pub path: Path,
    /// With [`Path::CuFile`], how cuFile brought them to the device, as far as that can be known.
    pub transfer: Option<Transfer>,
    /// From the call until the last of them was on the device.
    pub total: Duration,
}

impl DeviceReader {
    /// Reads from `offset` of a file of this machine into device memory, until that is full or the file ends: by
    /// cuFile if `policy` allows that and it can, else with the processor into the reader's ring, and from
    /// there as a node's files go. It ends when the bytes are there, and is in no order with streams.
    ///
    /// Nobody compares the bytes with checksums: a local file has none. The first read whose policy allows
    /// cuFile opens that, and the ladder says from then on what became of it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the policy allows none of the ways that there are, with the reason for each;
    /// [`Kind::Invalid`] for memory of another device, or past 63 bits; what cuFile, the file system or the device
    /// answers. What is in the memory is then anything. [`Kind::Disconnected`] and [`Kind::Busy`] as with
    /// [`DeviceReader::read_into`].
    pub fn read_local(
        &mut self,
        file: &LocalFile,
        offset: u64,
        into: &DeviceSpan,
        policy: Policy,
    ) -> Result<LocalDeviceRead> {
        let begin = clock::now();
        let timed = |read| LocalDeviceRead { total: clock::now() - begin, ..read };
        if !into.device().is(self.device()) {
            return Err(Kind::Invalid.error("the memory is another device's than the reader's"));
        }
        self.ready()?;
        let mut reasons = Vec::new();
        if policy.allows(Path::CuFile) {
            match self.read_by_cufile(file, offset, into) {
                Err(error) if is_refusal(&error) => {
                    reasons.push(format!("{}: {error}", Path::CuFile));
                    self.ladder.deny(Path::CuFile, error.to_string());
                }
                outcome => return outcome.map(timed),
            }
        }
        let ring = self.ring_path;
        if policy.allows(ring) || bugs::is(Bug::StrictLocalDegrades) {
            let read = self.read_through_ring(ring, file, offset, into, policy);
            return read.map(timed).map_err(|error| {
                let path = file.path().display();
                error.while_doing(format_args!("reading {path} at {offset} into device memory"))
            });
        }
        reasons.push(format!("the reader's ring is {ring}"));
        Err(Kind::Unsupported.error(format!(
            "no way for {} into device memory that the policy {policy} allows ({}): mend that, or allow more",
            file.path().display(),
            reasons.join("; ")
        )))
    }

    /// The time is for the caller to tell, here and below.
    fn read_by_cufile(
        &mut self,
        file: &LocalFile,
        offset: u64,
        into: &DeviceSpan,
    ) -> Result<LocalDeviceRead> {
        file.check(self.device())?;
        let read = file.read_into(offset, into)?;
        self.ladder.admit(Path::CuFile);
        Ok(LocalDeviceRead {
            bytes: read.bytes,
            path: Path::CuFile,
            transfer: Some(read.transfer),
            total: Duration::ZERO,
        })
    }

    fn read_through_ring(
        &mut self,
        ring: Path,
        file: &LocalFile,
        offset: u64,
        into: &DeviceSpan,
        policy: Policy,
    ) -> Result<LocalDeviceRead> {
        let slot_bytes = self.ring.stats().slot_bytes;
        let mut passage = Passage {
            reader: self,
            slot_bytes,
            worst: ring,
            copying: HashSet::new(),
            error: None,
            has_stalled: false,
        };
        let bytes = passage.run(file, offset, into);
        // What was begun is waited for in any case: the caller has the memory back then.
        let ended = passage.finish();
        let worst = passage.worst;
        let bytes = bytes?;
        ended?;
        if worst != ring {
            self.note_degraded();
        }
        if !policy.allows(worst) && !bugs::is(Bug::StrictLocalDegrades) {
            return Err(Kind::Unsupported.error(format!(
                "the bytes went by {worst}, which the policy {policy} does not allow"
            )));
        }
        let (bytes, total) = (bytes as u64, Duration::ZERO);
        Ok(LocalDeviceRead { bytes, path: worst, transfer: None, total })
    }
}

/// Whether cuFile does not read the file, rather than failing at it.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unsupported | Kind::NotFound)
}

/// A read through the ring under way.
struct Passage<'a> {
    reader: &'a mut DeviceReader,
    /// Bytes of a piece of the ring.
    slot_bytes: usize,
    worst: Path,
    /// Copies that it began and that have not ended.
    copying: HashSet<CopyId>,
    /// What went wrong with one of them.
    error: Option<Error>,
    /// The device does not go on: copies are not waited for.
    has_stalled: bool,
}

impl Passage<'_> {
    /// Reads all there is, and begins to copy it. How many bytes.
    fn run(&mut self, file: &LocalFile, offset: u64, into: &DeviceSpan) -> Result<usize> {
        let slot_bytes = self.slot_bytes;
        let mut at = 0;
        while at < into.len() {
            let position = offset.checked_add(at as u64);
            let position = position.filter(|position| i64::try_from(*position).is_ok());
            let position =
                position.ok_or_else(|| Kind::Invalid.error("the range ends beyond 63 bits"))?;
            let asked = super::under::piece(position, into.len() - at, slot_bytes);
            let (lent, mut memory) = self.lend()?;
            let bytes = match file.read_at(position, &mut memory.as_mut_slice()[..asked]) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.reader.ring.give_back(lent, memory);
                    return Err(error);
                }
            };
            if bytes == 0 {
                self.reader.ring.give_back(lent, memory);
                break;
            }
            let begun =
                self.reader.ring.copy(lent, memory, 0..bytes, &into.part(at..at + bytes)?)?;
            self.copying.insert(begun.id);
            if !begun.is_pinned {
                self.worst = Path::Host;
            }
            at += bytes;
            if bytes < asked {
                break;
            }
        }
        Ok(at)
    }

    /// A piece of the ring, when there is one.
    fn lend(&mut self) -> Result<(Lent, Memory)> {
        let slot_bytes = self.slot_bytes;
        loop {
            self.take(|reader, ended| reader.ring.poll(ended));
            self.error.take().map_or(Ok(()), Err)?;
            if let Some((lent, memory)) = self.reader.ring.lend() {
                if memory.len() >= slot_bytes {
                    return Ok((lent, memory));
                }
                self.reader.ring.lose(lent);
            } else if self.reader.ring.under_way() > 0 {
                self.wait()?;
            } else {
                let memory = self.reader.client.alloc(slot_bytes)?;
                self.reader.ring.replace(memory)?;
            }
        }
    }

    /// Waits until all of its copies have ended.
    fn finish(&mut self) -> Result<()> {
        let waits = !self.has_stalled && !bugs::is(Bug::LocalCopiesNotAwaited);
        while waits && !self.copying.is_empty() {
            self.wait()?;
        }
        self.error.take().map_or(Ok(()), Err)
    }

    fn wait(&mut self) -> Result<()> {
        let timeout = self.reader.client.options().timeout;
        if self.take(|reader, ended| reader.ring.wait(timeout, ended)) == 0 {
            self.has_stalled = true;
            return Err(self.reader.stalled());
        }
        Ok(())
    }

    /// Takes in what ended: how many copies.
    fn take(&mut self, look: impl FnOnce(&mut DeviceReader, &mut Vec<gds::Copied>)) -> usize {
        let mut ended = Vec::new();
        look(self.reader, &mut ended);
        let count = ended.len();
        for copied in ended {
            if !self.copying.remove(&copied.id) {
                // It was handed to a stream before.
                self.reader.take_late(std::iter::once(copied));
            } else if let Err(error) = copied.result {
                self.error.get_or_insert(error);
            }
        }
        count
    }
}
