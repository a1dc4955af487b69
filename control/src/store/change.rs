use prost::Message;
use redb::{ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};

use super::record::{LAST_SCRUB, NEXT_JOB, RequestRecord};
use crate::clock::UnixMs;
use crate::proto;

/// Single values by name: see [`super::record`].
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Request id → what it was answered.
pub(super) const REQUESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("requests");
/// When a request id was answered, and the id: the order in which they are forgotten.
const AGES: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("request_ages");
/// Job number → the job as the protocol carries it.
pub(super) const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("jobs");
/// File and owner → until when, in milliseconds since 1970.
pub(super) const PINS: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("pins");

/// Request ids forgotten along with each one remembered, so that the work is spread out.
const FORGET_AT_ONCE: usize = 8;

/// A stored pin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PinRow {
    pub(crate) file: String,
    pub(crate) owner: String,
    pub(crate) until_ms: UnixMs,
}

/// One change of the database.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Stores a job, in place of what was there under its number.
    PutJob(u64, Box<proto::Job>),
    /// Notes that a job is to stop, unless it is over.
    CancelJob(u64),
    /// Forgets a job.
    DropJob(u64),
    /// Stores a pin, in place of what its owner had on the file.
    PutPin(PinRow),
    /// Forgets a pin, unless it has been replaced by one that lasts otherwise.
    DropPin(PinRow),
    /// Remembers what the last scrub found, and when it ended.
    Scrubbed(UnixMs, proto::ScrubReport),
    /// Remembers what a request id was answered.
    Remember(String, RequestRecord),
}

/// The tables, open for writing.
pub(super) struct Tables<'t> {
    pub(super) meta: Table<'t, &'static str, &'static [u8]>,
    requests: Table<'t, &'static str, &'static [u8]>,
    ages: Table<'t, (u64, &'static str), ()>,
    jobs: Table<'t, u64, &'static [u8]>,
    pins: Table<'t, (&'static str, &'static str), u64>,
}

impl<'t> Tables<'t> {
    /// Opens the tables, and makes those that are not there.
    pub(super) fn open(write: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: write.open_table(META)?,
            requests: write.open_table(REQUESTS)?,
            ages: write.open_table(AGES)?,
            jobs: write.open_table(JOBS)?,
            pins: write.open_table(PINS)?,
        })
    }

    /// Makes a change. `ttl_ms` and `most` bound the request ids remembered.
    pub(super) fn apply(
        &mut self,
        change: &Change,
        ttl_ms: u64,
        most: u64,
    ) -> Result<(), redb::Error> {
        match change {
            Change::PutJob(number, job) => {
                self.jobs.insert(number, job.encode_to_vec().as_slice())?;
                self.reserve_job(*number)?;
            }
            Change::CancelJob(number) => self.cancel_job(*number)?,
            Change::DropJob(number) => {
                self.jobs.remove(number)?;
            }
            Change::PutPin(pin) => {
                self.pins.insert((pin.file.as_str(), pin.owner.as_str()), pin.until_ms)?;
            }
            Change::DropPin(pin) => {
                let key = (pin.file.as_str(), pin.owner.as_str());
                let stored = self.pins.get(key)?.map(|until| until.value());
                if stored == Some(pin.until_ms) {
                    self.pins.remove(key)?;
                }
            }
            Change::Scrubbed(at, report) => {
                let mut bytes = at.to_le_bytes().to_vec();
                bytes.extend(report.encode_to_vec());
                self.meta.insert(LAST_SCRUB, bytes.as_slice())?;
            }
            Change::Remember(id, record) => self.remember(id, record, ttl_ms, most)?,
        }
        Ok(())
    }

    /// A number is never given to a second job, even after the first is forgotten.
    fn reserve_job(&mut self, number: u64) -> Result<(), redb::Error> {
        let stored = self.meta.get(NEXT_JOB)?.and_then(|bytes| bytes.value().try_into().ok());
        let next = number.saturating_add(1);
        if stored.map_or(0, u64::from_le_bytes) < next {
            self.meta.insert(NEXT_JOB, next.to_le_bytes().as_slice())?;
        }
        Ok(())
    }

    fn cancel_job(&mut self, number: u64) -> Result<(), redb::Error> {
        let stored = self.jobs.get(number)?.map(|bytes| proto::Job::decode(bytes.value()));
        // A damaged row is found and reported when the database is next loaded.
        let Some(Ok(mut job)) = stored else { return Ok(()) };
        if job.finished.is_none() {
            job.cancel_requested = true;
            self.jobs.insert(number, job.encode_to_vec().as_slice())?;
        }
        Ok(())
    }

    fn remember(
        &mut self,
        id: &str,
        record: &RequestRecord,
        ttl_ms: u64,
        most: u64,
    ) -> Result<(), redb::Error> {
        let bytes = record.encode_to_vec();
        let before = self.requests.insert(id, bytes.as_slice())?.map(|old| old.value().to_vec());
        if let Some(Ok(before)) = before.map(|old| RequestRecord::decode(old.as_slice())) {
            self.ages.remove((before.at_ms, id))?;
        }
        self.ages.insert((record.at_ms, id), ())?;
        for _ in 0..FORGET_AT_ONCE {
            let oldest = self.ages.first()?.map(|(age, _)| {
                let (at, id) = age.value();
                (at, id.to_owned())
            });
            let Some((at, oldest)) = oldest else { break };
            let expired = at.saturating_add(ttl_ms) <= record.at_ms;
            if !expired && self.ages.len()? <= most {
                break;
            }
            self.ages.remove((at, oldest.as_str()))?;
            self.requests.remove(oldest.as_str())?;
        }
        Ok(())
    }
}
