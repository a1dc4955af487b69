//! Descriptors that are read because checksums are not in memory, beside the data that waits for
//! them. Whoever wants the same one meanwhile waits for the same read.

use std::collections::HashMap;
use std::sync::Arc;

use dma::{Buffer, Target};
use nvme_tier::device::{Command, Completion, Location};
use nvme_tier::{Extent, FileGeneration};

use super::read::ReadOp;
use super::recall::Damage;
use super::{Op, Shard};
use crate::slots::Key;

/// The descriptors on their way, by their places. Each entry's extent is held, so that nothing else
/// comes to that place meanwhile.
pub(super) type Descriptors = HashMap<Location, Key>;

/// A descriptor on its way. There are at most as many as chunks, and those are bounded.
pub(super) struct DescriptorRead {
    generation: Arc<FileGeneration>,
    extent: Extent,
    /// Chunks that want it and whose data is on its way, too, or was when they came.
    flying: Vec<Key>,
    /// Chunks whose data is here.
    landed: Vec<(ReadOp, Completion)>,
}

/// What a chunk needs besides its data.
pub(super) enum Needs {
    /// Its checksums are in memory.
    Nothing,
    /// Its descriptor is on its way.
    Descriptor,
    /// Its descriptor is to be read into this.
    Buffer(Buffer),
}

impl Shard {
    /// What it takes to verify an extent; `None` if there is no buffer for it now.
    pub(super) fn needs(&self, extent: &Extent) -> Option<Needs> {
        if extent.has_checksums() {
            return Some(Needs::Nothing);
        }
        let (at, bytes) = extent.descriptor();
        if self.descriptors.contains_key(&at) {
            return Some(Needs::Descriptor);
        }
        self.pool.take(bytes).map(Needs::Buffer)
    }

    /// Has a chunk that was just submitted verified by what it needs.
    pub(super) fn promise(
        &mut self,
        chunk: Key,
        generation: Arc<FileGeneration>,
        extent: &Extent,
        needs: Needs,
    ) {
        let buffer = match needs {
            Needs::Nothing => return,
            Needs::Descriptor => None,
            Needs::Buffer(buffer) => Some(buffer),
        };
        self.stats.checksum_misses.add(1);
        let (at, bytes) = extent.descriptor();
        if let Some(buffer) = buffer {
            let read = DescriptorRead {
                generation,
                extent: extent.clone(),
                flying: vec![chunk],
                landed: Vec::new(),
            };
            let into = Target::Buffer(buffer, 0..bytes);
            let key = self.submit(Op::Descriptor(read), Command::Read { at, into });
            self.descriptors.insert(at, key);
        } else if let Some(read) = self.descriptor_at(at) {
            read.flying.push(chunk);
        }
    }

    /// A chunk's data is here before its descriptor.
    pub(super) fn wait_for_descriptor(&mut self, at: Location, op: ReadOp, completion: Completion) {
        let read = self.descriptor_at(at).expect("it tells all that fly when it comes");
        read.landed.push((op, completion));
    }

    pub(super) fn on_descriptor_read(&mut self, read: DescriptorRead, completion: Completion) {
        let DescriptorRead { generation, extent, flying, landed } = read;
        self.descriptors.remove(&extent.descriptor().0);
        let Command::Read { into, .. } = completion.command else {
            unreachable!("a read comes back as a read")
        };
        let found = completion.result.and_then(|()| {
            let buffer = into.into_buffer().expect("read into a buffer");
            generation.believe(&extent, &buffer.as_slice()[..extent.descriptor().1])
        });
        match &found {
            Ok(extent) => extent.keep_checksums(),
            Err(error) => tracing::warn!(%error, "reading an extent's descriptor failed"),
        }
        let tell = |op: &mut ReadOp| {
            let ReadOp::Chunk { extent, doubt, .. } = op else { return };
            match &found {
                Ok(found) => *extent = found.clone(),
                Err(error) => *doubt = Some(Damage::Descriptor(error.duplicate())),
            }
        };
        for key in flying {
            if let Some(Op::Read(op)) = self.ops.get_mut(key) {
                tell(op);
            }
        }
        for (mut op, completion) in landed {
            tell(&mut op);
            self.on_chunk_read(op, completion);
        }
    }

    fn descriptor_at(&mut self, at: Location) -> Option<&mut DescriptorRead> {
        match self.ops.get_mut(*self.descriptors.get(&at)?)? {
            Op::Descriptor(read) => Some(read),
            _ => None,
        }
    }
}
