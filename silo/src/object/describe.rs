//! Objects, their versions and our tags, in the store's words and in ours.

use std::time::SystemTime;

use extent::{Attempt, FileId, Kind, Result, SourceVersion};
use object_store::{Attribute, Attributes};

use crate::{ObjectMeta, UploadTags};

/// Metadata names that all three clouds accept: letters only.
const FILE: &str = "forebayfile";
const ATTEMPT: &str = "forebayattempt";
const OVER: &str = "forebayover";

/// An object in our words.
pub(super) fn describe(key: &str, meta: &object_store::ObjectMeta) -> Result<ObjectMeta> {
    let modified = SystemTime::from(meta.last_modified);
    Ok(ObjectMeta {
        key: key.to_owned(),
        length: meta.size,
        version: version_of(key, meta)?,
        modified: (modified > SystemTime::UNIX_EPOCH).then_some(modified),
        tags: None,
    })
}

/// The entity tag in quotes, which not every store's listing puts around it; without one, time
/// and size.
pub(super) fn version_of(key: &str, meta: &object_store::ObjectMeta) -> Result<SourceVersion> {
    if let Some(tag) = &meta.e_tag {
        return tag_version(tag);
    }
    let modified = SystemTime::from(meta.last_modified).duration_since(SystemTime::UNIX_EPOCH);
    match modified {
        Ok(since) if !since.is_zero() => SourceVersion::new(format!(
            "{}.{:09}-{}",
            since.as_secs(),
            since.subsec_nanos(),
            meta.size
        )),
        _ => Err(Kind::Unsupported.error(format!(
            "{key}: the server gives neither an entity tag nor a time of modification, so a change \
             could not be noticed"
        ))),
    }
}

/// The version that an entity tag stands for.
pub(super) fn tag_version(tag: &str) -> Result<SourceVersion> {
    let quoted = tag.starts_with('"') || tag.starts_with("W/");
    SourceVersion::new(if quoted { tag.to_owned() } else { format!("\"{tag}\"") })
}

/// Whether a version is an entity tag, which changes with every change.
pub(super) fn is_tag(version: &SourceVersion) -> bool {
    version.as_str().ends_with('"')
}

/// Whether a server may compare it: a weak tag never matches.
pub(super) fn is_strong(version: &SourceVersion) -> bool {
    version.as_str().starts_with('"')
}

/// The tags among an object's attributes.
pub(super) fn tags(attributes: &Attributes) -> Option<UploadTags> {
    let value = |name: &'static str| attributes.get(&Attribute::Metadata(name.into()));
    let id = u128::from_str_radix(value(FILE)?.as_ref(), 16).ok()?;
    let attempt = value(ATTEMPT)?.parse().ok()?;
    let over = u64::from_str_radix(value(OVER)?.as_ref(), 16).ok()?;
    Some(UploadTags { file: FileId(id), attempt: Attempt(attempt), over })
}

/// Tags as attributes.
pub(super) fn attributes(tags: UploadTags) -> Attributes {
    Attributes::from_iter([
        (Attribute::Metadata(FILE.into()), tags.file.to_string()),
        (Attribute::Metadata(ATTEMPT.into()), tags.attempt.to_string()),
        (Attribute::Metadata(OVER.into()), format!("{:016x}", tags.over)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_a_listing_and_of_an_answer_are_the_same_version() {
        let version = |tag: &str| tag_version(tag).expect("short");
        // Azure's listings leave out the quotes.
        assert_eq!(version("0x8D4"), version("\"0x8D4\""));
        assert!(is_strong(&version("0x8D4")) && is_tag(&version("0x8D4")));
        assert!(!is_strong(&version("W/\"1\"")) && is_tag(&version("W/\"1\"")));
        assert!(!is_tag(&SourceVersion::new("12.000-5").expect("short")));
        assert_eq!(tag_version(&"x".repeat(300)).expect_err("long").kind(), Kind::Unsupported);
    }

    #[test]
    fn upload_tags_survive_as_metadata() {
        let ours = UploadTags {
            file: FileId(u128::MAX - 1),
            attempt: Attempt(u64::MAX),
            over: u64::MAX / 3,
        };
        assert_eq!(tags(&attributes(ours)), Some(ours));
        assert_eq!(tags(&Attributes::new()), None);
        let strange = Attributes::from_iter([(Attribute::Metadata(FILE.into()), "no number")]);
        assert_eq!(tags(&strange), None);
        for name in [FILE, ATTEMPT] {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase()), "{name} on every cloud");
        }
    }
}
