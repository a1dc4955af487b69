use extent::{Kind, Result};
use prost::{Message, Oneof};
use redb::{Database, ReadableTable};

use super::change::Tables;
use super::{SCHEMA, failed};
use crate::clock::UnixMs;
use crate::proto;

/// The layout of the tables.
const SCHEMA_KEY: &str = "schema";
/// The identity shared with the tier, 16 bytes, little-endian.
const IDENTITY: &str = "identity";
/// The highest controller epoch seen.
pub(super) const EPOCH: &str = "epoch";
/// The number that no job has had yet.
pub(super) const NEXT_JOB: &str = "next_job";

/// When the last scrub ended, 8 bytes, little-endian, and what it found.
pub(super) const LAST_SCRUB: &str = "last_scrub";

/// What a request id stands for.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RequestRecord {
    /// SHA-256 of the request without its controller epoch: the same id with another request is a
    /// mistake of the caller's.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) fingerprint: Vec<u8>,
    /// When it was answered.
    #[prost(uint64, tag = "2")]
    pub(crate) at_ms: UnixMs,
    /// What it was answered.
    #[prost(oneof = "Outcome", tags = "3, 4")]
    pub(crate) outcome: Option<Outcome>,
}

/// What a request was answered.
#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Outcome {
    /// This message, encoded.
    #[prost(bytes, tag = "3")]
    Response(Vec<u8>),
    /// The job of this number, as it stands.
    #[prost(uint64, tag = "4")]
    Job(u64),
}

/// Checks or makes what a database says of itself, and answers its identity and epoch.
pub(super) fn meta(database: &Database, expected: Option<u128>) -> Result<(u128, u64)> {
    let write = database.begin_write().map_err(failed)?;
    let found = {
        // Opens all tables, so that readers find them.
        let mut meta = Tables::open(&write).map_err(failed)?.meta;
        match number(&meta, SCHEMA_KEY)? {
            None => {
                let identity = expected.unwrap_or_else(rand::random);
                let schema = SCHEMA.to_le_bytes();
                meta.insert(SCHEMA_KEY, schema.as_slice()).map_err(failed)?;
                let bytes = identity.to_le_bytes();
                meta.insert(IDENTITY, bytes.as_slice()).map_err(failed)?;
                (identity, 0)
            }
            Some(SCHEMA) => {
                let identity = identity(&meta)?;
                check_identity(identity, expected)?;
                (identity, number(&meta, EPOCH)?.unwrap_or(0))
            }
            Some(other) => {
                return Err(Kind::Unsupported.error(format!(
                    "its layout is {other}, and this version reads {SCHEMA}: use the version that wrote it"
                )));
            }
        }
    };
    write.commit().map_err(failed)?;
    Ok(found)
}

/// A number by its name.
pub(super) fn number(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<u64>> {
    let Some(bytes) = meta.get(name).map_err(failed)? else { return Ok(None) };
    let bytes = bytes.value().try_into().map_err(|_| damaged(name))?;
    Ok(Some(u64::from_le_bytes(bytes)))
}

/// When the last scrub ended, and what it found.
pub(super) fn last_scrub(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<(UnixMs, proto::ScrubReport)>> {
    let Some(bytes) = meta.get(LAST_SCRUB).map_err(failed)? else { return Ok(None) };
    let (at, report) = bytes.value().split_first_chunk().ok_or_else(|| damaged(LAST_SCRUB))?;
    let report = proto::ScrubReport::decode(report).map_err(|_| damaged(LAST_SCRUB))?;
    Ok(Some((UnixMs::from_le_bytes(*at), report)))
}

fn identity(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<u128> {
    let bytes = meta.get(IDENTITY).map_err(failed)?.ok_or_else(|| damaged(IDENTITY))?;
    let bytes = bytes.value().try_into().map_err(|_| damaged(IDENTITY))?;
    Ok(u128::from_le_bytes(bytes))
}

fn check_identity(identity: u128, expected: Option<u128>) -> Result<()> {
    match expected {
        Some(expected) if expected != identity => Err(Kind::Denied.error(format!(
            "it belongs to tier {identity:032x}, but the devices hold tier {expected:032x}: \
             use the database that goes with these devices, since its pins protect their files"
        ))),
        _ => Ok(()),
    }
}

fn damaged(name: &str) -> extent::Error {
    Kind::Corrupt.error(format!("its {name} is damaged: restore the file from a copy"))
}
