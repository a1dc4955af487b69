//! Making clients for the stores.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use extent::{Error, Kind, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider,
};

use super::credentials;
use super::service::{Conditions, Connector};
use crate::Limits;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How an upload in parts is made and becomes an object.
pub(super) enum Parts {
    /// Parts with numbers, and a condition on completion if the store knows any.
    Numbered { store: Arc<dyn MultipartStore>, conditions: Option<Conditions> },
    /// Azure's blocks.
    Blocks(Arc<MicrosoftAzure>),
    /// None.
    No,
}

/// A store and the parts of it that its kind has.
pub(super) struct Store {
    pub(super) kind: &'static str,
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) listing: Option<Arc<dyn PaginatedListStore>>,
    pub(super) parts: Parts,
    /// Whether a single put can carry a condition.
    pub(super) conditional_put: bool,
    /// Whether the condition of a put is a generation number rather than an entity tag.
    pub(super) by_generation: bool,
}

/// A bucket of S3 or of a server that speaks its protocol.
///
/// Credentials are looked for here, in this order: `credentials_file` and `profile`, if one is
/// set; `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (and `AWS_SESSION_TOKEN`); a web identity
/// token or container credentials, by their usual variables; `~/.aws/credentials`, or the file
/// that `AWS_SHARED_CREDENTIALS_FILE` names, with the profile of `AWS_PROFILE` or `default`; the
/// instance's metadata. `AWS_SKIP_SIGNATURE=true` is for public buckets. Of the files only keys
/// and tokens are read: no roles, no single sign-on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct S3 {
    /// The bucket.
    pub bucket: String,
    /// `https://host[:port]`; AWS if not given.
    pub endpoint: Option<String>,
    /// The region; `AWS_REGION` or `us-east-1` if not given.
    pub region: Option<String>,
    /// Whether plain HTTP may be used.
    pub allow_http: bool,
    /// Whether requests go to `bucket.host` instead of `host/bucket`.
    pub virtual_hosted: bool,
    /// Whether the server knows `If-Match` and `If-None-Match` on writes. If not, the version is
    /// looked up just before, which leaves a window.
    pub conditional_writes: bool,
    /// A file in the format of `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
    /// The section of it; `default` if not given.
    pub profile: Option<String>,
}

/// A bucket of Google Cloud Storage.
///
/// Credentials are looked for here, in this order: `credentials_file`; `GOOGLE_SERVICE_ACCOUNT`
/// (a path) or `GOOGLE_SERVICE_ACCOUNT_KEY` (the key itself); the file that
/// `GOOGLE_APPLICATION_CREDENTIALS` names; `~/.config/gcloud/application_default_credentials.json`;
/// the instance's metadata.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gcs {
    /// The bucket.
    pub bucket: String,
    /// Another server that speaks the XML API.
    pub endpoint: Option<String>,
    /// Whether plain HTTP may be used.
    pub allow_http: bool,
    /// The key file of a service account.
    pub credentials_file: Option<PathBuf>,
}

/// A container of Azure Blob Storage.
///
/// Credentials come from the usual variables that begin with `AZURE_`: an account's key
/// (`AZURE_STORAGE_ACCOUNT_KEY`), a SAS token (`AZURE_STORAGE_SAS_KEY`), a client's secret, a
/// workload identity; without any, the instance's managed identity is asked. Large uploads are
/// conditional only without a shared key, since that signs the condition too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Azure {
    /// The container.
    pub container: String,
    /// The account; `AZURE_STORAGE_ACCOUNT_NAME` if not given.
    pub account: Option<String>,
    /// Another server that speaks the protocol, with the account in its path.
    pub endpoint: Option<String>,
    /// Whether plain HTTP may be used.
    pub allow_http: bool,
}

/// Retries are ours to make, except for Azure's blocks.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Deadlines are ours too. HTTP/1, because one HTTP/2 connection carries less than many of these.
fn options(allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_http1_only()
}

fn unusable(what: &str, error: object_store::Error) -> Error {
    Kind::Invalid.error(format!("{what}: check its configuration")).caused_by(error)
}

impl S3 {
    pub(super) fn store(&self) -> Result<Store> {
        let connector = Connector::default();
        let conditions = connector.conditions.clone();
        let puts = if self.conditional_writes {
            S3ConditionalPut::ETagMatch
        } else {
            S3ConditionalPut::Disabled
        };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&self.bucket)
            .with_client_options(options(self.allow_http))
            .with_allow_http(self.allow_http)
            .with_virtual_hosted_style_request(self.virtual_hosted)
            .with_conditional_put(puts)
            .with_retry(no_retries())
            .with_http_connector(connector);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        let store = Arc::new(self.authorize(builder)?.build().map_err(|e| unusable("S3", e))?);
        Ok(Store {
            kind: "s3",
            objects: store.clone(),
            listing: Some(store.clone()),
            parts: Parts::Numbered {
                store,
                conditions: self.conditional_writes.then_some(conditions),
            },
            conditional_put: self.conditional_writes,
            by_generation: false,
        })
    }

    /// A file that is named counts most; the usual one only if nothing else is set, because the
    /// library would go on to ask the instance.
    fn authorize(&self, builder: AmazonS3Builder) -> Result<AmazonS3Builder> {
        let from_environment = [
            AmazonS3ConfigKey::AccessKeyId,
            AmazonS3ConfigKey::WebIdentityTokenFile,
            AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
            AmazonS3ConfigKey::ContainerCredentialsFullUri,
        ];
        let set = from_environment.iter().any(|key| builder.get_config_value(key).is_some());
        let named = self.credentials_file.is_some() || self.profile.is_some();
        if set && !named {
            return Ok(builder);
        }
        let found = credentials::find(self.credentials_file.as_deref(), self.profile.as_deref())?;
        Ok(match found {
            None => builder,
            // All three at once: the environment may have a token for other keys.
            Some(found) => builder.with_credentials(Arc::new(StaticCredentialProvider::new(found))),
        })
    }
}

impl Gcs {
    pub(super) fn store(&self) -> Result<Store> {
        let mut builder = GoogleCloudStorageBuilder::from_env()
            .with_bucket_name(&self.bucket)
            .with_client_options(options(self.allow_http))
            .with_retry(no_retries())
            .with_http_connector(Connector::default());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_base_url(endpoint);
        }
        if let Some(file) = &self.credentials_file {
            builder = builder.with_service_account_path(file.display().to_string());
        }
        let store = Arc::new(builder.build().map_err(|e| unusable("GCS", e))?);
        Ok(Store {
            kind: "gcs",
            objects: store.clone(),
            listing: Some(store.clone()),
            // Google's multipart uploads know no conditions.
            parts: Parts::Numbered { store, conditions: None },
            conditional_put: true,
            by_generation: true,
        })
    }
}

impl Azure {
    pub(super) fn store(&self, limits: &Limits) -> Result<Store> {
        let build = |retry: RetryConfig, options: ClientOptions| {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&self.container)
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(Connector::default());
            if let Some(account) = &self.account {
                builder = builder.with_account(account);
            }
            if let Some(endpoint) = &self.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            builder.build().map(Arc::new).map_err(|e| unusable("Azure", e))
        };
        let store = build(no_retries(), options(self.allow_http))?;
        // The library numbers the blocks of an upload itself, so it has to repeat them itself,
        // and to keep to the deadline.
        let retry = RetryConfig {
            max_retries: usize::try_from(limits.retries()).unwrap_or(usize::MAX),
            retry_timeout: limits.deadline(),
            backoff: BackoffConfig::default(),
        };
        let blocks = build(retry, options(self.allow_http).with_timeout(limits.deadline()))?;
        Ok(Store {
            kind: "azure",
            objects: store.clone(),
            listing: Some(store),
            parts: Parts::Blocks(blocks),
            conditional_put: true,
            by_generation: false,
        })
    }
}

/// Files behind an HTTP server, to be read only.
pub(super) fn http(url: &str, allow_http: bool) -> Result<Store> {
    let builder = HttpBuilder::new()
        .with_url(url)
        .with_client_options(options(allow_http))
        .with_retry(no_retries())
        .with_http_connector(Connector::default());
    Ok(Store {
        kind: "http",
        objects: Arc::new(builder.build().map_err(|e| unusable(url, e))?),
        listing: None,
        parts: Parts::No,
        conditional_put: false,
        by_generation: false,
    })
}
