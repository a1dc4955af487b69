//! Object stores: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage, and
//! plain HTTP servers.
//!
//! **Reads** ask for a range at an entity tag (`If-Match`), and compare the tag of every response
//! with it, because some servers ignore the question. A read that breaks off goes on where it
//! broke, at the same tag. A server that gives no entity tags is taken by the time of modification
//! and the size that come with every response.
//!
//! **Uploads** up to 16 MiB are one conditional put. Larger
//! ones are made in parts; for S3, and for Azure unless with a shared key, their completion carries
//! the condition too. Otherwise, which means Google, the version is looked at right before, which
//! leaves a window of one round trip.

mod credentials;
mod describe;
mod error;
mod parts;
mod service;
mod stores;
mod upload;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use dma::Buffer;
use extent::{ByteRange, Kind, Result, SourceVersion};
use futures::{StreamExt, TryFutureExt};
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult};
use tokio::time::timeout;

use crate::limits::{Limits, Traffic};
use crate::settle::Settled;
use crate::{Capabilities, Condition, ObjectMeta, Page, Silo, Upload, UploadTags};
use describe::{describe, is_strong, is_tag, tags, version_of};
use error::{failed, out_of_range};
use stores::Store;
use upload::ObjectUpload;

pub use stores::{Azure, Gcs, S3};

/// The coarsest clock of a server: HTTP's dates count seconds.
const QUIET: Duration = Duration::from_secs(2);
/// The most keys that any store puts in a page.
const PAGE_KEYS: usize = 1000;

/// A silo in an object store.
pub struct Objects {
    shared: Arc<Shared>,
    settled: Settled,
    writable: bool,
}

/// What uploads under way need too.
struct Shared {
    store: Store,
    prefix: String,
    limits: Arc<Limits>,
}

impl Objects {
    /// A bucket of S3. Every key gets `prefix` in front.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the settings make no sense; [`Kind::Io`] if credentials cannot be read.
    pub fn s3(settings: &S3, prefix: &str, limits: Arc<Limits>, writable: bool) -> Result<Self> {
        Ok(Self::new(settings.store()?, prefix, limits, writable))
    }

    /// A bucket of Google Cloud Storage.
    ///
    /// # Errors
    /// As [`Objects::s3`].
    pub fn gcs(settings: &Gcs, prefix: &str, limits: Arc<Limits>, writable: bool) -> Result<Self> {
        Ok(Self::new(settings.store()?, prefix, limits, writable))
    }

    /// A container of Azure Blob Storage.
    ///
    /// # Errors
    /// As [`Objects::s3`].
    pub fn azure(
        settings: &Azure,
        prefix: &str,
        limits: Arc<Limits>,
        writable: bool,
    ) -> Result<Self> {
        Ok(Self::new(settings.store(&limits)?, prefix, limits, writable))
    }

    /// What lies under a URL of an HTTP server that serves ranges.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is no URL.
    pub fn http(url: &str, allow_http: bool, limits: Arc<Limits>) -> Result<Self> {
        Ok(Self::new(stores::http(url, allow_http)?, "", limits, false))
    }

    fn new(store: Store, prefix: &str, limits: Arc<Limits>, writable: bool) -> Self {
        let shared = Arc::new(Shared { store, prefix: prefix.to_owned(), limits });
        Self { shared, settled: Settled::new(QUIET), writable }
    }

    /// Fills `target`, in as many attempts as it takes.
    async fn fill(
        &self,
        key: &str,
        version: &SourceVersion,
        range: ByteRange,
        target: &mut [u8],
    ) -> Result<()> {
        let path = self.shared.path(key)?;
        if target.is_empty() || !is_tag(version) {
            self.revalidate(key, version).await?;
        }
        let limits = &self.shared.limits;
        let mut attempts = limits.attempts();
        let mut filled = 0;
        while filled < target.len() {
            let rest = range.offset() + filled as u64..range.end();
            let permit = limits.admit(Traffic::Read(rest.end - rest.start)).await;
            let mut progress = 0;
            let target = &mut target[filled..];
            let attempt = self.try_fill(key, &path, version, rest, target, &mut progress);
            let result = attempts.one(attempt).await;
            drop(permit);
            filled += progress;
            if let Err(error) = result {
                attempts.again(error).await?;
            }
        }
        Ok(())
    }

    async fn try_fill(
        &self,
        key: &str,
        path: &Path,
        version: &SourceVersion,
        rest: std::ops::Range<u64>,
        target: &mut [u8],
        progress: &mut usize,
    ) -> Result<()> {
        let options = GetOptions {
            if_match: is_strong(version).then(|| version.as_str().to_owned()),
            range: Some(GetRange::Bounded(rest.clone())),
            ..GetOptions::default()
        };
        let stall = self.shared.limits.stall();
        let stalled = || {
            let seconds = stall.as_secs_f64();
            Kind::Io.error(format!("{key}: not a byte in {seconds} s"))
        };
        let answer = timeout(stall, self.shared.store.objects.get_opts(path, options)).await;
        let answer = match answer.map_err(|_| stalled())? {
            Err(error) if out_of_range(&error) => {
                // Too short: is it another version, a bad request, or a bad answer?
                let meta = self.revalidate(key, version).await?;
                check_end(key, meta.length, rest.end)?;
                return Err(failed(key, &error));
            }
            answer => answer.map_err(|e| failed(key, &e))?,
        };
        self.check(key, &answer, version)?;
        check_end(key, answer.meta.size, rest.end)?;
        let mut chunks = answer.into_stream();
        while let Some(chunk) = timeout(stall, chunks.next()).await.map_err(|_| stalled())? {
            let chunk = chunk.map_err(|e| failed(key, &e))?;
            let Some(place) = target.get_mut(*progress..*progress + chunk.len()) else {
                return Err(Kind::Io.error(format!("{key}: more bytes than were asked for")));
            };
            place.copy_from_slice(&chunk);
            *progress += chunk.len();
            self.shared.limits.counters().count_read(chunk.len() as u64);
        }
        if *progress < target.len() {
            return Err(Kind::Io
                .error(format!("{key}: {progress} of {} bytes, then the end", target.len())));
        }
        Ok(())
    }

    /// Refuses an answer of another version.
    fn check(&self, key: &str, answer: &GetResult, version: &SourceVersion) -> Result<()> {
        if version_of(key, &answer.meta)? != *version {
            return Err(upload::stale(key));
        }
        Ok(())
    }

    /// Looks whether the object still is at this version, and waits until it can be trusted if
    /// that is only a time.
    async fn revalidate(&self, key: &str, version: &SourceVersion) -> Result<ObjectMeta> {
        let meta = self.shared.head(key).await?;
        if meta.version != *version {
            return Err(upload::stale(key));
        }
        if !is_tag(version) {
            let modified = meta.modified.unwrap_or(SystemTime::UNIX_EPOCH);
            let left = self.settled.left(version, modified);
            if !left.is_zero() {
                self.settled.wait(version, left).await;
            }
        }
        Ok(meta)
    }
}

fn check_end(key: &str, length: u64, end: u64) -> Result<()> {
    if length < end {
        return Err(Kind::Invalid.error(format!("{key} ends at {length}, before {end}")));
    }
    Ok(())
}

#[async_trait]
impl Silo for Objects {
    fn capabilities(&self) -> Capabilities {
        // Only where uploads of every size are covered.
        let conditional = self.shared.store.kind == "s3" && self.shared.store.conditional_put;
        Capabilities { kind: self.shared.store.kind, writable: self.writable, conditional }
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.shared.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page> {
        let shared = &self.shared;
        let Some(listing) = &shared.store.listing else {
            return Err(Kind::Unsupported.error("an HTTP server has no list of its files"));
        };
        let full = format!("{}{prefix}", shared.prefix);
        let offset = after.map(|after| format!("{}{after}", shared.prefix));
        let (limit, mut token, mut objects) = (limit.max(1), None, Vec::new());
        loop {
            let options = PaginatedListOptions {
                offset: offset.clone(),
                max_keys: Some((limit + 1 - objects.len()).min(PAGE_KEYS)),
                page_token: token,
                ..PaginatedListOptions::default()
            };
            let prefix = Some(full.as_str()).filter(|prefix| !prefix.is_empty());
            let attempt =
                || listing.list_paginated(prefix, options.clone()).map_err(|e| failed(&full, &e));
            let page = shared.limits.call(Traffic::Metadata, attempt).await?;
            for found in page.result.objects {
                let Some(meta) = shared.listed(&found)? else { continue };
                // A store may include the key to start after, and some show a folder "a/" as an
                // empty object "a".
                let again = after == Some(meta.key.as_str());
                if !again && (meta.length > 0 || shared.exists(&meta.key).await?) {
                    objects.push(meta);
                }
            }
            token = page.page_token;
            if token.is_none() || objects.len() > limit {
                break;
            }
        }
        // In the store's own order, which its next page goes by: SeaweedFS's is not quite that of
        // bytes.
        let more = objects.len() > limit;
        objects.truncate(limit);
        let next = objects.last().filter(|_| more).map(|last| last.key.clone());
        Ok(Page { objects, next })
    }

    async fn read(
        &self,
        key: &str,
        version: &SourceVersion,
        range: ByteRange,
        mut buffer: Buffer,
    ) -> (Buffer, Result<()>) {
        let length = usize::try_from(range.length()).unwrap_or(usize::MAX);
        let result = match buffer.as_mut_slice().get_mut(..length) {
            Some(target) => self.fill(key, version, range, target).await,
            None => Err(Kind::Invalid.error(format!("{range} of {key} does not fit the buffer"))),
        };
        (buffer, result)
    }

    async fn upload(
        &self,
        key: &str,
        length: u64,
        condition: Condition,
        tags: UploadTags,
    ) -> Result<Box<dyn Upload>> {
        if !self.writable {
            return Err(Kind::Unsupported.error("the silo is read-only"));
        }
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(ObjectUpload::start(shared, key, length, condition, tags).await?))
    }
}

impl Shared {
    /// The path of a key. The library cannot address keys with empty, `.` or `..` parts.
    fn path(&self, key: &str) -> Result<Path> {
        let full = format!("{}{key}", self.prefix);
        let path = Path::parse(&full).ok().filter(|path| path.as_ref() == full && !key.is_empty());
        path.ok_or_else(|| {
            Kind::Invalid.error(format!("key {key:?} has empty, . or .. parts, or an outer slash"))
        })
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta> {
        let answer = self.ask(key, &self.path(key)?).await?;
        Ok(ObjectMeta { tags: tags(&answer.attributes), ..describe(key, &answer.meta)? })
    }

    async fn ask(&self, key: &str, path: &Path) -> Result<GetResult> {
        let attempt = || {
            let options = GetOptions { head: true, ..GetOptions::default() };
            self.store.objects.get_opts(path, options).map_err(|e| failed(key, &e))
        };
        self.limits.call(Traffic::Metadata, attempt).await
    }

    async fn exists(&self, key: &str) -> Result<bool> {
        match self.head(key).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An object of a listing, unless it is outside of the prefix.
    fn listed(&self, found: &object_store::ObjectMeta) -> Result<Option<ObjectMeta>> {
        let key = found.location.as_ref().strip_prefix(&self.prefix);
        key.filter(|key| !key.is_empty()).map(|key| describe(key, found)).transpose()
    }
}

#[cfg(test)]
mod tests;
