//! What lies between `object_store` and its HTTP client: errors keep their status, and the request
//! that completes a multipart upload gets a condition, for which the library has no option.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use extent::Kind;
use futures::StreamExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};
use object_store::{ClientConfigKey, ClientOptions, HeaderValue};
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, ring};

/// The most of an error's body that is looked at.
const EXPLANATION_BYTES: usize = 4096;

/// What must hold for an upload to become an object, in the words of RFC 9110 section 13.1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PublishIf {
    /// `If-None-Match: *`
    Absent,
    /// `If-Match`, with the entity tag in its quotes.
    Match(String),
}

/// Conditions of multipart uploads, by upload id.
#[derive(Clone, Default, Debug)]
pub(super) struct Conditions(Arc<Mutex<HashMap<String, PublishIf>>>);

impl Conditions {
    pub(super) fn insert(&self, upload: &str, condition: PublishIf) {
        self.0.lock().insert(upload.to_owned(), condition);
    }

    pub(super) fn remove(&self, upload: &str) {
        self.0.lock().remove(upload);
    }

    /// The condition of a request, if it is the one that completes an upload: S3's
    /// CompleteMultipartUpload, or Azure's Put Block List, which carries its own.
    fn of(&self, request: &HttpRequest) -> Option<PublishIf> {
        let query = request.uri().query()?;
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        if request.method().as_str() == "POST" {
            return self.0.lock().get(&decode(parameter("uploadId")?)).cloned();
        }
        (parameter("comp")? == "blocklist")
            .then(|| request.extensions().get::<PublishIf>().cloned())?
    }
}

/// Undoes the encoding of a form's values.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A status that is no success, and the beginning of what came with it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) explanation: String,
}

impl Refused {
    /// What the status means to us.
    pub(super) fn kind(&self) -> Kind {
        let says = |code: &str| self.explanation.contains(code);
        match self.status {
            404 | 410 => Kind::NotFound,
            // S3 answers so to a conditional request that ran into another one under way.
            409 if says("ConditionalRequestConflict") || says("OperationAborted") => Kind::Busy,
            304 | 409 | 412 => Kind::Stale,
            401 | 403 if says("RequestTimeTooSkewed") => Kind::Invalid,
            401 | 403 | 407 => Kind::Denied,
            400 if says("RequestTimeout") => Kind::Busy,
            400 if says("ExpiredToken") || says("InvalidToken") => Kind::Denied,
            408 | 425 | 429 | 503 => Kind::Busy,
            405 | 501 => Kind::Unsupported,
            507 => Kind::NoSpace,
            500..=599 => Kind::Io,
            _ => Kind::Invalid,
        }
    }

    /// What to do about it.
    pub(super) fn advice(&self) -> &'static str {
        match self.status {
            300..=399 => "the silo points elsewhere: check region and endpoint",
            401 | 403 => "the silo refuses: check the credentials and what they may do",
            404 | 410 => "there is no such object, or no such bucket",
            408 | 425 | 429 | 503 => "the silo is overloaded: lower its concurrency",
            409 | 412 => "the object is at another version",
            416 => "the range is past the end of the object",
            500..=599 => "the silo failed",
            _ => "the silo does not take such a request",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: String = self.explanation.chars().take(300).collect();
        write!(f, "status {} {}", self.status, shown.trim())
    }
}

impl StdError for Refused {}

/// Makes HTTP clients that behave as this module says.
#[derive(Clone, Default, Debug)]
pub(super) struct Connector {
    pub(super) conditions: Conditions,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        provide_cryptography();
        let connector = ReqwestConnector::default();
        let client = connector.connect(options).or_else(|error| {
            // A machine without any root certificate can still speak to a server without TLS; to
            // one with TLS it then says whose certificate it does not know.
            let plain = options.get_config_value(&ClientConfigKey::AllowHttp);
            if plain.as_deref() != Some("true") {
                return Err(error);
            }
            connector.connect(&options.clone().with_no_system_certificates(true))
        })?;
        Ok(HttpClient::new(Service { client, conditions: self.conditions.clone() }))
    }
}

/// TLS takes its cryptography from what the process has chosen, and the HTTP client panics if that
/// is nothing. Another choice than ours is as good.
fn provide_cryptography() {
    if CryptoProvider::get_default().is_none() {
        // Fails only if another thread was faster.
        let _ = ring::default_provider().install_default();
    }
}

#[derive(Debug)]
struct Service {
    client: HttpClient,
    conditions: Conditions,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // These headers are not part of a signature of S3's, so it still holds.
        match self.conditions.of(&request) {
            Some(PublishIf::Absent) => {
                request.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
            }
            Some(PublishIf::Match(etag)) => {
                let etag = HeaderValue::from_str(&etag)
                    .map_err(|e| HttpError::new(HttpErrorKind::Decode, e))?;
                request.headers_mut().insert("if-match", etag);
            }
            None => {}
        }
        let response = self.client.execute(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let explanation = beginning(response.into_body()).await;
        let refused = Refused { status, explanation };
        // The library repeats interrupted requests, where it was told to.
        let repeat = refused.kind().is_transient();
        let kind = if repeat { HttpErrorKind::Interrupted } else { HttpErrorKind::Decode };
        Err(HttpError::new(kind, refused))
    }
}

/// The beginning of a body. One that breaks off is as good as it gets.
async fn beginning(body: HttpResponseBody) -> String {
    let mut bytes = Vec::new();
    let mut chunks = body.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        bytes.extend_from_slice(&chunk[..chunk.len().min(EXPLANATION_BYTES - bytes.len())]);
        if bytes.len() == EXPLANATION_BYTES {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_the_kinds_that_decide_what_happens_next() {
        let kind = |status, text: &str| Refused { status, explanation: text.to_owned() }.kind();
        for (status, expected) in [
            (304, Kind::Stale),
            (400, Kind::Invalid),
            (401, Kind::Denied),
            (403, Kind::Denied),
            (404, Kind::NotFound),
            (409, Kind::Stale),
            (412, Kind::Stale),
            (416, Kind::Invalid),
            (429, Kind::Busy),
            (500, Kind::Io),
            (503, Kind::Busy),
            (507, Kind::NoSpace),
        ] {
            assert_eq!(kind(status, ""), expected, "{status}");
        }
        assert_eq!(kind(409, "<Code>ConditionalRequestConflict</Code>"), Kind::Busy);
        assert_eq!(kind(400, "<Code>RequestTimeout</Code>"), Kind::Busy);
    }

    #[test]
    fn forms_are_decoded() {
        assert_eq!(decode("a%2Fb+c%"), "a/b c%");
        assert_eq!(decode("%zz%41"), "%zzA");
    }
}
