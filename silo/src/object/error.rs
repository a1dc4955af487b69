//! Errors of the library in our words.

use std::error::Error as StdError;

use extent::{Error, Kind};
use object_store::Error as StoreError;
use object_store::client::HttpError;

use super::service::Refused;

/// What a failed request on `key` means.
pub(super) fn failed(key: &str, error: &StoreError) -> Error {
    if let Some(refused) = find::<Refused>(error) {
        let sentence = format!("{key}: {}", refused.advice());
        return refused.kind().error(sentence).caused_by(refused.to_string());
    }
    let (kind, advice) = match error {
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
    kind.error(format!("{key}: {advice}")).caused_by(with_causes(error))
}

/// An error and what is behind it, as text: the library's own errors repeat their causes, those of
/// HTTP and TLS do not.
fn with_causes(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Whether a read failed because its range makes no sense: the server says so, or its answer does
/// not fit the range.
pub(super) fn out_of_range(error: &StoreError) -> bool {
    match find::<Refused>(error) {
        Some(refused) => refused.status == 416,
        None => matches!(error, StoreError::Generic { .. }) && find::<HttpError>(error).is_none(),
    }
}

/// The first error of a type among an error and its causes.
fn find<E: StdError + 'static>(error: &StoreError) -> Option<&E> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
