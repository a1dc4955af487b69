//! Pins: who protects which file from eviction, and until when.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use dataplane::{FileStatus, Handle};
use extent::{FileName, Kind, Result};
use parking_lot::Mutex;
use tokio::sync::{Mutex as TurnLock, Notify, OwnedMutexGuard};

use crate::clock::{UnixMs, now_ms};
use crate::store::{Change, PinRow, Store};

/// Locks that keep changes of the same file's pins apart.
const TURNS: usize = 64;
/// How long the timer sleeps at most: the wall clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Pins whose end is made durable together.
const EXPIRE_AT_ONCE: usize = 256;

/// A file and one of those who pin it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct PinKey {
    pub(crate) file: FileName,
    pub(crate) owner: String,
}

impl PinKey {
    fn row(&self, until_ms: UnixMs) -> PinRow {
        PinRow { file: self.file.to_string(), owner: self.owner.clone(), until_ms }
    }
}

/// Every pin of the node. What is here is also in the database, and the node knows of it.
pub(crate) struct Pins {
    handle: Arc<dyn Handle>,
    store: Arc<Store>,
    known: Mutex<Known>,
    turns: Vec<Arc<TurnLock<()>>>,
    /// The first pin to end may have changed.
    changed: Notify,
    most: usize,
}

#[derive(Default)]
struct Known {
    until: HashMap<PinKey, UnixMs>,
    order: BTreeSet<(UnixMs, PinKey)>,
}

impl Known {
    fn set(&mut self, key: &PinKey, until: Option<UnixMs>) {
        let before = match until {
            Some(until) => self.until.insert(key.clone(), until),
            None => self.until.remove(key),
        };
        if let Some(before) = before {
            self.order.remove(&(before, key.clone()));
        }
        if let Some(until) = until {
            self.order.insert((until, key.clone()));
        }
    }
}

impl Pins {
    pub(crate) fn new(handle: Arc<dyn Handle>, store: Arc<Store>, most: usize) -> Self {
        let turns = (0..TURNS).map(|_| Arc::default()).collect();
        Self { handle, store, known: Mutex::default(), turns, changed: Notify::new(), most }
    }

    /// Tells the node of every stored pin that has not ended, and forgets the others.
    ///
    /// # Errors
    /// What the node answers, but for [`Kind::NotFound`]: a file that is gone needs no pin.
    pub(crate) async fn restore(&self, rows: Vec<PinRow>) -> Result<()> {
        let mut gone = Vec::new();
        for row in rows {
            let key = PinKey { file: row.file.parse()?, owner: row.owner.clone() };
            let left = row.until_ms.saturating_sub(now_ms());
            if left == 0 {
                gone.push(Change::DropPin(row));
                continue;
            }
            match self.handle.pin(&key.file, &key.owner, Duration::from_millis(left)).await {
                Ok(_) => self.known.lock().set(&key, Some(row.until_ms)),
                Err(error) if error.kind() == Kind::NotFound => {
                    tracing::warn!(file = row.file, owner = row.owner, "a pinned file is gone");
                    gone.push(Change::DropPin(row));
                }
                Err(error) => {
                    return Err(error.while_doing(format!("pinning {} again", row.file)));
                }
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.store.commit(None, gone).await
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.known.lock().until.len() as u64
    }

    /// Pins a file on the node. The caller makes [`Repin::change`] durable and then calls
    /// [`Repin::keep`], or else [`Repin::undo`].
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Stale`] if `until` has passed; [`Kind::NoSpace`] if there are
    /// too many pins.
    pub(crate) async fn pin(self: &Arc<Self>, key: PinKey, until: UnixMs) -> Result<Repin> {
        let turn = self.turn(&key).await;
        let before = {
            let known = self.known.lock();
            let before = known.until.get(&key).copied();
            if before.is_none() && known.until.len() >= self.most {
                return Err(Kind::NoSpace.error(format!(
                    "the node has {} pins, and the most is {}: end some first",
                    known.until.len(),
                    self.most
                )));
            }
            before
        };
        let left = until.saturating_sub(now_ms());
        if left == 0 {
            return Err(Kind::Stale.error(format!(
                "the pin of {} ran out before its turn came: ask again with a longer ttl",
                key.file
            )));
        }
        let status = self.handle.pin(&key.file, &key.owner, Duration::from_millis(left)).await?;
        Ok(Repin { pins: Arc::clone(self), _turn: turn, key, before, after: Some(until), status })
    }

    /// Ends a pin on the node; otherwise as [`Pins::pin`].
    ///
    /// # Errors
    /// [`Kind::NotFound`] if that owner has none.
    pub(crate) async fn unpin(self: &Arc<Self>, key: PinKey) -> Result<Repin> {
        let turn = self.turn(&key).await;
        let before = self.known.lock().until.get(&key).copied();
        let status = match self.handle.unpin(&key.file, &key.owner).await {
            // It ended on the node just now, but not here yet.
            Err(error) if error.kind() == Kind::NotFound && before.is_some() => {
                self.handle.get(&key.file).await?
            }
            other => other?,
        };
        Ok(Repin { pins: Arc::clone(self), _turn: turn, key, before, after: None, status })
    }

    /// Pins a file, durably, for a job. Answers until when that owner had it pinned before.
    ///
    /// # Errors
    /// As [`Pins::pin`] and [`Store::commit`].
    pub(crate) async fn pin_for_job(
        self: &Arc<Self>,
        key: PinKey,
        until: UnixMs,
    ) -> Result<Option<UnixMs>> {
        let repin = self.pin(key, until).await?;
        // A pin that ends at the same millisecond is this job's own, from before a restart.
        let before = repin.before.filter(|before| *before != until);
        self.finish(repin).await?;
        Ok(before)
    }

    /// Gives an owner's pin back as it was before [`Pins::pin_for_job`].
    ///
    /// # Errors
    /// As [`Pins::pin`], [`Pins::unpin`] and [`Store::commit`].
    pub(crate) async fn unpin_for_job(
        self: &Arc<Self>,
        key: PinKey,
        before: Option<UnixMs>,
    ) -> Result<()> {
        let repin = match before.filter(|before| *before > now_ms()) {
            Some(before) => self.pin(key, before).await?,
            None => self.unpin(key).await?,
        };
        self.finish(repin).await
    }

    async fn finish(&self, repin: Repin) -> Result<()> {
        match self.store.commit(None, repin.change()).await {
            Ok(()) => repin.keep(),
            Err(error) => {
                repin.undo().await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends pins when their time is over, for ever.
    pub(crate) async fn expire(self: Arc<Self>) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let first = self.known.lock().order.first().map(|(until, _)| *until);
            let sleep = match first.map(|until| until.saturating_sub(now_ms())) {
                Some(0) => {
                    self.expire_due().await;
                    continue;
                }
                Some(left) => Duration::from_millis(left).min(LONGEST_SLEEP),
                None => LONGEST_SLEEP,
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    async fn expire_due(&self) {
        let now = now_ms();
        let due: Vec<_> = {
            let known = self.known.lock();
            let due = known.order.iter().take_while(|(until, _)| *until <= now);
            due.take(EXPIRE_AT_ONCE).cloned().collect()
        };
        let mut gone = Vec::with_capacity(due.len());
        for (until, key) in due {
            let _turn = self.turn(&key).await;
            if self.known.lock().until.get(&key) != Some(&until) {
                continue;
            }
            if let Err(error) = self.handle.unpin(&key.file, &key.owner).await
                && error.kind() != Kind::NotFound
            {
                // The node keeps the time too, so the pin ends there by itself.
                tracing::warn!(%error, file = %key.file, owner = key.owner, "ending a pin");
            }
            self.known.lock().set(&key, None);
            gone.push(Change::DropPin(key.row(until)));
        }
        if !gone.is_empty()
            && let Err(error) = self.store.commit(None, gone).await
        {
            // They are past their time and will be dropped at the next start.
            tracing::warn!(%error, "forgetting pins that have ended");
        }
    }

    async fn turn(&self, key: &PinKey) -> OwnedMutexGuard<()> {
        let stripe = usize::try_from(key.file.id().0 % TURNS as u128).expect("below 64");
        Arc::clone(&self.turns[stripe]).lock_owned().await
    }
}

/// A pin made or ended on the node and not yet in the database. Nobody else changes this file's
/// pins meanwhile.
pub(crate) struct Repin {
    pins: Arc<Pins>,
    _turn: OwnedMutexGuard<()>,
    key: PinKey,
    before: Option<UnixMs>,
    after: Option<UnixMs>,
    status: FileStatus,
}

impl Repin {
    /// The file afterwards.
    pub(crate) fn status(&self) -> &FileStatus {
        &self.status
    }

    /// What is to be made durable.
    pub(crate) fn change(&self) -> Vec<Change> {
        match (self.after, self.before) {
            (Some(until), _) => vec![Change::PutPin(self.key.row(until))],
            (None, Some(before)) => vec![Change::DropPin(self.key.row(before))],
            (None, None) => Vec::new(),
        }
    }

    /// It is durable.
    pub(crate) fn keep(self) {
        self.pins.known.lock().set(&self.key, self.after);
        self.pins.changed.notify_one();
    }

    /// It could not be made durable: the node gets the state from before back.
    pub(crate) async fn undo(self) {
        let (handle, key) = (&self.pins.handle, &self.key);
        let undone = match self.before {
            Some(before) => {
                let left = Duration::from_millis(before.saturating_sub(now_ms()));
                handle.pin(&key.file, &key.owner, left).await
            }
            None => handle.unpin(&key.file, &key.owner).await,
        };
        if let Err(error) = undone {
            tracing::warn!(%error, file = %key.file, owner = key.owner, "taking a pin back");
        }
    }
}
