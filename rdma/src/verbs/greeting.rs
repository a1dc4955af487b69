//! What both sides say while they connect, as private data of RDMA CM. `docs/protocol.md` draws it.

use extent::{Error, Kind, Result};

/// The version of the framing.
const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"FOREBAYR";
/// A bit of what a client can do.
const SHORT_REPLIES: u8 = 1;

/// What a client says: 32 of the 56 bytes that a connection request has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hello {
    /// The lowest and the highest version that it speaks.
    pub(super) versions: (u16, u16),
    /// Replies that it has places for.
    pub(super) replies: u32,
    /// Whether it takes the immediate data of an RDMA WRITE for a reply.
    pub(super) short_replies: bool,
}

/// What a node answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Welcome {
    pub(super) version: u16,
}

impl Hello {
    pub(super) const BYTES: usize = 32;
    /// Replies that a client must have places for: HELLO's and one more.
    pub(super) const LEAST_REPLIES: u32 = 2;

    pub(super) fn new(replies: u32) -> Self {
        Self { versions: (VERSION, VERSION), replies, short_replies: true }
    }

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.versions.0.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.versions.1.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.replies.to_le_bytes());
        bytes[16] = if self.short_replies { SHORT_REPLIES } else { 0 };
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
        let short_replies = bytes[16] & SHORT_REPLIES != 0;
        let hello = Self { versions: (short(8), short(10)), replies, short_replies };
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

/// Why a client is turned away: a status and a sentence.
pub(super) struct Refusal;

impl Refusal {
    /// The most bytes of a sentence: a rejection has room for 148 in all.
    const SENTENCE_BYTES: usize = 128;

    pub(super) fn encode(error: &Error) -> Vec<u8> {
        let mut sentence = error.to_string();
        while sentence.len() > Self::SENTENCE_BYTES {
            sentence.pop();
        }
        let mut bytes = MAGIC.to_vec();
        bytes.push(error.kind().status());
        bytes.push(u8::try_from(sentence.len()).expect("shortened"));
        bytes.extend_from_slice(sentence.as_bytes());
        bytes
    }

    /// The error that a node sent, if it did.
    pub(super) fn parse(bytes: &[u8]) -> Option<Error> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (status, rest) = rest.split_first()?;
        let (length, rest) = rest.split_first()?;
        let sentence = rest.get(..usize::from(*length))?;
        let kind = Kind::from_status(*status).unwrap_or(Kind::Io);
        Some(kind.error(String::from_utf8_lossy(sentence).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greetings_are_read_as_they_are_written() {
        let hello = Hello::new(256);
        let mut padded = hello.encode().to_vec();
        padded.resize(56, 0);
        assert_eq!(Hello::parse(&padded).expect("a greeting"), hello);
        let long = Hello { short_replies: false, ..hello };
        assert_eq!(Hello::parse(&long.encode()).expect("a greeting"), long);
        let mut padded = Welcome::new().encode().to_vec();
        padded.resize(196, 0);
        assert_eq!(Welcome::parse(&padded).expect("an answer"), Welcome::new());
        let long = "ü".repeat(100);
        let refusal = Refusal::encode(&Kind::Busy.error(long.clone()));
        assert!(refusal.len() <= 148);
        let error = Refusal::parse(&refusal).expect("a refusal");
        assert!(error.kind() == Kind::Busy && long.starts_with(&error.to_string()));
    }

    #[test]
    fn other_versions_and_strangers_are_told_apart() {
        let kind = |hello: Hello| Hello::parse(&hello.encode()).expect_err("refused").kind();
        assert_eq!(kind(Hello { versions: (2, 9), ..Hello::new(9) }), Kind::Unsupported);
        assert_eq!(kind(Hello { versions: (2, 1), ..Hello::new(9) }), Kind::Unsupported);
        assert_eq!(kind(Hello { versions: (0, 9), ..Hello::new(1) }), Kind::Invalid);
        assert_eq!(Hello::parse(&[0; 56]).expect_err("refused").kind(), Kind::Corrupt);
        assert_eq!(Hello::parse(&MAGIC).expect_err("refused").kind(), Kind::Corrupt);
        assert_eq!(Welcome::parse(b"").expect_err("refused").kind(), Kind::Corrupt);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>, cut in 0usize..40) {
            let _ = (Hello::parse(&bytes), Welcome::parse(&bytes), Refusal::parse(&bytes));
            let ours = Refusal::encode(&Kind::Busy.error("later"));
            let _ = Refusal::parse(&ours[..cut.min(ours.len())]);
        }
    }
}
