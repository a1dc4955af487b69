//! What the tests of object stores share.
#![allow(dead_code, reason = "every test binary uses its own part of this")]
#![allow(unreachable_pub, reason = "a module of test binaries, not of a library")]

pub mod proxy;
pub mod server;
pub mod stub;

use bytes::Bytes;
use dma::{Buffer, HugePages, Pool, SizeClass};
use extent::{Attempt, ByteRange, Error, FileId, Result};
use forebay_silo::{Condition, ObjectMeta, Silo, UploadTags};

/// Tags of a made-up upload.
pub fn tags(attempt: u64) -> UploadTags {
    UploadTags { file: FileId(0xF0_F0), attempt: Attempt(attempt), over: 5 }
}

/// A buffer of a mebibyte.
pub fn buffer() -> Buffer {
    let pool = Pool::new(&[SizeClass { bytes: 1 << 20, count: 1 }], HugePages::Never);
    pool.expect("memory").take(1).expect("free")
}

/// Bytes that differ at every offset that matters.
pub fn pattern(length: usize, seed: u32) -> Bytes {
    let byte = |n: usize| {
        let n =
            u32::try_from(n).expect("small").wrapping_mul(2_654_435_761).wrapping_add(seed << 24);
        n.to_le_bytes()[3]
    };
    (0..length).map(byte).collect()
}

/// Reads a range of at most a mebibyte.
pub async fn read(silo: &dyn Silo, meta: &ObjectMeta, offset: u64, length: u64) -> Result<Bytes> {
    let range = ByteRange::new(offset, length).expect("small");
    let (buffer, result) = silo.read(&meta.key, &meta.version, range, buffer()).await;
    let length = usize::try_from(length).expect("small");
    result.map(|()| Bytes::copy_from_slice(&buffer.as_slice()[..length]))
}

/// Reads a whole object.
pub async fn read_all(silo: &dyn Silo, meta: &ObjectMeta) -> Result<Bytes> {
    let mut all = Vec::new();
    while (all.len() as u64) < meta.length {
        let offset = all.len() as u64;
        let length = (meta.length - offset).min(1 << 20);
        all.extend_from_slice(&read(silo, meta, offset, length).await?);
    }
    Ok(all.into())
}

/// The error of a read that must fail. If it does not, the bytes are not printed.
pub fn refusal(result: Result<Bytes>, why: &str) -> Error {
    result.map(|bytes| bytes.len()).expect_err(why)
}

/// Uploads in pieces of an odd size.
pub async fn store(
    silo: &dyn Silo,
    key: &str,
    bytes: &Bytes,
    condition: Condition,
    attempt: u64,
) -> Result<ObjectMeta> {
    let mut upload = silo.upload(key, bytes.len() as u64, condition, tags(attempt)).await?;
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        upload.append(rest.split_to(rest.len().min(3_000_001))).await?;
    }
    upload.finish().await
}
