use std::fmt;
use std::str::FromStr;

use crate::{Error, Kind, Result};

/// What a client shows to be let in: 16 bytes that the control plane drew at random and handed out.
///
/// It is a secret for as long as it is good for a connection. So it is not shown by `Debug`, has no
/// `Display`, and cannot be compared: whoever checks one looks it up by a hash of it.
#[derive(Clone)]
pub struct Proof([u8; Self::BYTES]);

impl Proof {
    /// Bytes of a proof.
    pub const BYTES: usize = 16;

    /// A proof of these bytes. Zeroes are none: that is how a client without one fills the place of
    /// one.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Option<Self> {
        (bytes != [0; Self::BYTES]).then_some(Self(bytes))
    }

    /// The secret, to be sent to the node and nowhere else.
    #[must_use]
    pub const fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The secret as 32 digits, as [`Proof::from_str`] reads it.
    #[must_use]
    pub fn expose_hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for Proof {
    type Err = Error;

    /// # Errors
    /// [`Kind::Invalid`] for anything else than 32 hexadecimal digits, not all of them zero. What it
    /// was is not told: it may be a secret with one digit too many.
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.len() == 2 * Self::BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits);
        number.and_then(|number| Self::from_bytes(number.to_be_bytes())).ok_or_else(|| {
            Kind::Invalid
                .error("a proof is 32 hexadecimal digits, as `forebay session grant` prints them")
        })
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_survive_and_nothing_else_is_read() {
        let text = "00112233445566778899aabbccddeeff";
        let proof: Proof = text.parse().expect("a proof");
        assert_eq!(proof.expose()[..3], [0, 0x11, 0x22]);
        assert_eq!(proof.expose_hex(), text);
        let zeroes = "0".repeat(32);
        for bad in ["", "0", &text[1..], "+0112233445566778899aabbccddeeff", &zeroes, "é"] {
            let error = bad.parse::<Proof>().expect_err(bad);
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(bad.is_empty() || bad == "0" || !error.to_string().contains(bad));
        }
        assert!(format!("{text}0").parse::<Proof>().is_err());
    }

    #[test]
    fn it_is_not_shown() {
        let proof = Proof::from_bytes([7; 16]).expect("not zero");
        assert_eq!(format!("{proof:?} {:?}", Some(&proof)), "Proof(…) Some(Proof(…))");
        assert!(Proof::from_bytes([0; 16]).is_none());
    }
}
