use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use extent::{Epoch, Error, Kind, Result};
use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::change::{Change, Tables};
use super::record::{self, EPOCH};
use super::{Memory, Opener, Shared, failed, out_of_order};
use crate::clock::millis;

/// How often it is looked whether readers are done.
const PAUSE: Duration = Duration::from_millis(1);
/// Batches that share a commit, at most.
const GROUP: usize = 256;

/// Changes that are made together or not at all.
pub(super) struct Batch {
    /// The epoch of the controller they are made for.
    pub(super) fence: Option<Epoch>,
    pub(super) changes: Vec<Change>,
    pub(super) reply: oneshot::Sender<Result<()>>,
}

/// The thread that writes.
pub(super) struct Writer {
    pub(super) database: Shared,
    pub(super) open: Opener,
    pub(super) identity: u128,
    pub(super) batches: mpsc::Receiver<Batch>,
    /// The highest epoch whose commit is durable. Only this thread stores it.
    pub(super) epoch: Arc<AtomicU64>,
    pub(super) memory: Memory,
}

impl Writer {
    /// Writes until nobody can hand over batches any more.
    pub(super) fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP);
        while self.batches.blocking_recv_many(&mut group, GROUP) > 0 {
            let answers = match self.commit(&group) {
                Ok(answers) => answers,
                Err(error) => {
                    tracing::error!(%error, "control changes were not made durable");
                    // It takes nothing any more, not even when there is room again.
                    self.open_again();
                    group.iter().map(|_| Err(error.duplicate())).collect()
                }
            };
            for (batch, answer) in group.drain(..).zip(answers) {
                // Whoever asked may have gone.
                let _ = batch.reply.send(answer);
            }
        }
    }

    /// Replaces a database that failed by what is on the disk.
    fn open_again(&self) {
        let mut old = self.database.lock().take();
        // Readers are soon done with it, and it can be open but once.
        while let Some(shared) = old.take() {
            old = Arc::try_unwrap(shared).err();
            if old.is_some() {
                thread::sleep(PAUSE);
            }
        }
        let opened = (self.open)().and_then(|database| {
            let (_, epoch) = record::meta(&database, Some(self.identity))?;
            Ok((database, epoch))
        });
        match opened {
            Ok((database, epoch)) => {
                tracing::info!("the control database is open again");
                self.epoch.fetch_max(epoch, Ordering::AcqRel);
                *self.database.lock() = Some(Arc::new(database));
            }
            Err(error) => tracing::error!(%error, "the control database does not open again"),
        }
    }

    fn commit(&self, group: &[Batch]) -> Result<Vec<Result<()>>> {
        if self.database.lock().is_none() {
            self.open_again();
        }
        let database = self.database.lock().clone().ok_or_else(out_of_order)?;
        self.commit_to(&database, group).map_err(failed)
    }

    /// Applies a group in one durable transaction. The answers are those of the single batches; an
    /// error is everybody's.
    fn commit_to(
        &self,
        database: &Database,
        group: &[Batch],
    ) -> Result<Vec<Result<()>>, redb::Error> {
        let before = self.epoch.load(Ordering::Relaxed);
        let mut epoch = before;
        let mut dirty = false;
        let mut answers = Vec::with_capacity(group.len());
        let write = database.begin_write()?;
        {
            let mut tables = Tables::open(&write)?;
            let ttl_ms = millis(self.memory.ttl);
            for batch in group {
                if let Some(Epoch(fence)) = batch.fence {
                    if fence < epoch {
                        answers.push(Err(fenced(fence, epoch)));
                        continue;
                    }
                    epoch = fence;
                }
                for change in &batch.changes {
                    tables.apply(change, ttl_ms, self.memory.most)?;
                    dirty = true;
                }
                answers.push(Ok(()));
            }
            if epoch > before {
                tables.meta.insert(EPOCH, epoch.to_le_bytes().as_slice())?;
                dirty = true;
            }
        }
        if dirty {
            write.commit()?;
            self.epoch.store(epoch, Ordering::Release);
        } else {
            write.abort()?;
        }
        Ok(answers)
    }
}

fn fenced(epoch: u64, highest: u64) -> Error {
    Kind::Fenced.error(format!(
        "controller epoch {epoch} is over, a controller with epoch {highest} has taken over: stop, or come back with a higher one"
    ))
}
