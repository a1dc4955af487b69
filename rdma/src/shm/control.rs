//! The messages on the control socket; the parent module draws them byte by byte.

use extent::codec::{Reader, Writer};
use extent::{Error, Kind, Result};

use super::layout::Layout;

pub(super) const HELLO_BYTES: usize = 32;
pub(super) const ORDER_BYTES: usize = 32;
pub(super) const NOTE_BYTES: usize = 256;
/// The version of the handshake, the link and the control socket that this crate speaks.
pub(super) const VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"FBSHMEM1";
const SENTENCE_AT: usize = 32;
const SENTENCE_BYTES: usize = NOTE_BYTES - SENTENCE_AT;

const REGISTER: u8 = 1;
const UNREGISTER: u8 = 2;
const WELCOME: u8 = 0x80;
const REGISTERED: u8 = 0x81;
const UNREGISTERED: u8 = 0x82;
const CLOSED: u8 = 0x83;

/// A client's first message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    /// Lowest and highest version spoken.
    pub(super) versions: (u16, u16),
    /// Request and reply slots wished for.
    pub(super) slots: (u32, u32),
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        let mut w = Writer::new(&mut out);
        w.slice(&MAGIC).u16(self.versions.0).u16(self.versions.1);
        w.u32(self.slots.0).u32(self.slots.1);
        out
    }

    /// # Errors
    /// [`Kind::Invalid`] if it is none; [`Kind::Unsupported`] if no version is spoken by both.
    pub(super) fn parse(bytes: &[u8; HELLO_BYTES]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        if r.array() != MAGIC {
            return Err(Kind::Invalid.error(
                "this is a Forebay shared memory socket, and the peer says something else",
            ));
        }
        let hello = Self { versions: (r.u16(), r.u16()), slots: (r.u32(), r.u32()) };
        nothing_else(&bytes[r.position()..])?;
        if !(hello.versions.0..=hello.versions.1).contains(&VERSION) {
            return Err(Kind::Unsupported.error(format!(
                "the client speaks shared memory versions {} to {}, this node {VERSION}: upgrade the older",
                hello.versions.0, hello.versions.1
            )));
        }
        Ok(hello)
    }
}

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// Map the memory that comes along.
    Register { key: u32, length: u64 },
    /// Forget it.
    Unregister { key: u32 },
}

impl Order {
    pub(super) fn encode(&self) -> [u8; ORDER_BYTES] {
        let (kind, key, length) = match *self {
            Self::Register { key, length } => (REGISTER, key, length),
            Self::Unregister { key } => (UNREGISTER, key, 0),
        };
        let mut out = [0; ORDER_BYTES];
        Writer::new(&mut out).u8(kind).zeroes(3).u32(key).u64(length);
        out
    }

    /// # Errors
    /// [`Kind::Corrupt`] if it is none.
    pub(super) fn parse(bytes: &[u8; ORDER_BYTES]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        let kind = r.u8();
        nothing_else(r.slice(3))?;
        let (key, length) = (r.u32(), r.u64());
        nothing_else(&bytes[r.position()..])?;
        match kind {
            REGISTER => Ok(Self::Register { key, length }),
            UNREGISTER if length == 0 => Ok(Self::Unregister { key }),
            _ => Err(Kind::Corrupt.error(format!("an order of unknown kind {kind:#x}"))),
        }
    }
}

/// What a session was granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Grant {
    pub(super) version: u16,
    pub(super) layout: Layout,
    pub(super) max_regions: u32,
    pub(super) max_region_bytes: u64,
}

/// What a node tells.
#[derive(Debug)]
pub(super) enum Note {
    /// The session is open, or why not.
    Welcome(Result<Grant>),
    /// A region is mapped, or why not.
    Registered(u32, Result<()>),
    /// A region is forgotten, or why not.
    Unregistered(u32, Result<()>),
    /// The session is over.
    Closed(Error),
}

impl Note {
    pub(super) fn encode(&self) -> [u8; NOTE_BYTES] {
        let (kind, key, error) = match self {
            Self::Welcome(result) => (WELCOME, 0, result.as_ref().err()),
            Self::Registered(key, result) => (REGISTERED, *key, result.as_ref().err()),
            Self::Unregistered(key, result) => (UNREGISTERED, *key, result.as_ref().err()),
            Self::Closed(error) => (CLOSED, 0, Some(error)),
        };
        let sentence = error.map(cut_sentence).unwrap_or_default();
        let mut out = [0; NOTE_BYTES];
        let mut w = Writer::new(&mut out);
        w.u8(kind).u8(error.map_or(0, |error| error.kind().status()));
        w.u16(u16::try_from(sentence.len()).expect("cut")).u32(key);
        if let Self::Welcome(Ok(grant)) = self {
            let (requests, replies) = grant.layout.slots();
            w.u16(grant.version).u16(0).u32(requests).u32(replies);
            w.u32(grant.max_regions).u64(grant.max_region_bytes);
        }
        out[SENTENCE_AT..][..sentence.len()].copy_from_slice(sentence.as_bytes());
        out
    }

    /// # Errors
    /// [`Kind::Corrupt`] if it is none.
    pub(super) fn parse(bytes: &[u8; NOTE_BYTES]) -> Result<Self> {
        let mut r = Reader::new(bytes);
        let (kind, status, length, key) = (r.u8(), r.u8(), usize::from(r.u16()), r.u32());
        if length > SENTENCE_BYTES {
            return Err(Kind::Corrupt.error(format!("a note with a sentence of {length} bytes")));
        }
        let sentence = String::from_utf8_lossy(&bytes[SENTENCE_AT..][..length]);
        // A status from a newer node is still an error, of the broadest kind.
        let result = match status {
            0 => Ok(()),
            code => Err(Kind::from_status(code).unwrap_or(Kind::Io).error(sentence)),
        };
        match kind {
            WELCOME => Ok(Self::Welcome(match result {
                Ok(()) => Ok(grant(&mut r)?),
                Err(error) => Err(error),
            })),
            REGISTERED => Ok(Self::Registered(key, result)),
            UNREGISTERED => Ok(Self::Unregistered(key, result)),
            CLOSED => {
                let unsaid = || Kind::Disconnected.error("the node closed the session");
                Ok(Self::Closed(result.err().unwrap_or_else(unsaid)))
            }
            other => Err(Kind::Corrupt.error(format!("a note of unknown kind {other:#x}"))),
        }
    }
}

fn grant(r: &mut Reader<'_>) -> Result<Grant> {
    let version = r.u16();
    r.skip(2);
    let layout = Layout::new(r.u32(), r.u32())?;
    Ok(Grant { version, layout, max_regions: r.u32(), max_region_bytes: r.u64() })
}

fn cut_sentence(error: &Error) -> String {
    let mut sentence = error.to_string();
    sentence.truncate(sentence.floor_char_boundary(SENTENCE_BYTES));
    sentence
}

fn nothing_else(reserved: &[u8]) -> Result<()> {
    if reserved.iter().any(|&byte| byte != 0) {
        return Err(Kind::Corrupt.error("reserved bytes of a message are not zero"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_survive() {
        let hello = Hello { versions: (1, 7), slots: (64, 1 << 20) };
        assert_eq!(Hello::parse(&hello.encode()).expect("own"), hello);
        for order in [Order::Register { key: 7, length: 1 << 40 }, Order::Unregister { key: 8 }] {
            assert_eq!(Order::parse(&order.encode()).expect("own"), order);
        }
        let grant = Grant {
            version: 1,
            layout: Layout::new(64, 128).expect("sound"),
            max_regions: 3,
            max_region_bytes: 1 << 41,
        };
        match Note::parse(&Note::Welcome(Ok(grant)).encode()).expect("own") {
            Note::Welcome(Ok(back)) => assert_eq!(back, grant),
            other => panic!("{other:?}"),
        }
        let error = Kind::Denied.error("ö".repeat(200));
        match Note::parse(&Note::Registered(9, Err(error)).encode()).expect("own") {
            Note::Registered(9, Err(back)) => {
                assert_eq!((back.kind(), back.context().chars().count()), (Kind::Denied, 112));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn strangers_are_told_apart() {
        let kind = |bytes: [u8; HELLO_BYTES]| Hello::parse(&bytes).expect_err("refused").kind();
        let hello = Hello { versions: (1, 1), slots: (32, 32) };
        let mut wrong = hello.encode();
        wrong[0] ^= 1;
        assert_eq!(kind(wrong), Kind::Invalid);
        assert_eq!(kind(Hello { versions: (2, 9), ..hello }.encode()), Kind::Unsupported);
        let mut wrong = hello.encode();
        wrong[31] = 1;
        assert_eq!(kind(wrong), Kind::Corrupt);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(order: [u8; ORDER_BYTES], note in proptest::collection::vec(any::<u8>(), NOTE_BYTES)) {
            let _ = Order::parse(&order);
            let _ = Hello::parse(&order);
            let _ = Note::parse(note.first_chunk().expect("long enough"));
        }
    }
}
