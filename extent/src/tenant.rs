use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, Kind, Result};

/// On whose behalf a client is connected. What belongs to one tenant's sessions is of no use to
/// another's. Clones are cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TenantName(Option<Arc<str>>);

impl TenantName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 64;
    /// The tenant of whoever names none.
    pub const DEFAULT: Self = Self(None);

    /// The name; empty for [`TenantName::DEFAULT`].
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }
}

impl FromStr for TenantName {
    type Err = Error;

    /// # Errors
    /// [`Kind::Invalid`] if it is too long or holds anything but letters, digits, `-`, `_` and `.`.
    fn from_str(text: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.len() > Self::MAX_BYTES || !text.chars().all(plain) {
            return Err(Kind::Invalid.error(format!(
                "tenant {text:?} must be at most {} of A-Z a-z 0-9 - _ and .; leave it empty for the \
                 default tenant",
                Self::MAX_BYTES
            )));
        }
        Ok(Self((!text.is_empty()).then(|| text.into())))
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("(default)"))
    }
}

impl fmt::Debug for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for name in ["a", "team-7.train_2", &"x".repeat(64)] {
            let tenant: TenantName = name.parse().expect(name);
            assert_eq!((tenant.as_str(), tenant.to_string().as_str()), (name, name));
        }
        let default: TenantName = "".parse().expect("the default one");
        assert_eq!((default.as_str(), &default), ("", &TenantName::DEFAULT));
        for bad in ["a b", "a/b", "\n", "ä", "(default)", &"x".repeat(65)] {
            assert_eq!(bad.parse::<TenantName>().expect_err(bad).kind(), Kind::Invalid);
        }
    }
}
