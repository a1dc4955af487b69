//! What both sides say while they connect, as private data of RDMA CM. `docs/protocol.md` draws it.

use std::ops::Range;

use extent::{Kind, Proof, Result};

/// The version of the framing.
const VERSION: u16 = 1;
/// The first eight bytes of everything that is said, refusals too.
pub(super) const MAGIC: [u8; 8] = *b"FOREBAYR";
/// A bit of what a client can do.
const SHORT_REPLIES: u8 = 1;

/// Where a client's proof and its bits are.
const PROOF: Range<usize> = 16..32;
const FLAGS: usize = 32;

/// What a client says: 40 of the 56 bytes that a connection request has room for.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    /// The lowest and the highest version that it speaks.
    pub(super) versions: (u16, u16),
    /// Replies that it has places for.
    pub(super) replies: u32,
    /// What it has to show, if anything. A node that asks for none does not look.
    pub(super) proof: Option<Proof>,
    /// Whether it takes the immediate data of an RDMA WRITE for a reply.
    pub(super) short_replies: bool,
}

/// What a node answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Welcome {
    pub(super) version: u16,
}

impl Hello {
    pub(super) const BYTES: usize = 40;
    /// Replies that a client must have places for: HELLO's and one more.
    pub(super) const LEAST_REPLIES: u32 = 2;

    pub(super) fn new(replies: u32, proof: Option<Proof>) -> Self {
        Self { versions: (VERSION, VERSION), replies, proof, short_replies: true }
    }

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.versions.0.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.versions.1.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.replies.to_le_bytes());
        if let Some(proof) = &self.proof {
            bytes[PROOF].copy_from_slice(proof.expose());
        }
        bytes[FLAGS] = if self.short_replies { SHORT_REPLIES } else { 0 };
        bytes
    }

    /// Reads what a client says. RDMA CM may add zeroes at the end.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it is nothing that a client says; [`Kind::Unsupported`] if it speaks no
    /// version that this node does; [`Kind::Invalid`] if it has no place for replies.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(bytes) = bytes.get(..Self::BYTES).filter(|bytes| bytes[..8] == MAGIC) else {
            return Err(Kind::Corrupt.error("this is no Forebay client"));
        };
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let replies = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        let proof = bytes[PROOF].try_into().ok().and_then(Proof::from_bytes);
        let short_replies = bytes[FLAGS] & SHORT_REPLIES != 0;
        let hello = Self { versions: (short(8), short(10)), replies, proof, short_replies };
        if !(hello.versions.0..=hello.versions.1).contains(&VERSION) {
            return Err(Kind::Unsupported.error(format!(
                "this node speaks version {VERSION} of the RDMA framing, and you {} to {}",
                hello.versions.0, hello.versions.1
            )));
        }
        if hello.replies < Self::LEAST_REPLIES {
            return Err(Kind::Invalid
                .error(format!("room for {replies} replies: at least {}", Self::LEAST_REPLIES)));
        }
        Ok(hello)
    }
}

impl Welcome {
    pub(super) const BYTES: usize = 16;

    pub(super) fn new() -> Self {
        Self { version: VERSION }
    }

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes
    }

    /// Reads what a node answers.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it is no node's answer; [`Kind::Unsupported`] for another version.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(bytes) = bytes.get(..Self::BYTES).filter(|bytes| bytes[..8] == MAGIC) else {
            return Err(Kind::Corrupt.error("what answers there is no Forebay node"));
        };
        match u16::from_le_bytes([bytes[8], bytes[9]]) {
            VERSION => Ok(Self { version: VERSION }),
            other => Err(Kind::Unsupported
                .error(format!("the node speaks version {other} of the RDMA framing"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greetings_are_read_as_they_are_written() {
        for (proof, short_replies) in [(None, true), (Proof::from_bytes([7; 16]), false)] {
            let hello = Hello { short_replies, ..Hello::new(256, proof.clone()) };
            let mut padded = hello.encode().to_vec();
            padded.resize(56, 0);
            let heard = Hello::parse(&padded).expect("a greeting");
            assert_eq!((heard.versions, heard.replies), (hello.versions, 256));
            assert_eq!(heard.short_replies, short_replies);
            assert_eq!(heard.proof.map(|p| *p.expose()), proof.map(|p| *p.expose()));
        }
        let mut padded = Welcome::new().encode().to_vec();
        padded.resize(196, 0);
        assert_eq!(Welcome::parse(&padded).expect("an answer"), Welcome::new());
    }

    #[test]
    fn other_versions_and_strangers_are_told_apart() {
        let kind = |hello: Hello| Hello::parse(&hello.encode()).expect_err("refused").kind();
        assert_eq!(kind(Hello { versions: (2, 9), ..Hello::new(9, None) }), Kind::Unsupported);
        assert_eq!(kind(Hello { versions: (2, 1), ..Hello::new(9, None) }), Kind::Unsupported);
        assert_eq!(kind(Hello { versions: (0, 9), ..Hello::new(1, None) }), Kind::Invalid);
        assert_eq!(Hello::parse(&[0; 56]).expect_err("refused").kind(), Kind::Corrupt);
        assert_eq!(Hello::parse(&MAGIC).expect_err("refused").kind(), Kind::Corrupt);
        assert_eq!(Welcome::parse(b"").expect_err("refused").kind(), Kind::Corrupt);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            let _ = (Hello::parse(&bytes), Welcome::parse(&bytes));
            let ours = [&MAGIC[..], &bytes].concat();
            let _ = (Hello::parse(&ours), Welcome::parse(&ours));
        }
    }
}
