use crate::checksum::crc32c;
use crate::codec::{Reader, Writer};
use crate::{Error, Kind, Result};

use super::{MAX_BODY_BYTES, REPLY_BYTES};

const TYPE_REPLY: u8 = 0x80;
const TYPE_DATA: u8 = 0xC0;

/// Where the bytes of a read came from. Of several, the one furthest down this list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Served {
    /// No bytes were read.
    #[default]
    Nothing = 0,
    /// The tier: a hit.
    Tier = 1,
    /// A buffer that was just arriving from the silo for somebody else.
    Arriving = 2,
    /// The silo, for this read.
    Recall = 3,
    /// The silo, because the tier's copy was damaged and has been replaced.
    Repair = 4,
}

/// How the bytes got into the client's memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Landing {
    /// No bytes moved.
    #[default]
    Nothing = 0,
    /// The device wrote, or read, the client's memory itself.
    Direct = 1,
    /// Through a buffer of the node, and one copy by its processor.
    Copied = 2,
    /// Through a buffer of the node, and a fabric's RDMA WRITE or READ.
    Rdma = 3,
    /// Through a buffer of the node, and a byte stream.
    Stream = 4,
}

/// The answer to one request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The request's tag.
    pub tag: u32,
    /// Success, or what went wrong.
    pub status: Result<(), Kind>,
    /// The session's credits from now on: how many requests it may have in flight.
    pub credits: u16,
    /// READ and WRITE: bytes moved. OPEN: the handle. Otherwise 0.
    pub value: u64,
    /// READ: the CRC32C of the bytes, if it was asked for.
    pub payload_crc: u32,
    /// READ: where the bytes came from.
    pub served: Served,
    /// READ and WRITE: how they moved.
    pub landing: Landing,
    /// From the request's arrival at the node to this reply, in microseconds; 0 where a short reply does not
    /// tell.
    pub service_us: u32,
    /// HELLO, OPEN, COMMIT, STAT: a body. On an error: a sentence in UTF-8.
    pub body: Vec<u8>,
}

impl Reply {
    /// The longest body, without its checksum.
    pub const MAX_BODY: usize = MAX_BODY_BYTES - 4;

    /// A plain success.
    #[must_use]
    pub const fn success(tag: u32) -> Self {
        Self {
            tag,
            status: Ok(()),
            credits: 0,
            value: 0,
            payload_crc: 0,
            served: Served::Nothing,
            landing: Landing::Nothing,
            service_us: 0,
            body: Vec::new(),
        }
    }

    /// What a client takes for the answer to a READ where all there is to say is that so many bytes came,
    /// out of the tier, by RDMA.
    #[must_use]
    pub fn of_write(tag: u32, value: u64) -> Self {
        let (served, landing) = (Served::Tier, Landing::Rdma);
        Self { value, served, landing, ..Self::success(tag) }
    }

    /// A failure, its sentence cut to what fits.
    #[must_use]
    pub fn failure(tag: u32, error: &Error) -> Self {
        let mut sentence = error.to_string();
        let mut end = sentence.len().min(Self::MAX_BODY);
        while !sentence.is_char_boundary(end) {
            end -= 1;
        }
        sentence.truncate(end);
        Self { status: Err(error.kind()), body: sentence.into_bytes(), ..Self::success(tag) }
    }

    /// The reply's error, if it is one.
    #[must_use]
    pub fn error(&self) -> Option<Error> {
        let kind = self.status.err()?;
        Some(kind.error(String::from_utf8_lossy(&self.body)))
    }

    /// Bytes on the wire, body and its checksum included.
    #[must_use]
    pub const fn wire_bytes(&self) -> usize {
        REPLY_BYTES + if self.body.is_empty() { 0 } else { self.body.len() + 4 }
    }

    /// Writes the reply and its body to the front of `out` and returns its length.
    ///
    /// # Panics
    /// If the body is longer than [`Reply::MAX_BODY`].
    pub fn encode(&self, out: &mut [u8; REPLY_BYTES + MAX_BODY_BYTES]) -> usize {
        assert!(self.body.len() <= Self::MAX_BODY, "a reply's body is bounded");
        let body_bytes = self.wire_bytes() - REPLY_BYTES;
        let mut w = Writer::new(out);
        w.u8(TYPE_REPLY).u8(self.status.err().map_or(0, Kind::status)).u16(self.credits);
        w.u32(self.tag).u64(self.value).u32(self.payload_crc);
        w.u8(self.served as u8).u8(self.landing as u8);
        w.u16(u16::try_from(body_bytes).expect("bounded")).u32(self.service_us);
        seal(&mut out[..REPLY_BYTES]);
        if body_bytes != 0 {
            let body = &mut out[REPLY_BYTES..REPLY_BYTES + body_bytes];
            body[..self.body.len()].copy_from_slice(&self.body);
            seal(body);
        }
        REPLY_BYTES + body_bytes
    }
}

/// What stands before a run of a READ's bytes on a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataHeader {
    /// The request's tag.
    pub tag: u32,
    /// Where the bytes belong, counted from the start of the request's range.
    pub at: u64,
    /// How many bytes follow.
    pub length: u32,
}

impl DataHeader {
    /// Writes the header to the front of `out`.
    pub fn encode(&self, out: &mut [u8; REPLY_BYTES]) {
        let mut w = Writer::new(out);
        w.u8(TYPE_DATA).zeroes(3).u32(self.tag).u64(self.at).u32(0).u32(self.length).u32(0);
        seal(out);
    }
}

/// What a client finds at the head of the stream or in a reply slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Downstream {
    /// A reply, and how many bytes of body (checksum included) follow: read those, then call
    /// [`Downstream::attach`].
    Reply(Reply, usize),
    /// Bytes of a READ follow.
    Data(DataHeader),
}

impl Downstream {
    /// Reads the 32 bytes of a reply or data header.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if the checksum does not hold or the type is unknown.
    pub fn parse(header: &[u8; REPLY_BYTES]) -> Result<Self> {
        check(header, "a reply")?;
        let mut r = Reader::new(header);
        let kind = r.u8();
        let status = r.u8();
        let credits = r.u16();
        let tag = r.u32();
        let value = r.u64();
        match kind {
            TYPE_REPLY => {
                let payload_crc = r.u32();
                let (served, landing) = (served(r.u8()), landing(r.u8()));
                let (body_bytes, service_us) = (usize::from(r.u16()), r.u32());
                if body_bytes > MAX_BODY_BYTES || (1..=4).contains(&body_bytes) {
                    return Err(Kind::Corrupt.error(format!("a reply body of {body_bytes} bytes")));
                }
                // A status from a newer node is still an error, of the broadest kind.
                let status = match status {
                    0 => Ok(()),
                    code => Err(Kind::from_status(code).unwrap_or(Kind::Io)),
                };
                let body = Vec::new();
                let reply = Reply {
                    tag,
                    status,
                    credits,
                    value,
                    payload_crc,
                    served,
                    landing,
                    service_us,
                    body,
                };
                Ok(Self::Reply(reply, body_bytes))
            }
            TYPE_DATA => {
                r.skip(4);
                Ok(Self::Data(DataHeader { tag, at: value, length: r.u32() }))
            }
            other => Err(Kind::Corrupt.error(format!("a reply of unknown type {other:#x}"))),
        }
    }

    /// Adds the body that followed a reply.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if its checksum does not hold.
    pub fn attach(mut reply: Reply, body: &[u8]) -> Result<Reply> {
        if !body.is_empty() {
            check(body, "a reply's body")?;
            reply.body = body[..body.len() - 4].to_vec();
        }
        Ok(reply)
    }
}

fn served(value: u8) -> Served {
    match value {
        1 => Served::Tier,
        2 => Served::Arriving,
        3 => Served::Recall,
        4 => Served::Repair,
        _ => Served::Nothing,
    }
}

fn landing(value: u8) -> Landing {
    match value {
        1 => Landing::Direct,
        2 => Landing::Copied,
        3 => Landing::Rdma,
        4 => Landing::Stream,
        _ => Landing::Nothing,
    }
}

fn seal(message: &mut [u8]) {
    let end = message.len() - 4;
    let crc = crc32c(&message[..end]);
    message[end..].copy_from_slice(&crc.to_le_bytes());
}

fn check(message: &[u8], what: &str) -> Result<()> {
    let Some((covered, crc)) = message.split_last_chunk::<4>() else {
        return Err(Kind::Corrupt.error(format!("{what} is too short for its checksum")));
    };
    if crc32c(covered).to_le_bytes() != *crc {
        return Err(Kind::Corrupt.error(format!("the checksum of {what} does not hold")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn receive(bytes: &[u8]) -> Result<Reply> {
        let header = bytes.first_chunk().expect("a header");
        match Downstream::parse(header)? {
            Downstream::Reply(reply, body) => {
                assert_eq!(bytes.len(), REPLY_BYTES + body);
                Downstream::attach(reply, &bytes[REPLY_BYTES..])
            }
            Downstream::Data(_) => panic!("a reply was sent"),
        }
    }

    proptest! {
        #[test]
        fn replies_survive_the_wire(
            tag: u32, credits: u16, value: u64, payload_crc: u32, service_us: u32, status in 0u8..=12,
            body in proptest::collection::vec(any::<u8>(), 0..=Reply::MAX_BODY),
        ) {
            let reply = Reply {
                status: Kind::from_status(status).map_or(Ok(()), Err),
                credits, value, payload_crc, service_us, body,
                served: served(status % 5), landing: landing(status % 5),
                ..Reply::success(tag)
            };
            let mut out = [0; REPLY_BYTES + MAX_BODY_BYTES];
            let length = reply.encode(&mut out);
            prop_assert_eq!(length, reply.wire_bytes());
            prop_assert_eq!(receive(&out[..length]).expect("own reply"), reply);
        }

        #[test]
        fn data_headers_survive_the_wire(tag: u32, at: u64, length: u32) {
            let header = DataHeader { tag, at, length };
            let mut out = [0; REPLY_BYTES];
            header.encode(&mut out);
            prop_assert_eq!(Downstream::parse(&out).expect("own header"), Downstream::Data(header));
        }

        #[test]
        fn garbage_never_panics(header: [u8; REPLY_BYTES], body: Vec<u8>) {
            let _ = Downstream::parse(&header);
            let _ = Downstream::attach(Reply::success(0), &body);
        }
    }

    #[test]
    fn a_long_sentence_is_cut_at_a_character() {
        let error = Kind::NoSpace.error("ü".repeat(300));
        let reply = Reply::failure(9, &error);
        assert_eq!(reply.body.len(), Reply::MAX_BODY);
        let mut out = [0; REPLY_BYTES + MAX_BODY_BYTES];
        let length = reply.encode(&mut out);
        let back = receive(&out[..length]).expect("own reply").error().expect("an error");
        assert_eq!(back.kind(), Kind::NoSpace);
        assert!(error.context().starts_with(back.context()));
    }
}
