//! Keys and the names of temporary files.

use std::sync::LazyLock;

use extent::{FileName, Kind, Result};

use crate::UploadTags;
use crate::limits::random;

const PREFIX: &str = ".forebay-";
const SUFFIX: &str = ".part";

/// In every temporary name that this process makes.
static PROCESS: LazyLock<String> = LazyLock::new(|| format!("{:016x}", random()));

/// Refuses a key that is no plain relative path.
pub(super) fn check(key: &str) -> Result<()> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !key.split('/').all(plain) || key.contains('\0') || key.split('/').any(is_part) {
        return Err(Kind::Invalid.error(format!(
            "key {key:?} is no plain relative path: no empty parts, no . or .., no leading slash"
        )));
    }
    Ok(())
}

/// Whether a key that a listing came across can be that of a file.
pub(super) fn usable(key: &str) -> bool {
    key.len() <= FileName::MAX_KEY_BYTES && !key.chars().any(char::is_control)
}

/// A fresh hidden name for an upload on its way. It says whose, so that a leftover can be told
/// from somebody's file that was exchanged for ours, and from what this process is writing.
pub(super) fn part(tags: UploadTags) -> String {
    format!("{}{}{:016x}{SUFFIX}", part_stem(tags), *PROCESS, random())
}

/// Whether this process made a temporary name.
pub(super) fn is_of_this_process(name: &str, tags: UploadTags) -> bool {
    let rest = name.strip_prefix(&part_stem(tags));
    rest.is_some_and(|rest| rest.starts_with(PROCESS.as_str()))
}

/// What every temporary name of an upload begins with.
pub(super) fn part_stem(tags: UploadTags) -> String {
    format!("{PREFIX}{}-{}-", tags.file, tags.attempt)
}

/// Whether a name is that of an upload on its way.
pub(super) fn is_part(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// The parent directory's path, empty for the root, and the last part.
pub(super) fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}

#[cfg(test)]
mod tests {
    use extent::{Attempt, FileId};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_that_lead_anywhere_else_are_refused() {
        for key in ["a", "a/b.c", "..a/b..", "...", "a b/ü", ".hidden"] {
            check(key).expect(key);
        }
        for key in ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\0b"] {
            assert_eq!(check(key).expect_err(key).kind(), Kind::Invalid, "{key:?}");
        }
        let part = part(UploadTags { file: FileId(7), attempt: Attempt(8), over: 9 });
        assert!(is_part(&part) && part.len() < 255);
        assert_eq!(check(&format!("a/{part}")).expect_err("hidden").kind(), Kind::Invalid);
    }

    proptest! {
        #[test]
        fn a_checked_key_stays_below_the_root(key in "[a./\\x00]{0,12}") {
            if check(&key).is_ok() {
                let path = std::path::Path::new("/root").join(&key);
                prop_assert!(path.starts_with("/root/"));
                prop_assert!(!path.components().any(|c| c == std::path::Component::ParentDir));
            }
        }
    }
}
