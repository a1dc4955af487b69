use std::collections::{HashMap, VecDeque};

use dma::{Buffer, HugePages, Pool, SizeClass, Source, Target};
use extent::{Kind, Result};

use crate::device::{Command, Completion, Device, DeviceIndex, Location, Token};
use crate::layout::to_usize;

/// Reads in flight at once.
const DEPTH: usize = 32;
/// The most bytes of one read, and the least that a buffer must hold.
const CHUNK_BYTES: usize = 1 << 20;
const LEAST_BYTES: usize = 128 << 10;

/// A piece of a device to read, of at most [`DeviceReader::chunk_bytes`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) at: Location,
    pub(crate) bytes: u64,
    /// What it is made of: if reading the whole fails, each unit is read on its own.
    pub(crate) unit: u64,
    /// For the caller to recognise it by.
    pub(crate) tag: u64,
}

/// Reads much of the devices with a deep queue, before the tier runs. It has the devices to
/// itself, and waits.
pub(crate) struct DeviceReader<'a> {
    device: &'a mut dyn Device,
    pool: Pool,
    idle: Vec<Buffer>,
    taken: usize,
    chunk_bytes: usize,
    next_token: u64,
}

impl<'a> DeviceReader<'a> {
    /// Takes buffers from the pool as it needs them, or has its own if the pool's are too small.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if there is no memory.
    pub(crate) fn new(device: &'a mut dyn Device, pool: &Pool) -> Result<Self> {
        let wanted = CHUNK_BYTES.min(pool.largest_bytes());
        let first = if wanted >= LEAST_BYTES { pool.take(wanted) } else { None };
        let (pool, first) = match first {
            Some(first) => (pool.clone(), first),
            None => {
                let sizes = [SizeClass { bytes: CHUNK_BYTES, count: 4 }];
                let own = Pool::new(&sizes, HugePages::Never)?;
                let first = own.take(CHUNK_BYTES).expect("the pool is new");
                (own, first)
            }
        };
        let largest = CHUNK_BYTES.min(first.capacity());
        // Down to a power of two, so that no descriptor straddles two chunks.
        let chunk_bytes = 1 << largest.ilog2();
        Ok(Self { device, pool, idle: vec![first], taken: 1, chunk_bytes, next_token: 0 })
    }

    /// The device, for what is no reading.
    pub(crate) fn device(&mut self) -> &mut dyn Device {
        self.device
    }

    /// The most bytes of one piece on a device: a power of two.
    pub(crate) fn chunk_bytes(&self, device: DeviceIndex) -> u64 {
        let most = self.device.geometry(device).max_transfer_bytes;
        (self.chunk_bytes as u64).min(1 << most.ilog2())
    }

    /// Cuts a range into pieces of whole units.
    pub(crate) fn pieces(
        &self,
        at: Location,
        bytes: u64,
        unit: u64,
        tag: u64,
    ) -> impl Iterator<Item = Piece> + use<> {
        let chunk = self.chunk_bytes(at.device).max(unit);
        (0..bytes.div_ceil(chunk)).map(move |number| Piece {
            at: Location { offset: at.offset + number * chunk, ..at },
            bytes: chunk.min(bytes - number * chunk),
            unit,
            tag,
        })
    }

    /// Reads all pieces, in any order, and hands each over with its bytes, or with the error if
    /// its last unit could not be read.
    ///
    /// # Errors
    /// [`Kind::Io`] if the queue itself breaks.
    pub(crate) fn read(
        &mut self,
        pieces: impl IntoIterator<Item = Piece>,
        mut each: impl FnMut(&Piece, Result<&[u8]>),
    ) -> Result<()> {
        let mut pieces = pieces.into_iter();
        let mut again: VecDeque<Piece> = VecDeque::new();
        let mut flying: HashMap<u64, Piece> = HashMap::new();
        let mut completions: Vec<Completion> = Vec::new();
        loop {
            while let Some(buffer) = self.buffer() {
                let Some(piece) = again.pop_front().or_else(|| pieces.next()) else {
                    self.idle.push(buffer);
                    break;
                };
                if let Err(buffer) = self.submit(&piece, buffer) {
                    again.push_front(piece);
                    self.idle.push(buffer);
                    break;
                }
                flying.insert(self.next_token, piece);
            }
            if flying.is_empty() {
                if again.is_empty() {
                    return Ok(());
                }
                return Err(Kind::Io.error("a device takes no command although none is in flight"));
            }
            self.device.kick()?;
            self.device.poll(&mut completions);
            if completions.is_empty() {
                self.device.sleep(&[], None)?;
            }
            for Completion { token, command, result } in completions.drain(..) {
                let Some(piece) = flying.remove(&token.0) else { continue };
                let Command::Read { into: Target::Buffer(buffer, range), .. } = command else {
                    return Err(Kind::Io.error("a read completed as something else"));
                };
                match result {
                    Ok(()) => each(&piece, Ok(&buffer.as_slice()[range])),
                    Err(_) if piece.bytes > piece.unit => again.extend(units(&piece)),
                    Err(error) => each(&piece, Err(error)),
                }
                self.idle.push(buffer);
            }
        }
    }

    /// Runs commands that need no buffer handed back, one after the other.
    ///
    /// # Errors
    /// The first one's that failed.
    pub(crate) fn run(&mut self, commands: impl IntoIterator<Item = Command>) -> Result<()> {
        let mut completions = Vec::new();
        for command in commands {
            self.next_token += 1;
            let token = Token(self.next_token);
            if self.device.submit(token, command).is_err() {
                return Err(Kind::Io.error("a device takes no command although none is in flight"));
            }
            while completions.is_empty() {
                self.device.sleep(&[], None)?;
                self.device.poll(&mut completions);
            }
            completions.drain(..).try_for_each(|completion: Completion| completion.result)?;
        }
        Ok(())
    }

    /// Writes a few bytes from a buffer of its own.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn write(&mut self, at: Location, bytes: &[u8]) -> Result<()> {
        let mut buffer = self.buffer().expect("every read has ended and given its buffer back");
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        self.taken -= 1;
        self.run([Command::Write { at, from: Source::Buffer(buffer, 0..bytes.len()) }])
    }

    fn buffer(&mut self) -> Option<Buffer> {
        if let Some(buffer) = self.idle.pop() {
            return Some(buffer);
        }
        if self.taken >= DEPTH {
            return None;
        }
        let buffer = self.pool.take(self.chunk_bytes)?;
        self.taken += 1;
        Some(buffer)
    }

    fn submit(&mut self, piece: &Piece, buffer: Buffer) -> Result<(), Buffer> {
        self.next_token += 1;
        let into = Target::Buffer(buffer, 0..to_usize(piece.bytes));
        match self.device.submit(Token(self.next_token), Command::Read { at: piece.at, into }) {
            Ok(()) => Ok(()),
            Err(Command::Read { into: Target::Buffer(buffer, _), .. }) => Err(buffer),
            Err(_) => unreachable!("a device gives back the command it was given"),
        }
    }
}

fn units(piece: &Piece) -> impl Iterator<Item = Piece> + use<> {
    let piece = *piece;
    (0..piece.bytes / piece.unit).map(move |number| Piece {
        at: Location { offset: piece.at.offset + number * piece.unit, ..piece.at },
        bytes: piece.unit,
        ..piece
    })
}
