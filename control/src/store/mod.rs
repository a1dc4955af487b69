//! What must survive a crash: jobs, request ids and what they were answered, pins, the highest
//! controller epoch, and the identity shared with the tier.
//!
//! One thread writes. It takes whatever has queued up, applies it in one transaction and makes that
//! durable once, so that many requests share a flush. Nothing is answered before its commit is.

mod change;
mod record;
mod writer;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use extent::{Epoch, Error, Kind, Result};
use parking_lot::Mutex;
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable};
use tokio::sync::{mpsc, oneshot};

use crate::clock::{UnixMs, millis};
use crate::proto;

pub(crate) use change::{Change, PinRow};
pub(crate) use record::{Outcome, RequestRecord};

use writer::{Batch, Writer};

/// Batches waiting for the writer. Beyond that, requests wait to hand theirs over.
const QUEUE: usize = 1024;
/// Bytes of database pages kept in memory.
const CACHE_BYTES: usize = 64 << 20;
/// The layout of the tables. A database of another one is refused.
const SCHEMA: u64 = 1;

/// How long and how many request ids are remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) ttl: Duration,
    pub(crate) most: u64,
}

/// What the database holds when it is opened.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Jobs, oldest first.
    pub(crate) jobs: Vec<(u64, proto::Job)>,
    /// Pins, whether still valid or not.
    pub(crate) pins: Vec<PinRow>,
    /// The number that no job has had yet.
    pub(crate) next_job: u64,
    /// When the last scrub ended, and what it found.
    pub(crate) last_scrub: Option<(UnixMs, proto::ScrubReport)>,
}

/// A database, and `None` while there is none that works, or never again.
type Shared = Arc<Mutex<Option<Arc<Database>>>>;

/// Opens a database that is there.
type Opener = Box<dyn Fn() -> Result<Database> + Send>;

/// The open database.
pub(crate) struct Store {
    database: Shared,
    inbox: Mutex<Option<mpsc::Sender<Batch>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    epoch: Arc<AtomicU64>,
    identity: u128,
    memory: Memory,
}

impl Store {
    /// Opens the database at `path`, or makes it. Blocks.
    ///
    /// # Errors
    /// [`Kind::Denied`] if it belongs to another tier or is open elsewhere; [`Kind::Corrupt`],
    /// [`Kind::Unsupported`] or [`Kind::Io`] if it cannot be read.
    pub(crate) fn open(path: &Path, expected: Option<u128>, memory: Memory) -> Result<Self> {
        let place = || format!("opening the control database {}", path.display());
        if !path.exists() {
            make(path).map_err(|e| e.while_doing(place()))?;
        }
        let at = path.to_owned();
        let open = move || {
            let database = Database::builder().set_cache_size(CACHE_BYTES).open(&at);
            database.map_err(failed)
        };
        Self::with(Box::new(open), expected, memory).map_err(|e| e.while_doing(place()))
    }

    fn with(open: Opener, expected: Option<u128>, memory: Memory) -> Result<Self> {
        let database = open()?;
        let (identity, epoch) = record::meta(&database, expected)?;
        let database: Shared = Arc::new(Mutex::new(Some(Arc::new(database))));
        let (inbox, batches) = mpsc::channel(QUEUE);
        let epoch = Arc::new(AtomicU64::new(epoch));
        let writer = Writer {
            database: Arc::clone(&database),
            open,
            identity,
            batches,
            epoch: Arc::clone(&epoch),
            memory,
        };
        let thread = std::thread::Builder::new()
            .name("control-store".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::io("starting the control database's thread", e))?;
        Ok(Self {
            database,
            inbox: Mutex::new(Some(inbox)),
            writer: Mutex::new(Some(thread)),
            epoch,
            identity,
            memory,
        })
    }

    /// The identity shared with the tier.
    pub(crate) fn identity(&self) -> u128 {
        self.identity
    }

    /// The highest controller epoch seen.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Refuses an epoch below the highest seen; makes a higher one the highest, durably.
    ///
    /// # Errors
    /// [`Kind::Fenced`]; as [`Store::commit`].
    pub(crate) async fn fence(&self, epoch: Epoch) -> Result<()> {
        if epoch == self.epoch() {
            return Ok(());
        }
        self.commit(Some(epoch), Vec::new()).await
    }

    /// Makes changes durable, all of them or none. `fence` is the epoch of the controller they are
    /// made for, checked once more.
    ///
    /// # Errors
    /// [`Kind::Fenced`]; [`Kind::Io`] if the database cannot be written: the changes may be there
    /// later or not, and the next commit opens it again; [`Kind::Disconnected`] once closed.
    pub(crate) async fn commit(&self, fence: Option<Epoch>, changes: Vec<Change>) -> Result<()> {
        let inbox = self.inbox.lock().clone().ok_or_else(closed)?;
        let (reply, answer) = oneshot::channel();
        let batch = Batch { fence, changes, reply };
        inbox.send(batch).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// What a request id was answered; `None` if it is new or forgotten.
    ///
    /// # Errors
    /// [`Kind::Io`], [`Kind::Corrupt`], [`Kind::Disconnected`].
    pub(crate) async fn request(&self, id: &str, now: UnixMs) -> Result<Option<RequestRecord>> {
        let (database, id) = (self.database(), id.to_owned());
        let ttl = millis(self.memory.ttl);
        let found = blocking(move || {
            let database = database?;
            let requests = database.begin_read().map_err(failed)?.open_table(change::REQUESTS);
            let found = requests.map_err(failed)?.get(id.as_str()).map_err(failed)?;
            found.map(|bytes| decode::<RequestRecord>("a request", bytes.value())).transpose()
        });
        let found = found.await;
        if found.as_ref().is_err_and(|error| error.kind() == Kind::Io) {
            // What cannot be read is opened again by who writes.
            let _ = self.commit(None, Vec::new()).await;
        }
        Ok(found?.filter(|record| record.at_ms.saturating_add(ttl) > now))
    }

    /// Everything that is to be taken up again.
    ///
    /// # Errors
    /// [`Kind::Io`], [`Kind::Corrupt`], [`Kind::Disconnected`].
    pub(crate) async fn load(&self) -> Result<Loaded> {
        let database = self.database()?;
        blocking(move || {
            let read = database.begin_read().map_err(failed)?;
            let mut loaded = Loaded::default();
            for row in read.open_table(change::JOBS).map_err(failed)?.iter().map_err(failed)? {
                let (number, bytes) = row.map_err(failed)?;
                let job = decode("a job", bytes.value())?;
                loaded.jobs.push((number.value(), job));
            }
            for row in read.open_table(change::PINS).map_err(failed)?.iter().map_err(failed)? {
                let (key, until) = row.map_err(failed)?;
                let (file, owner) = key.value();
                let (file, owner) = (file.to_owned(), owner.to_owned());
                loaded.pins.push(PinRow { file, owner, until_ms: until.value() });
            }
            let meta = read.open_table(change::META).map_err(failed)?;
            loaded.next_job = record::number(&meta, record::NEXT_JOB)?.unwrap_or(1);
            loaded.last_scrub = record::last_scrub(&meta)?;
            Ok(loaded)
        })
        .await
    }

    /// Finishes what was handed over and closes the file. Later calls answer
    /// [`Kind::Disconnected`].
    pub(crate) async fn close(&self) {
        drop(self.inbox.lock().take());
        let writer = self.writer.lock().take();
        let joined = tokio::task::spawn_blocking(move || writer.map(JoinHandle::join)).await;
        if !matches!(joined, Ok(None | Some(Ok(())))) {
            tracing::error!("the control database's thread panicked");
        }
        drop(self.database.lock().take());
    }

    fn database(&self) -> Result<Arc<Database>> {
        let is_open = self.inbox.lock().is_some();
        let database = self.database.lock().clone();
        database.ok_or_else(|| if is_open { out_of_order() } else { closed() })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Kind::Io.error("reading the control database").caused_by(e)))
}

fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(|e| {
        let sentence = format!("{what} in the control database is damaged: restore the file");
        Kind::Corrupt.error(sentence).caused_by(e)
    })
}

fn closed() -> Error {
    Kind::Disconnected.error("the control plane is stopping: ask again when the node is back")
}

fn out_of_order() -> Error {
    Kind::Io.error("the control database failed, and is opened again with each request: the node's log says why")
}

/// An error of the database, in the shared vocabulary.
fn failed(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::DatabaseAlreadyOpen => Kind::Denied
            .error("another process has the control database open: stop that node first"),
        redb::Error::Corrupted(what) => Kind::Corrupt
            .error(format!("the control database is damaged ({what}): restore it from a copy")),
        redb::Error::UpgradeRequired(version) => Kind::Unsupported.error(format!(
            "the control database has file format {version}, which this version cannot read"
        )),
        error => Kind::Io.error("the control database failed").caused_by(error),
    }
}

/// Makes an empty database, which gets its name when it is whole: half of one would never open.
fn make(path: &Path) -> Result<()> {
    let draft = path.with_added_extension("unfinished");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("removing what was begun before", error));
        }
        _ => {}
    }
    drop(Database::builder().create(&draft).map_err(failed)?);
    std::fs::rename(&draft, path).map_err(|e| Error::io("naming it", e))?;
    sync_parent(path)
}

/// Makes a new file's name durable.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|e| Error::io(format!("flushing the directory {}", parent.display()), e))
}

#[cfg(test)]
mod tests;
