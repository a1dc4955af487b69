use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::{Kind, Result};

/// A file, wherever its bytes are: a 128-bit hash of its silo's name and its key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u128);

impl FileId {
    /// The id of `key` in `silo`: the first 16 bytes, little-endian, of SHA-256 over the silo's
    /// name, a zero byte and the key.
    #[must_use]
    pub fn of(silo: &str, key: &str) -> Self {
        let digest = Sha256::new()
            .chain_update(silo.as_bytes())
            .chain_update([0])
            .chain_update(key.as_bytes())
            .finalize();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A file's name: `silo/key`. The silo's name holds no slash; the key may.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileName {
    silo: String,
    key: String,
}

impl FileName {
    /// The longest silo name, in bytes.
    pub const MAX_SILO_BYTES: usize = 64;
    /// The longest key, in bytes.
    pub const MAX_KEY_BYTES: usize = 1024;

    /// A name from its two parts.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if a part is empty, too long, holds a control character, or the silo's
    /// name is not made of letters, digits, `-`, `_` and `.`.
    pub fn new(silo: impl Into<String>, key: impl Into<String>) -> Result<Self> {
        let (silo, key) = (silo.into(), key.into());
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if silo.is_empty() || silo.len() > Self::MAX_SILO_BYTES || !silo.chars().all(plain) {
            return Err(Kind::Invalid
                .error(format!("silo name {silo:?} must be 1 to 64 of A-Z a-z 0-9 - _ and .")));
        }
        if key.is_empty() || key.len() > Self::MAX_KEY_BYTES || key.chars().any(char::is_control) {
            return Err(Kind::Invalid.error(format!(
                "key {key:?} must be 1 to {} bytes without control characters",
                Self::MAX_KEY_BYTES
            )));
        }
        Ok(Self { silo, key })
    }

    /// The silo's name.
    #[must_use]
    pub fn silo(&self) -> &str {
        &self.silo
    }

    /// The key within the silo.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The id of the file of this name.
    #[must_use]
    pub fn id(&self) -> FileId {
        FileId::of(&self.silo, &self.key)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.silo, self.key)
    }
}

impl FromStr for FileName {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (silo, key) = text.split_once('/').ok_or_else(|| {
            Kind::Invalid.error(format!("{text:?} is not a file name: write silo/key"))
        })?;
        Self::new(silo, key)
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

counter! {
    /// One committed, never changing state of a file. Counts from 1 within a file.
    Generation(u64)
}
counter! {
    /// One try at filling or writing a generation. Never used twice on a tier, so that what an
    /// uncommitted try left behind is never taken for data.
    Attempt(u64)
}
counter! {
    /// Which controller, or which use of a slab, something belongs to: lower ones are refused.
    Epoch(u64)
}
counter! {
    /// The place of an extent within its file: byte offset divided by the file's extent size.
    ExtentIndex(u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_id_is_pinned() {
        // Computed with: printf 'data\0a/b' | sha256sum | cut -c1-32, bytes reversed.
        let digest = Sha256::digest(b"data\0a/b");
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        first.reverse();
        let text: String = first.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(FileId::of("data", "a/b").to_string(), text);
        assert_ne!(FileId::of("data", "a/b"), FileId::of("data/a", "b"));
    }

    #[test]
    fn names_parse_at_the_first_slash() {
        let name: FileName = "data/a/b.bin".parse().expect("a good name");
        assert_eq!((name.silo(), name.key()), ("data", "a/b.bin"));
        assert_eq!(name.to_string(), "data/a/b.bin");
        for bad in ["", "data", "/x", "data/", "da ta/x", "d/\n"] {
            let error = bad.parse::<FileName>().expect_err(bad);
            assert_eq!(error.kind(), Kind::Invalid, "{bad:?}");
        }
    }
}
