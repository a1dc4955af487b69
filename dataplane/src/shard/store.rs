//! What a shard does for the mover: extents to and from devices.

use std::ops::Range;
use std::sync::Arc;

use dma::{Buffer, Source, Target};
use extent::{Kind, Result};
use nvme_tier::device::{Command, Completion, Location};
use nvme_tier::{Extent, Reservation};
use tokio::sync::oneshot;

use super::{Op, Shard};
use crate::inbox::Fetched;

/// An operation for the mover. A receiver that is gone has lost interest; the memory comes back
/// all the same.
pub(super) enum MoverOp {
    Store {
        reservation: Reservation,
        done: oneshot::Sender<Result<Reservation>>,
    },
    Load {
        extent: Extent,
        first_block: usize,
        done: oneshot::Sender<Result<Buffer>>,
    },
    /// The extent is held meanwhile, so that the descriptor stays where it is.
    LoadDescriptor {
        extent: Extent,
        done: oneshot::Sender<Result<Buffer>>,
    },
    /// The extent is kept so that its slot is nobody else's.
    Mend {
        extent: Extent,
        done: oneshot::Sender<Result<()>>,
    },
}

impl Shard {
    pub(super) fn store(
        &mut self,
        reservation: Reservation,
        fetched: &Arc<Fetched>,
        done: oneshot::Sender<Result<Reservation>>,
    ) {
        let block = self.node.tier.checksum_block_bytes() as usize;
        let padded = fetched.length.next_multiple_of(block);
        let from = Source::Frozen(Arc::clone(&fetched.buffer), 0..padded);
        let at = reservation.at();
        let op = MoverOp::Store { reservation, done };
        self.submit(Op::Mover(op), Command::Write { at, from });
    }

    pub(super) fn load(
        &mut self,
        extent: Extent,
        blocks: Range<u32>,
        buffer: Buffer,
        done: oneshot::Sender<Result<Buffer>>,
    ) {
        let block = self.node.tier.checksum_block_bytes();
        let (from, bytes) = (extent.at(), (blocks.len() * block as usize));
        let offset = from.offset + u64::from(blocks.start) * u64::from(block);
        let (at, into) = (Location { offset, ..from }, Target::Buffer(buffer, 0..bytes));
        let op = MoverOp::Load { extent, first_block: blocks.start as usize, done };
        self.submit(Op::Mover(op), Command::Read { at, into });
    }

    pub(super) fn load_descriptor(
        &mut self,
        extent: Extent,
        buffer: Buffer,
        done: oneshot::Sender<Result<Buffer>>,
    ) {
        let (at, bytes) = extent.descriptor();
        let into = Target::Buffer(buffer, 0..bytes);
        self.submit(
            Op::Mover(MoverOp::LoadDescriptor { extent, done }),
            Command::Read { at, into },
        );
    }

    pub(super) fn mend(
        &mut self,
        extent: Extent,
        blocks: Range<u32>,
        buffer: Buffer,
        done: oneshot::Sender<Result<()>>,
    ) {
        let block = self.node.tier.checksum_block_bytes();
        let (to, bytes) = (extent.at(), blocks.len() * block as usize);
        let offset = to.offset + u64::from(blocks.start) * u64::from(block);
        let (at, from) = (Location { offset, ..to }, Source::Buffer(buffer, 0..bytes));
        let op = MoverOp::Mend { extent, done };
        self.submit(Op::Mover(op), Command::Write { at, from });
    }

    pub(super) fn on_mover_io(&mut self, op: MoverOp, completion: Completion) {
        match op {
            MoverOp::Store { reservation, done } => {
                let _ = done.send(completion.result.map(|()| reservation));
            }
            MoverOp::Mend { extent, done } => {
                drop(extent);
                let _ = done.send(completion.result);
            }
            MoverOp::Load { extent, first_block, done } => {
                let Command::Read { into, .. } = completion.command else {
                    unreachable!("a read comes back as a read")
                };
                let block = self.node.tier.checksum_block_bytes() as usize;
                let result = completion.result.and_then(|()| {
                    let blocks = first_block..first_block + into.length().div_ceil(block);
                    let expected = extent.checksums_of(blocks).expect("the mover sees to that");
                    match into.first_mismatch(block, expected) {
                        None => Ok(into.into_buffer().expect("loaded into a buffer")),
                        Some(bad) => {
                            self.stats.checksum_errors.add(1);
                            Err(Kind::Corrupt.error(format!("block {bad} of an extent is damaged")))
                        }
                    }
                });
                let _ = done.send(result);
            }
            MoverOp::LoadDescriptor { extent, done } => {
                let Command::Read { into, .. } = completion.command else {
                    unreachable!("a read comes back as a read")
                };
                drop(extent);
                let buffer = into.into_buffer().expect("loaded into a buffer");
                let _ = done.send(completion.result.map(|()| buffer));
            }
        }
    }
}
