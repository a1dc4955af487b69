//! Uploads to an object store: one put, or parts.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use extent::{Error, Kind, Result};
use futures::TryFutureExt;
use object_store::azure::AzureCredential;
use object_store::path::Path;
use object_store::{
    MultipartUpload, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    UpdateVersion,
};
use tokio::task::JoinSet;

use super::Shared;
use super::describe::{attributes, is_strong, tag_version, version_of};
use super::error::failed;
use super::parts::{Numbered, PARTS_UNDER_WAY, joined};
use super::service::PublishIf;
use super::stores::Parts;
use crate::limits::Traffic;
use crate::{Condition, ObjectMeta, Upload, UploadTags};

/// The largest object that is sent as one request.
pub(super) const SINGLE_PUT_BYTES: u64 = 16 << 20;
/// The smallest part. Stores take no less than 5 MiB.
const PART_BYTES: u64 = 8 << 20;
/// Stores take up to 10,000 parts; the size of a part grows with the object to stay below.
const MOST_PARTS: u64 = 9_000;

/// An object on its way.
pub(super) struct ObjectUpload {
    target: Target,
    length: u64,
    appended: u64,
    pending: Vec<Bytes>,
    pending_bytes: u64,
    part_bytes: u64,
    way: Way,
}

/// Where an upload goes.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) shared: Arc<Shared>,
    pub(super) key: String,
    pub(super) path: Path,
    condition: Condition,
    tags: UploadTags,
}

enum Way {
    Single,
    Numbered(Numbered),
    Blocks { upload: Box<dyn MultipartUpload>, under_way: JoinSet<Result<()>> },
}

/// The object is not at the version it should be.
pub(super) fn stale(key: &str) -> Error {
    Kind::Stale.error(format!("{key} was changed: register it again to get its new version"))
}

impl ObjectUpload {
    pub(super) async fn start(
        shared: Arc<Shared>,
        key: &str,
        length: u64,
        condition: Condition,
        tags: UploadTags,
    ) -> Result<Self> {
        let path = shared.path(key)?;
        let target = Target { shared, key: key.to_owned(), path, condition, tags };
        let way =
            if length <= SINGLE_PUT_BYTES { Way::Single } else { target.start_parts().await? };
        let part_bytes = match way {
            Way::Single => SINGLE_PUT_BYTES,
            _ => PART_BYTES.max(length.div_ceil(MOST_PARTS).next_multiple_of(1 << 20)),
        };
        Ok(Self {
            target,
            length,
            appended: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            part_bytes,
            way,
        })
    }

    /// Sends what is pending as a part, once there is room for another.
    async fn send_part(&mut self) -> Result<()> {
        let payload = PutPayload::from_iter(std::mem::take(&mut self.pending));
        let bytes = std::mem::take(&mut self.pending_bytes);
        match &mut self.way {
            Way::Single => unreachable!("a single put has no parts"),
            Way::Numbered(parts) => parts.send(&self.target, payload, bytes).await,
            Way::Blocks { upload, under_way } => {
                while under_way.len() >= PARTS_UNDER_WAY {
                    joined(under_way).await?;
                }
                let limits = Arc::clone(&self.target.shared.limits);
                let permit = limits.admit(Traffic::Write(bytes)).await;
                let part = upload.put_part(payload);
                let key = self.target.key.clone();
                under_way.spawn(async move {
                    part.await.map_err(|e| failed(&key, &e))?;
                    limits.counters().count_written(bytes);
                    drop(permit);
                    Ok(())
                });
                Ok(())
            }
        }
    }

    async fn publish(&mut self) -> Result<PutResult> {
        if !matches!(self.way, Way::Single) {
            self.send_part().await?;
        }
        match &mut self.way {
            Way::Single => {
                let payload = PutPayload::from_iter(std::mem::take(&mut self.pending));
                self.target.put(payload, self.length).await
            }
            Way::Numbered(parts) => {
                parts.join_all().await?;
                self.target.check().await?;
                parts.complete(&self.target).await
            }
            Way::Blocks { upload, under_way } => {
                while !under_way.is_empty() {
                    joined(under_way).await?;
                }
                self.target.check().await?;
                let permit = self.target.shared.limits.admit(Traffic::Metadata).await;
                let put = upload.complete().await.map_err(|e| failed(&self.target.key, &e));
                drop(permit);
                put
            }
        }
    }
}

#[async_trait]
impl Upload for ObjectUpload {
    async fn append(&mut self, mut bytes: Bytes) -> Result<()> {
        if bytes.len() as u64 > self.length - self.appended {
            return Err(Kind::Invalid.error(format!(
                "more than the {} bytes that were announced for {}",
                self.length, self.target.key
            )));
        }
        while !bytes.is_empty() {
            if self.pending_bytes == self.part_bytes {
                self.send_part().await?;
            }
            let room = usize::try_from(self.part_bytes - self.pending_bytes).unwrap_or(usize::MAX);
            let piece = bytes.split_to(bytes.len().min(room));
            self.pending_bytes += piece.len() as u64;
            self.appended += piece.len() as u64;
            // A copy: whoever waits for more bytes must not keep the buffers that those come in.
            self.pending.push(Bytes::copy_from_slice(&piece));
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectMeta> {
        if self.appended != self.length {
            let error = Kind::Invalid.error(format!(
                "{} bytes for {}, and {} were announced",
                self.appended, self.target.key, self.length
            ));
            self.abort().await;
            return Err(error);
        }
        match self.publish().await {
            Ok(put) => self.target.describe(&put, self.length).await,
            Err(error) => {
                let ours = self.target.recognise(error, self.length).await;
                if let (Ok(_), Way::Numbered(parts)) = (&ours, &mut self.way) {
                    parts.forget();
                }
                self.abort().await;
                ours
            }
        }
    }

    async fn abort(mut self: Box<Self>) {
        if let Way::Numbered(parts) = &mut self.way {
            parts.abort().await;
        }
    }
}

impl Target {
    async fn start_parts(&self) -> Result<Way> {
        let options =
            PutMultipartOptions { attributes: attributes(self.tags), ..Default::default() };
        match &self.shared.store.parts {
            Parts::No => Err(Kind::Unsupported.error("an HTTP server takes no uploads")),
            Parts::Numbered { store, conditions } => {
                let conditions = conditions.clone();
                Ok(Way::Numbered(Numbered::start(self, store, conditions, &options).await?))
            }
            Parts::Blocks(store) => {
                let mut options = options;
                // A shared key signs the condition, which is only added behind the signature.
                let credential = store.credentials().get_credential().await;
                let credential = credential.map_err(|e| failed(&self.key, &e))?;
                if !matches!(*credential, AzureCredential::AccessKey(_)) {
                    options.extensions.insert(self.publish_if());
                }
                let upload = store.put_multipart_opts(&self.path, options).await;
                let upload = upload.map_err(|e| failed(&self.key, &e))?;
                Ok(Way::Blocks { upload, under_way: JoinSet::new() })
            }
        }
    }

    pub(super) fn publish_if(&self) -> PublishIf {
        match &self.condition {
            Condition::Absent => PublishIf::Absent,
            Condition::Version(version) => PublishIf::Match(version.as_str().to_owned()),
        }
    }

    /// Looks whether the condition holds right now.
    ///
    /// # Errors
    /// [`Kind::Stale`] if not.
    async fn check(&self) -> Result<()> {
        self.look().await.map(drop)
    }

    /// The same; returns the store's own description of the version that is to be replaced.
    async fn look(&self) -> Result<Option<object_store::ObjectMeta>> {
        let found = self.shared.ask(&self.key, &self.path).await.map(|answer| answer.meta);
        match (&self.condition, found) {
            (Condition::Absent, Err(error)) if error.kind() == Kind::NotFound => Ok(None),
            (Condition::Version(_), Err(error)) if error.kind() == Kind::NotFound => {
                Err(stale(&self.key))
            }
            (_, Err(error)) => Err(error),
            (Condition::Version(version), Ok(meta))
                if version_of(&self.key, &meta)? == *version =>
            {
                Ok(Some(meta))
            }
            (_, Ok(_)) => Err(stale(&self.key)),
        }
    }

    /// One put of the whole object.
    async fn put(&self, payload: PutPayload, length: u64) -> Result<PutResult> {
        let mode = self.put_mode().await?;
        let limits = &self.shared.limits;
        let attempt = || {
            let options = PutOptions {
                mode: mode.clone(),
                attributes: attributes(self.tags),
                ..PutOptions::default()
            };
            limits.counters().count_written(length);
            let put = self.shared.store.objects.put_opts(&self.path, payload.clone(), options);
            put.map_err(|e| failed(&self.key, &e))
        };
        limits.call(Traffic::Write(length), attempt).await
    }

    async fn put_mode(&self) -> Result<PutMode> {
        let store = &self.shared.store;
        if !store.conditional_put {
            self.check().await?;
            return Ok(PutMode::Overwrite);
        }
        Ok(match &self.condition {
            Condition::Absent => PutMode::Create,
            // The generation belongs to the version that was just seen to be the right one.
            Condition::Version(_) if store.by_generation => {
                let version = self.look().await?.and_then(|meta| meta.version);
                PutMode::Update(UpdateVersion { e_tag: None, version })
            }
            Condition::Version(version) if is_strong(version) => {
                let e_tag = Some(version.as_str().to_owned());
                PutMode::Update(UpdateVersion { e_tag, version: None })
            }
            Condition::Version(_) => return Err(stale(&self.key)),
        })
    }

    async fn describe(&self, put: &PutResult, length: u64) -> Result<ObjectMeta> {
        match &put.e_tag {
            Some(tag) => Ok(ObjectMeta {
                key: self.key.clone(),
                length,
                version: tag_version(tag)?,
                modified: None,
                tags: Some(self.tags),
            }),
            None => self.shared.head(&self.key).await,
        }
    }

    /// A publication whose answer was lost looks like a conflict, or like an unknown upload, when
    /// it is repeated. What is there tells: tags are never used twice.
    async fn recognise(&self, error: Error, length: u64) -> Result<ObjectMeta> {
        if !matches!(error.kind(), Kind::Stale | Kind::NotFound | Kind::Io) {
            return Err(error);
        }
        match self.shared.head(&self.key).await {
            Ok(meta) if meta.tags == Some(self.tags) && meta.length == length => Ok(meta),
            _ if error.kind() == Kind::NotFound => Err(Kind::Io
                .error(format!("{}: the store lost the upload: start it again", self.key))
                .caused_by(error)),
            _ => Err(error),
        }
    }
}
