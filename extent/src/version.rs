use std::fmt;

use crate::{Kind, Result};

/// Which state of a silo's object some bytes belong to, in the silo's own terms: an entity tag, a
/// version id, or size, times and inode of a file. Opaque: only equality means anything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SourceVersion(String);

impl SourceVersion {
    /// The longest, in bytes.
    pub const MAX_BYTES: usize = 256;

    /// A version from its text.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if it is longer than [`SourceVersion::MAX_BYTES`].
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        if text.len() > Self::MAX_BYTES {
            return Err(Kind::Unsupported.error(format!(
                "a source version of {} bytes, and the most is {}",
                text.len(),
                Self::MAX_BYTES
            )));
        }
        Ok(Self(text))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
