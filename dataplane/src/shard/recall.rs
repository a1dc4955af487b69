//! What a read does about extents that are not here, or not intact.

use std::sync::Arc;

use dma::{Frozen, Source};
use extent::wire::Served;
use extent::{Error, Kind, Result};
use nvme_tier::{Extent, FileGeneration, Mark, State};

use super::open::busy_mover;
use super::part::Part;
use super::read::{ReadOp, Step};
use super::{Op, Request, Shard};
use crate::bugs::{self, Bug};
use crate::inbox::Fetched;
use crate::looks::Next;
use crate::mover::Demand;
use crate::slots::Key;

/// How often damage is repaired within one read before it is believed.
const MAX_REPAIRS: u8 = 3;

/// Why what a device read cannot be used.
pub(super) enum Damage {
    /// A block's checksum does not hold.
    Checksum,
    /// The device said so itself.
    Device(Error),
    /// Its checksums were not in memory, and cannot be had from its descriptor.
    Descriptor(Error),
}

impl Shard {
    /// A checksum that does not hold, or a device that could not read. In a client's memory it is
    /// a hint only, for the client may have written there: read once more into our own.
    pub(super) fn on_damage(
        &mut self,
        key: Key,
        extent: &Extent,
        damage: Damage,
        hint: bool,
        part: Part,
        held: u64,
    ) {
        if hint {
            if let Some(Request::Read(request)) = self.requests.get_mut(key) {
                request.direct = false;
                request.again.push(part);
            }
            return self.end_read_op(key, held, Ok(()));
        }
        let Some(Request::Read(request)) = self.requests.get_mut(key) else { return };
        let generation = Arc::clone(&request.generation);
        if generation.state() == State::Clean && !self.node.tier.is_resident(&generation, extent) {
            // Another piece of it was damaged, too, and it was dropped for that: once is enough.
            request.again.push(part);
            return self.end_read_op(key, held, Ok(()));
        }
        self.stats.checksum_errors.add(1);
        let result =
            match generation.state() {
                State::Dirty => self.look_again(key, extent, damage, part),
                State::Clean if request.repairs >= MAX_REPAIRS => Err(Kind::Io
                    .error("an extent stays damaged after repair: the device needs replacing")),
                State::Clean => {
                    let file = generation.file_id();
                    tracing::warn!(%file, "a clean extent is damaged: repairing");
                    request.repairs += 1;
                    request.again.push(Part::new(part.at, part.length));
                    self.node.tier.discard(&generation, extent);
                    Ok(())
                }
            };
        self.end_read_op(key, held, result);
    }

    /// Nobody else has these bytes: it may have been the bus, and there may be a second copy. What reads
    /// damaged in every copy is lost. But where a device could not read its copy, that may be sound, and
    /// the device come back: nothing is set aside for good.
    fn look_again(&mut self, key: Key, extent: &Extent, damage: Damage, part: Part) -> Result<()> {
        let Some(Request::Read(request)) = self.requests.get_mut(key) else { return Ok(()) };
        let generation = Arc::clone(&request.generation);
        let tier = &self.node.tier;
        let has_copy = generation.copy(extent.index()).is_some();
        let elsewhere = !has_copy && generation.is_twice() && tier.is_incomplete();
        match part.looks.after(!matches!(damage, Damage::Checksum), has_copy) {
            Next::Again(looks) => {
                let block = u64::from(tier.checksum_block_bytes());
                let part = Part { looks, ..part };
                request.again.extend(part.pieces(request.range.offset(), block));
                Ok(())
            }
            Next::Lost if !elsewhere => {
                let file = generation.file_id();
                tracing::error!(%file, "a dirty extent is damaged: quarantined");
                let quarantined = Some(Mark::Quarantined);
                tier.mark(&generation, quarantined, nvme_tier::Done::ignore());
                Err(Kind::Corrupt.error(
                    "data loss: an extent that only this node has is damaged; its file is quarantined",
                ))
            }
            Next::Lost | Next::Unreadable => Err(match damage {
                Damage::Device(error) | Damage::Descriptor(error) => error,
                Damage::Checksum => Kind::Io.error(
                    "an extent is damaged, and its second copy is on a device that cannot be read: \
                     bring that one back",
                ),
            }),
        }
    }

    /// A read was served from a second copy, since the first one does not hold.
    pub(super) fn note_second_copy(&mut self, key: Key) {
        self.stats.second_copy_reads.add(1);
        if let Some(Request::Read(request)) = self.requests.get_mut(key) {
            self.node.tier.note_missing_copy(&request.generation);
        }
    }

    /// Asks the mover for an extent that is not here.
    pub(super) fn recall(
        &mut self,
        key: Key,
        generation: &Arc<FileGeneration>,
        step: &Step,
    ) -> Result<u64> {
        let held = u64::from(generation.extent_length(step.index));
        if !self.may_hold(key, held) {
            return Ok(0);
        }
        let op = ReadOp::Recall {
            request: key,
            within: step.within,
            at: step.at,
            length: step.length,
            held,
        };
        let op = self.ops.insert(Op::Read(op));
        let demand = Demand::Recall {
            generation: Arc::clone(generation),
            index: step.index,
            inbox: Arc::clone(&self.inbox),
            op,
        };
        if self.node.demands.try_send(demand).is_err() {
            self.ops.remove(op);
            return Err(busy_mover());
        }
        self.stats.misses.add(1);
        self.hold(key, held);
        if let Some(Request::Read(request)) = self.requests.get_mut(key) {
            request.outstanding += 1;
        }
        Ok(step.length)
    }

    pub(super) fn on_arrived(
        &mut self,
        op: Key,
        result: Result<Option<Arc<Fetched>>>,
        joined: bool,
    ) {
        let Some(Op::Read(ReadOp::Recall { request: key, within, at, length, mut held })) =
            self.ops.remove(op)
        else {
            unreachable!("the mover answered what it was not asked")
        };
        let Some(Request::Read(request)) = self.requests.get_mut(key) else { return };
        let result = match result {
            Ok(Some(fetched)) => {
                let served = match (request.repairs, joined) {
                    (1.., _) => Served::Repair,
                    (0, true) => Served::Arriving,
                    (0, false) => Served::Recall,
                };
                request.served = request.served.max(served);
                if served == Served::Repair {
                    self.stats.repairs.add(1);
                }
                let within = if bugs::is(Bug::ExtentStartServed) { 0 } else { within };
                let begin = usize::try_from(within).expect("within an extent");
                let end = begin + usize::try_from(length).expect("within an extent");
                if end <= fetched.length {
                    let from = Source::Frozen(Frozen::clone(&fetched.buffer), begin..end);
                    self.push(key, at, from, std::mem::take(&mut held));
                    Ok(())
                } else {
                    Err(Kind::Io.error("a silo gave less than the extent holds"))
                }
            }
            // It had been published meanwhile: read it from the tier.
            Ok(None) => {
                request.again.push(Part::new(at, length));
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.end_read_op(key, held, result);
    }
}
