//! A silo's section in the configuration, and opening the silo it describes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use extent::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::object::{Azure, Gcs, Objects, S3};
use crate::{Counters, Directory, LimitOptions, Limits, Silo};

/// A silo that is open, and what goes with it.
#[derive(Clone)]
pub struct Mount {
    /// The name that files carry.
    pub name: String,
    /// The silo.
    pub silo: Arc<dyn Silo>,
    /// What it did so far.
    pub counters: Arc<Counters>,
    /// Its caps, to be changed while it runs.
    pub limits: Arc<Limits>,
}

/// Where a silo is and what it may use.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct SiloConfig {
    /// Where it is.
    pub place: Place,
    /// Its caps.
    pub limits: LimitOptions,
    /// Whether uploads are refused.
    pub read_only: bool,
}

/// Where a silo is.
#[derive(Clone, PartialEq, Debug)]
pub enum Place {
    /// A directory or mounted file system.
    Directory {
        /// Its path.
        path: PathBuf,
        /// How long a file must have been quiet before it is read.
        quiet: Duration,
    },
    /// A bucket of S3, and what stands before every key.
    S3(S3, String),
    /// A bucket of Google Cloud Storage, and what stands before every key.
    Gcs(Gcs, String),
    /// A container of Azure Blob Storage, and what stands before every key.
    Azure(Azure, String),
    /// An HTTP server.
    Http {
        /// What stands before every key.
        url: String,
        /// Whether plain HTTP may be used.
        allow_http: bool,
    },
}

impl SiloConfig {
    /// The directory at `path`, with default caps.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        let place = Place::Directory { path: path.into(), quiet: Directory::QUIET };
        Self { place, limits: LimitOptions::default(), read_only: false }
    }
}

/// Opens the silo that `config` describes. Object stores are not contacted yet.
///
/// # Errors
/// [`Kind::Invalid`] for settings or credentials that make no sense; [`Kind::NotFound`] or
/// [`Kind::Denied`] for a directory that is not there or may not be read.
pub fn open(name: impl Into<String>, config: &SiloConfig) -> Result<Mount> {
    let name = name.into();
    let limits = Limits::new(&config.limits);
    let (shared, writable) = (Arc::clone(&limits), !config.read_only);
    let opened = match &config.place {
        Place::Directory { path, quiet } => Directory::open(path, shared, writable)
            .map(|directory| Arc::new(directory.with_quiet(*quiet)) as Arc<dyn Silo>),
        Place::S3(s3, prefix) => Objects::s3(s3, prefix, shared, writable).map(in_arc),
        Place::Gcs(gcs, prefix) => Objects::gcs(gcs, prefix, shared, writable).map(in_arc),
        Place::Azure(azure, prefix) => Objects::azure(azure, prefix, shared, writable).map(in_arc),
        Place::Http { url, allow_http } => Objects::http(url, *allow_http, shared).map(in_arc),
    };
    let silo = opened.map_err(|e| e.while_doing(format!("opening silo {name}")))?;
    Ok(Mount { name, silo, counters: Arc::clone(limits.counters()), limits })
}

fn in_arc(objects: Objects) -> Arc<dyn Silo> {
    Arc::new(objects)
}

/// The section as it is written. Every kind has its own fields; the others are refused.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quiet_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_http: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_hosted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conditional_writes: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_bytes_per_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stall_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

impl TryFrom<Table> for SiloConfig {
    type Error = Error;

    fn try_from(mut table: Table) -> Result<Self> {
        let limits = table.take_limits()?;
        let read_only = table.read_only.take();
        let place = match table.kind.as_str() {
            "directory" => Place::Directory {
                path: required(table.path.take(), "path")?,
                quiet: seconds(table.quiet_s.take(), "quiet_s", Directory::QUIET)?,
            },
            "s3" => Place::S3(table.take_s3()?, table.take_prefix()),
            "gcs" => {
                let gcs = Gcs {
                    bucket: required(table.bucket.take(), "bucket")?,
                    endpoint: table.endpoint.take(),
                    allow_http: table.allow_http.take().unwrap_or(false),
                    credentials_file: table.credentials_file.take(),
                };
                Place::Gcs(gcs, table.take_prefix())
            }
            "azure" => {
                let azure = Azure {
                    container: required(table.container.take(), "container")?,
                    account: table.account.take(),
                    endpoint: table.endpoint.take(),
                    allow_http: table.allow_http.take().unwrap_or(false),
                };
                Place::Azure(azure, table.take_prefix())
            }
            "http" => Place::Http {
                url: required(table.url.take(), "url")?,
                allow_http: table.allow_http.take().unwrap_or(false),
            },
            "" => return Err(Kind::Invalid.error(format!("a silo needs a kind: {KINDS}"))),
            other => {
                return Err(Kind::Invalid.error(format!("no kind of silo is {other:?}: {KINDS}")));
            }
        };
        place.check_scheme()?;
        let kind = std::mem::take(&mut table.kind);
        if table != Table::default() {
            let extra = format!("a silo of kind {kind} does not take all of these: {table:?}");
            return Err(Kind::Invalid.error(shorten(&extra)));
        }
        // Plain servers take nothing, whatever is asked for.
        let read_only = read_only.unwrap_or(false) || matches!(place, Place::Http { .. });
        Ok(Self { place, limits, read_only })
    }
}

const KINDS: &str = "directory, s3, gcs, azure or http";

impl Place {
    /// That an address is one, and that nothing goes in clear text unless that was said.
    fn check_scheme(&self) -> Result<()> {
        let (address, allow_http) = match self {
            Self::Directory { .. } => return Ok(()),
            Self::S3(s3, _) => (s3.endpoint.as_deref(), s3.allow_http),
            Self::Gcs(gcs, _) => (gcs.endpoint.as_deref(), gcs.allow_http),
            Self::Azure(azure, _) => (azure.endpoint.as_deref(), azure.allow_http),
            Self::Http { url, allow_http } => (Some(url.as_str()), *allow_http),
        };
        let Some(address) = address else { return Ok(()) };
        let scheme = address.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("https") => Ok(()),
            Some("http") if allow_http => Ok(()),
            Some("http") => Err(Kind::Invalid.error(format!(
                "{address} is in clear text: say https, or allow_http = true if that is what you want"
            ))),
            _ => Err(Kind::Invalid.error(format!("{address:?} is no address: https://host/…"))),
        }
    }
}

impl Table {
    fn take_limits(&mut self) -> Result<LimitOptions> {
        let usual = LimitOptions::default();
        let concurrency = self.concurrency.take().unwrap_or(usual.concurrency);
        if concurrency == 0 || self.read_bytes_per_s == Some(0) || self.write_bytes_per_s == Some(0)
        {
            return Err(Kind::Invalid.error("a cap of zero lets nothing through: leave it out"));
        }
        Ok(LimitOptions {
            concurrency,
            read_bytes_per_s: self.read_bytes_per_s.take(),
            write_bytes_per_s: self.write_bytes_per_s.take(),
            deadline: seconds(self.deadline_s.take(), "deadline_s", usual.deadline)?,
            stall: seconds(self.stall_s.take(), "stall_s", usual.stall)?,
            retries: self.retries.take().unwrap_or(usual.retries),
        })
    }

    fn take_s3(&mut self) -> Result<S3> {
        Ok(S3 {
            bucket: required(self.bucket.take(), "bucket")?,
            endpoint: self.endpoint.take(),
            region: self.region.take(),
            allow_http: self.allow_http.take().unwrap_or(false),
            virtual_hosted: self.virtual_hosted.take().unwrap_or(false),
            conditional_writes: self.conditional_writes.take().unwrap_or(true),
            credentials_file: self.credentials_file.take(),
            profile: self.profile.take(),
        })
    }

    /// A folder: no slash in front, one behind.
    fn take_prefix(&mut self) -> String {
        let prefix = self.prefix.take().unwrap_or_default();
        match prefix.trim_matches('/') {
            "" => String::new(),
            folder => format!("{folder}/"),
        }
    }
}

fn required<T>(value: Option<T>, name: &str) -> Result<T> {
    value.ok_or_else(|| Kind::Invalid.error(format!("a silo of this kind needs {name}")))
}

fn seconds(value: Option<f64>, name: &str, usual: Duration) -> Result<Duration> {
    let Some(value) = value else { return Ok(usual) };
    Duration::try_from_secs_f64(value)
        .map_err(|e| Kind::Invalid.error(format!("{name} = {value}")).caused_by(e))
}

/// Leaves the fields that are set of a debug representation.
fn shorten(text: &str) -> String {
    let set = |field: &&str| !field.contains(": None") && !field.contains("kind: \"\"");
    text.split(", ").filter(set).collect::<Vec<_>>().join(", ")
}

impl From<SiloConfig> for Table {
    fn from(config: SiloConfig) -> Self {
        let limits = config.limits;
        let common = Self {
            concurrency: Some(limits.concurrency),
            read_bytes_per_s: limits.read_bytes_per_s,
            write_bytes_per_s: limits.write_bytes_per_s,
            deadline_s: Some(limits.deadline.as_secs_f64()),
            stall_s: Some(limits.stall.as_secs_f64()),
            retries: Some(limits.retries),
            read_only: Some(config.read_only),
            ..Self::default()
        };
        let prefix = |prefix: String| Some(prefix).filter(|prefix| !prefix.is_empty());
        match config.place {
            Place::Directory { path, quiet } => Self {
                kind: "directory".to_owned(),
                path: Some(path),
                quiet_s: Some(quiet.as_secs_f64()),
                ..common
            },
            Place::S3(s3, before) => Self {
                kind: "s3".to_owned(),
                bucket: Some(s3.bucket),
                prefix: prefix(before),
                endpoint: s3.endpoint,
                region: s3.region,
                allow_http: Some(s3.allow_http),
                virtual_hosted: Some(s3.virtual_hosted),
                conditional_writes: Some(s3.conditional_writes),
                credentials_file: s3.credentials_file,
                profile: s3.profile,
                ..common
            },
            Place::Gcs(gcs, before) => Self {
                kind: "gcs".to_owned(),
                bucket: Some(gcs.bucket),
                prefix: prefix(before),
                endpoint: gcs.endpoint,
                allow_http: Some(gcs.allow_http),
                credentials_file: gcs.credentials_file,
                ..common
            },
            Place::Azure(azure, before) => Self {
                kind: "azure".to_owned(),
                container: Some(azure.container),
                account: azure.account,
                prefix: prefix(before),
                endpoint: azure.endpoint,
                allow_http: Some(azure.allow_http),
                ..common
            },
            Place::Http { url, allow_http } => Self {
                kind: "http".to_owned(),
                url: Some(url),
                allow_http: Some(allow_http),
                ..common
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<SiloConfig, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    const ALL: [&str; 5] = [
        "kind = 'directory'\npath = '/mnt/nfs'\nquiet_s = 0.5\nread_only = true",
        "kind = 's3'\nbucket = 'b'\nprefix = '/team/data'\nendpoint = 'http://127.0.0.1:1'\n\
         region = 'eu-1'\nallow_http = true\nconcurrency = 8\nread_bytes_per_s = 1000000",
        "kind = 'gcs'\nbucket = 'b'\nwrite_bytes_per_s = 5\ndeadline_s = 1.5",
        "kind = 'azure'\ncontainer = 'c'\naccount = 'a'\nretries = 0\nstall_s = 3",
        "kind = 'http'\nurl = 'https://example.org/data'",
    ];

    #[test]
    fn every_kind_reads_and_survives_a_round_trip() {
        for text in ALL {
            let config = parse(text).expect(text);
            let written = toml::to_string(&config).expect("writes");
            assert_eq!(parse(&written).expect(&written), config);
            let json = serde_json::to_string(&config).expect("writes");
            assert_eq!(serde_json::from_str::<SiloConfig>(&json).expect(&json), config);
        }
        let s3 = parse(ALL[1]).expect("good");
        let Place::S3(_, prefix) = &s3.place else { panic!("not S3: {s3:?}") };
        assert_eq!((prefix.as_str(), s3.limits.concurrency), ("team/data/", 8));
        assert!(parse(ALL[4]).expect("good").read_only);
    }

    #[test]
    fn mistakes_are_told() {
        for (text, says) in [
            ("path = '/x'", "needs a kind"),
            ("kind = 'ftp'", "\"ftp\""),
            ("kind = 'directory'", "needs path"),
            ("kind = 's3'", "needs bucket"),
            ("kind = 'directory'\npath = '/x'\nbucket = 'b'", "bucket: Some(\"b\")"),
            ("kind = 'http'\nurl = 'https://x'\nprefix = 'p'", "prefix: Some(\"p\")"),
            ("kind = 'http'\nurl = 'http://x'", "allow_http = true"),
            ("kind = 'http'\nurl = 'gopher://x'", "no address"),
            ("kind = 's3'\nbucket = 'b'\nendpoint = 'notaurl'", "no address"),
            ("kind = 'directory'\npath = '/x'\ncolour = 1", "colour"),
            ("kind = 'directory'\npath = '/x'\ndeadline_s = -1", "deadline_s"),
            ("kind = 'directory'\npath = '/x'\nconcurrency = 0", "cap of zero"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("None"), "{error}");
        }
    }

    #[test]
    fn silos_open_with_their_names_in_errors() {
        let home = tempfile::tempdir().expect("a directory");
        let mount = open("data", &SiloConfig::directory(home.path())).expect("opens");
        assert_eq!((mount.name.as_str(), mount.silo.capabilities().kind), ("data", "file"));
        let error = open("gone", &SiloConfig::directory(home.path().join("x"))).err();
        let error = error.expect("not there");
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("silo gone"), "{error}");
    }
}
