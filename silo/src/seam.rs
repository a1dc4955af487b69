//! The seam to silos.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use dma::Buffer;
use extent::{Attempt, ByteRange, FileId, Result, SourceVersion};

/// What a silo can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// `file`, `s3`, `gcs`, `azure`, `http` or `sim`.
    pub kind: &'static str,
    /// Whether anything can be written.
    pub writable: bool,
    /// Whether the silo itself refuses to read or replace another version than the one named. If
    /// not, the version is compared before and after, which leaves a window.
    pub conditional: bool,
}

/// An object as the silo describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectMeta {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub length: u64,
    /// Which version this describes.
    pub version: SourceVersion,
    /// When it was last changed, if the silo says so.
    pub modified: Option<SystemTime>,
    /// The upload that made it, if it was one of ours. Never known from a listing.
    pub tags: Option<UploadTags>,
}

/// One page of a listing, in the byte order of keys, or what an object store takes for it: S3,
/// Google and Azure keep to that, some servers that speak S3's protocol not quite.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Objects.
    pub objects: Vec<ObjectMeta>,
    /// Pass this as `after` for the next page; `None` on the last.
    pub next: Option<String>,
}

/// What must hold for an upload to replace what is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// There is no such object.
    Absent,
    /// The object is at this version.
    Version(SourceVersion),
}

/// Travels with an upload as the object's metadata, so that after a crash our own upload is
/// recognised and not taken for somebody else's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UploadTags {
    /// The file.
    pub file: FileId,
    /// The attempt that wrote the uploaded generation.
    pub attempt: Attempt,
    /// What stands for the version that the generation was based on: objects are copied with their metadata, and an
    /// upload of ours that somebody put back later was based on something else.
    pub over: u64,
}

impl UploadTags {
    /// Whether both are of one file, and based on the same version of it.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (self.file, self.over) == (other.file, other.over)
    }
}

/// Whether an upload with these tags is of this node, whichever of its processes began it.
pub type IsOurs = Arc<dyn Fn(UploadTags) -> bool + Send + Sync>;

/// A slower place for files. Implementations retry what is worth retrying, within a deadline, and
/// keep to their own caps on concurrency and bandwidth.
#[async_trait]
pub trait Silo: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Describes an object.
    ///
    /// # Errors
    /// [`extent::Kind::NotFound`], [`extent::Kind::Denied`], or [`extent::Kind::Io`] once retries are used up.
    async fn head(&self, key: &str) -> Result<ObjectMeta>;

    /// Up to `limit` objects whose keys begin with `prefix` and come after `after`.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] if the silo cannot list; else as [`Silo::head`].
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page>;

    /// Reads `range` of the object *at this version* to the front of `buffer`, and hands the
    /// buffer back. Never mixes versions.
    ///
    /// # Errors
    /// [`extent::Kind::Stale`] if the object is at another version; [`extent::Kind::Invalid`] if the range is past its
    /// end or larger than the buffer; else as [`Silo::head`].
    async fn read(
        &self,
        key: &str,
        version: &SourceVersion,
        range: ByteRange,
        buffer: Buffer,
    ) -> (Buffer, Result<()>);

    /// Starts to write an object of `length` bytes. Nothing is visible before
    /// [`Upload::finish`]; an upload that is dropped leaves no object.
    ///
    /// # Errors
    /// [`extent::Kind::Unsupported`] if the silo is read-only; else as [`Silo::head`].
    async fn upload(
        &self,
        key: &str,
        length: u64,
        condition: Condition,
        tags: UploadTags,
    ) -> Result<Box<dyn Upload>>;

    /// Makes durable that an object has its name, after an upload of it whose end nobody saw.
    ///
    /// # Errors
    /// As [`Silo::head`].
    async fn persist(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    /// Removes what uploads of this node's earlier processes left behind, where the silo cannot do
    /// that by itself, and returns how many. Leaves alone what other nodes and this process are
    /// uploading. May walk all of the silo; ends soon after it is dropped.
    ///
    /// # Errors
    /// As [`Silo::head`].
    async fn remove_leftovers(&self, _is_ours: IsOurs) -> Result<u64> {
        Ok(0)
    }
}

/// An object on its way into a silo.
#[async_trait]
pub trait Upload: Send {
    /// Appends bytes.
    ///
    /// # Errors
    /// As [`Silo::head`], or [`extent::Kind::NoSpace`].
    async fn append(&mut self, bytes: Bytes) -> Result<()>;

    /// Makes the object visible and durable, if the condition still holds.
    ///
    /// # Errors
    /// [`extent::Kind::Stale`] if it does not: somebody else wrote the object, which is left as it is;
    /// [`extent::Kind::Invalid`] if fewer or more bytes were appended than announced.
    async fn finish(self: Box<Self>) -> Result<ObjectMeta>;

    /// Gives up and cleans up.
    async fn abort(self: Box<Self>);
}
