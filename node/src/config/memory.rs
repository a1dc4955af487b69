//! How much memory checksums may take.

use extent::{Kind, Result};
use serde::Deserialize;

use crate::system;
use crate::units::{self, Bytes};

/// The checksums of 256 extents of 4 MiB, as many as one session may read at once: with less they
/// would drive each other out.
const LEAST_BYTES: u64 = 1 << 20;
/// Of the machine's memory, unless told: they are worth more there than anything else that a node
/// keeps, and three quarters are left to buffers, the index and whoever else runs here.
const DEFAULT_SHARE: u64 = 4;

/// A size, or "all".
#[derive(Clone, Deserialize, Debug)]
#[serde(untagged)]
pub(crate) enum Amount {
    Size(Bytes),
    Word(String),
}

/// Bytes for checksums; `u64::MAX` for all.
///
/// # Errors
/// [`Kind::Invalid`] if it is neither "all" nor a size that makes sense.
pub(super) fn checksum_memory(asked: Option<&Amount>) -> Result<u64> {
    let bytes = match asked {
        Some(Amount::Size(bytes)) => bytes.0,
        Some(Amount::Word(word)) if word == "all" => u64::MAX,
        Some(Amount::Word(word)) => {
            return Err(Kind::Invalid.error(format!(
                "[tier] checksum_memory: {word:?} is neither a size, such as \"8GiB\", nor \"all\""
            )));
        }
        None => default_bytes(system::memory_bytes()),
    };
    if bytes < LEAST_BYTES {
        return Err(Kind::Invalid.error(format!(
            "[tier] checksum_memory: {} is too little to read with; give it {} or more, or \"all\"",
            units::bytes(bytes),
            units::bytes(LEAST_BYTES)
        )));
    }
    Ok(bytes)
}

fn default_bytes(memory: Option<u64>) -> u64 {
    memory.map_or(1 << 30, |bytes| bytes / DEFAULT_SHARE).max(LEAST_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_all() {
        let word = |word: &str| Amount::Word(word.to_owned());
        let size = |bytes| Amount::Size(Bytes(bytes));
        assert_eq!(checksum_memory(Some(&word("all"))).expect("a word"), u64::MAX);
        assert_eq!(checksum_memory(Some(&size(2 << 30))).expect("a size"), 2 << 30);
        assert!(checksum_memory(None).expect("a default") >= LEAST_BYTES);
        for (amount, why) in [(size(1 << 10), "or more"), (word("much"), "neither a size")] {
            let error = checksum_memory(Some(&amount)).expect_err("refused");
            assert_eq!(error.kind(), Kind::Invalid);
            let error = error.to_string();
            assert!(error.contains("checksum_memory") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_quarter_of_the_machine_but_never_too_little() {
        assert_eq!(default_bytes(Some(64 << 30)), 16 << 30);
        assert_eq!(default_bytes(Some(1 << 20)), LEAST_BYTES);
        assert_eq!(default_bytes(None), 1 << 30);
    }
}
