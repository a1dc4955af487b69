//! Errors of the library in our words.

use std::error::Error as StdError;

use extent::{Error, Kind};
use object_store::Error as StoreError;

use super::service::Refused;

/// What a failed request on `key` means.
pub(super) fn failed(key: &str, error: StoreError) -> Error {
    if let Some(refused) = refused(&error) {
        let sentence = format!("{key}: {}", refused.advice());
        return refused.kind().error(sentence).caused_by(error);
    }
    let (kind, advice) = match &error {
        StoreError::NotFound { .. } => (Kind::NotFound, "there is no such object"),
        StoreError::AlreadyExists { .. }
        | StoreError::Precondition { .. }
        | StoreError::NotModified { .. } => (Kind::Stale, "the object is at another version"),
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            (Kind::Denied, "check the credentials and what they may do")
        }
        StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => {
            (Kind::Unsupported, "this silo cannot do that")
        }
        StoreError::InvalidPath { .. } => {
            (Kind::Unsupported, "a key has empty, . or .. parts, which cannot be addressed")
        }
        StoreError::UnknownConfigurationKey { .. } => (Kind::Invalid, "check the configuration"),
        _ => (Kind::Io, "the request failed"),
    };
    kind.error(format!("{key}: {advice}")).caused_by(error)
}

/// The status behind an error.
pub(super) fn refused(error: &StoreError) -> Option<&Refused> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Some(refused);
        }
        cause = error.source();
    }
    None
}
