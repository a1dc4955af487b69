use std::collections::{HashMap, VecDeque};
use std::num::NonZero;
use std::ops::Range;
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::thread;

use dma::{Buffer, HugePages, Pool, RegionId, SizeClass, Source, Target};
use extent::{Error, Kind, Result};
use parking_lot::Mutex;

use crate::device::{Command, Completion, Device, DeviceIndex, Location, Token};
use crate::layout::to_usize;

/// Reads in flight at once.
const DEPTH: usize = 32;
/// The most threads that parse.
const MOST_PARSERS: usize = 16;
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
    /// The pool's memory, if it is this reader's alone.
    own: Option<RegionId>,
    idle: Vec<Buffer>,
    taken: usize,
    chunk_bytes: usize,
    next_token: u64,
}

impl Drop for DeviceReader<'_> {
    fn drop(&mut self) {
        if let Some(region) = self.own {
            self.device.unregister(region);
        }
    }
}

impl<'a> DeviceReader<'a> {
    /// Takes buffers from the pool as it needs them, or has its own if the pool's are too small.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] if there is no memory.
    pub(crate) fn new(device: &'a mut dyn Device, pool: &Pool) -> Result<Self> {
        let wanted = CHUNK_BYTES.min(pool.largest_bytes());
        let first = if wanted >= LEAST_BYTES { pool.take(wanted) } else { None };
        let (pool, first, own) = match first {
            Some(first) => (pool.clone(), first, None),
            None => {
                let sizes = [SizeClass { bytes: CHUNK_BYTES, count: 4 }];
                let own = Pool::new(&sizes, HugePages::Never)?;
                let first = own.take(CHUNK_BYTES).expect("the pool is new");
                let region = own.region().id();
                (own, first, Some(region))
            }
        };
        // Here, where it is an error; later it would look like damage.
        device.register(pool.region())?;
        let largest = CHUNK_BYTES.min(first.capacity());
        // Down to a power of two, so that no descriptor straddles two chunks.
        let chunk_bytes = 1 << largest.ilog2();
        Ok(Self { device, pool, own, idle: vec![first], taken: 1, chunk_bytes, next_token: 0 })
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
        let mut reading = Reading::new(pieces.into_iter());
        while reading.go_on(self, 0)? {
            for (piece, read) in reading.landed.drain(..) {
                match read {
                    Ok((buffer, range)) => {
                        each(&piece, Ok(&buffer.as_slice()[range]));
                        self.idle.push(buffer);
                    }
                    Err(error) => each(&piece, Err(error)),
                }
            }
        }
        Ok(())
    }

    /// As [`DeviceReader::read`], with what takes time done on all processors while other pieces
    /// are read: `parse` there, `each` here.
    ///
    /// # Errors
    /// [`Kind::Io`] if the queue itself breaks.
    pub(crate) fn read_parsed<T: Send>(
        &mut self,
        pieces: impl IntoIterator<Item = Piece>,
        parse: impl Fn(&Piece, &[u8]) -> T + Sync,
        mut each: impl FnMut(&Piece, Result<T>),
    ) -> Result<()> {
        let mut reading = Reading::new(pieces.into_iter());
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_PARSERS);
        // Neither is ever full: there are no more pieces than buffers.
        let (to_parse, landed) = sync_channel::<Landed>(DEPTH);
        let (parsed, done) = sync_channel::<(Piece, Buffer, T)>(DEPTH);
        let landed = Mutex::new(landed);
        thread::scope(|scope| {
            // Dropped with this closure, whatever happens: then the threads end.
            let (to_parse, parsed) = (to_parse, parsed);
            for _ in 0..threads {
                let (landed, parsed, parse) = (&landed, parsed.clone(), &parse);
                scope.spawn(move || {
                    loop {
                        let Ok((piece, (buffer, range))) = landed.lock().recv() else { return };
                        let value = parse(&piece, &buffer.as_slice()[range]);
                        if parsed.send((piece, buffer, value)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(parsed);
            let mut parsing = 0usize;
            loop {
                let reads = reading.go_on(self, parsing)?;
                for (piece, read) in reading.landed.drain(..) {
                    match read {
                        Ok(read) => {
                            parsing += 1;
                            to_parse.send((piece, read)).map_err(|_| broken())?;
                        }
                        Err(error) => each(&piece, Err(error)),
                    }
                }
                // Only where no read is on its way is there nothing else to wait for.
                let mut wait = reading.flying.is_empty() && parsing != 0;
                while parsing != 0 {
                    let next = match done.try_recv() {
                        Err(TryRecvError::Empty) if wait => done.recv().map_err(|_| broken())?,
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return Err(broken()),
                        Ok(next) => next,
                    };
                    let (piece, buffer, value) = next;
                    (parsing, wait) = (parsing - 1, false);
                    self.idle.push(buffer);
                    each(&piece, Ok(value));
                }
                if !reads && parsing == 0 {
                    return Ok(());
                }
            }
        })
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

/// Where the bytes of a piece are.
type Bytes = (Buffer, Range<usize>);
/// A piece that was read.
type Landed = (Piece, Bytes);

/// Pieces on their way.
struct Reading<I> {
    pieces: I,
    again: VecDeque<Piece>,
    flying: HashMap<u64, Piece>,
    completions: Vec<Completion>,
    landed: Vec<(Piece, Result<Bytes>)>,
}

impl<I: Iterator<Item = Piece>> Reading<I> {
    fn new(pieces: I) -> Self {
        Self {
            pieces,
            again: VecDeque::new(),
            flying: HashMap::new(),
            completions: Vec::new(),
            landed: Vec::new(),
        }
    }

    /// Submits what there are buffers for, and waits until a read ends if any is on its way.
    /// Whether there was anything to do. `busy` buffers will come back by themselves.
    fn go_on(&mut self, reader: &mut DeviceReader<'_>, busy: usize) -> Result<bool> {
        while let Some(buffer) = reader.buffer() {
            let Some(piece) = self.again.pop_front().or_else(|| self.pieces.next()) else {
                reader.idle.push(buffer);
                break;
            };
            if let Err(buffer) = reader.submit(&piece, buffer) {
                self.again.push_front(piece);
                reader.idle.push(buffer);
                break;
            }
            self.flying.insert(reader.next_token, piece);
        }
        if self.flying.is_empty() {
            if self.again.is_empty() || busy != 0 {
                return Ok(busy != 0);
            }
            return Err(Kind::Io.error("a device takes no command although none is in flight"));
        }
        reader.device.kick()?;
        reader.device.poll(&mut self.completions);
        if self.completions.is_empty() {
            reader.device.sleep(&[], None)?;
        }
        for Completion { token, command, result } in self.completions.drain(..) {
            let Some(piece) = self.flying.remove(&token.0) else { continue };
            let Command::Read { into: Target::Buffer(buffer, range), .. } = command else {
                return Err(Kind::Io.error("a read completed as something else"));
            };
            match result {
                Ok(()) => self.landed.push((piece, Ok((buffer, range)))),
                // Nothing is wrong with the medium: what is read would be taken for damaged.
                Err(error) if !matches!(error.kind(), Kind::Io | Kind::Corrupt) => {
                    return Err(error.while_doing("reading a tier's tables"));
                }
                Err(_) if piece.bytes > piece.unit => {
                    self.again.extend(units(&piece));
                    reader.idle.push(buffer);
                }
                Err(error) => {
                    self.landed.push((piece, Err(error)));
                    reader.idle.push(buffer);
                }
            }
        }
        Ok(true)
    }
}

fn broken() -> Error {
    Kind::Io.error("the threads that read a tier's tables have ended")
}

fn units(piece: &Piece) -> impl Iterator<Item = Piece> + use<> {
    let piece = *piece;
    (0..piece.bytes / piece.unit).map(move |number| Piece {
        at: Location { offset: piece.at.offset + number * piece.unit, ..piece.at },
        bytes: piece.unit,
        ..piece
    })
}
