//! Capsules that are nearly right.

use extent::checksum::crc32c;
use extent::wire::{
    Command, LONG_REQUEST_BYTES, Open, OpenMode, REQUEST_BYTES, Request, Segment, Segments,
};
use extent::{ByteRange, FileId, Generation};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};

/// Where the fields of a capsule are, and how long each is (`docs/protocol.md`).
const FIELDS: [(usize, usize); 12] = [
    (0, 1),
    (1, 1),
    (2, 1),
    (3, 1),
    (4, 4),
    (8, 8),
    (16, 8),
    (24, 8),
    (32, 8),
    (40, 4),
    (44, 4),
    (48, 8),
];

/// What an attacker knows.
pub(crate) struct Known {
    /// Handles of its own, open or closed, and of others.
    pub(crate) handles: Vec<u64>,
    /// Memory of its own, as it is on the wire.
    pub(crate) own: Segment,
    /// Others' memory, likewise.
    pub(crate) others: Vec<Segment>,
    /// Files that it may write.
    pub(crate) names: Vec<FileId>,
}

impl Known {
    pub(crate) fn nothing() -> Self {
        let own = Segment { address: 0, length: super::attacker::MEMORY_BYTES, key: 0 };
        Self { handles: Vec::new(), own, others: Vec::new(), names: Vec::new() }
    }
}

/// A number that is at the edge of something.
fn edge(rng: &mut SmallRng) -> u64 {
    let power = 1u64 << rng.random_range(0..64);
    let near = [0, 1, u64::MAX, u64::MAX - 1, power, power - 1, power.wrapping_add(1)];
    match rng.random_range(0..4) {
        0 => rng.next_u64(),
        1 => u64::MAX - rng.random_range(0..1 << 20),
        _ => *near.choose(rng).expect("some"),
    }
}

fn segment(known: &Known, rng: &mut SmallRng) -> Segment {
    let mut segment = known.own;
    segment.length = rng.random_range(0..=known.own.length);
    if rng.random_ratio(1, 12) {
        segment.address = segment.address.wrapping_add(edge(rng));
    }
    if rng.random_ratio(1, 12) {
        segment.length = u32::try_from(edge(rng) >> 32).expect("half of it");
    }
    if rng.random_ratio(1, 24) {
        match known.others.choose(rng) {
            Some(other) => (segment.address, segment.key) = (other.address, other.key),
            None => segment.key = rng.random(),
        }
    }
    segment
}

fn segments(known: &Known, rng: &mut SmallRng) -> Segments {
    // They overlap: all begin where the attacker's memory does.
    let count = *[0, 1, 1, 1, 2, 3, 4].choose(rng).expect("some");
    let list: Vec<Segment> = (0..count).map(|_| segment(known, rng)).collect();
    Segments::from_slice(&list).expect("four at most")
}

fn range(rng: &mut SmallRng, length: u64) -> ByteRange {
    let offset = if rng.random_ratio(1, 6) { edge(rng) } else { rng.random_range(0..300_000) };
    ByteRange::new(offset, length).or_else(|_| ByteRange::new(0, length)).expect("in bounds")
}

/// A request that makes sense by itself.
pub(crate) fn request(known: &Known, rng: &mut SmallRng) -> Request {
    let handle = known.handles.choose(rng).copied().unwrap_or(1);
    let command = match rng.random_range(0..12) {
        0 => Command::Hello { versions: (1, 1), credits: rng.random(), features: rng.random() },
        1 | 2 => {
            let file = *known.names.choose(rng).expect("some");
            let read = OpenMode::Read(Generation(rng.random_range(0..3)));
            let write = OpenMode::Write(rng.random_range(0..200_000));
            Command::Open(Open {
                file,
                mode: if rng.random() { read } else { write },
                name: Segments::NONE,
            })
        }
        3 => Command::Open(Open {
            file: FileId(0),
            mode: OpenMode::Write(0),
            name: segments(known, rng),
        }),
        4..7 => {
            let into = segments(known, rng);
            Command::Read { handle, range: range(rng, into.total_bytes()), into }
        }
        7 | 8 => {
            let from = segments(known, rng);
            Command::Write { handle, range: range(rng, from.total_bytes()), from }
        }
        9 => Command::Commit { handle, length: rng.random_range(0..300_000) },
        10 => Command::Close { handle },
        _ => [Command::Stat { handle }, Command::Ping][rng.random_range(0..2)],
    };
    // Few tags, so that they are repeated.
    Request {
        tag: rng.random_range(0..8),
        payload_crc: rng.random::<bool>().then(|| rng.random()),
        command,
    }
}

/// A capsule: most are mutated, and some cut short.
pub(crate) fn capsule(known: &Known, rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = [0; LONG_REQUEST_BYTES];
    let length = request(known, rng).encode(&mut bytes);
    let mut bytes = bytes[..length].to_vec();
    for _ in 0..rng.random_range(0..3) {
        mutate(&mut bytes, rng);
    }
    if !rng.random_ratio(1, 16) {
        seal(&mut bytes);
    }
    if rng.random_ratio(1, 32) {
        bytes.truncate(rng.random_range(0..bytes.len()));
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut SmallRng) {
    match rng.random_range(0..8) {
        0 => {
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
        }
        // Another length than the flags say, or the flags of another length.
        1 => {
            let long = bytes.len() == REQUEST_BYTES;
            bytes.resize(if long { LONG_REQUEST_BYTES } else { REQUEST_BYTES }, 0);
            if rng.random() {
                bytes[1] ^= 1;
            }
        }
        2 => bytes[0] = rng.random_range(0..12),
        _ => {
            let (at, length) = *FIELDS.choose(rng).expect("some");
            bytes[at..at + length].copy_from_slice(&edge(rng).to_le_bytes()[..length]);
        }
    }
}

fn seal(bytes: &mut [u8]) {
    let (covered, crc) = bytes.split_at_mut(bytes.len() - 4);
    crc.copy_from_slice(&crc32c(covered).to_le_bytes());
}
