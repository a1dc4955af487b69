use crate::checksum::crc32c;
use crate::codec::{Reader, Writer};
use crate::{ByteRange, FileId, Generation, Kind, Result};

use super::{LONG_REQUEST_BYTES, MAX_SEGMENTS, MAX_TRANSFER_BYTES, REQUEST_BYTES};

const OP_HELLO: u8 = 1;
const OP_OPEN: u8 = 2;
const OP_READ: u8 = 3;
const OP_WRITE: u8 = 4;
const OP_COMMIT: u8 = 5;
const OP_CLOSE: u8 = 6;
const OP_STAT: u8 = 7;
const OP_PING: u8 = 8;

const FLAG_LONG: u8 = 1;
const FLAG_PAYLOAD_CRC: u8 = 2;
const FLAG_OPEN_WRITE: u8 = 4;

/// A piece of the client's own memory.
///
/// Over shared memory, `address` is the offset in the region that `key` names; over verbs, they
/// are the virtual address and the rkey; over a stream both are zero and the bytes travel in line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// Where it begins.
    pub address: u64,
    /// How many bytes.
    pub length: u32,
    /// Which region it is in.
    pub key: u32,
}

/// Up to [`MAX_SEGMENTS`] segments, filled or emptied one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segments {
    list: [Segment; MAX_SEGMENTS],
    count: u8,
}

impl Segments {
    /// No segment.
    pub const NONE: Self =
        Self { list: [Segment { address: 0, length: 0, key: 0 }; MAX_SEGMENTS], count: 0 };

    /// Exactly one.
    #[must_use]
    pub const fn one(segment: Segment) -> Self {
        let mut segments = Self::NONE;
        segments.list[0] = segment;
        segments.count = 1;
        segments
    }

    /// The segments of a slice.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if there are more than [`MAX_SEGMENTS`].
    pub fn from_slice(list: &[Segment]) -> Result<Self> {
        if list.len() > MAX_SEGMENTS {
            return Err(Kind::Invalid.error(format!(
                "{} segments, and a request takes {MAX_SEGMENTS}: split it",
                list.len()
            )));
        }
        let mut segments = Self::NONE;
        for segment in list {
            segments.list[usize::from(segments.count)] = *segment;
            segments.count += 1;
        }
        Ok(segments)
    }

    /// The segments in use.
    #[must_use]
    pub fn as_slice(&self) -> &[Segment] {
        &self.list[..usize::from(self.count)]
    }

    /// Bytes in all segments together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.as_slice().iter().map(|segment| u64::from(segment.length)).sum()
    }

    /// The parts of the segments that hold the bytes `at .. at + length` of the transfer.
    pub fn slice(&self, at: u64, length: u64) -> impl Iterator<Item = Segment> + '_ {
        let mut begin = 0;
        self.as_slice().iter().filter_map(move |segment| {
            let end = begin + u64::from(segment.length);
            let (from, to) = (at.max(begin), (at + length).min(end));
            let skipped = from.saturating_sub(begin);
            begin = end;
            (from < to).then(|| Segment {
                address: segment.address.wrapping_add(skipped),
                length: u32::try_from(to - from).expect("part of a 32-bit length"),
                key: segment.key,
            })
        })
    }
}

/// Whether a handle reads a committed generation or writes a new one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Read the given generation, or the newest one for `Generation(0)`.
    Read(Generation),
    /// Write a new generation, which others see after COMMIT. The number is the length to expect,
    /// in bytes, 0 where it is not known: a hint that saves space.
    Write(u64),
}

/// What an OPEN opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Open {
    /// The file. Where a name comes along, the name decides, and this is zero.
    pub file: FileId,
    /// To read or to write.
    pub mode: OpenMode,
    /// Where the node fetches the name (`silo/key`, UTF-8) from; empty when `file` says it.
    pub name: Segments,
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// The first request of a session: which versions the client speaks, how many credits it
    /// would like, and feature bits (none are defined yet).
    Hello {
        /// Lowest and highest version spoken.
        versions: (u16, u16),
        /// Outstanding requests wished for.
        credits: u16,
        /// Feature bits wished for.
        features: u64,
    },
    /// Opens a file; the reply's body is an [`super::OpenBody`].
    Open(Open),
    /// Reads a range of an open file into the client's segments. A range that reaches past the
    /// end is cut there; the reply says how many bytes there were.
    Read {
        /// From OPEN.
        handle: u64,
        /// Bytes of the file.
        range: ByteRange,
        /// Where they go.
        into: Segments,
    },
    /// Writes a range of an open new generation from the client's segments.
    Write {
        /// From OPEN.
        handle: u64,
        /// Bytes of the file.
        range: ByteRange,
        /// Where they come from.
        from: Segments,
    },
    /// Makes the new generation of a handle durable and visible, whole. The reply's body is an
    /// [`super::OpenBody`] and the handle reads the new generation from then on.
    Commit {
        /// From OPEN.
        handle: u64,
        /// The file's length; bytes never written are zero.
        length: u64,
    },
    /// Gives a handle back. A generation not committed by then is gone.
    Close {
        /// From OPEN.
        handle: u64,
    },
    /// Asks for the [`super::OpenBody`] of a handle again.
    Stat {
        /// From OPEN.
        handle: u64,
    },
    /// Asks for an empty reply.
    Ping,
}

/// One request capsule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Chosen by the client, unlike any other of its requests in flight; comes back in the reply.
    pub tag: u32,
    /// For WRITE: the CRC32C of the bytes, to be checked before they are taken. For READ: any
    /// value asks for the CRC32C of the bytes in the reply.
    pub payload_crc: Option<u32>,
    /// What to do.
    pub command: Command,
}

impl Request {
    /// Bytes of the capsule that starts with these two bytes.
    #[must_use]
    pub const fn capsule_bytes(first_two: [u8; 2]) -> usize {
        if first_two[1] & FLAG_LONG == 0 { REQUEST_BYTES } else { LONG_REQUEST_BYTES }
    }

    /// Bytes that follow the capsule on a stream: the name of an OPEN, the data of a WRITE.
    #[must_use]
    pub fn inline_bytes(&self) -> u64 {
        match &self.command {
            Command::Open(open) => open.name.total_bytes(),
            Command::Write { from, .. } => from.total_bytes(),
            _ => 0,
        }
    }

    /// As [`Request::inline_bytes`] of a capsule of 64 or 128 bytes, also where [`Request::parse`]
    /// refuses it as senseless: a stream stays readable behind such a request.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] as for [`Request::parse`]; [`Kind::Invalid`] if it names more segments than
    /// it has room for: nobody knows where the next capsule begins.
    pub fn stream_bytes(capsule: &[u8]) -> Result<u64> {
        let covered = covered(capsule)?;
        let carries = matches!(covered[0], OP_OPEN | OP_WRITE);
        if carries { Ok(Fields::read(covered)?.segments.total_bytes()) } else { Ok(0) }
    }

    /// Writes the capsule into `out` and returns its length, 64 or 128.
    pub fn encode(&self, out: &mut [u8; LONG_REQUEST_BYTES]) -> usize {
        let f = Fields::of(self);
        let long = f.segments.as_slice().len() > 1;
        let size = if long { LONG_REQUEST_BYTES } else { REQUEST_BYTES };
        let flags = f.flags
            | if long { FLAG_LONG } else { 0 }
            | if self.payload_crc.is_some() { FLAG_PAYLOAD_CRC } else { 0 };
        let mut w = Writer::new(&mut out[..size]);
        w.u8(f.opcode).u8(flags).u8(f.segments.count).u8(0).u32(self.tag);
        w.u64(f.handle).u64(f.offset).u64(f.length);
        put_segment(&mut w, f.segments.list[0]);
        w.u64(f.argument).u32(self.payload_crc.unwrap_or(0));
        if long {
            w.u32(0);
            f.segments.list[1..].iter().for_each(|segment| put_segment(&mut w, *segment));
            w.zeroes(12);
        }
        let crc = crc32c(&out[..size - 4]);
        out[size - 4..size].copy_from_slice(&crc.to_le_bytes());
        size
    }

    /// Reads a capsule of exactly 64 or 128 bytes.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if its length or its checksum is wrong: the peer or the fabric is broken.
    /// [`Kind::Invalid`] or [`Kind::Unsupported`] if it makes no sense; [`Request::tag_of`] then
    /// tells whom to answer.
    pub fn parse(capsule: &[u8]) -> Result<Self> {
        let covered = covered(capsule)?;
        Fields::read(covered)?.request(covered[1], tag(covered))
    }

    /// The tag of a capsule of at least 64 bytes, readable also where [`Request::parse`] refused it.
    #[must_use]
    pub fn tag_of(capsule: &[u8]) -> u32 {
        tag(capsule)
    }
}

/// A capsule without its checksum, which holds.
fn covered(capsule: &[u8]) -> Result<&[u8]> {
    let &[first, second, ..] = capsule else {
        return Err(Kind::Corrupt.error("a request capsule of less than two bytes"));
    };
    let size = Request::capsule_bytes([first, second]);
    if capsule.len() != size {
        return Err(Kind::Corrupt.error(format!(
            "a request capsule of {} bytes where its flags say {size}",
            capsule.len()
        )));
    }
    let (covered, crc) = capsule.split_at(size - 4);
    if crc32c(covered).to_le_bytes() != crc {
        return Err(Kind::Corrupt.error("a request capsule whose checksum does not hold"));
    }
    Ok(covered)
}

fn tag(capsule: &[u8]) -> u32 {
    Reader::new(&capsule[4..8]).u32()
}

fn put_segment(w: &mut Writer<'_>, segment: Segment) {
    w.u64(segment.address).u32(segment.length).u32(segment.key);
}

fn get_segment(r: &mut Reader<'_>) -> Segment {
    Segment { address: r.u64(), length: r.u32(), key: r.u32() }
}

/// The capsule's fields before they mean anything.
#[derive(Default)]
struct Fields {
    opcode: u8,
    flags: u8,
    handle: u64,
    offset: u64,
    length: u64,
    argument: u64,
    payload_crc: u32,
    segments: Segments,
}

impl Fields {
    fn of(request: &Request) -> Self {
        match request.command {
            Command::Hello { versions, credits, features } => Self {
                opcode: OP_HELLO,
                handle: u64::from(versions.0) | u64::from(versions.1) << 16,
                length: u64::from(credits),
                argument: features,
                ..Self::default()
            },
            Command::Open(open) => {
                let (flags, length, argument) = match open.mode {
                    OpenMode::Read(generation) => (0, 0, generation.0),
                    OpenMode::Write(expected) => (FLAG_OPEN_WRITE, expected, 0),
                };
                #[expect(clippy::cast_possible_truncation, reason = "the two halves of the id")]
                let (low, high) = (open.file.0 as u64, (open.file.0 >> 64) as u64);
                Self {
                    opcode: OP_OPEN,
                    flags,
                    handle: low,
                    offset: high,
                    length,
                    argument,
                    segments: open.name,
                    ..Self::default()
                }
            }
            Command::Read { handle, range, into } => Self::transfer(OP_READ, handle, range, into),
            Command::Write { handle, range, from } => Self::transfer(OP_WRITE, handle, range, from),
            Command::Commit { handle, length } => {
                Self { opcode: OP_COMMIT, handle, length, ..Self::default() }
            }
            Command::Close { handle } => Self { opcode: OP_CLOSE, handle, ..Self::default() },
            Command::Stat { handle } => Self { opcode: OP_STAT, handle, ..Self::default() },
            Command::Ping => Self { opcode: OP_PING, ..Self::default() },
        }
    }

    fn transfer(opcode: u8, handle: u64, range: ByteRange, segments: Segments) -> Self {
        Self {
            opcode,
            handle,
            offset: range.offset(),
            length: range.length(),
            segments,
            ..Self::default()
        }
    }

    fn read(covered: &[u8]) -> Result<Self> {
        let mut r = Reader::new(covered);
        let (opcode, flags, count, _) = (r.u8(), r.u8(), r.u8(), r.u8());
        r.skip(4);
        let (handle, offset, length) = (r.u64(), r.u64(), r.u64());
        let mut list = [Segment::default(); MAX_SEGMENTS];
        list[0] = get_segment(&mut r);
        let (argument, payload_crc) = (r.u64(), r.u32());
        let room = if flags & FLAG_LONG == 0 {
            1
        } else {
            r.skip(4);
            list[1..].iter_mut().for_each(|segment| *segment = get_segment(&mut r));
            MAX_SEGMENTS
        };
        if usize::from(count) > room {
            return Err(
                Kind::Invalid.error(format!("{count} segments in a capsule with room for {room}"))
            );
        }
        let segments = Segments::from_slice(&list[..usize::from(count)])?;
        Ok(Self { opcode, flags, handle, offset, length, argument, payload_crc, segments })
    }

    fn request(self, flags: u8, tag: u32) -> Result<Request> {
        let handle = self.handle;
        let command = match self.opcode {
            OP_HELLO => Command::Hello {
                versions: (low_16(handle), low_16(handle >> 16)),
                credits: u16::try_from(self.length).unwrap_or(u16::MAX),
                features: self.argument,
            },
            OP_OPEN => Command::Open(Open {
                file: FileId(u128::from(handle) | u128::from(self.offset) << 64),
                mode: if flags & FLAG_OPEN_WRITE == 0 {
                    OpenMode::Read(Generation(self.argument))
                } else {
                    OpenMode::Write(self.length)
                },
                name: self.segments,
            }),
            OP_READ => Command::Read { handle, range: self.transfer_range()?, into: self.segments },
            OP_WRITE => {
                Command::Write { handle, range: self.transfer_range()?, from: self.segments }
            }
            OP_COMMIT => Command::Commit { handle, length: self.length },
            OP_CLOSE => Command::Close { handle },
            OP_STAT => Command::Stat { handle },
            OP_PING => Command::Ping,
            other => {
                return Err(Kind::Unsupported.error(format!(
                    "request code {other} is not known to this version of the node"
                )));
            }
        };
        let payload_crc = (self.flags & FLAG_PAYLOAD_CRC != 0).then_some(self.payload_crc);
        Ok(Request { tag, payload_crc, command })
    }

    fn transfer_range(&self) -> Result<ByteRange> {
        let range = ByteRange::new(self.offset, self.length)?;
        if self.length > MAX_TRANSFER_BYTES {
            return Err(Kind::Invalid.error(format!(
                "{} bytes in one request, and the most is {MAX_TRANSFER_BYTES}: split it",
                self.length
            )));
        }
        if self.segments.total_bytes() != self.length {
            return Err(Kind::Invalid.error(format!(
                "segments of {} bytes for a transfer of {}",
                self.segments.total_bytes(),
                self.length
            )));
        }
        Ok(range)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a field of a packed pair")]
const fn low_16(pair: u64) -> u16 {
    pair as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments() -> impl Strategy<Value = Segments> {
        proptest::collection::vec((any::<u64>(), 1u32..1 << 20, any::<u32>()), 0..=4).prop_map(
            |list| {
                let list: Vec<_> = list
                    .into_iter()
                    .map(|(address, length, key)| Segment { address, length, key })
                    .collect();
                Segments::from_slice(&list).expect("at most four")
            },
        )
    }

    fn commands() -> impl Strategy<Value = Command> {
        let range = |offset: u64, segments: &Segments| {
            ByteRange::new(offset, segments.total_bytes()).expect("in bounds")
        };
        prop_oneof![
            (any::<(u16, u16)>(), any::<u16>(), any::<u64>()).prop_map(
                |(versions, credits, features)| Command::Hello { versions, credits, features }
            ),
            (any::<u128>(), any::<u64>(), any::<bool>(), segments()).prop_map(
                |(file, number, write, name)| Command::Open(Open {
                    file: FileId(file),
                    mode: if write {
                        OpenMode::Write(number)
                    } else {
                        OpenMode::Read(Generation(number))
                    },
                    name,
                })
            ),
            (any::<u64>(), 0..u64::MAX / 2, segments()).prop_map(move |(handle, offset, into)| {
                Command::Read { handle, range: range(offset, &into), into }
            }),
            (any::<u64>(), 0..u64::MAX / 2, segments()).prop_map(move |(handle, offset, from)| {
                Command::Write { handle, range: range(offset, &from), from }
            }),
            any::<(u64, u64)>().prop_map(|(handle, length)| Command::Commit { handle, length }),
            any::<u64>().prop_map(|handle| Command::Close { handle }),
            any::<u64>().prop_map(|handle| Command::Stat { handle }),
            Just(Command::Ping),
        ]
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(tag: u32, payload_crc: Option<u32>, command in commands()) {
            let request = Request { tag, payload_crc, command };
            let mut capsule = [0xAA; LONG_REQUEST_BYTES];
            let size = request.encode(&mut capsule);
            prop_assert_eq!(Request::capsule_bytes([capsule[0], capsule[1]]), size);
            prop_assert_eq!(Request::parse(&capsule[..size]).expect("own capsule"), request);
            prop_assert_eq!(Request::tag_of(&capsule[..size]), tag);
            let stream_bytes = Request::stream_bytes(&capsule[..size]).expect("own capsule");
            prop_assert_eq!(stream_bytes, request.inline_bytes());
        }

        #[test]
        fn a_flipped_bit_is_seen(command in commands(), bit in 0usize..64 * 8) {
            let request = Request { tag: 7, payload_crc: None, command };
            let mut capsule = [0; LONG_REQUEST_BYTES];
            let size = request.encode(&mut capsule);
            capsule[bit / 8] ^= 1 << (bit % 8);
            let error = Request::parse(&capsule[..size]).expect_err("damaged");
            prop_assert_eq!(error.kind(), Kind::Corrupt);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&bytes);
            let _ = Request::stream_bytes(&bytes);
        }

        #[test]
        fn slices_of_segments_tile(list in segments(), cut in any::<u64>()) {
            let total = list.total_bytes();
            let cut = if total == 0 { 0 } else { cut % total };
            let parts: u64 = list
                .slice(0, cut)
                .chain(list.slice(cut, total - cut))
                .map(|segment| u64::from(segment.length))
                .sum();
            prop_assert_eq!(parts, total);
        }
    }

    #[test]
    fn senseless_transfers_are_refused() {
        let parse = |command| {
            let mut capsule = [0; LONG_REQUEST_BYTES];
            let size = Request { tag: 1, payload_crc: None, command }.encode(&mut capsule);
            Request::parse(&capsule[..size]).expect_err("refused").kind()
        };
        let range = ByteRange::new(0, 10).expect("in bounds");
        let into = Segments::one(Segment { address: 0, length: 9, key: 0 });
        assert_eq!(parse(Command::Read { handle: 1, range, into }), Kind::Invalid);
        let range = ByteRange::new(0, MAX_TRANSFER_BYTES + 1).expect("in bounds");
        assert_eq!(parse(Command::Read { handle: 1, range, into }), Kind::Invalid);
    }
}
