//! What both ends of a stream say before the first capsule. `docs/protocol.md` draws it.

use crate::{Error, Kind, Proof};

/// The first eight bytes of a stream, in both directions, before the first capsule.
pub const STREAM_MAGIC: [u8; 8] = *b"FOREBAY1";
/// What a client with a proof says before that; the proof follows.
pub const PROOF_MAGIC: [u8; 8] = *b"FOREBAYP";
/// What a node says instead that turns a client away; a [`Refusal`] follows, and then nothing.
pub const REFUSAL_MAGIC: [u8; 8] = *b"FOREBAY0";

/// What a client says first on a stream.
pub struct StreamHello;

impl StreamHello {
    /// Bytes of the longest.
    pub const MAX_BYTES: usize = PROOF_MAGIC.len() + Proof::BYTES + STREAM_MAGIC.len();

    /// All of it: with a proof if there is one, then the magic.
    #[must_use]
    pub fn encode(proof: Option<&Proof>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::MAX_BYTES);
        if let Some(proof) = proof {
            bytes.extend_from_slice(&PROOF_MAGIC);
            bytes.extend_from_slice(proof.expose());
        }
        bytes.extend_from_slice(&STREAM_MAGIC);
        bytes
    }

    /// Reads the beginning of a stream: the proof, and how many bytes were the greeting. `None` if
    /// there is more to come.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] at the first byte that no client says.
    pub fn parse(said: &[u8]) -> Result<Option<(Option<Proof>, usize)>, Error> {
        let magic = |said: &[u8], word: &[u8; 8]| word.starts_with(&said[..said.len().min(8)]);
        if magic(said, &STREAM_MAGIC) {
            return Ok((said.len() >= STREAM_MAGIC.len()).then_some((None, STREAM_MAGIC.len())));
        }
        let stranger = || {
            Kind::Corrupt
                .error("the peer does not begin as a Forebay client does: it is something else")
        };
        if !magic(said, &PROOF_MAGIC) {
            return Err(stranger());
        }
        let rest = said.get(PROOF_MAGIC.len()..).unwrap_or(&[]);
        let Some((proof, rest)) = rest.split_first_chunk::<{ Proof::BYTES }>() else {
            return Ok(None);
        };
        if !magic(rest, &STREAM_MAGIC) {
            return Err(stranger());
        }
        let whole = rest.len() >= STREAM_MAGIC.len();
        // Zeroes are no proof, and pass for none.
        Ok(whole.then(|| (Proof::from_bytes(*proof), Self::MAX_BYTES)))
    }
}

/// Why a client is turned away: a status and a sentence.
pub struct Refusal;

impl Refusal {
    /// The most bytes of a sentence: what a rejection of an RDMA connection has room for.
    pub const SENTENCE_BYTES: usize = 128;
    /// Bytes before the sentence: a status, and how long the sentence is.
    pub const HEADER_BYTES: usize = 2;

    /// Behind `magic`, the error's kind and its sentence, cut to fit.
    #[must_use]
    pub fn encode(magic: &[u8; 8], error: &Error) -> Vec<u8> {
        let mut sentence = error.to_string();
        while sentence.len() > Self::SENTENCE_BYTES {
            sentence.pop();
        }
        let mut bytes = magic.to_vec();
        bytes.push(error.kind().status());
        bytes.push(u8::try_from(sentence.len()).expect("shortened"));
        bytes.extend_from_slice(sentence.as_bytes());
        bytes
    }

    /// The error that a node sent behind `magic`, if it did.
    #[must_use]
    pub fn parse(magic: &[u8; 8], bytes: &[u8]) -> Option<Error> {
        let rest = bytes.strip_prefix(magic)?;
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

    fn proof(seed: u8) -> Proof {
        Proof::from_bytes([seed.max(1); 16]).expect("not zero")
    }

    #[test]
    fn greetings_are_read_as_they_are_written_however_they_arrive() {
        for proof in [None, Some(proof(7))] {
            let mut said = StreamHello::encode(proof.as_ref());
            for cut in 0..said.len() {
                assert!(StreamHello::parse(&said[..cut]).expect("so far").is_none(), "{cut}");
            }
            let length = said.len();
            said.extend_from_slice(b"and a capsule");
            let (heard, bytes) = StreamHello::parse(&said).expect("ours").expect("whole");
            assert_eq!(bytes, length);
            assert_eq!(heard.map(|p| *p.expose()), proof.map(|p| *p.expose()));
        }
    }

    #[test]
    fn every_other_byte_is_noticed_at_once() {
        for said in [StreamHello::encode(None), StreamHello::encode(Some(&proof(7)))] {
            for place in (0..said.len()).filter(|place| !(8..24).contains(place)) {
                let mut other = said[..=place].to_vec();
                other[place] ^= 0x20;
                let error = StreamHello::parse(&other).expect_err("no client");
                assert_eq!(error.kind(), Kind::Corrupt, "byte {place}");
            }
        }
        let mut zeroes = StreamHello::encode(Some(&proof(1)));
        zeroes[8..24].fill(0);
        let (heard, bytes) = StreamHello::parse(&zeroes).expect("ours").expect("whole");
        assert!(heard.is_none() && bytes == StreamHello::MAX_BYTES);
    }

    #[test]
    fn refusals_are_cut_and_told() {
        let long = "ü".repeat(100);
        let refusal = Refusal::encode(&REFUSAL_MAGIC, &Kind::Busy.error(long.clone()));
        assert!(refusal.len() <= 8 + Refusal::HEADER_BYTES + Refusal::SENTENCE_BYTES);
        let error = Refusal::parse(&REFUSAL_MAGIC, &refusal).expect("a refusal");
        assert!(error.kind() == Kind::Busy && long.starts_with(&error.to_string()));
        assert!(Refusal::parse(&STREAM_MAGIC, &refusal).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>, cut in 0usize..160, which in 0usize..3) {
            let magic = [STREAM_MAGIC, PROOF_MAGIC, REFUSAL_MAGIC][which];
            let said = [&magic[..], &bytes].concat();
            let said = &said[..cut.min(said.len())];
            if let Ok(Some((_, length))) = StreamHello::parse(said) {
                prop_assert!(length <= said.len());
            }
            let _ = (Refusal::parse(&magic, said), StreamHello::parse(&bytes));
        }
    }
}
