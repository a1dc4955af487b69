//! Error kinds to gRPC codes and back.

use std::time::Duration;

use extent::{Error, Kind};
use prost::Message;
use prost_types::Any;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// The trailer with the kind's name.
const KIND: &str = "forebay-kind";
/// The trailer that gRPC's retry policies obey: when to try again, in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// The longest sentence of a status.
const MOST_BYTES: usize = 1024;
/// How long whoever finds the node busy should wait.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The gRPC code of a kind.
///
/// `Io` is UNAVAILABLE and not INTERNAL, as the same request may succeed later: clients retry the
/// former and give up on the latter.
const fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::NotResident | Kind::Fenced => Code::FailedPrecondition,
        Kind::Stale => Code::Aborted,
        Kind::Busy | Kind::NoSpace => Code::ResourceExhausted,
        Kind::Corrupt => Code::DataLoss,
        Kind::Io | Kind::Disconnected => Code::Unavailable,
        Kind::Denied => Code::PermissionDenied,
        Kind::Invalid => Code::InvalidArgument,
        Kind::Unsupported => Code::Unimplemented,
    }
}

/// The kind that a code stands for when its sender named none: a proxy, or gRPC itself.
const fn kind_of(code: Code) -> Kind {
    match code {
        Code::NotFound => Kind::NotFound,
        Code::FailedPrecondition => Kind::NotResident,
        Code::Aborted | Code::AlreadyExists => Kind::Stale,
        Code::ResourceExhausted => Kind::Busy,
        Code::DataLoss => Kind::Corrupt,
        Code::Ok | Code::Unknown | Code::Internal => Kind::Io,
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => Kind::Disconnected,
        Code::PermissionDenied | Code::Unauthenticated => Kind::Denied,
        Code::InvalidArgument | Code::OutOfRange => Kind::Invalid,
        Code::Unimplemented => Kind::Unsupported,
    }
}

/// The kind of this name.
pub(crate) fn kind_named(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.name() == name)
}

/// The gRPC status of an error: code, sentence, the kind's name in the trailer `forebay-kind`, and
/// for [`Kind::Busy`] when to try again, in `grpc-retry-pushback-ms` and as a
/// `google.rpc.RetryInfo`.
#[must_use]
pub fn status_from_error(error: &Error) -> Status {
    let kind = error.kind();
    let mut trailers = MetadataMap::new();
    trailers.insert(KIND, MetadataValue::from_static(kind.name()));
    let message = short(error.to_string());
    if kind != Kind::Busy {
        return Status::with_metadata(code(kind), message, trailers);
    }
    let delay = MetadataValue::<Ascii>::from(crate::clock::millis(RETRY_DELAY));
    trailers.insert(PUSHBACK, delay);
    let details = retry_info(code(kind), &message).into();
    Status::with_details_and_metadata(code(kind), message, details, trailers)
}

/// A sentence that fits into a trailer, of which peers take a few kilobytes: what is longer loses its middle.
fn short(sentence: String) -> String {
    if sentence.len() <= MOST_BYTES {
        return sentence;
    }
    let begin = sentence.floor_char_boundary(MOST_BYTES / 2);
    let end = sentence.ceil_char_boundary(sentence.len() - MOST_BYTES / 2);
    format!("{} … {}", &sentence[..begin], &sentence[end..])
}

/// The error that a server's status tells of: of the kind it names, or else of the kind that fits
/// its code.
#[must_use]
pub fn error_from_status(status: &Status) -> Error {
    let named = status.metadata().get(KIND).and_then(|value| value.to_str().ok());
    let sentence = status.message();
    // No server said this: it is what became of the connection.
    if named.is_none()
        && let Some(cause) = std::error::Error::source(status)
    {
        return Kind::Disconnected.error(format!(
            "the connection to the control address was lost, or something else is there ({sentence}: {cause}): what was \
             begun may go on"
        ));
    }
    let kind = named.and_then(kind_named).unwrap_or_else(|| kind_of(status.code()));
    if sentence.is_empty() {
        return kind.error(status.code().description());
    }
    kind.error(sentence)
}

/// `google.rpc.Status`, which travels in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

fn retry_info(code: Code, message: &str) -> Vec<u8> {
    let retry_delay = prost_types::Duration::try_from(RETRY_DELAY).ok();
    let info = Any {
        type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
        value: RetryInfo { retry_delay }.encode_to_vec(),
    };
    RpcStatus { code: code.into(), message: message.into(), details: vec![info] }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_its_status() {
        for kind in Kind::ALL {
            let status = status_from_error(&kind.error("the sentence, with ümlauts"));
            assert_eq!(status.code(), code(kind));
            let back = error_from_status(&status);
            assert_eq!(back.kind(), kind);
            assert_eq!(back.context(), "the sentence, with ümlauts");
        }
    }

    #[test]
    fn long_sentences_keep_their_ends() {
        let long = format!("begin {} end", "ü".repeat(100_000));
        let back = error_from_status(&status_from_error(&Kind::Invalid.error(long)));
        assert_eq!(back.kind(), Kind::Invalid);
        assert!(back.context().len() < MOST_BYTES + 10);
        assert!(back.context().starts_with("begin ü") && back.context().ends_with("ü end"));
    }

    #[test]
    fn a_connection_that_breaks_is_no_answer() {
        let broken = Status::from_error(Box::new(std::io::Error::other("reset by peer")));
        let error = error_from_status(&broken);
        assert_eq!(error.kind(), Kind::Disconnected);
        assert!(error.context().contains("reset by peer"), "{error}");
    }

    #[test]
    fn only_busy_says_when_to_try_again() {
        for kind in Kind::ALL {
            let status = status_from_error(&kind.error("x"));
            assert_eq!(status.metadata().contains_key(PUSHBACK), kind == Kind::Busy);
            assert_eq!(status.details().is_empty(), kind != Kind::Busy);
        }
        let status = status_from_error(&Kind::Busy.error("x"));
        let details = RpcStatus::decode(status.details()).expect("a google.rpc.Status");
        assert_eq!(details.code, i32::from(Code::ResourceExhausted));
        let info = RetryInfo::decode(&*details.details[0].value).expect("a RetryInfo");
        assert_eq!(info.retry_delay.map(|delay| delay.nanos), Some(500_000_000));
    }

    #[test]
    fn codes_of_others_have_a_kind() {
        let kind = |code| error_from_status(&Status::new(code, "x")).kind();
        assert_eq!(kind(Code::Unavailable), Kind::Disconnected);
        assert_eq!(kind(Code::DeadlineExceeded), Kind::Disconnected);
        assert_eq!(kind(Code::Unauthenticated), Kind::Denied);
        assert_eq!(kind(Code::Internal), Kind::Io);
        let nameless = Status::new(Code::NotFound, "");
        assert!(!error_from_status(&nameless).context().is_empty());
    }
}
